"""Buffers on the transactions of a ``Connection``, and the last statement before its COMMIT.

Theory of operation.  SQLAlchemy has an event before a Core commit and none after it, and an
exception inside that event leaves the driver's transaction open behind a Transaction object that
calls itself inactive: the next user of the pooled connection would commit the order without its
message.  So a transaction that somebody publishes in is *adopted*: its class is exchanged for a
subclass with the same slots, and ``commit``, ``prepare``, ``rollback`` and ``close`` - public
methods, through which all of SQLAlchemy goes, sessions and async proxies too - do our part while
everything is still legal:

    savepoint released      its items join the parent frame
    savepoint rolled back   its items, and those of savepoints inside it, are gone
    root prepared           resolve, write
    root committed          resolve, write, COMMIT, finish
    anything raised there   ROLLBACK (or the connection is thrown away), then the exception

Frames live on the Connection object itself, so they die with it.  Left out: savepoints and COMMITs
typed as SQL text, which no library sees.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary, WeakSet

from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine, ExceptionContext
from sqlalchemy.engine.base import (
    NestedTransaction,
    RootTransaction,
    Transaction,
    TwoPhaseTransaction,
)
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.pool import Pool

from duly.errors import (
    ConfigurationError,
    DulyError,
    NotInTransactionError,
    TransactionConflictError,
)
from duly.frameworks.frames import Item, by_outlet, drive, finish, resolve, write
from duly.ports import Outlet, Result, Statement

__all__ = [
    "Frame",
    "Guest",
    "admit",
    "adopt",
    "innermost",
    "lifted",
    "refuse_autocommit",
    "write_now",
]

_KEY = "_duly_frames"
_PLAIN = {"stream_results": False, "yield_per": None}  # a user's server-side cursors cannot INSERT
_DEADLOCK = 1213
_admitted: WeakKeyDictionary[Pool, WeakSet[Outlet]] = WeakKeyDictionary()
_watched: WeakSet[Engine] = WeakSet()


class Guest(Protocol):
    """A session that works in this transaction; see ``sessions``."""

    def surrender(self, connection: Connection) -> None:
        """Move what the session still holds into this transaction; raises when the session was
        never committed.
        """
        ...

    def take_over(self, items: list[Item]) -> bool:
        """Finish these once the session is done with its own commit; False when it already is."""
        ...


class Frame:
    """The buffer of one transaction or savepoint.

    refusal: why it may not commit any more. abandoned: rolled back by us; the user's own rollback
    that follows has nothing left to do.
    """

    __slots__ = ("abandoned", "guests", "items", "refusal", "written")

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.written: list[Item] = []
        self.guests: dict[Guest, None] = {}  # as an ordered set
        self.refusal: DulyError | None = None
        self.abandoned = False


def adopt(transaction: Transaction) -> Frame:
    """The frame of a transaction; the first time, its class is exchanged."""
    frames = _frames(transaction.connection)
    frame = frames.get(transaction)
    if frame is None:
        if transaction.connection.get_transaction() is transaction:
            frames.clear()  # what an earlier root left behind, whose end nobody saw (invalidation)
        if type(transaction) in _ADOPTED:
            transaction.__class__ = _ADOPTED[type(transaction)]
        elif type(transaction) not in _ADOPTED.values():
            raise ConfigurationError(f"cannot join a {type(transaction).__qualname__}")
        frame = frames[transaction] = Frame()
        _watch_deadlocks(transaction.connection)
    return frame


def innermost(connection: Connection) -> Frame:
    """The frame of the innermost savepoint, or of the transaction, all of them adopted.

    Raises NotInTransactionError when none is active.
    """
    root = connection.get_transaction()
    if root is None:
        raise NotInTransactionError("the connection has no transaction")
    frame = adopt(root)
    if not root.is_active or getattr(root, "_is_prepared", False):
        raise NotInTransactionError(
            "the connection's transaction is prepared, ended or rolled back"
        )
    for savepoint in _savepoints(connection):
        frame = adopt(savepoint)
    return frame


def _open_frames(connection: Connection) -> list[Frame]:
    """The frames of the transaction and of its open savepoints, from outside in; empty when nobody
    published.
    """
    root = connection.get_transaction()
    frames = _frames(connection)
    chain = [root, *_savepoints(connection)] if root is not None else []
    return [frames[transaction] for transaction in chain if transaction in frames]


def admit(connection: Connection, outlet: Outlet) -> None:
    """Check that messages of this App may be stored here.

    Raises ConfigurationError: AUTOCOMMIT, a SQLite connection that nobody began, or a database of
    somebody else.
    """
    driver = connection.connection
    refuse_autocommit(connection)
    if connection.dialect.name == "sqlite" and not driver.driver_connection.in_transaction:  # type: ignore[union-attr]
        raise ConfigurationError(
            "this SQLite engine does not begin its transactions; make it with duly.sqlite_engine()",
            code="SQLITE_NOT_BEGUN",
        )
    pool = connection.engine.pool
    known = _admitted.get(pool)
    if known is None:
        known = _admitted[pool] = WeakSet()
    if outlet not in known:
        steps = outlet.admits(driver.driver_connection, managed=True)
        drive(steps, lambda statement: _run(connection, outlet, statement))
        known.add(outlet)


def refuse_autocommit(connection: Connection) -> None:
    """Raise ConfigurationError (AUTOCOMMIT) where every statement would be a transaction of its
    own.
    """
    if _in_autocommit(connection):
        raise ConfigurationError("the connection is in AUTOCOMMIT mode", code="AUTOCOMMIT")


def write_now(connection: Connection) -> None:
    """Resolve and store everything that waits in the open transaction."""

    def waiting() -> list[Item]:
        for guest in _open_frames(connection)[0].guests:
            guest.surrender(connection)
        return [item for frame in _open_frames(connection) for item in frame.items]

    if not _open_frames(connection):
        return
    for frame in _open_frames(connection):
        if frame.refusal is not None:
            raise frame.refusal
    resolve(waiting)
    items = waiting()
    for outlet in by_outlet(items):
        admit(connection, outlet)
    prepares = isinstance(connection.get_transaction(), TwoPhaseTransaction)
    quietly = _quiet if prepares else lambda statement: statement
    write(items, lambda outlet, statement: _run(connection, outlet, quietly(statement)))
    for frame in _open_frames(connection):
        frame.written += frame.items
        frame.items = []


@contextmanager
def lifted(subject: Any) -> Iterator[None]:
    """Let hooks use a session or connection whose ``with`` block is about to end but has not ended
    yet.
    """
    outer, subject._trans_context_manager = subject._trans_context_manager, None
    try:
        yield
    finally:
        subject._trans_context_manager = outer


# --- the adopted classes --------------------------------------------------------------------------
if TYPE_CHECKING:
    _RootBase = RootTransaction
else:
    _RootBase = object


class _Adopted(_RootBase):
    """A root transaction with a buffer."""

    __slots__ = ()

    def commit(self) -> None:
        if not self.is_active:
            return super().commit()
        items = self._write()
        super().commit()
        connection = self.connection
        for guest in _forget(self).guests:
            if guest.take_over(items):
                return None
        with lifted(connection):
            finish(items, lambda fine: _end(connection, fine))
        return None

    def _write(self) -> list[Item]:
        connection = self.connection
        try:
            write_now(connection)
            return [item for frame in _open_frames(connection) for item in frame.written]
        except BaseException:
            _frames(connection)[self].abandoned = True
            try:
                super().rollback()
            except BaseException as worse:
                with suppress(SQLAlchemyError):
                    connection.invalidate()  # whatever is still open on it is never committed
                if not isinstance(worse, Exception):
                    raise  # a cancellation; of two ordinary errors the first is the one to tell
            raise

    def rollback(self) -> None:
        if not _forget(self).abandoned:
            super().rollback()

    def close(self) -> None:
        _forget(self)
        super().close()


class _AdoptedRoot(_Adopted, RootTransaction):
    __slots__ = ()


class _AdoptedTwoPhase(_Adopted, TwoPhaseTransaction):
    __slots__ = ()

    def prepare(self) -> None:
        if self.is_active:
            self._write()
        super().prepare()


class _AdoptedSavepoint(NestedTransaction):
    __slots__ = ()

    def commit(self) -> None:
        if not self.is_active:
            return super().commit()
        connection = self.connection
        frames = _frames(connection)
        inner = _from(self)
        super().commit()
        outside = self._previous_nested or connection.get_transaction()
        assert outside is not None
        parent = adopt(outside)
        for savepoint in inner:
            frame = frames.pop(savepoint, None)
            if frame is not None:
                parent.items += frame.items
                parent.written += frame.written
                parent.refusal = parent.refusal or frame.refusal
        return None

    def rollback(self) -> None:
        self._drop()
        super().rollback()

    def close(self) -> None:
        self._drop()
        super().close()

    def _drop(self) -> None:
        if self.is_active:
            for savepoint in _from(self):
                _frames(self.connection).pop(savepoint, None)


_ADOPTED: dict[type[Transaction], type[Transaction]] = {
    RootTransaction: _AdoptedRoot,
    TwoPhaseTransaction: _AdoptedTwoPhase,
    NestedTransaction: _AdoptedSavepoint,
}


# --- details --------------------------------------------------------------------------------------
def _watch_deadlocks(connection: Connection) -> None:
    """MySQL rolls the whole transaction back at a deadlock and goes on in the next one: whoever
    catches the error there must not commit the messages of the first.
    """
    engine = connection.engine
    if connection.dialect.name not in ("mysql", "mariadb") or engine in _watched:
        return
    event.listen(engine, "handle_error", _on_error)
    _watched.add(engine)


def _on_error(context: ExceptionContext) -> None:
    number = next(iter(getattr(context.original_exception, "args", ())), None)
    if number != _DEADLOCK or context.connection is None:
        return
    for frame in _open_frames(context.connection):
        frame.refusal = TransactionConflictError(
            "a deadlock has rolled the transaction back; roll the session back and run it again"
        )


def _frames(connection: Connection) -> dict[Transaction, Frame]:
    found: dict[Transaction, Frame] = vars(connection).setdefault(_KEY, {})
    return found


def _forget(root: RootTransaction) -> Frame:
    """Empty the frames of a root that has ended; an abandoned one stays known as such."""
    frames = _frames(root.connection)
    frame = frames.pop(root, Frame())
    if root.connection.get_transaction() in (root, None):
        frames.clear()
    if frame.abandoned:
        frames[root] = frame
    return frame


def _savepoints(connection: Connection) -> list[NestedTransaction]:
    """The open savepoints from outside in."""
    chain: list[NestedTransaction] = []
    savepoint = connection.get_nested_transaction()
    while savepoint is not None:
        if savepoint.is_active:
            chain.append(savepoint)
        savepoint = savepoint._previous_nested
    return chain[::-1]


def _from(savepoint: NestedTransaction) -> list[NestedTransaction]:
    """A savepoint and those inside it: releasing or rolling it back ends them all."""
    chain = _savepoints(savepoint.connection)
    return chain[chain.index(savepoint) :] if savepoint in chain else [savepoint]


def _in_autocommit(connection: Connection) -> bool:
    if connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT":
        return True
    if connection.dialect.name == "sqlite":
        return (
            False  # a right engine has the driver's own switch off; ``admit`` asks in_transaction
        )
    driver = connection.connection.dbapi_connection
    assert driver is not None
    try:
        return connection.dialect.detect_autocommit_setting(driver)
    except NotImplementedError:
        return getattr(driver, "autocommit", False) is True


def _run(connection: Connection, outlet: Outlet, statement: Statement) -> Result:
    result = Result([], 0)
    try:
        for sql, parameters, _ in outlet.prepare(statement):
            with connection.exec_driver_sql(sql, parameters, execution_options=_PLAIN) as cursor:
                rows = [tuple(row) for row in cursor] if cursor.returns_rows else []
                result = Result(rows or result.rows, cursor.rowcount)
    except DBAPIError as error:
        if isinstance(error.orig, Exception):
            ours = outlet.map_error(error.orig)
            if ours is not error.orig:
                raise ours from error
        raise
    return result


def _quiet(statement: Statement) -> Statement:
    """PostgreSQL prepares no transaction that has notified: the relay looks for itself instead."""
    if statement.name != "outbox.insert":
        return statement
    return statement._replace(params={**statement.params, "prepared": True})


def _end(connection: Connection, fine: bool) -> None:
    if not connection.closed and connection.in_transaction():
        if fine:
            connection.commit()
        else:
            connection.rollback()
