"""Raw sqlite3 connections: stored at once, or with the last statement of an ``atomic`` block."""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from duly.errors import ConfigurationError, NotInTransactionError, TransactionConflictError
from duly.frameworks.dbapi import JOIN, _open, atomic
from duly.outbox.after_commit import Ignore
from tests.unit.frameworks.store import SQLITE_TABLE, Placed, SqliteStore, TestApp, orders


def placed(n: int) -> Placed:
    return Placed(order_id=n)


@pytest.fixture
def app(path: Path) -> TestApp:
    with sqlite3.connect(path) as c:
        c.execute("PRAGMA journal_mode=WAL")
        c.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY)")
        c.execute(SQLITE_TABLE)
    c.close()
    return TestApp(SqliteStore(str(path)))


@pytest.fixture
def conn(path: Path, app: TestApp) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(path, timeout=0.2)
    yield connection
    connection.close()
    assert _open == {}


def look(path: Path) -> tuple[list[int], list[int]]:
    """(orders, messages) as another connection sees them."""
    c = sqlite3.connect(path)
    try:
        saved = [row[0] for row in c.execute("SELECT id FROM orders ORDER BY id")]
        return saved, orders(c.execute("SELECT payload FROM duly_outbox ORDER BY id").fetchall())
    finally:
        c.close()


def insert(connection: sqlite3.Connection, n: int) -> None:
    connection.execute("INSERT INTO orders VALUES (?)", (n,))


# --- at once --------------------------------------------------------------------------------------
@pytest.mark.parametrize("level", ["", "IMMEDIATE", "EXCLUSIVE", None])
def test_publish_stores_at_once_in_the_open_transaction(
    path: Path, app: TestApp, level: Any
) -> None:
    conn = sqlite3.connect(path, isolation_level=level)
    for n, end in ((1, "COMMIT"), (2, "ROLLBACK")):
        conn.execute("BEGIN IMMEDIATE")
        insert(conn, n)
        app.publish(conn, lambda n=n: placed(n), key=lambda: "k")
        assert conn.execute("SELECT count(*) FROM duly_outbox").fetchone() == (1 if n == 1 else 2,)
        conn.execute(end)
    conn.close()
    assert look(path) == ([1], [1])


def test_rows_of_the_users_own_making(app: TestApp, conn: sqlite3.Connection) -> None:
    """The recipe of the sqlite3 documentation: rows as dicts."""
    conn.row_factory = lambda cursor, row: {
        told[0]: value for told, value in zip(cursor.description, row, strict=True)
    }
    conn.execute("BEGIN")
    app.publish(conn, placed(1))
    conn.execute("COMMIT")
    stored = conn.execute("SELECT payload FROM duly_outbox").fetchall()
    assert [json.loads(row["payload"]) for row in stored] == [{"order_id": 1}]


def test_where_the_driver_begins_by_itself_the_commit_is_the_users(
    path: Path, app: TestApp
) -> None:
    conn = sqlite3.connect(path)
    with conn:
        app.publish(conn, placed(1))
        assert look(path) == ([], [])
    with pytest.raises(ZeroDivisionError), conn:
        app.publish(conn, placed(2))
        raise ZeroDivisionError
    conn.close()
    assert look(path) == ([], [1])


def test_savepoints_typed_as_sql_are_followed(
    path: Path, app: TestApp, conn: sqlite3.Connection
) -> None:
    conn.execute("BEGIN")
    conn.execute("SAVEPOINT x")
    app.publish(conn, placed(1))
    conn.execute("ROLLBACK TO x")
    app.publish(conn, placed(2))
    conn.commit()
    assert look(path) == ([], [2])


def test_autocommit_without_begin_is_refused(path: Path, app: TestApp) -> None:
    conn = sqlite3.connect(path, isolation_level=None)
    with pytest.raises(NotInTransactionError) as caught:
        app.publish(conn, placed(1))
    assert caught.value.code == "AUTOCOMMIT"
    conn.close()
    if sys.version_info >= (3, 12):
        conn = sqlite3.connect(path, autocommit=True)
        with pytest.raises(NotInTransactionError):
            app.publish(conn, placed(2))
        conn.close()
        conn = sqlite3.connect(path, autocommit=False)
        app.publish(conn, placed(3))
        conn.commit()
        conn.close()
        assert look(path) == ([], [3])
    else:
        assert look(path) == ([], [])


def test_what_needs_a_block_says_so(app: TestApp, conn: sqlite3.Connection) -> None:
    conn.execute("BEGIN")
    for call in (
        lambda: app.after_commit(conn, lambda: None),
        lambda: app.unstored(conn, placed(1), policy=Ignore()),
    ):
        with pytest.raises(NotInTransactionError) as caught:
            call()
        assert caught.value.code == "NEEDS_ATOMIC"
    conn.rollback()


def test_wrong_database_and_wrong_things(tmp_path: Path, app: TestApp) -> None:
    other = sqlite3.connect(tmp_path / "other.db")
    other.execute("CREATE TABLE duly_outbox (payload)")
    other.execute("BEGIN")
    with pytest.raises(ConfigurationError) as caught:
        app.publish(other, placed(1))
    assert caught.value.code == "WRONG_DATABASE"
    other.close()
    for thing in (object(), None, "sqlite://", other.cursor):
        with pytest.raises(NotInTransactionError) as refused:
            app.publish(thing, placed(1))
        assert refused.value.code == "NOT_A_TRANSACTION"
    with pytest.raises(NotInTransactionError):
        atomic(object())


def test_lock_is_a_retryable_error(path: Path, app: TestApp, conn: sqlite3.Connection) -> None:
    """Another writer holds the lock; our INSERT, the first write of a deferred transaction, cannot
    have it.
    """
    other = sqlite3.connect(path)
    other.execute("BEGIN IMMEDIATE")
    conn.execute("BEGIN")
    with pytest.raises(TransactionConflictError):
        app.publish(conn, placed(1))
    other.close()
    conn.rollback()


# --- atomic ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("level", ["", "IMMEDIATE", None])
def test_block_commits_all_or_nothing(path: Path, app: TestApp, level: Any) -> None:
    conn = sqlite3.connect(path, isolation_level=level)
    ran: list[int] = []
    with atomic(conn) as tx:
        assert conn.in_transaction
        app.publish(conn, lambda: placed(conn.execute("SELECT max(id) FROM orders").fetchone()[0]))
        app.publish(tx, placed(9))
        app.after_commit(tx, lambda: ran.append(1))
        insert(conn, 1)
        assert conn.execute("SELECT count(*) FROM duly_outbox").fetchone() == (0,)
    assert (look(path), ran, app.wakes) == (([1], [1, 9]), [1], 1)
    with pytest.raises(ZeroDivisionError), atomic(conn) as tx:
        insert(conn, 2)
        app.publish(tx, placed(2))
        app.after_commit(tx, lambda: ran.append(2))
        raise ZeroDivisionError
    assert not conn.in_transaction
    with pytest.raises(NotInTransactionError):
        app.publish(tx, placed(3))
    conn.close()
    assert (look(path), ran) == (([1], [1, 9]), [1])


def test_block_takes_the_write_lock_at_once(
    path: Path, app: TestApp, conn: sqlite3.Connection
) -> None:
    other = sqlite3.connect(path, timeout=0)
    with atomic(conn), pytest.raises(sqlite3.OperationalError, match="locked"):
        other.execute("BEGIN IMMEDIATE")
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(sqlite3.OperationalError, match="locked"), atomic(conn):
        pass
    other.close()


def test_blocks_nest_as_savepoints(path: Path, app: TestApp, conn: sqlite3.Connection) -> None:
    """1; {2; {3} back; {4}}; {5; {6}} back; 7 - and the hooks of what was kept, after the outermost
    end.
    """
    ran: list[int] = []

    def work(n: int) -> None:
        insert(conn, n)
        app.publish(conn, placed(n))
        app.after_commit(conn, lambda: ran.append(n))

    with atomic(conn):
        work(1)
        with atomic(conn):
            work(2)
            with pytest.raises(ZeroDivisionError), atomic(conn):
                work(3)
                raise ZeroDivisionError
            with atomic(conn):
                work(4)
        with pytest.raises(ZeroDivisionError), atomic(conn):
            work(5)
            with atomic(conn):
                work(6)
            raise ZeroDivisionError
        work(7)
        assert ran == []
    assert look(path) == ([1, 2, 4, 7], [1, 2, 4, 7])
    assert ran == [1, 2, 4, 7]


def test_one_hundred_messages_are_one_executemany(app: TestApp, conn: sqlite3.Connection) -> None:
    seen: list[str] = []
    conn.set_trace_callback(seen.append)
    with atomic(conn):
        for n in range(100):
            app.publish(conn, placed(n))
        assert seen == ["BEGIN IMMEDIATE"]
    assert [s for s in seen if "INSERT" not in s] == [
        "BEGIN IMMEDIATE",
        "PRAGMA database_list",
        "COMMIT",
    ]
    seen.clear()
    with atomic(conn):
        pass
    assert seen == ["BEGIN IMMEDIATE", "COMMIT"]


def test_errors_at_the_end_roll_back(path: Path, app: TestApp, conn: sqlite3.Connection) -> None:
    with pytest.raises(ZeroDivisionError), atomic(conn):
        insert(conn, 1)
        app.publish(conn, lambda: placed(1 // 0))
    assert not conn.in_transaction
    conn.execute(
        "CREATE TABLE line (o INTEGER REFERENCES orders(id) DEFERRABLE INITIALLY DEFERRED)"
    )
    conn.commit()
    conn.execute("PRAGMA foreign_keys=ON")
    with pytest.raises(sqlite3.IntegrityError), atomic(conn):
        app.publish(conn, placed(2))
        conn.execute("INSERT INTO line VALUES (77)")
    assert not conn.in_transaction
    insert(conn, 3)
    conn.commit()
    assert look(path) == ([3], [])


@pytest.mark.parametrize("verb", ["commit", "rollback"])
def test_a_block_whose_transaction_was_ended_inside_raises(
    path: Path, app: TestApp, conn: sqlite3.Connection, verb: str
) -> None:
    with pytest.raises(ConfigurationError) as caught, atomic(conn):
        app.publish(conn, placed(1))
        getattr(conn, verb)()
    assert caught.value.code == "TRANSACTION_ENDED"
    assert look(path) == ([], [])


def test_block_inside_a_transaction_of_the_user_is_refused(
    conn: sqlite3.Connection, app: TestApp
) -> None:
    conn.execute("BEGIN")
    with pytest.raises(ConfigurationError) as caught, atomic(conn):
        pass
    assert caught.value.code == "ATOMIC_INSIDE_TRANSACTION"
    conn.rollback()


def test_block_is_used_once_and_in_order(conn: sqlite3.Connection, app: TestApp) -> None:
    block = atomic(conn)
    with block:
        pass
    with pytest.raises(ConfigurationError), block:
        pass
    outer, inner = atomic(conn), atomic(conn)
    outer.__enter__()
    inner.__enter__()
    with pytest.raises(ConfigurationError, match="reverse order"):
        outer.__exit__(None, None, None)
    assert not conn.in_transaction


async def test_sync_connection_in_async_with(conn: sqlite3.Connection, app: TestApp) -> None:
    with pytest.raises(NotInTransactionError):
        async with atomic(conn):
            pass


def test_hooks_of_blocks(path: Path, app: TestApp, conn: sqlite3.Connection) -> None:
    """A raising hook loses its own work only; a hook may open a block of its own."""

    def bad() -> None:
        insert(conn, 2)
        raise ValueError

    def good() -> None:
        with atomic(conn):
            insert(conn, 3)
            app.publish(conn, placed(3))

    with atomic(conn):
        insert(conn, 1)
        app.after_commit(conn, bad)
        app.after_commit(conn, good)
        app.after_commit(conn, lambda: insert(conn, 4))
    assert look(path) == ([1, 3, 4], [3])
    assert len(app.reports) == 1


def test_flush_stores_inside_the_open_block(
    path: Path, app: TestApp, conn: sqlite3.Connection
) -> None:
    ran: list[int] = []
    with pytest.raises(ZeroDivisionError), atomic(conn) as tx:
        app.publish(tx, lambda: placed(1))
        app.after_commit(tx, lambda: ran.append(1))
        JOIN.flush(conn)
        JOIN.flush(tx)
        assert conn.execute("SELECT count(*) FROM duly_outbox").fetchone() == (1,)
        raise ZeroDivisionError
    JOIN.flush(conn)
    assert (look(path), ran, app.wakes) == (([], []), [], 0)
    with atomic(conn) as tx:
        app.publish(tx, placed(2))
        app.after_commit(tx, lambda: ran.append(2))
        JOIN.flush(tx)
    assert (look(path), ran, app.wakes) == (([], [2]), [2], 1)
