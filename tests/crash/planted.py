"""Bugs on purpose: each is a replacement in a copy of ``src``, and each must turn a run red.

A checker that never failed proves nothing.  Every patch must fit exactly once, or the run fails;
the same orders without a patch must be clean, or "caught" means nothing."""

from __future__ import annotations

import shutil
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.crash import batch, gtx
from tests.crash.cdc_faults import cdc_scenes
from tests.crash.cdc_stage import CAPTURES
from tests.crash.defer import defer_rows
from tests.crash.faults import UNFENCED, scenes
from tests.crash.orders import SHORT, Orders
from tests.crash.pairs import PAIRS, Place, has_one_writer, run_pair
from tests.crash.report import Result

SQLITE, POSTGRES = PAIRS
KILLS = 24
MINUTES = 5.0
MESSAGES = 900


@dataclass(frozen=True)
class Bug:
    """One planted bug. changes: (file below src/duly, what stands there once, what is put
    there)."""

    name: str
    pair: str
    points: tuple[str, ...]
    changes: tuple[tuple[str, str, str], ...]
    kills: int = KILLS
    meddle: bool = False
    scene: str = ""  # of ``faults``, instead of the kill loop
    expected: tuple[str, ...] = field(
        default=("lost", "unexpected", "order_breaks", "unexplained", UNFENCED)
    )

    @property
    def row(self) -> str:
        """The name of its scene's row."""
        return " ".join(dict.fromkeys(("crash", self.pair, self.scene)))


def read_bugs() -> tuple[Bug, ...]:
    """The bugs of ``planted.toml``."""
    found = []
    for table in tomllib.loads(Path(__file__).with_suffix(".toml").read_text())["bug"]:
        changes = tuple((c["file"], c["old"], c["new"]) for c in table.pop("change"))
        found.append(Bug(**{**table, "points": tuple(table["points"]), "changes": changes}))
    return tuple(found)


BUGS = read_bugs()


def plant(bug: Bug, source: Path, folder: Path) -> Path:
    """A copy of ``source`` with the bug. Raises ValueError when a change does not fit exactly
    once."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file, old, new in bug.changes:
        path = folder / "duly" / file
        text = path.read_text()
        if text.count(old) != 1:
            raise ValueError(
                f"{bug.name}: {text.count(old)} places in {file} look like {old[:60]!r}"
            )
        path.write_text(text.replace(old, new))
    return folder


def run_bug(bug: Bug, place: Place, *, seed: int) -> tuple[Result, str]:
    """The run with the bug, and which check caught it; empty when none did."""
    source = plant(
        bug, place.source, place.folder / f"planted-{bug.name.replace(' ', '-')}" / "src"
    )
    quiet = Place(place.folder, source, quiet=True)
    if bug.scene:
        result = every_scene(seed, quiet)[bug.row]()
    else:
        result = run_pair(bug.pair, orders(bug, seed), quiet, name=f"planted {bug.name}")
    shutil.rmtree(source.parent, ignore_errors=True)  # made anew by every run
    found = [problem for problem in result.problems if problem.startswith(bug.expected)]
    return result, found[0] if found else ""


def every_scene(seed: int, place: Place) -> dict[str, Callable[[], Result]]:
    """The rows that are no kill loop, by name."""
    found = scenes(seed, place) | cdc_scenes(seed, place) | gtx.scenes(seed, place, kills=KILLS)
    found |= batch.scenes(seed, place, kills=KILLS)
    return found | defer_rows(KILLS, seed, place)


def orders(bug: Bug, seed: int) -> Orders:
    """Small, at the bug's own failpoints."""
    few, captures = has_one_writer(bug.pair), bug.pair in CAPTURES
    return Orders(
        bug.kills, seed, slow_kills=0, workers=3 if captures else 2, minutes=MINUTES,
        points=bug.points, writers=1 if few else 2, lease=SHORT,
        settle_seconds=60.0 if captures else 25.0,
        meddle=bug.meddle or captures, least_messages=MESSAGES,
    )  # fmt: skip


def controls(bugs: Sequence[Bug], seed: int, place: Place) -> Iterator[Result]:
    """The runs of these bugs without any of them; each must be clean."""
    quiet = Place(place.folder, place.source, quiet=True)
    for pair in dict.fromkeys(bug.pair for bug in bugs if not bug.scene):
        yield control(pair, seed, place, bugs)
    for name in dict.fromkeys(bug.row for bug in bugs if bug.scene):
        yield every_scene(seed, quiet)[name]()


def control(pair: str, seed: int, place: Place, bugs: Sequence[Bug] = BUGS) -> Result:
    """The same orders without a bug, for all bugs of a pair at once: must be clean."""
    mine = [bug for bug in bugs if bug.pair == pair and not bug.scene]
    points = tuple(dict.fromkeys(point for bug in mine for point in bug.points))
    all_of_them = Bug(
        "control", pair, points, (), kills=KILLS, meddle=any(bug.meddle for bug in mine)
    )
    return run_pair(
        pair,
        orders(all_of_them, seed),
        Place(place.folder, place.source, quiet=True),
        name=f"control {pair}",
    )
