"""What a user holds inside ``with app.global_transaction() as gtx``, sync and async.

Owns how branches are begun: by participant, at most one each, when they are first asked for.  The
async form runs the same coordinator in a greenlet, as SQLAlchemy runs its own core; a commit that
has begun is not cut off by a cancellation, which is told when it is over.  The invariant: nothing
is said to the journal before the block has ended well.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakSet

from sqlalchemy.engine import Connection
from sqlalchemy.orm import Session, scoped_session

from duly.errors import ConfigurationError, NotInTransactionError
from duly.observe.hooks import Hooks
from duly.outbox.publish import MessageOutlet, PendingMessage
from duly.twophase.branch import AlchemyBranch, LiveBranch, RawBranch, rebound
from duly.twophase.coordinator import Coordinator
from duly.twophase.journal import Journal
from duly.twophase.messages import BrokerBranch
from duly.twophase.registry import OWN, Databases

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

    from duly.ports import Pending

__all__ = ["AsyncGlobalTransaction", "GlobalTransaction", "Scope", "TwoPhase"]

T = TypeVar("T")


@dataclass(frozen=True)
class TwoPhase:
    """What global transactions of one App work with. buffer, flush: as a ``Join`` has them, for any
    target. joined: what belongs to an open one, so that a keyed message can be refused there.
    """

    databases: Databases
    journal: Journal
    outlet: MessageOutlet
    buffer: Callable[[Any, Pending], None]
    flush: Callable[[Any], None]
    joined: WeakSet[Any]
    prepare_seconds: float
    hooks: Hooks

    def refuse_keyed(self, target: Any) -> None:
        """Raise ConfigurationError (KEYED_IN_GLOBAL_TRANSACTION) for a target of an open one."""
        if target in self.joined:
            raise _keyed()

    def close(self) -> None:
        """Close what was opened."""
        self.journal.close()
        self.databases.close()


class _Work:
    """The branches of one block, whatever its colour."""

    def __init__(
        self, two_phase: TwoPhase, *, aside: Callable[[Callable[[], Any]], Any] = lambda job: job()
    ) -> None:
        self.two_phase, self._aside = two_phase, aside
        self.coordinator = Coordinator(
            two_phase.journal, prepare_seconds=two_phase.prepare_seconds, aside=aside
        )
        self.branches: dict[str, LiveBranch] = {}
        self.messages: list[PendingMessage] = []
        self.outgoing: dict[str, list[PendingMessage]] = {}  # by the broker that takes part
        self._rebound = ExitStack()
        self._marked: list[Any] = []

    def alchemy(
        self,
        participant: str,
        connect: Callable[[], Connection],
        *,
        owned: bool = True,
        admit: bool = False,
    ) -> AlchemyBranch:
        """The branch of a participant on a Connection, begun when it is first asked for. owned:
        closed in the end; admit: perhaps of another database.
        """
        found = self.branches.get(participant)
        if isinstance(found, AlchemyBranch):
            return found
        self.refuse_second(participant)
        database = self._aside(lambda: self.two_phase.databases.ready(participant))
        name = self.coordinator.next_name()
        connection = connect()
        try:
            branch = AlchemyBranch(
                database, name, connection, owned=owned, flush=self.two_phase.flush
            )
            if admit:
                branch.admit()
        except BaseException:
            if owned:
                connection.close()
            raise
        self._add(participant, branch)
        self.mark(branch.connection)
        return branch

    def join(self, target: Any, participant: str) -> None:
        """Begin a branch on what the user has."""
        self.refuse_second(participant)
        database = self._aside(lambda: self.two_phase.databases.ready(participant))
        given = target
        if isinstance(target, scoped_session):
            target = target.registry()
        if isinstance(target, Session):
            connection = self._rebound.enter_context(rebound(target, database))
            self.alchemy(participant, lambda: connection, admit=True).guests.append(target)
        elif isinstance(target, Connection):
            self.alchemy(participant, lambda: target, owned=False, admit=True)
        elif participant == OWN:
            text = "the App's own database needs a Session or Connection of SQLAlchemy"
            raise ConfigurationError(text, code="NOT_A_BRANCH")
        else:
            name = self.coordinator.next_name()
            self._add(participant, RawBranch(database, name, target))
        for one in {id(given): given, id(target): target}.values():
            self.mark(one)

    def refuse_second(self, participant: str) -> None:
        """Raise ConfigurationError (SECOND_BRANCH) for a participant that has a branch."""
        if participant in self.branches:
            text = f"{participant} has a branch in this global transaction already"
            raise ConfigurationError(text, code="SECOND_BRANCH")

    def mark(self, target: Any) -> None:
        """Remember what belongs to this transaction, until it ends."""
        self.two_phase.joined.add(target)
        self._marked.append(target)

    def message(
        self, message: Any, *, kind: str, headers: Mapping[str, str] | None, via: str | None
    ) -> str:
        """Keep a message for the branch in the App's database, or in a broker."""
        waiting = self.messages
        if via is not None:
            self.two_phase.databases.find(via).as_broker()
            waiting = self.outgoing.setdefault(via, [])
        entry = PendingMessage(
            self.two_phase.outlet, message, kind=kind, headers=headers, stored=via is None
        )
        waiting.append(entry)
        return entry.id

    def end(self, *, commit: bool, connect: Callable[[], Connection]) -> None:
        """End all branches. connect: to the App's database, for messages without a branch there."""
        try:
            if commit:
                try:
                    if self.messages:
                        own = self.alchemy(OWN, connect).connection
                        for entry in self.messages:
                            self.two_phase.buffer(own, entry)
                    for participant, entries in self.outgoing.items():
                        self._add_broker(participant, entries)
                except BaseException:
                    self.coordinator.roll_back()
                    raise
                self.coordinator.commit()
            else:
                self.coordinator.roll_back()
        finally:
            for target in self._marked:
                self.two_phase.joined.discard(target)
            self._rebound.close()

    def _add_broker(self, participant: str, entries: list[PendingMessage]) -> None:
        place = self._aside(lambda: self.two_phase.databases.ready(participant))
        branch = BrokerBranch(
            place,
            self.coordinator.next_name(),
            entries,
            aside=self._aside,
            hooks=self.two_phase.hooks,
        )
        self._add(participant, branch)

    def _add(self, participant: str, branch: LiveBranch) -> None:
        self.branches[participant] = branch
        self.coordinator.branches.append(branch)


class _Messages:
    """The verbs of both colours; no I/O."""

    _work: _Work

    @property
    def id(self) -> str:
        """Of the transaction, as ``duly 2pc list`` shows it."""
        return self._work.coordinator.id

    def publish(
        self,
        message: Any,
        *,
        key: None = None,
        headers: Mapping[str, str] | None = None,
        via: str | None = None,
    ) -> str:
        """Publish an event with the branch in the App's database; returns the message id.

        message: as ``App.publish``. key: refused (KEYED_IN_GLOBAL_TRANSACTION), as a prepared
        transaction would hold back everybody else's messages of that key. via: a participant that
        is a broker; the message is sent there in a branch, and not stored. Guarantee: committed
        with all branches, or not at all; relayed at least once, via a broker sent once. Raises
        ConfigurationError (PARTICIPANT).
        """
        return self._emit(message, "event", key=key, headers=headers, via=via)

    def send(
        self,
        message: Any,
        *,
        key: None = None,
        headers: Mapping[str, str] | None = None,
        via: str | None = None,
    ) -> str:
        """Send a command; as ``publish``. via a broker that has no queue for it: the commit raises
        RetryableError (COMMAND_UNROUTED), and nothing is committed.
        """
        return self._emit(message, "command", key=key, headers=headers, via=via)

    def _emit(self, message: Any, kind: str, *, key: Any, **rest: Any) -> str:
        if key is not None:
            raise _keyed()
        return self._work.message(message, kind=kind, **rest)


class GlobalTransaction(_Messages):
    """An open global transaction; ``participant`` is a declared name, by default the App's own
    database.
    """

    def __init__(self, two_phase: TwoPhase) -> None:
        self._work = _Work(two_phase)

    def session(self, participant: str = OWN, **options: Any) -> Session:
        """A session in the participant's branch; its own commit flushes and decides nothing.

        options: of ``Session``. Raises ConfigurationError (PARTICIPANT, GLOBAL_TX_DATABASE,
        MAX_PREPARED_TRANSACTIONS ...), and what connecting raises.
        """
        made = self._branch(participant).session(**options)
        self._work.mark(made)
        return made

    def connection(self, participant: str = OWN) -> Connection:
        """The connection of the participant's branch. Raises as ``session``."""
        return self._branch(participant).connection

    def join(self, target: Any, participant: str = OWN) -> None:
        """Let something of yours work in the participant's branch until the block ends: a Session,
        a Connection, or (not for the App's own database) a psycopg or PyMySQL connection.

        Raises ConfigurationError (BRANCH_NOT_IDLE: it has a transaction; WRONG_DATABASE;
        SECOND_BRANCH), and as ``session``.
        """
        self._work.join(target, participant)

    def _branch(self, participant: str) -> AlchemyBranch:
        return self._work.alchemy(participant, lambda: self._connect(participant))

    def _connect(self, participant: str) -> Connection:
        engine = self._work.two_phase.databases.find(participant).database.engine()
        connection: Connection = engine.connect()
        return connection

    def _end(self, *, commit: bool) -> None:
        self._work.end(commit=commit, connect=lambda: self._connect(OWN))


class AsyncGlobalTransaction(_Messages):
    """The same for async code."""

    def __init__(self, two_phase: TwoPhase) -> None:
        from sqlalchemy.util import await_only

        self._work = _Work(two_phase, aside=lambda job: await_only(asyncio.to_thread(job)))

    async def session(self, participant: str = OWN, **options: Any) -> AsyncSession:
        """As ``GlobalTransaction.session``."""
        from sqlalchemy.ext.asyncio import AsyncSession

        connection = await self.connection(participant)
        made = AsyncSession(
            bind=connection,
            join_transaction_mode="rollback_only",
            **{"expire_on_commit": False, **options},
        )
        branch = self._work.branches[participant]
        assert isinstance(branch, AlchemyBranch)
        branch.sessions.append(made.sync_session)
        self._work.mark(made)
        return made

    async def connection(self, participant: str = OWN) -> AsyncConnection:
        """As ``GlobalTransaction.connection``."""
        from sqlalchemy.ext.asyncio import AsyncConnection

        branch = await _greenlet(
            lambda: self._work.alchemy(participant, lambda: self._connect(participant))
        )
        engine = self._work.two_phase.databases.find(participant).database.async_engine()
        made = AsyncConnection(engine, branch.connection)
        self._work.mark(made)
        return made

    async def join(self, target: Any, participant: str = OWN) -> None:
        """As ``GlobalTransaction.join``, for an AsyncSession or AsyncConnection."""
        from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

        if isinstance(target, AsyncSession):
            inner: Any = target.sync_session
        elif isinstance(target, AsyncConnection) and target.sync_connection is not None:
            inner = target.sync_connection
        else:
            kind = type(target).__qualname__
            text = f"a {kind} cannot be an async branch; join an AsyncSession or AsyncConnection"
            raise ConfigurationError(text, code="NOT_A_BRANCH")
        await _greenlet(lambda: self._work.join(inner, participant))
        self._work.mark(target)

    def _connect(self, participant: str) -> Connection:
        engine = self._work.two_phase.databases.find(participant).database.async_engine()
        connection: Connection = engine.sync_engine.connect()
        return connection

    async def _end(self, *, commit: bool) -> None:
        await _greenlet(lambda: self._work.end(commit=commit, connect=lambda: self._connect(OWN)))


class Scope:
    """``with`` or ``async with``: what ``App.global_transaction`` gives. open: makes what is worked
    with, when the block begins.
    """

    def __init__(self, open: Callable[[], TwoPhase]) -> None:
        self._open = open
        self._sync: GlobalTransaction | None = None
        self._async: AsyncGlobalTransaction | None = None

    def __enter__(self) -> GlobalTransaction:
        self._once()
        self._sync = GlobalTransaction(self._open())
        return self._sync

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._sync is not None
        self._sync._end(commit=error is None)

    async def __aenter__(self) -> AsyncGlobalTransaction:
        self._once()
        self._async = AsyncGlobalTransaction(self._open())
        return self._async

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._async is not None
        ending = asyncio.ensure_future(self._async._end(commit=error is None))
        try:
            await asyncio.shield(ending)
        except asyncio.CancelledError:
            await asyncio.wait([ending])
            if not ending.cancelled() and (failure := ending.exception()) is not None:
                raise failure from None
            raise

    def _once(self) -> None:
        if self._sync is not None or self._async is not None:
            text = "a global transaction can be used once; call app.global_transaction() again"
            raise NotInTransactionError(text)


async def _greenlet(job: Callable[[], T]) -> T:
    from sqlalchemy.util import greenlet_spawn

    return await greenlet_spawn(job)


def _keyed() -> ConfigurationError:
    text = (
        "a message with a key inside a global transaction: while it is prepared, it would hold "
        "back everybody else's messages of that key; leave the key out, or use the outbox alone"
    )
    return ConfigurationError(text, code="KEYED_IN_GLOBAL_TRANSACTION")
