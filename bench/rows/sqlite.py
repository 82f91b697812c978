"""SQLite and the embedded broker: the relay, and the consumer in batches and one by one.

Every measurement works on a fresh copy of the same files.  One process and one connection that
writes to each file on both sides.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from bench.load import PLAIN_LOG, fill_log, fill_queue, fill_sqlite
from bench.measure import Row, Sample, Scale, Sides
from bench.places import folder
from bench.process import run_side

__all__ = ["ROWS"]

BACKLOG = 100_000
SINGLE = 4_000


class _Files:
    """Copies of the files that a side works on. made: what to copy, by the name of the copy."""

    def __init__(self, place: Path, made: dict[str, Path]) -> None:
        self._place, self._made = place, made

    def fresh(self) -> Path:
        """A folder with nothing but new copies."""
        here = self._place / "run"
        shutil.rmtree(here, ignore_errors=True)
        here.mkdir()
        for name, source in self._made.items():
            shutil.copy(source, here / name)
            with (here / name).open("rb+") as copied:
                os.fsync(copied.fileno())  # else a side's first commits pay for the copying
        return here


def _ours(module: str, files: _Files, **arguments: Any) -> Sample:
    here = files.fresh()
    urls = {"database": f"sqlite:///{here / 'app.db'}", "broker": f"embedded:///{here / 'log.db'}"}
    sample = run_side(f"ours.{module}", **urls, **arguments)
    if module == "consume":
        _check_effects(here / "app.db", arguments["count"])
    return sample


def _plain(module: str, files: _Files, **arguments: Any) -> Sample:
    here = files.fresh()
    sample = run_side(
        f"reference.{module}", path=str(here / "app.db"), log=str(here / "plain.db"), **arguments
    )
    if module == "sqlite_consume":
        _check_effects(here / "app.db", arguments["count"])
    return sample


def _check_effects(path: Path, least: int) -> None:
    """Every message has its one effect, whatever was measured."""
    db = sqlite3.connect(path)
    count, different = db.execute(
        "SELECT count(*), count(DISTINCT order_id) FROM effect"
    ).fetchone()
    db.close()
    if count < least or count != different:
        raise RuntimeError(f"{count} effects of {different} orders, at least {least} expected")


@contextmanager
def _relay(scale: Scale) -> Iterator[Sides]:
    count = scale.of(BACKLOG, least=1000) // 1000 * 1000
    with folder() as place:
        app, log, plain = (place / name for name in ("app.db", "log.db", "plain.db"))
        fill_sqlite(app, count)
        fill_queue(f"embedded:///{log}", 0)
        with sqlite3.connect(plain) as db:
            db.executescript(PLAIN_LOG)
        files = _Files(place, {"app.db": app, "log.db": log, "plain.db": plain})
        yield Sides(
            ours=partial(_ours, "relay", files, count=count),
            reference=partial(_plain, "sqlite_relay", files, count=count, raw=False),
            raw=partial(_plain, "sqlite_relay", files, count=count, raw=True),
            share_least=0.2,
        )


@contextmanager
def _consume(scale: Scale, *, batch: bool) -> Iterator[Sides]:
    backlog = scale.of(BACKLOG, least=1000) // 1000 * 1000
    count = backlog if batch else scale.of(SINGLE, least=100)
    with folder() as place:
        app, log, plain = (place / name for name in ("app.db", "log.db", "plain.db"))
        fill_sqlite(app, 0)
        fill_log(log, plain, backlog)
        files = _Files(place, {"app.db": app, "log.db": log, "plain.db": plain})
        given = {"count": count, "batch": batch}
        yield Sides(
            ours=partial(_ours, "consume", files, connections=1, **given),
            reference=partial(_plain, "sqlite_consume", files, raw=False, **given),
            raw=partial(_plain, "sqlite_consume", files, raw=True, **given),
            share_least=0.1 if batch else 0.4,
        )


def _row(name: str, reference: str, opened: Callable[[Scale], Any]) -> Row:
    return Row(name, "messages/s", reference, opened)


ROWS = (
    _row(
        "sqlite relay embedded",
        "hand-written loop: select 1000, insert into the log, delete, same durability",
        _relay,
    ),
    _row(
        "sqlite consume batch",
        "hand-written loop: read 1000, dedupe insert, one effect row each, commit",
        partial(_consume, batch=True),
    ),
    _row(
        "sqlite consume single",
        "the same by hand, one message per transaction",
        partial(_consume, batch=False),
    ),
)
