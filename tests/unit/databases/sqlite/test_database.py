"""What sqlite3 raises, as one of ours; and what our connections promise."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from duly.databases.sqlite.database import RHYTHM_SECONDS, SqliteDatabase, path_of
from duly.errors import (
    ConfigurationError,
    DatabaseUnavailableError,
    DulyError,
    PermanentError,
    TransactionConflictError,
)
from duly.outbox.schema import Schema
from duly.ports import Connection, Statement, Steps

CODES: list[tuple[int, type[DulyError], str]] = [
    (sqlite3.SQLITE_BUSY, TransactionConflictError, "DATABASE_LOCKED"),
    (sqlite3.SQLITE_BUSY_SNAPSHOT, TransactionConflictError, "DATABASE_LOCKED"),
    (sqlite3.SQLITE_LOCKED, TransactionConflictError, "DATABASE_LOCKED"),
    (sqlite3.SQLITE_NOTADB, ConfigurationError, "NOT_A_DATABASE"),
    (sqlite3.SQLITE_READONLY, ConfigurationError, "DATABASE_READ_ONLY"),
    (sqlite3.SQLITE_READONLY_DBMOVED, ConfigurationError, "DATABASE_READ_ONLY"),
    (sqlite3.SQLITE_CANTOPEN, DatabaseUnavailableError, "DATABASE_UNAVAILABLE"),
    (sqlite3.SQLITE_FULL, DatabaseUnavailableError, "DATABASE_UNAVAILABLE"),
    (sqlite3.SQLITE_IOERR, DatabaseUnavailableError, "DATABASE_UNAVAILABLE"),
    (sqlite3.SQLITE_IOERR_FSYNC, DatabaseUnavailableError, "DATABASE_UNAVAILABLE"),
    (sqlite3.SQLITE_CORRUPT, ConfigurationError, "DATABASE_CORRUPT"),
    (sqlite3.SQLITE_CONSTRAINT, PermanentError, "DATABASE_ERROR"),
]


@pytest.fixture
def database(sqlite_url: str) -> SqliteDatabase:
    database = SqliteDatabase(sqlite_url, busy_seconds=0.3)
    Schema(database, "shop").start()
    return database


@pytest.fixture
def connection(database: SqliteDatabase) -> Iterator[Connection]:
    connection = database.connect()
    yield connection
    connection.close()


@pytest.mark.parametrize(("code", "kind", "word"), CODES)
def test_result_codes(
    database: SqliteDatabase, code: int, kind: type[DulyError], word: str
) -> None:
    raised = sqlite3.OperationalError("the text")
    raised.sqlite_errorcode = code
    error = database.map_error(raised)
    assert type(error) is kind
    assert isinstance(error, DulyError)
    assert error.code == word


def test_other_exceptions_stay_what_they_are(database: SqliteDatabase) -> None:
    error = ValueError()
    assert database.map_error(error) is error


@pytest.mark.parametrize(
    "url", ["sqlite://", "sqlite:///", "sqlite:///:memory:", "postgresql:///x", "sqlite:///a%00b"]
)
def test_urls_without_a_file(url: str) -> None:
    with pytest.raises(ConfigurationError):
        path_of(url)


def test_absolute_and_relative_paths() -> None:
    assert path_of("sqlite:////var/x.db") == "/var/x.db"
    assert path_of("sqlite:///x.db").endswith("/x.db")
    assert path_of("sqlite:////var/a%20b.db?timeout=3") == "/var/a b.db"


def put(name: str) -> Statement:
    return Statement("meta.put", {"name": name, "value": "1"})


def names(connection: Connection) -> set[str]:
    return {row[0] for row in connection.ask(Statement("meta.all")).rows}


def test_steps_are_one_transaction(connection: Connection) -> None:
    def steps() -> Steps[None]:
        yield put("a")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        connection.run(steps())
    assert "a" not in names(connection)


def test_it_is_durable(connection: Connection, database: SqliteDatabase) -> None:
    with closing(sqlite3.connect(database.path)) as other:
        assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    raw: sqlite3.Connection = connection._raw  # type: ignore[attr-defined]
    assert raw.execute("PRAGMA synchronous").fetchone() == (2,)


def test_a_locked_file_is_waited_for_no_longer_than_told(
    database: SqliteDatabase, connection: Connection
) -> None:
    with closing(sqlite3.connect(database.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        with pytest.raises(TransactionConflictError, match="DATABASE_LOCKED"):
            connection.run(iter_put("a"))
        assert 0.2 < time.monotonic() - began < 3
        other.execute("ROLLBACK")
    connection.run(iter_put("a"))
    assert "a" in names(connection)


def iter_put(name: str) -> Steps[None]:
    yield put(name)


def test_waiting_ends_with_the_commit_of_another_connection(
    database: SqliteDatabase, connection: Connection
) -> None:
    assert not connection.wait(0.05)
    other = database.connect()
    threading.Timer(0.1, lambda: other.ask(put("b"))).start()
    began = time.monotonic()
    assert connection.wait(5)
    assert time.monotonic() - began < 2
    threading.Timer(0.1, connection.wake).start()
    assert connection.wait(5)
    other.close()


def test_a_broken_migration_leaves_nothing(connection: Connection) -> None:
    with pytest.raises(DulyError):
        connection.script("CREATE TABLE half (a); CREATE TABLE nonsense nonsense;")
    connection.script("CREATE TABLE half (a);")


def test_those_who_commit_all_the_time_are_told_of_in_a_rhythm(
    connection: Connection, database: SqliteDatabase
) -> None:
    other, told, began = database.connect(), 0, time.monotonic()
    while time.monotonic() < began + 0.2:
        other.ask(put(f"n{told}"))
        told += connection.wait(0.5)
    other.close()
    assert 1 <= told <= 0.2 / RHYTHM_SECONDS + 2


def test_a_wake_does_not_wait_for_the_rhythm(
    connection: Connection, database: SqliteDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("duly.databases.sqlite.database.RHYTHM_SECONDS", 60.0)
    with closing(database.connect()) as other:
        other.ask(put("one"))
    assert connection.wait(5)
    connection.wake()
    assert connection.wait(5)


def test_a_guarded_transaction_is_begun_below_sqlalchemy_and_joined_by_it(
    connection: Connection, database: SqliteDatabase
) -> None:
    with database.engine().connect() as core:
        driver = core.connection.driver_connection
        assert database.begin_guarded(driver)
        core.begin()
        core.exec_driver_sql("INSERT INTO duly_meta VALUES ('guarded', '1')")
        assert database.commit_guarded(driver) is None
        core.get_transaction().commit()
        assert not driver.in_transaction
        with core.begin():  # the next one is SQLAlchemy's own again
            assert driver.in_transaction
    assert "guarded" in names(connection)


def test_a_guard_that_is_gone_is_raised_and_nothing_committed(
    connection: Connection, database: SqliteDatabase
) -> None:
    with database.engine().connect() as core:
        driver = core.connection.driver_connection
        assert database.begin_guarded(driver)
        driver.rollback()
        driver.execute("BEGIN IMMEDIATE")
        driver.execute("INSERT INTO duly_meta VALUES ('guarded', '1')")
        with pytest.raises(sqlite3.OperationalError, match="no such savepoint"):
            database.commit_guarded(driver)
        driver.rollback()
    assert "guarded" not in names(connection)


def test_the_error_of_a_commit_is_told_apart_from_that_of_the_guard(
    connection: Connection, database: SqliteDatabase
) -> None:
    connection.script(
        "CREATE TABLE one (id INTEGER PRIMARY KEY);"
        "CREATE TABLE two (id REFERENCES one DEFERRABLE INITIALLY DEFERRED);"
    )
    with database.engine().connect() as core:
        driver = core.connection.driver_connection
        assert database.begin_guarded(driver)
        driver.execute("INSERT INTO two VALUES (7)")
        assert isinstance(database.commit_guarded(driver), sqlite3.IntegrityError)
        driver.rollback()


def test_only_connections_that_were_made_here_are_begun_at_once(database: SqliteDatabase) -> None:
    with closing(sqlite3.connect(database.path)) as foreign:
        assert not database.begin_guarded(foreign)
        assert not foreign.in_transaction
