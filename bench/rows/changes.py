"""What capturing costs the writers of a SQLite file: the same program on a captured file.

Old and new values of every column are kept.  Nobody reads meanwhile: a reader takes no lock that a
writer waits for, but on a small machine it takes time.
"""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

from bench.measure import Row, Sample, Scale, Sides
from bench.places import folder
from bench.process import run_side
from duly.databases.sqlite.changes import SqliteChanges
from duly.runtime.clock import SystemClock
from duly.sources import TableSpec

__all__ = ["ROWS"]

COUNT = 10_000
_SIDE = "reference.sqlite_writes"


@contextmanager
def _open(scale: Scale) -> Iterator[Sides]:
    count = max(1000, scale.of(COUNT) // 1000 * 1000)
    with folder() as place:
        plain, captured = place / "plain.db", place / "captured.db"
        run_side(_SIDE, path=str(plain), make=True)
        shutil.copy(plain, captured)
        source = SqliteChanges(f"sqlite:///{captured}", reader="bench", clock=SystemClock())
        asyncio.run(source.prepare([TableSpec("orders", before_image=True)]))
        yield Sides(
            ours=partial(_captured, place, captured, count=count),
            reference=partial(_written, place, plain, count=count),
        )


def _written(place: Path, source: Path, *, count: int) -> Sample:
    shutil.copy(source, place / "run.db")
    for suffix in ("-wal", "-shm"):
        (place / f"run.db{suffix}").unlink(missing_ok=True)
    return run_side(_SIDE, path=str(place / "run.db"), count=count, make=False)


def _captured(place: Path, source: Path, *, count: int) -> Sample:
    sample = _written(place, source, count=count)
    with closing(sqlite3.connect(place / "run.db")) as db:
        told = db.execute("SELECT count(*) FROM duly_change WHERE shape > 0").fetchone()[0]
    wanted = (2 * count + 100) // 2 * 5
    if told != wanted:
        raise RuntimeError(f"{told} changes were written down, not {wanted}")
    return sample


ROWS = (
    Row("cdc sqlite write cost", "us/order", "the same writes without capture", _open, falls=True),
)
