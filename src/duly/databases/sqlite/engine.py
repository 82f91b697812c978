"""SQLAlchemy engines for SQLite that begin what they commit.

Python's sqlite3 opens transactions late and by guessing from the statement's text: a SELECT runs
outside, a SAVEPOINT outside of any transaction commits on release, and a read that later writes can
fail with SQLITE_BUSY however long it waits.  Engines made here say BEGIN IMMEDIATE when SQLAlchemy
begins, and mark their connections so that this can be checked (``ImmediateConnection``).
"""

from __future__ import annotations

import sqlite3
import time
from typing import Any

from duly.databases.sqlite.gate import begin, begin_async, is_busy
from duly.errors import MissingExtraError

__all__ = ["ImmediateConnection", "sqlite_engine", "use_wal"]

_AGAIN_SECONDS = 0.01


class ImmediateConnection(sqlite3.Connection):
    """A connection whose transactions start with BEGIN IMMEDIATE; the class is the mark. begun:
    whoever works below SQLAlchemy has said so already.
    """

    begun = False


def sqlite_engine(
    url: str,
    *,
    busy_seconds: float = 5.0,
    synchronous: str = "FULL",
    foreign_keys: bool = True,
    asynchronous: bool = False,
    **options: Any,
) -> Any:
    """A SQLAlchemy engine whose transactions are safe to publish in.

    url: ``sqlite:///file.db``, for asynchronous engines also with ``+aiosqlite``. busy_seconds: how
    long a transaction waits for the writer before it. synchronous: FULL (default) survives power
    loss; NORMAL may lose the last commits then. foreign_keys: whether they are enforced.
    asynchronous: return an AsyncEngine. options: passed on to ``create_engine``.

    Raises MissingExtraError without aiosqlite for asynchronous engines.
    """
    from sqlalchemy import create_engine, event
    from sqlalchemy.engine import make_url

    target = make_url(url)
    arguments = {
        "timeout": busy_seconds,
        "factory": ImmediateConnection,
        **options.pop("connect_args", {}),
    }
    if asynchronous or target.get_driver_name() == "aiosqlite":
        try:
            import aiosqlite  # noqa: F401  # asked for here so that its absence names the extra
        except ImportError as error:
            raise MissingExtraError("aiosqlite", "sqlite-async") from error
        from sqlalchemy.ext.asyncio import create_async_engine

        engine: Any = create_async_engine(
            target.set(drivername="sqlite+aiosqlite"), connect_args=arguments, **options
        )
    else:
        engine = create_engine(target, connect_args=arguments, **options)
    sync = getattr(engine, "sync_engine", engine)

    @event.listens_for(sync, "connect")
    def prepare(connection: Any, record: Any) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        use_wal(cursor, busy_seconds)
        for pragma in (
            f"synchronous={_word(synchronous)}",
            f"foreign_keys={int(foreign_keys)}",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(sync, "begin")
    def start(connection: Any) -> None:
        driver = connection.connection.driver_connection
        if getattr(driver, "begun", False):
            driver.begun = False
            if driver.in_transaction:
                return
        _begin(connection.connection, busy_seconds)

    return engine


def _begin(pooled: Any, busy_seconds: float) -> None:
    """Raises the driver's errors as SQLAlchemy's, as it would where it says BEGIN itself."""
    from sqlalchemy import exc

    driver, adapted = pooled.driver_connection, pooled.dbapi_connection
    try:
        if isinstance(driver, sqlite3.Connection):
            begin(driver, busy_seconds)
        else:
            adapted.run_async(lambda db: begin_async(db, busy_seconds))
    except sqlite3.Error as error:
        kind = getattr(exc, type(error).__name__, exc.DatabaseError)
        raise kind("BEGIN IMMEDIATE", None, error) from error


def use_wal(cursor: Any, busy_seconds: float) -> None:
    """Put the file into WAL mode, waiting for others that do the same at most ``busy_seconds``.

    The first connections to a new file all hold a read lock and want the exclusive one: SQLite's
    busy handler does not wait there, since two that wait would wait for each other.
    """
    limit = time.monotonic() + busy_seconds
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            cursor.fetchone()
            return
        except sqlite3.OperationalError as error:
            if not is_busy(error) or time.monotonic() >= limit:
                raise
        time.sleep(_AGAIN_SECONDS)


def _word(value: str) -> str:
    return {"FULL": "FULL", "NORMAL": "NORMAL", "EXTRA": "EXTRA"}[value.upper()]
