"""Engines for SQLite: the first connections to a new file."""

from __future__ import annotations

import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import text

from duly.databases.sqlite.engine import sqlite_engine, use_wal


def test_many_first_connections_at_once_all_get_the_file_in_wal_mode(tmp_path: Path) -> None:
    for n in range(10):
        start, path = threading.Barrier(6, timeout=10), tmp_path / f"{n}.db"

        def connect(start: threading.Barrier = start, path: Path = path) -> str:
            engine = sqlite_engine(f"sqlite:///{path}", busy_seconds=10.0)
            start.wait()
            with engine.connect() as connection:
                mode: str = connection.execute(text("PRAGMA journal_mode")).scalar_one()
            engine.dispose()
            return mode

        with ThreadPoolExecutor(6) as pool:
            made = [pool.submit(connect) for _ in range(6)]
            assert [each.result(20) for each in made] == ["wal"] * 6


async def test_an_async_engine_has_wal_mode(tmp_path: Path) -> None:
    engine = sqlite_engine(f"sqlite:///{tmp_path}/a.db", asynchronous=True)
    async with engine.connect() as connection:
        assert (await connection.execute(text("PRAGMA journal_mode"))).scalar_one() == "wal"
    await engine.dispose()


def test_a_file_that_stays_locked_is_given_up_in_time(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    other = sqlite3.connect(path, timeout=0.05)
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        use_wal(other.cursor(), 0.1)
    holder.execute("ROLLBACK")
    use_wal(other.cursor(), 0.1)
    other.close()
    holder.close()
