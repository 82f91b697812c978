from __future__ import annotations

import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from duly.brokers.embedded.schema import APPLICATION_ID, map_error, open_file
from duly.errors import BrokerUnavailableError, ConfigurationError


def refused(path: Path) -> str:
    with pytest.raises(ConfigurationError) as caught:
        open_file(str(path), busy_seconds=0.1)
    assert str(path) in caught.value.detail
    return caught.value.detail


def test_a_new_file_is_durable_and_ours(tmp_path: Path) -> None:
    for _ in range(2):  # new, then existing
        db = open_file(str(tmp_path / "a.db"), busy_seconds=1.0)
        assert db.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert db.execute("PRAGMA synchronous").fetchone() == (2,)
        db.close()


def test_a_file_of_another_program_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    with sqlite3.connect(path) as app:
        app.execute("CREATE TABLE orders (id INTEGER)")
    app.close()
    assert "file of its own" in refused(path)
    with sqlite3.connect(path) as app:
        tables = app.execute("SELECT name FROM sqlite_master").fetchall()
        assert tables == [("orders",)]
        app.execute("PRAGMA application_id = 77")
    app.close()
    assert "another program" in refused(path)


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    db = open_file(str(path), busy_seconds=1.0)
    db.execute("PRAGMA user_version = 99")
    db.close()
    assert "schema 99" in refused(path)


def test_what_is_no_database_is_a_configuration_error(tmp_path: Path) -> None:
    text = tmp_path / "text.db"
    text.write_bytes(b"this is no database, however long it may be " * 50)
    assert "NOTADB" in refused(text)
    assert "CANTOPEN" in refused(tmp_path / "missing" / "a.db")
    assert "CANTOPEN" in refused(tmp_path)  # a folder


def test_a_lock_is_unavailability_not_misconfiguration(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(BrokerUnavailableError, match="locked"):
        open_file(str(path), busy_seconds=0.05)
    other.close()


def test_other_errors_are_not_touched() -> None:
    error = KeyError("x")
    assert map_error(error, "p") is error


def test_many_that_make_one_new_file_at_once_all_get_it(tmp_path: Path) -> None:
    for n in range(10):
        start, path = threading.Barrier(6, timeout=10), str(tmp_path / f"{n}.db")

        def make(start: threading.Barrier = start, path: str = path) -> int:
            start.wait()
            db = open_file(path, busy_seconds=10.0)
            version: int = db.execute("PRAGMA application_id").fetchone()[0]
            db.close()
            return version

        with ThreadPoolExecutor(6) as pool:
            made = [pool.submit(make) for _ in range(6)]
            assert [each.result(20) for each in made] == [APPLICATION_ID] * 6
