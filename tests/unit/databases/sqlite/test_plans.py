"""How SQLite finds what a reader asks for again and again beside many rows that are done.

It plans without statistics, and would read all that a group has ever received.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from duly.databases.sqlite.database import SqliteDatabase
from duly.outbox.schema import Schema

AGAIN_AND_AGAIN = (
    "read", "due", "drain", "free_holds", "sweep_blockers", "sweep_empty", "sweep_orphans",
)  # fmt: skip
NAMES = [f"{box}.{verb}" for box in ("outbox", "inbox") for verb in AGAIN_AND_AGAIN] + ["inbox.lag"]


class Anything(dict[str, object]):
    """A value for every parameter."""

    def __missing__(self, name: str) -> object:
        return "[]"


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SqliteDatabase]:
    database = SqliteDatabase(f"sqlite:///{tmp_path_factory.mktemp('plans') / 'shop.db'}")
    Schema(database, "shop").upgrade()
    yield database
    database.close()


def plan(database: SqliteDatabase, name: str) -> list[str]:
    with closing(sqlite3.connect(Path(database.path))) as raw:
        return [
            str(line[3])
            for text in database._sql[name].texts
            for line in raw.execute(f"EXPLAIN QUERY PLAN {text}", Anything())
        ]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_done_is_not_read(database: SqliteDatabase, name: str) -> None:
    steps = plan(database, name)
    assert not [step for step in steps if "duly_inbox_once" in step], steps
    reads = [step for step in steps if step.startswith(("SEARCH b ", "SCAN b", "SEARCH duly_"))]
    assert all("INDEX" in step or "PRIMARY KEY" in step for step in reads), steps
