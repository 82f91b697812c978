"""Joining raw connections: ``sqlite3``, ``PyMySQL``, ``psycopg`` sync and async.

Theory of operation.  A driver tells nobody before it commits.  So ``publish`` on a raw connection
stores at once: the row follows whatever the user does with the transaction.  ``with
duly.atomic(conn):`` is the deferred form: it begins the transaction, buffers, writes everything as
the last statement, commits, and runs what waited for the commit; nested blocks are savepoints.
Inside a savepoint that the user opened by ``conn.transaction()``, which psycopg counts, the row is
stored at once, and so is gone when the savepoint is.  MySQL ends a transaction by itself: at a
deadlock, and before it creates or alters a table.  So a block there begins with a savepoint, which
is gone then, and a block without it never commits.

The invariant: inside ``atomic`` an entry is in the buffer of the innermost block, or already in the
table.  Left out: SAVEPOINT typed as SQL inside ``atomic``, which nobody sees; a COMMIT typed there
is found at the end and raises.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from enum import Enum
from functools import lru_cache
from types import TracebackType
from typing import Any, Self
from weakref import WeakKeyDictionary, WeakSet

from duly.errors import ConfigurationError, NotInTransactionError
from duly.frameworks.frames import Item, by_outlet, finish, item, resolve
from duly.frameworks.opened import note
from duly.ports import Outlet, Pending, Result, Statement, Steps

__all__ = ["JOIN", "Atomic", "DbapiJoin", "atomic"]

Flow = Generator[tuple[Outlet, Statement], Result, None]
_SERVER_STATUS_IN_TRANS = 1
_IDLE = 0  # PQTRANS_IDLE
_LEGACY = -1  # sqlite3.LEGACY_TRANSACTION_CONTROL, which Python 3.11 has not

_open: dict[int, Atomic] = {}  # the innermost block of a connection, by id, while the block is open
_admitted: WeakKeyDictionary[Any, WeakSet[Outlet]] = WeakKeyDictionary()


class DbapiJoin:
    """The join for raw connections and for ``atomic`` blocks on them."""

    def buffer(self, target: Any, entry: Pending) -> None:
        """Buffer in the innermost ``atomic`` block of the connection, else store at once.

        Raises NotInTransactionError (NEEDS_ATOMIC for what only a block can do), ConfigurationError
        (AUTOCOMMIT).
        """
        connection = target.connection if isinstance(target, Atomic) else target
        _check(connection)
        block = _open.get(id(connection))
        if isinstance(target, Atomic) and block is None:
            raise NotInTransactionError("the atomic block has ended")
        if block is not None and _depth(connection) == block.depth:
            block.items.append(item(entry))
            return
        if _is_async(connection) or entry.outlet is None:
            raise NotInTransactionError(
                "only a block of duly can do this here: with duly.atomic(connection)",
                code="NEEDS_ATOMIC",
            )
        _refuse_autocommit(connection)
        entry.resolve()
        _store(connection, [item(entry)], last=False)
        if not isinstance(connection, sqlite3.Connection):  # which cannot be held weakly
            note(connection, _still_open)

    def flush(self, target: Any) -> None:
        """Store what is buffered in the innermost ``atomic`` block of a sync connection."""
        connection = target.connection if isinstance(target, Atomic) else target
        if _is_async(connection):
            raise NotInTransactionError("flush needs a sync connection")
        block = _open.get(id(connection))
        if block is not None:
            block.store()


JOIN = DbapiJoin()


def atomic(connection: Any) -> Atomic:
    """A transaction on a raw connection that stores messages with its last statement: ``with
    atomic(conn) as tx:``.

    connection: a ``sqlite3.Connection``, a ``pymysql`` or ``psycopg.Connection``, or a
    ``psycopg.AsyncConnection`` (``async with``). A block inside a block is a savepoint. Guarantee:
    messages and work commit together or not at all; on any error all is rolled back; hooks run
    after the outermost commit.
    Raises ConfigurationError (ATOMIC_INSIDE_TRANSACTION) on entry when a transaction is open that
    is not its own.
    """
    _check(connection)
    return Atomic(connection)


class Atomic:
    """One ``atomic`` block. connection: what it runs on."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.items: list[Item] = []
        self.depth = 0
        self._written: list[Item] = []
        self._outer: Atomic | None = None
        self._transaction: Any = None

    # --- sync -------------------------------------------------------------------------------------
    def __enter__(self) -> Self:
        if _is_async(self.connection):
            raise NotInTransactionError(
                "this connection is async: async with duly.atomic(connection)"
            )
        self._start()
        if _is_psycopg(self.connection):
            self._transaction = self.connection.transaction()
        else:
            self._transaction = _block(self.connection, self._outer)
        self._transaction.__enter__()
        self._opened()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        kept = False
        try:
            if error is None:
                try:
                    self._before_end()
                    if self._outer is None:
                        self.store()
                except BaseException as ours:
                    self._transaction.__exit__(type(ours), ours, ours.__traceback__)
                    raise
            swallowed = bool(self._transaction.__exit__(kind, error, trace))
            kept = error is None
        finally:
            self._closed(kept)
        if kept:
            self._keep(lambda fine: _end(self.connection, fine))
        return swallowed

    def store(self) -> None:
        """Resolve and store what is buffered, now."""
        resolve(lambda: self.items)
        _store(self.connection, self.items)
        self._written, self.items = self._written + self.items, []

    # --- async ------------------------------------------------------------------------------------
    async def __aenter__(self) -> Self:
        if not _is_async(self.connection):
            raise NotInTransactionError(
                "this connection is not async: with duly.atomic(connection)"
            )
        self._start()
        self._transaction = self.connection.transaction()
        await self._transaction.__aenter__()
        self._opened()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        kept = False
        try:
            if error is None:
                try:
                    self._before_end()
                    if self._outer is None:
                        await self._store_async()
                except BaseException as ours:
                    await self._transaction.__aexit__(type(ours), ours, ours.__traceback__)
                    raise
            swallowed = bool(await self._transaction.__aexit__(kind, error, trace))
            kept = error is None
        finally:
            self._closed(kept)
        if kept:
            self._keep(lambda fine: None)  # a plain function cannot use an async connection
        return swallowed

    async def _store_async(self) -> None:
        resolve(lambda: self.items)
        flow = _flow(self.connection, self.items)
        try:
            outlet, statement = next(flow)
            while True:
                outlet, statement = flow.send(
                    await _execute_async(self.connection, outlet, statement)
                )
        except StopIteration:
            self._written, self.items = self._written + self.items, []

    # --- both -------------------------------------------------------------------------------------
    def _start(self) -> None:
        if self._transaction is not None:
            raise ConfigurationError("an atomic block can be used once; make a new one")
        self._outer = _open.get(id(self.connection))
        if self._outer is None and _in_transaction(self.connection):
            raise ConfigurationError(
                "atomic begins the transaction itself, and one is open here; "
                "commit it first, or publish without atomic",
                code="ATOMIC_INSIDE_TRANSACTION",
            )
        if self._outer is not None and _depth(self.connection) != self._outer.depth:
            raise ConfigurationError(
                "an atomic block inside conn.transaction() inside an atomic block; "
                "use atomic for both",
                code="ATOMIC_INSIDE_TRANSACTION",
            )

    def _opened(self) -> None:
        self.depth = _depth(self.connection)
        _open[id(self.connection)] = self
        if self._outer is None:
            note(self, _is_begun)

    def _before_end(self) -> None:
        if _open.get(id(self.connection)) is not self:
            raise ConfigurationError("atomic blocks must end in the reverse order of their start")
        if not _in_transaction(self.connection) or not self._guarded():
            raise ConfigurationError(
                "the transaction was ended inside the atomic block; "
                f"{len(self.items)} messages are not stored",
                code="TRANSACTION_ENDED",
            )

    def _guarded(self) -> bool:
        """Whether the savepoint that began the block is there, where one did."""
        if self._outer is not None or not _is_mysql(self.connection):
            return True
        try:
            _say(self.connection, ["RELEASE SAVEPOINT duly_0"])
        except Exception:  # noqa: BLE001  # gone, or the connection is: either way nothing is committed
            return False
        return True

    def _closed(self, kept: bool) -> None:
        if not kept:  # whoever still holds this block must not hold what was rolled back
            self.items, self._written = [], []
        if self._outer is None:
            _open.pop(id(self.connection), None)
        else:
            _open[id(self.connection)] = self._outer

    def _keep(self, end: Callable[[bool], None]) -> None:
        """The block has succeeded: its items are the outer block's, or done."""
        if self._outer is not None:
            self._outer.items += self.items
            self._outer._written += self._written
            self.items, self._written = [], []
        else:
            finish(self._written, end)


@contextmanager
def _block(connection: Any, outer: Atomic | None) -> Iterator[None]:
    """A transaction, or a savepoint inside one, where the driver has no block of its own."""
    depth, above = 0, outer
    while above is not None:
        depth, above = depth + 1, above._outer
    name = f"duly_{depth}"
    start, commit = ["BEGIN IMMEDIATE"], ["COMMIT"]
    if not isinstance(connection, sqlite3.Connection):
        start, commit = ["START TRANSACTION", f"SAVEPOINT {name}"], ["COMMIT"]
    undo = ["ROLLBACK"]
    if depth:
        start, commit = [f"SAVEPOINT {name}"], [f"RELEASE SAVEPOINT {name}"]
        undo = [f"ROLLBACK TO SAVEPOINT {name}", *commit]
    _say(connection, start)
    try:
        yield
        _say(connection, commit)
    except BaseException:
        with suppress(Exception):  # some errors have rolled back; the first one is the one to tell
            _say(connection, undo if _in_transaction(connection) else [])
        raise


def _say(connection: Any, texts: Sequence[str]) -> None:
    for text in texts:
        cursor = connection.cursor()
        cursor.execute(text)
        cursor.close()


# --- what a connection is and does ----------------------------------------------------------------
def _check(connection: Any) -> None:
    driver = _driver(connection.__class__)
    if driver is _Driver.SQLITE:
        return
    if driver is None:
        raise NotInTransactionError(
            f"{type(connection).__module__}.{type(connection).__qualname__} "
            "is no connection of sqlite3, psycopg or PyMySQL",
            code="NOT_A_TRANSACTION",
        )
    if connection.closed if driver is not _Driver.MYSQL else not connection.open:
        raise NotInTransactionError("the connection is closed")


class _Driver(Enum):
    SQLITE = "sqlite3"
    MYSQL = "PyMySQL"
    PSYCOPG = "psycopg"
    PSYCOPG_ASYNC = "psycopg, async"


@lru_cache(maxsize=256)
def _driver(kind: Any) -> _Driver | None:
    """Whose connection it is, by its class; a driver that nobody has imported is not imported."""
    packages = {cls.__module__.partition(".")[0] for cls in kind.__mro__}
    if issubclass(kind, sqlite3.Connection):
        return _Driver.SQLITE
    if "pymysql" in packages:
        from pymysql.connections import Connection

        return _Driver.MYSQL if issubclass(kind, Connection) else None
    if "psycopg" in packages:
        from psycopg import AsyncConnection
        from psycopg import Connection as SyncConnection

        if issubclass(kind, SyncConnection):
            return _Driver.PSYCOPG
        return _Driver.PSYCOPG_ASYNC if issubclass(kind, AsyncConnection) else None
    return None


def _is_psycopg(connection: Any) -> bool:
    return _driver(connection.__class__) in (_Driver.PSYCOPG, _Driver.PSYCOPG_ASYNC)


def _is_mysql(connection: Any) -> bool:
    return _driver(connection.__class__) is _Driver.MYSQL


def _is_async(connection: Any) -> bool:
    return _driver(connection.__class__) is _Driver.PSYCOPG_ASYNC


def _depth(connection: Any) -> int:
    """How many ``conn.transaction()`` blocks are open, so that one that is not ours is noticed."""
    return int(connection._num_transactions) if _is_psycopg(connection) else 0


def _in_transaction(connection: Any) -> bool:
    if isinstance(connection, sqlite3.Connection):
        return connection.in_transaction
    if _is_mysql(connection):
        return bool(connection.server_status & _SERVER_STATUS_IN_TRANS)
    return bool(connection.pgconn.transaction_status != _IDLE)


def _still_open(connection: Any) -> bool:
    gone = not connection.open if _is_mysql(connection) else connection.closed
    return not gone and _in_transaction(connection)


def _is_begun(block: Atomic) -> bool:
    return id(block.connection) in _open


def _refuse_autocommit(connection: Any) -> None:
    """Refuse what would be a transaction of its own; where the driver begins by itself, that is the
    user's commit.
    """
    if _in_transaction(connection):
        if _is_psycopg(connection) and connection.info.transaction_status.name == "INERROR":
            raise NotInTransactionError("the connection's transaction has failed; roll it back")
        return
    if isinstance(connection, sqlite3.Connection):
        switch = getattr(connection, "autocommit", _LEGACY)
        alone = switch is True or (switch == _LEGACY and connection.isolation_level is None)
    elif _is_mysql(connection):
        alone = connection.get_autocommit()
    else:
        alone = connection.autocommit
    if alone:
        raise NotInTransactionError(
            "the connection is in AUTOCOMMIT mode, and nothing has begun", code="AUTOCOMMIT"
        )


def _end(connection: Any, fine: bool) -> None:
    if _in_transaction(connection):
        if fine:
            connection.commit()
        else:
            connection.rollback()


# --- storing --------------------------------------------------------------------------------------
def _flow(connection: Any, items: Sequence[Item], *, last: bool = True) -> Flow:
    """What has to be run to store the items, each statement with the outlet that prepares it."""
    for outlet, entries in by_outlet(items).items():
        if outlet not in _known(connection):
            yield from _of(outlet, outlet.admits(connection, managed=False))
            _known(connection).add(outlet)
        yield from _of(outlet, outlet.write(entries, last=last))


def _of(outlet: Outlet, steps: Steps[None]) -> Flow:
    try:
        statement = next(steps)
        while True:
            statement = steps.send((yield outlet, statement))
    except StopIteration:
        return


def _known(connection: Any) -> WeakSet[Outlet]:
    try:
        return _admitted.setdefault(connection, WeakSet())
    except TypeError:  # a plain sqlite3.Connection takes no weak references: it is asked every time
        return WeakSet()


def _store(connection: Any, items: Sequence[Item], *, last: bool = True) -> None:
    flow = _flow(connection, items, last=last)
    try:
        outlet, statement = next(flow)
        while True:
            outlet, statement = flow.send(_execute(connection, outlet, statement))
    except StopIteration:
        return


def _execute(connection: Any, outlet: Outlet, statement: Statement) -> Result:
    calls = outlet.prepare(statement)
    result = Result([], 0)
    try:
        for sql, values, many in calls:
            cursor = _cursor(connection)
            if many:
                cursor.executemany(sql, values)
            else:
                cursor.execute(sql, values) if values is not None else cursor.execute(sql)
        rows = [tuple(row) for row in cursor.fetchall()] if cursor.description else []
        result = Result(rows, cursor.rowcount)
        cursor.close()
    except Exception as error:
        raise outlet.map_error(error) from error
    return result


def _cursor(connection: Any) -> Any:
    """A plain one that gives tuples, whatever cursors and rows the user has chosen."""
    driver = _driver(connection.__class__)
    if driver is _Driver.MYSQL:
        from pymysql.cursors import Cursor

        return connection.cursor(Cursor)
    if driver is _Driver.SQLITE:
        cursor = connection.cursor()
        cursor.row_factory = None
        return cursor
    import psycopg
    from psycopg.rows import tuple_row

    plain = psycopg.AsyncCursor if driver is _Driver.PSYCOPG_ASYNC else psycopg.Cursor
    return plain(connection, row_factory=tuple_row)


async def _execute_async(connection: Any, outlet: Outlet, statement: Statement) -> Result:
    calls = outlet.prepare(statement)
    try:
        for sql, values, many in calls:
            cursor = _cursor(connection)
            await (cursor.executemany(sql, values) if many else cursor.execute(sql, values))
        rows = [tuple(row) for row in await cursor.fetchall()] if cursor.description else []
        result = Result(rows, cursor.rowcount)
        await cursor.close()
    except Exception as error:
        raise outlet.map_error(error) from error
    return result
