"""The connection that a handler works on.

Owns one SQLAlchemy connection, the driver's connection behind it, and at most one transaction.  It
belongs to one worker for as long as it lives: never in a pool, opened again after it was lost, with
the handler's hard deadline as the server's limit for waiting and for idling.  The hot path uses the
driver only; SQLAlchemy's connection says BEGIN and COMMIT, or is told of them when a ``Session``
joins or somebody listens, because telling it takes as long as all the rest.

The invariant is the *guard*: a savepoint set right after BEGIN.  Whoever ends our transaction - by
a method, by SQL text, by closing - ends the savepoint too, so releasing it before COMMIT fails and
nothing is taken for done.

All code here is synchronous.  In a worker thread it runs as it is; for async handlers it runs
inside SQLAlchemy's greenlet (``AsyncDesk.call``), where the same calls are awaited below.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any, TypeVar

from duly.errors import (
    DatabaseUnavailableError,
    DulyError,
    OutcomeUnknownError,
    RetryableError,
    TransactionMisuseError,
)
from duly.ports import Database, GuardsAtOnce, Result, Statement, Steps

__all__ = ["AsyncDesk", "Desk", "Turn"]

T = TypeVar("T")
Turn = Callable[[], AbstractContextManager[Any]]

_GUARD = Statement("inbox.guard")
_UNGUARD = Statement("inbox.unguard")
_UNWIND = Statement("inbox.unwind")


class Desk:
    """A handler's connection. limit_seconds: how long a handler may run. turn: a fair gate before
    BEGIN.

    driver: the driver's own connection object; None while there is none. at_once: whether a
    transaction may be begun and ended in one round trip each, where the database can.
    """

    at_once = True

    def __init__(self, database: Database, *, limit_seconds: float, turn: Turn) -> None:
        self._database = database
        self._limit_seconds = limit_seconds
        self._turn = turn
        self._core: Any = None
        self._dbapi: Any = (
            None  # the driver's connection, or SQLAlchemy's synchronous face of an async one
        )
        self.driver: Any = None
        self._at_once: GuardsAtOnce | None = None
        if self.at_once and isinstance(database, GuardsAtOnce):
            self._at_once = database
        self._quick: GuardsAtOnce | None = None  # of the open transaction

    # --- the connection ---------------------------------------------------------------------------
    def open(self) -> None:
        """Connect, where that is needed. Raises DatabaseUnavailableError, ConfigurationError."""
        if self._core is None:
            try:
                self.adopt(_connect(self._database.engine()))
            except Exception as error:
                raise self.mapped(error) from error

    def adopt(self, core: Any) -> None:
        """Take over a connection of SQLAlchemy's; nobody else may use it."""
        self._core = core
        self.driver = core.connection.driver_connection
        self._dbapi = core.connection.dbapi_connection
        milliseconds = str(max(1, int(self._limit_seconds * 1000)))
        self.run(_single(Statement("inbox.deadline", {"milliseconds": milliseconds})))

    @property
    def core(self) -> Any:
        """SQLAlchemy's connection, in the transaction that was begun."""
        self._tell()
        return self._core

    def shared(self, reach: Callable[[], Any]) -> AbstractContextManager[Callable[[], None]]:
        """Inside the block the library that has made this connection works in the handler's
        transaction, where there is one (``MakesEngine``). reach: gives the driver's connection in
        it. Gives what raises when that library is against a commit.
        """
        share = self._core.get_execution_options().get("duly_shared")
        return nullcontext(_agree) if share is None else share(reach)

    def close(self) -> None:
        """Close the connection, whatever its state; never raises."""
        core, self._core, self._dbapi, self.driver = self._core, None, None, None
        self._quick = None
        if core is not None:
            with suppress(Exception):  # a connection that cannot be closed is gone already
                core.invalidate()
                core.close()

    def mapped(self, error: Exception) -> Exception:
        """A driver's error as one of ours, also when SQLAlchemy has wrapped it."""
        original = getattr(error, "orig", None)
        return self._database.map_error(original if isinstance(original, Exception) else error)

    @property
    def lost(self) -> bool:
        """Whether the connection cannot be used any more."""
        return self._core is None or self._core.closed or _is_closed(self.driver)

    # --- statements -------------------------------------------------------------------------------
    def execute(self, statement: Statement) -> Result:
        """Run one statement in the open transaction. Raises the driver's errors."""
        result = Result([], 0)
        for place, (text, values, many) in enumerate(self._database.prepare(statement)):
            cursor = self._dbapi.cursor()
            try:
                if many:
                    cursor.executemany(text, values)
                else:
                    cursor.execute(text, values)
                rows = [tuple(row) for row in cursor.fetchall()] if cursor.description else []
                result = Result(
                    rows or result.rows, cursor.rowcount if place == 0 else result.count
                )
            finally:
                cursor.close()
        return result

    def drive(self, steps: Steps[T]) -> T:
        """Run steps in the open transaction."""
        try:
            statement = next(steps)
            while True:
                statement = steps.send(self.execute(statement))
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]

    def run(self, steps: Steps[T]) -> T:
        """Run steps in a transaction of their own. Raises errors of ours, and OutcomeUnknownError
        for a lost COMMIT.
        """
        try:
            self.begin()
            answer = self.drive(steps)
        except Exception as error:
            self.rollback()
            raise self.mapped(error) from error
        self.commit()
        return answer

    # --- the transaction --------------------------------------------------------------------------
    @property
    def in_transaction(self) -> bool:
        """Whether ``begin`` was called, or a session has begun."""
        if self._quick is not None:
            return True
        return self._core is not None and self._core.in_transaction()

    def begin(self) -> None:
        """Begin; on SQLite it is our turn first."""
        self.open()
        with self._turn():
            self._core.begin()

    def begin_guarded(self) -> None:
        """Begin, where nobody has, and set the savepoint that tells whether this is still the same
        transaction.
        """
        if self._at_once is not None and not self.in_transaction and self._begin_at_once():
            return
        if not self.in_transaction:
            self.begin()
        self.execute(_GUARD)

    def _begin_at_once(self) -> bool:
        assert self._at_once is not None
        self.open()
        with self._turn():
            begun = self._at_once.begin_guarded(self.driver)
        if begun:
            self._quick = self._at_once
            if _is_heard(self._core):
                self._tell()
        return begun

    def _tell(self) -> None:
        """Let SQLAlchemy know of a transaction that was begun without it."""
        if self._quick is not None and not self._core.in_transaction():
            self._core.begin()

    def unguard(self, *, committing: bool = False) -> Exception | None:
        """Release the savepoint; also commit, where that can be done at once. committing: the next
        call is ``commit``, which wants to know what this returns.

        Raises TransactionMisuseError, RetryableError (TRANSACTION_ABORTED).
        """
        try:
            if committing and self._quick is not None:
                return self._quick.commit_guarded(self.driver)
            self.execute(_UNGUARD)
            self._tell()  # it is what commits
        except Exception as error:
            mapped = self.mapped(error)
            if (
                isinstance(mapped, DatabaseUnavailableError)
                and self.lost
                and not self._closed_by_hand()
            ):
                raise
            if self.intact():
                raise RetryableError(
                    "an error of the database was caught and ignored", code="TRANSACTION_ABORTED"
                ) from error
            raise TransactionMisuseError("the transaction was ended by the handler") from error
        return None

    def intact(self) -> bool:
        """Whether the guarded transaction is still the one that was begun; undoes what was done in
        it.
        """
        try:
            self.execute(_UNWIND)
        except Exception:  # noqa: BLE001  # whatever the driver says: the savepoint cannot be reached
            return False
        return True

    def _closed_by_hand(self) -> bool:
        """A connection that the program closed is not ``broken``; one that the server or network
        closed is. PyMySQL notes the former, asyncmy neither.
        """
        if hasattr(self.driver, "connected"):
            return False
        if hasattr(self.driver, "open"):
            return bool(self.driver._closed)
        return not getattr(self.driver, "broken", False)

    def commit(
        self, before: Callable[[], None] = lambda: None, *, failed: Exception | None = None
    ) -> None:
        """Commit. before: the session's own commit. failed: the error of a COMMIT by ``unguard``.
        Raises TransactionConflictError, OutcomeUnknownError.
        """
        try:
            if failed is not None:
                raise failed
            before()
            if (transaction := self._core.get_transaction()) is not None:
                transaction.commit()
            self._quick = None
        except Exception as error:
            mapped = self.mapped(error)
            lost = self.lost
            self.rollback()
            if lost or isinstance(mapped, DatabaseUnavailableError):
                raise OutcomeUnknownError("the connection was lost during COMMIT") from error
            if isinstance(mapped, DulyError) and mapped is not error:
                raise mapped from error
            raise

    def rollback(self) -> None:
        """Roll back, by closing the connection where nothing else helps; never raises."""
        self._quick = None
        if self._core is None:
            return
        try:
            if (transaction := self._core.get_transaction()) is not None:
                transaction.rollback()
            self._dbapi.rollback()  # what the handler began behind SQLAlchemy's back
        except Exception:  # noqa: BLE001  # lost, or ended by the handler in a way that confuses SQLAlchemy
            self.close()
        else:
            if self.lost:
                self.close()


class AsyncDesk:
    """The same for async handlers: everything of ``desk`` runs inside ``call``."""

    def __init__(self, database: Database, *, limit_seconds: float, turn: Turn) -> None:
        self._database = database
        self.desk = Desk(database, limit_seconds=limit_seconds, turn=turn)
        self.connection: Any = None

    async def open(self) -> None:
        """Connect, where that is needed. Raises DatabaseUnavailableError, ConfigurationError."""
        if self.desk.core is not None:
            return
        await self.close()
        try:
            self.connection = await _connect_async(self._database.async_engine())
            await self.connection.run_sync(self.desk.adopt)
        except Exception as error:
            await self.close()
            raise self.desk.mapped(error) from error

    async def call(self, function: Callable[[], T]) -> T:
        """Run synchronous code of the desk. Raises what it raises."""
        await self.open()
        return await self.connection.run_sync(lambda _: function())  # type: ignore[no-any-return]

    async def close(self) -> None:
        """Close the connection; never raises."""
        connection, self.connection = self.connection, None
        if connection is not None:
            with suppress(Exception):  # a connection that cannot be closed is gone already
                await connection.run_sync(lambda _: self.desk.close())
            with suppress(Exception):
                await connection.close()


def _is_heard(core: Any) -> bool:
    """Whether the program listens to the transactions of SQLAlchemy's connection or its engine."""
    told = core.dispatch
    for listeners in (told.begin, told.commit, told.rollback):
        for one in listeners:
            if not str(getattr(one, "__module__", "")).startswith("duly."):
                return True
    return False


def _agree() -> None:
    """Nobody is against a commit."""


def _is_closed(driver: Any) -> bool:
    """Whether a driver's connection is over, in the word of each: psycopg's ``closed``, PyMySQL's
    ``open``, asyncmy's ``connected``; SQLite's have none.
    """
    if hasattr(driver, "closed"):
        return bool(driver.closed)
    return not (getattr(driver, "open", True) and getattr(driver, "connected", True))


def _connect(engine: Any) -> Any:
    """A connection as the engine makes them, outside its pool: a worker keeps it, and pools may be
    small.
    """
    from sqlalchemy.engine import Connection

    return Connection(engine, connection=engine.pool.recreate().connect())


async def _connect_async(engine: Any) -> Any:
    from sqlalchemy.ext.asyncio import AsyncConnection
    from sqlalchemy.util import greenlet_spawn

    return AsyncConnection(engine, await greenlet_spawn(_connect, engine.sync_engine))


def _single(statement: Statement) -> Steps[Result]:
    return (yield statement)
