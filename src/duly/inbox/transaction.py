"""The transaction of one handler, and what the handler sees of it.

Theory of operation.  The transaction opens when the handler first touches ``tx.session`` or
``tx.connection``, or after it has returned; its first statement claims the message (``claims``),
its last stores what was published, then it commits. Before it opens, ``tx.effect`` and ``tx.read``
may use the connection for transactions of their own.

    IDLE --first use--> OPEN --finish--> committed
      |                   |---abandon--> rolled back
      `-----finish--------^

The invariants: the effect of a handler, the record that it was handled and its outgoing messages
are one commit; when the message turned out to be handled already, or the transaction was ended by
somebody else, no handler can make it commit by catching what we raise.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

from duly.errors import (
    ConfigurationError,
    DulyError,
    EffectInsideTransactionError,
    PermanentError,
    TransactionConflictError,
    TransactionMisuseError,
)
from duly.inbox import effects
from duly.inbox.context import ConsumeContext, Job
from duly.inbox.ending import End, Ended, Ending, ending_of
from duly.kernel import failpoints
from duly.message import Message
from duly.outbox.publish import UNKEYED, PendingMessage
from duly.ports import Result, Statement, Steps
from duly.runtime.desk import AsyncDesk, Desk

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session

__all__ = ["AsyncTx", "HandlerTransaction", "Tx"]

R = TypeVar("R")
ROUNDS_MAX = 100  # as in the joins: late-bound messages that publish late-bound messages


class HandlerTransaction:
    """One attempt at one job on one desk. Synchronous; for async handlers it runs inside
    ``AsyncDesk.call``.
    """

    def __init__(self, context: ConsumeContext, desk: Desk, job: Job) -> None:
        self.context, self.desk, self.job = context, desk, job
        self.claim = job.claim()
        self.session: Any = None  # a HandlerSession
        self.touched = False  # the handler may have used the transaction: effects are over
        self.reading = False
        self.ending: Ending | None = None
        self.pending: list[PendingMessage] = []
        self._opened = self._guarded = False
        self._failure: Exception | None = None
        self._over = False

    def open(self) -> None:
        """Begin and claim. Raises Ended when nothing is to be handled, and the driver's errors."""
        self.check_running()
        if self.ending is not None:
            raise Ended(self.ending)
        if self._failure is not None:
            raise self._failure
        if self._opened:
            return
        if self.reading:
            raise PermanentError(
                "leave tx.read() before the transaction begins", code="READ_IS_OPEN"
            )
        self.touched = self._opened = True
        try:
            self.desk.begin_guarded()
            ending = self.desk.drive(self.claim.steps())
        except Exception as error:
            self._failure = error
            raise
        if ending is not None:
            self.ending = ending
            raise Ended(ending)
        self._guarded = (
            True  # from here on, a missing savepoint means that somebody ended our transaction
        )
        failpoints.hit(failpoints.CONSUME_DEDUPED)

    def reach(self) -> Any:
        """The driver's connection in the transaction, which opens now; inside ``read`` in that one.
        Raises as ``open``.
        """
        if not self.reading:
            self.open()
        return self.desk.driver

    def check_running(self) -> None:
        """Raise TransactionMisuseError when the handler that was given this has ended."""
        if self._over:
            raise TransactionMisuseError("tx was used after its handler had returned")

    def end(self, ending: Ending) -> None:
        """The message cannot be done any more in this attempt, whatever the handler makes of the
        error.
        """
        self.ending = self.ending or ending

    def publish(
        self, message: Any, *, kind: str, key: Any, headers: Mapping[str, str] | None
    ) -> str:
        """Buffer a message until the commit."""
        self.check_running()
        entry = PendingMessage(self.context.outlet, message, kind=kind, key=key, headers=headers)
        self.pending.append(entry)
        return entry.id

    def finish(self) -> None:
        """Commit. Raises Ended, TransactionMisuseError, and what late messages or the database
        raise.
        """
        outlet = self.context.outlet
        if self._opened:
            self._flush()
        self.open()
        self._resolve()
        if self.pending:
            self.desk.drive(outlet.write(self.pending))
        if self.session is not None and self.session.misused is not None:
            raise self.session.misused
        failpoints.hit(failpoints.CONSUME_HANDLED)
        failed = self.desk.unguard(committing=self.session is None)
        self._guarded = False
        self.desk.commit(self._commit_session, failed=failed)
        failpoints.hit(failpoints.CONSUME_COMMITTED)
        self._close_session()
        self._over = True
        if self.pending:
            outlet.committed(self.pending)

    def abandon(self, error: BaseException) -> Ending:
        """Roll back, and say how the attempt has ended; never raises."""
        misused = isinstance(error, TransactionMisuseError) or (
            self.session is not None and self.session.misused is not None
        )
        lost = self.desk.lost
        half = self._guarded and not lost and not self.desk.intact() and self._half_done(error)
        self._close_session()
        self._over = True
        self.desk.rollback()
        if self.ending is not None and not half:
            return self.ending
        if half or misused:
            return Ending(
                End.FAILED, f"{TransactionMisuseError.code}: {self.job.handler.label}", half=half
            )
        mapped = self.desk.mapped(error) if isinstance(error, Exception) else error
        return ending_of(error, mapped, connection_lost=lost or self.desk.lost)

    def _half_done(self, error: BaseException) -> bool:
        """Whether a transaction that is no longer ours was committed: one that a deadlock ended was
        rolled back by the server (MySQL's way), and then there is no record of this message.
        """
        mapped = self.desk.mapped(error) if isinstance(error, Exception) else error
        if not isinstance(mapped, TransactionConflictError):
            return True
        where = self.job.identities[0].where
        self._close_session()
        self.desk.rollback()
        try:
            found = self.desk.run(_one(Statement("inbox.look", where))).rows
        except DulyError:  # whether it is done is then asked by the next attempt
            return False
        return (self.job.messages[0].id, "done") in found

    def _flush(self) -> None:
        if self.session is not None:
            self.session.flush()

    def _resolve(self) -> None:
        """Flush and resolve until both are done; a late value may use the session and publish
        again.
        """
        for _ in range(ROUNDS_MAX):
            self._flush()
            late = [entry for entry in self.pending if not entry.frozen]
            if not late:
                return
            for entry in late:
                entry.resolve()
        raise ConfigurationError(
            "late-bound messages publish new late-bound messages", code="PUBLISH_NEVER_ENDS"
        )

    def _commit_session(self) -> None:
        if self.session is not None:
            self.session.ending = True
            self.session.commit()

    def _close_session(self) -> None:
        if self.session is not None:
            self.session.ending = True
            with suppress(Exception):  # the rollback that follows is what counts
                self.session.close()
            self.session.bind = None  # whoever kept it cannot reach the next message's transaction

    def before_effect(self, step: str) -> None:
        """Raise EffectInsideTransactionError where an outside call would happen inside a
        transaction.
        """
        self.check_running()
        if self.touched or self.reading:
            self.end(Ending(End.FAILED, f"{EffectInsideTransactionError.code}: {step}"))
            raise EffectInsideTransactionError(step)

    def effect(
        self, step: str, function: Callable[..., Any], args: tuple[Any, ...], **options: Any
    ) -> effects.Effect:
        """The description of an outside call."""
        self.before_effect(step)
        return effects.Effect(
            context=self.context,
            identity=self.job.identities[0],
            message_id=self.job.messages[0].id,
            ended=self.end,
            step=step,
            function=function,
            args=args,
            **options,
        )


def _one(statement: Statement) -> Steps[Result]:
    return (yield statement)


class _Face:
    """What both colours have in common."""

    def __init__(self, inner: HandlerTransaction) -> None:
        self._inner = inner

    @property
    def message(self) -> Message:
        """The envelope of the message; of the first one for a batch handler."""
        return self._inner.job.messages[0]

    def publish(
        self, event: Any, *, key: Any = UNKEYED, headers: Mapping[str, str] | None = None
    ) -> str:
        """Publish an event with this handler's transaction and return its id.

        event, key: values, or callables that are called before the commit. Guarantee: stored with
        the handler's work, or not at all. Raises what ``app.publish`` raises.
        """
        return self._inner.publish(event, kind="event", key=key, headers=headers)

    def send(
        self, command: Any, *, key: Any = UNKEYED, headers: Mapping[str, str] | None = None
    ) -> str:
        """Send a command with this handler's transaction and return its id. As ``publish``."""
        return self._inner.publish(command, kind="command", key=key, headers=headers)


class Tx(_Face):
    """The transaction of a plain handler."""

    @property
    def session(self) -> Session:
        """A SQLAlchemy session in the transaction, which opens now. Its commit, rollback and close
        are refused.
        """
        inner = self._inner
        inner.open()
        if inner.session is None:
            from duly.runtime.sessions import session

            inner.session = session(inner.desk.core)
        return inner.session  # type: ignore[no-any-return]

    @property
    def connection(self) -> Any:
        """The driver's own connection (sqlite3, psycopg, PyMySQL) in the transaction, which opens
        now: for plain SQL.
        """
        self._inner.open()
        return self._inner.desk.driver

    @property
    def using(self) -> str:
        """The alias of Django's connection that works in the transaction: ``atomic(tx.using)``,
        ``Order.objects.using(tx.using)``.

        Raises ConfigurationError (NOT_DJANGO) where the App is not on a database of Django's.
        """
        self._inner.check_running()
        alias = self._inner.desk.core.get_execution_options().get("duly_using")
        if alias is None:
            raise ConfigurationError(
                "this App has no database of Django's; see duly.frameworks.django",
                code="NOT_DJANGO",
            )
        return str(alias)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session for reading that ends with the block, so that ``effect`` may follow; what it
        writes is undone.

        Once the transaction is open, it is the transaction's own session.
        """
        inner = self._inner
        if inner.touched:
            yield self.session
            return
        from duly.runtime.sessions import session

        inner.desk.begin()
        inner.reading = True
        reader = session(inner.desk.core)
        try:
            yield reader
        finally:
            inner.reading = False
            reader.ending = True
            with suppress(Exception):  # the rollback is what counts
                reader.close()
            inner.desk.rollback()

    def effect(
        self,
        step: str,
        function: Callable[..., R],
        *args: Any,
        key_as: str | None = None,
        reconcile: Callable[[str], Any] | None = None,
        repeatable: bool = False,
        result: type | None = None,
        not_done: tuple[type[Exception], ...] = (),
        **kwargs: Any,
    ) -> R:
        """Call the outside world once for this message, and give the recorded result when the
        handler runs again.

        step: names the call within the handler. key_as: the parameter of ``function`` that takes a
        stable key by which the provider recognises a repetition. reconcile: asked with that key
        whether an interrupted call was done; gives the result or ``NotFound``. repeatable: calling
        twice does no harm. result: the type of the result, else the annotation of ``function``.
        not_done: exceptions that mean that nothing was done.

        Guarantee: a call that was recorded is not made again. On failure: the exception of
        ``function``; an interrupted call without key, reconcile or repeatable is held for a person.
        Idempotence: by (message, step). Raises EffectInsideTransactionError,
        EffectArgumentsChangedError, OutcomeUnknownError, NotSerializableError.
        """
        options = {
            "key_as": key_as,
            "reconcile": reconcile,
            "repeatable": repeatable,
            "result": result,
        }
        effect = self._inner.effect(
            step, function, args, not_done=not_done, kwargs=kwargs, **options
        )
        return effects.run(effect, self._inner.desk)  # type: ignore[no-any-return]


class AsyncTx(_Face):
    """The transaction of an async handler."""

    def __init__(self, inner: HandlerTransaction, desk: AsyncDesk) -> None:
        super().__init__(inner)
        self._desk = desk
        self._session: AsyncSession | None = None

    @property
    def session(self) -> AsyncSession:
        """An AsyncSession in the transaction, which opens with its first statement. See
        ``Tx.session``.
        """
        inner = self._inner
        inner.check_running()
        if self._session is None:
            if inner.reading:
                raise PermanentError(
                    "leave tx.read() before the transaction begins", code="READ_IS_OPEN"
                )
            from duly.runtime.sessions import async_session

            self._session = async_session(self._desk.connection, inner.open)
            inner.session = self._session.sync_session
            inner.touched = True
        return self._session

    async def connection(self) -> Any:
        """The driver's own connection (aiosqlite, psycopg, asyncmy) in the transaction, which opens
        now: for plain SQL.
        """
        await self._desk.call(self._inner.open)
        return self._inner.desk.driver

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncSession]:
        """As ``Tx.read``."""
        inner = self._inner
        if inner.touched:
            yield self.session
            return
        from duly.runtime.sessions import async_session

        reader = async_session(self._desk.connection, lambda: None)
        inner.reading = True
        try:
            yield reader
        finally:
            inner.reading = False
            vars(reader.sync_session)["ending"] = True
            with suppress(Exception):  # the rollback is what counts
                await reader.close()
            await self._desk.call(inner.desk.rollback)

    async def effect(
        self,
        step: str,
        function: Callable[..., Awaitable[R]] | Callable[..., R],
        *args: Any,
        key_as: str | None = None,
        reconcile: Callable[[str], Any] | None = None,
        repeatable: bool = False,
        result: type | None = None,
        not_done: tuple[type[Exception], ...] = (),
        **kwargs: Any,
    ) -> R:
        """As ``Tx.effect``; a plain function is called in a thread."""
        options = {
            "key_as": key_as,
            "reconcile": reconcile,
            "repeatable": repeatable,
            "result": result,
        }
        effect = self._inner.effect(
            step, function, args, not_done=not_done, kwargs=kwargs, **options
        )
        return await effects.run_async(effect, self._desk)  # type: ignore[no-any-return]
