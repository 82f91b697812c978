"""One row per run: what was done, what came of it, and how to do it again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from tests.crash.checker import Verdict

KILLS_PER_ATTEMPTED = 10
RECOVERY_SECONDS_MAX = 10.0


@dataclass(frozen=True)
class Row:
    """A line of ``build/crash.json``; the words are explained in ``checker``. kills: faults that
    counted.

    worst_recovery_s: from a kill to the moment when each kind of work that the dead process held
    (rows of its lanes, received messages) had moved on, None where the row has no such kills.
    lease_s: the lease of most kills."""

    name: str
    faults: str
    kills: int
    attempted: int
    acknowledged: int
    delivered: int
    recovered: int
    duplicated: int
    unexplained: int
    lost: int
    unexpected: int
    order_breaks: int
    worst_recovery_s: float | None
    lease_s: float
    seed: int


@dataclass
class Result:
    """A row with everything that speaks against it."""

    row: Row
    problems: list[str]
    seconds: float = 0.0

    @property
    def clean(self) -> bool:
        """Whether nothing does."""
        return not self.problems


def make(
    name: str, faults: str, verdict: Verdict, *, kills: int, lease: float, seed: int,
    recoveries: Sequence[float] = (), troubles: Sequence[str] = (),
    bounded: bool = True, seconds: float = 0.0,
) -> Result:  # fmt: skip
    """The row of a run and what is wrong with it. bounded: the recovery bound and 10 messages per
    kill apply."""
    counts = {
        f.name: getattr(verdict, f.name)
        for f in fields(Verdict)
        if f.name not in ("problems", "stalls")
    }
    worst = round(max(recoveries), 2) if recoveries else None
    row = Row(name, faults, kills, worst_recovery_s=worst, lease_s=lease, seed=seed, **counts)
    problems = [*troubles, *verdict.problems]
    if row.delivered < row.acknowledged:
        problems.append(f"delivered {row.delivered} of {row.acknowledged} acknowledged")
    if bounded and row.attempted < KILLS_PER_ATTEMPTED * kills:
        problems.append(f"attempted {row.attempted}, wanted {KILLS_PER_ATTEMPTED} per kill")
    if bounded and worst is not None and worst > RECOVERY_SECONDS_MAX:
        problems.append(f"recovery took {worst:.1f} s, at most {RECOVERY_SECONDS_MAX:.0f}")
    return Result(row, problems, seconds)


def replay(row: Row, *, planted: str = "") -> str:
    """The command that does the same run again."""
    words = [f"SEED={row.seed}", f"ONLY='{planted or row.name}'", f"KILLS={row.kills}"]
    if planted:
        words.insert(0, "PLANTED=1")
    return " ".join([*words, "make crash"])


def table(results: Sequence[Result]) -> str:
    """The rows as text, one column per figure."""
    columns = ["kills", "attempted", "acknowledged", "delivered", "recovered", "duplicated",
               "unexplained", "lost",
               "unexpected", "order_breaks", "worst_recovery_s", "lease_s", "seed"]  # fmt: skip
    width = max([len(r.row.name) for r in results], default=4)
    lines = ["  ".join(["name".ljust(width), *columns])]
    for result in results:
        values: dict[str, Any] = asdict(result.row)
        cells = [("-" if values[c] is None else f"{values[c]}").rjust(len(c)) for c in columns]
        lines.append("  ".join([result.row.name.ljust(width), *cells]))
    return "\n".join(lines)


def write(path: Path, results: Sequence[Result]) -> None:
    """The rows as JSON; rows of earlier runs under other names stay."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = {result.row.name for result in results}
    old = json.loads(path.read_text()) if path.exists() else []
    rows = [row for row in old if row["name"] not in names] + [asdict(r.row) for r in results]
    path.write_text(json.dumps(rows, indent=1) + "\n")
