"""Whatever SQLite may hold, in a column of any type: a snapshot says of it what the stream said.

SQLite keeps any value in any column and converts some of them by the column's affinity, so the
matrix is: every declared type by every storage class.
"""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from duly.databases.sqlite.changes import SqliteChanges
from duly.runtime.clock import SystemClock
from duly.sources import TableSpec
from duly.testing.change_target import following

TYPES = ("", "INTEGER", "REAL", "TEXT", "BLOB", "NUMERIC", "BOOLEAN", "VARCHAR(5)", "DATETIME")
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
VALUES = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),  # SQLite keeps NaN as NULL
    st.binary(max_size=8),
    TEXTS,
    TEXTS.map(lambda text: text + "\0" + text),
    st.sampled_from(
        ["1", "1.0", " 1", "1e3", "0x10", "9223372036854775808", "-0.0", "nan", "NULL"]
    ),
)
ROWS = st.lists(st.lists(VALUES, min_size=len(TYPES), max_size=len(TYPES)), min_size=1, max_size=8)
NAMES = [f"c{n}" for n in range(len(TYPES))]


def kept(path: Path) -> list[dict[str, Any]]:
    """The rows as the driver reads them."""
    with closing(sqlite3.connect(path)) as db:
        db.row_factory = sqlite3.Row
        return [dict(row) for row in db.execute("SELECT * FROM thing ORDER BY id")]


async def streamed_and_read(path: Path, rows: Sequence[Sequence[Any]]) -> tuple[Any, Any]:
    """The rows by the stream of their inserts, and by a snapshot after it."""
    marks = ", ".join("?" * (len(TYPES) + 1))
    source = SqliteChanges(f"sqlite:///{path}", reader="r", clock=SystemClock(), keep=0)
    spec = TableSpec("thing")
    async with following(source, [spec]) as follower:
        with closing(sqlite3.connect(path)) as db, db:
            for n, row in enumerate(rows):
                db.execute(f"INSERT INTO thing VALUES ({marks})", (n, *row))
        streamed = [change.after for change in await follower.get(len(rows))]
        await follower.stream.snapshot(spec)
        await follower.until(lambda: any(chunk.done for chunk in follower.chunks), "the last chunk")
        return streamed, [row.after for chunk in follower.chunks for row in chunk.rows]


@settings(max_examples=40, deadline=None)
@given(ROWS)
def test_a_value_is_the_same_in_stream_snapshot_and_select(rows: list[list[Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shop.db"
        with closing(sqlite3.connect(path)) as db:
            db.execute("PRAGMA journal_mode=WAL")
            columns = ", ".join(f"{n} {kind}" for n, kind in zip(NAMES, TYPES, strict=True))
            db.execute(f"CREATE TABLE thing (id INTEGER PRIMARY KEY, {columns})")
        streamed, read = asyncio.run(streamed_and_read(path, rows))
        # By their text: 1 == 1.0 == True, and they are not the same.
        assert repr(streamed) == repr(read) == repr(kept(path))
