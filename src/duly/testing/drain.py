"""One pass of everything an App would do in the background, without its threads, leases and waits.

Theory of operation.  The same code as in production decides: the lane reader with its holds and
retries, the relay's work, the intake, the handlers' transactions.  Only three things are different:
all lanes are ours, what arrives at the broker is handed on at once, and every message passes
through its inbox row, as it does in production in an ordered group or after a failure.

It works in one of two places.  ``CommittedPlace``: connections of its own, each handler in its own
transaction.  ``OpenPlace``: the open transaction of a test that never commits; the outbox is read,
the handlers run and their rows are written on that very connection, each handler in a savepoint
where it has a transaction otherwise.  Invariant: nothing is begun on a connection while something
else of the pass is under way on it.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar, cast

from duly.errors import TransactionConflictError
from duly.inbox.claims import judged
from duly.inbox.context import ConsumeContext, Job
from duly.inbox.ending import End, Ending, ending_of
from duly.inbox.failures import Unhandled, received_row, store
from duly.inbox.intake import Entry, sort
from duly.inbox.runner import run, run_async
from duly.inbox.work import InboxWork
from duly.kernel.backoff import Retry
from duly.kernel.lease import LeaseTerm
from duly.kernel.names import LANES
from duly.outbox.relay import RelayWork
from duly.ports import Connection, Delivery, Result, Statement, Steps
from duly.runtime.box import Box, Reading
from duly.runtime.clock import SystemClock
from duly.runtime.desk import AsyncDesk, Desk
from duly.runtime.lanes import LaneReader, LaneTiming
from duly.runtime.leases import Deadlines
from duly.runtime.work import LaneWork
from duly.testing.faults import COMMIT, HANDLER, Faults, InjectedError, RecordingBroker

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection as CoreConnection
    from sqlalchemy.ext.asyncio import AsyncConnection

    from duly.app import App

__all__ = ["CommittedPlace", "Drain", "OpenPlace", "Place", "all_ready", "consume_context"]

T = TypeVar("T")
HOLDER = "app-test"
LOOK_SECONDS = 0.0005
_ALL = range(LANES)


class Place(Protocol):
    """Where a pass works. All but ``call`` and ``perform`` are synchronous."""

    def ask(self, statement: Statement) -> Result:
        """Run one statement."""
        ...

    def run(self, steps: Steps[T]) -> T:
        """Run steps that belong together."""
        ...

    async def call(self, function: Callable[[], T]) -> T:
        """Run something synchronous where it may use the connection."""
        ...

    async def perform(self, job: Job) -> list[Ending]:
        """Run a handler."""
        ...

    async def close(self) -> None:
        """Give back what was opened here."""
        ...


# --- the two places -------------------------------------------------------------------------------
def _nothing() -> None:
    """What comes before the commit of anything but a handler."""


class _FaultyDesk(Desk):
    """A handler's connection whose commit can be made to fail."""

    faults: Faults
    at_once = False  # what fails is a commit of its own

    def commit(
        self, before: Callable[[], None] = _nothing, *, failed: Exception | None = None
    ) -> None:
        assert failed is None
        if before is not _nothing and self.faults.strike(COMMIT):
            self.rollback()
            raise TransactionConflictError("fail_next")
        self._commit(before)

    def _commit(self, before: Callable[[], None]) -> None:
        super().commit(before)


class _Worker:
    """One thread for what is synchronous; it ends with ``close``."""

    def __init__(self) -> None:
        self._executor: ThreadPoolExecutor | None = None

    async def call(self, function: Callable[[], T]) -> T:
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="duly-drain")
        context = contextvars.copy_context()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, lambda: context.run(function))

    def close(self) -> None:
        if self._executor is not None:
            self._executor.shutdown()


class CommittedPlace:
    """Connections and transactions as in production."""

    def __init__(self, context: ConsumeContext, faults: Faults) -> None:
        self._context = context
        self._worker = _Worker()
        self._connection: Connection | None = None
        limit = context.handler_timeout_seconds
        self._desk = _FaultyDesk(context.database, limit_seconds=limit, turn=nullcontext)
        self._async_desk = AsyncDesk(context.database, limit_seconds=limit, turn=nullcontext)
        self._async_desk.desk = _FaultyDesk(context.database, limit_seconds=limit, turn=nullcontext)
        for desk in (self._desk, self._async_desk.desk):
            desk.faults = faults

    def ask(self, statement: Statement) -> Result:
        """One transaction."""
        return self._own().ask(statement)

    def run(self, steps: Steps[T]) -> T:
        """One transaction."""
        return self._own().run(steps)

    async def call(self, function: Callable[[], T]) -> T:
        """In a thread: a database that makes us wait must not stop the event loop."""
        return await self._worker.call(function)

    async def perform(self, job: Job) -> list[Ending]:
        """In a transaction of its own."""
        if job.handler.is_async:
            return await run_async(self._context, self._async_desk, job)
        return await self._worker.call(lambda: run(self._context, self._desk, job))

    async def close(self) -> None:
        """Close every connection and the thread."""
        await self._worker.call(self._close)
        await self._async_desk.close()
        self._worker.close()

    def _close(self) -> None:
        self._desk.close()
        if self._connection is not None:
            self._connection.close()

    def _own(self) -> Connection:
        if self._connection is None:
            self._connection = self._context.database.connect()
        return self._connection


class _SavepointDesk(_FaultyDesk):
    """A handler's connection is the test's, its transaction a savepoint."""

    def __init__(self, context: ConsumeContext, faults: Faults, core: CoreConnection) -> None:
        super().__init__(
            context.database, limit_seconds=context.handler_timeout_seconds, turn=nullcontext
        )
        self.faults = faults
        self._core = core
        self.driver = core.connection.driver_connection
        self._dbapi = core.connection.dbapi_connection
        self._savepoint: Any = None

    def open(self) -> None:
        """It is open."""

    def close(self) -> None:
        """It is the test's."""

    @property
    def in_transaction(self) -> bool:
        return self._savepoint is not None

    def begin(self) -> None:
        self._savepoint = self._core.begin_nested()

    def _commit(self, before: Callable[[], None]) -> None:
        before()
        savepoint, self._savepoint = self._savepoint, None
        savepoint.commit()

    def rollback(self) -> None:
        savepoint, self._savepoint = self._savepoint, None
        if savepoint is not None and savepoint.is_active:
            savepoint.rollback()


class _SavepointAsyncDesk(AsyncDesk):
    """The same for async handlers; on a sync connection their awaits do not wait."""

    def __init__(
        self, context: ConsumeContext, desk: _SavepointDesk, shell: AsyncConnection
    ) -> None:
        super().__init__(
            context.database, limit_seconds=context.handler_timeout_seconds, turn=nullcontext
        )
        self.desk, self.connection = desk, shell

    async def open(self) -> None:
        """It is open."""

    async def close(self) -> None:
        """It is the test's."""


class OpenPlace:
    """An open transaction. shell: the asynchronous face of ``core`` where the test has one."""

    def __init__(
        self,
        context: ConsumeContext,
        faults: Faults,
        core: CoreConnection,
        *,
        shell: AsyncConnection | None = None,
    ) -> None:
        self._context, self._core, self._shell = context, core, shell
        self._desk = _SavepointDesk(context, faults, core)
        self._worker = _Worker()

    def ask(self, statement: Statement) -> Result:
        """In a savepoint."""
        return self._desk.run(_single(statement))

    def run(self, steps: Steps[T]) -> T:
        """In a savepoint."""
        return self._desk.run(steps)

    async def call(self, function: Callable[[], T]) -> T:
        """In a thread, or where an async driver may be awaited."""
        if self._shell is None:
            return await self._worker.call(function)
        return await self._shell.run_sync(lambda _: function())

    async def perform(self, job: Job) -> list[Ending]:
        """In a savepoint."""
        if job.handler.is_async:
            desk = _SavepointAsyncDesk(self._context, self._desk, self._face())
            return await run_async(self._context, desk, job)
        return await self.call(lambda: run(self._context, self._desk, job))

    async def close(self) -> None:
        """End the thread; the transaction is the test's."""
        self._worker.close()

    def _face(self) -> AsyncConnection:
        from sqlalchemy.ext.asyncio import AsyncConnection

        if self._shell is not None:
            return self._shell
        return AsyncConnection(self._context.database.async_engine(), sync_connection=self._core)


# --- the pass -------------------------------------------------------------------------------------
class Drain:
    """Passes of one App in one place. delivered: how much of ``broker.arrived`` each group has."""

    def __init__(
        self,
        app: App,
        place: Place,
        *,
        context: ConsumeContext,
        broker: RecordingBroker,
        faults: Faults,
        delivered: dict[str, int],
    ) -> None:
        self.context = context
        self.lane = _Serial(place)
        self._app, self._place, self._broker = app, place, broker
        self._faults, self._delivered = faults, delivered
        self._handled = 0

    async def until_quiet(self) -> None:
        """Relay, receive and handle until nothing moves any more."""
        before = -1
        while (moved := await self._pass()) != before:
            before = moved

    async def _pass(self) -> int:
        """One pass; returns how much has moved in all passes so far."""
        routes, hooks = self._app.routes, self._app.hooks
        relay = RelayWork(self._broker, routes, hooks=hooks)
        await self._work_off(relay, Box("outbox", "outbox", keep=self._app.settings.keep_sent))
        for group in self._app.handlers.groups:
            await self._receive(group)
            work = _Performing(self, group)
            await self._work_off(work, Box("inbox", work.scope, group=group))
        return len(self._broker.arrived) + sum(self._delivered.values()) + self._handled

    async def _receive(self, group: str) -> None:
        start, end = self._delivered.get(group, 0), len(self._broker.arrived)
        handlers = self._app.handlers
        topics = {spec.name for spec in handlers.subscription(group, prefetch=1).topics}
        batch = [
            Delivery(message, place, message.topic, str(place))
            for place, message in enumerate(self._broker.arrived[start:end], start)
            if message.topic in topics
        ]
        if batch:
            ordered = handlers.order_of(group) == "key"
            intake = sort(self.context, group, batch)
            rejected = [one.unhandled for one in intake.stored]
            await self.lane.run(lambda: _receive(intake.entries, rejected, ordered=ordered))
        self._delivered[group] = end

    async def _work_off(self, work: LaneWork, box: Box) -> None:
        """Read and work until the reader is idle."""
        lanes = await self.lane.run(lambda: _take_all(box.scope))
        settings = self._app.settings
        reader = LaneReader(
            work,
            box,
            cast("Any", lanes),
            reader=cast("Any", self.lane),
            writer=cast("Any", self.lane),
            clock=SystemClock(),  # how long to wait after trouble is no matter of the test's clock
            hooks=self._app.hooks,
            timing=LaneTiming(send_timeout=settings.send_timeout, batch=settings.batch_size),
        )
        running = asyncio.create_task(reader.run())
        try:
            while not reader.resting and not running.done():  # noqa: ASYNC110  # it tells nobody
                await asyncio.sleep(LOOK_SECONDS)
            reader.stop()
            await running
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    async def perform(self, job: Job) -> Ending:
        """Run a handler, unless a fault was ordered for it."""
        self._handled += 1
        if self._faults.strike(HANDLER + job.handler.name):
            error = InjectedError(job.handler.name)
            return ending_of(error, error, connection_lost=False)
        async with self.lane.lock:
            return (await self._place.perform(job))[0]


class _Performing(InboxWork):
    """The inbox's own work, with handlers that run in the place of a pass."""

    def __init__(self, drain: Drain, group: str) -> None:
        super().__init__(drain.context, group, connection=cast("Any", drain.lane))
        self._drain = drain

    async def _submit(self, job: Job) -> Ending:
        return await self._drain.perform(job)


class _Serial:
    """What the lane reader takes for its connections."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self.lock = asyncio.Lock()

    async def ask(self, statement: Statement) -> Result:
        async with self.lock:
            return await self._place.call(lambda: self._place.ask(statement))

    async def run(self, steps: Callable[[], Steps[T]]) -> T:
        async with self.lock:
            return await self._place.call(lambda: self._place.run(steps()))


class _AllLanes(NamedTuple):
    """All lanes of a scope, ours for as long as we like."""

    scope: str
    tokens: dict[int, int]
    holder: str = HOLDER
    leaving: frozenset[int] = frozenset()

    @property
    def readable(self) -> frozenset[int]:
        return frozenset(self.tokens)

    def term(self, lane: int) -> LeaseTerm:
        return LeaseTerm(f"lane/{self.scope}/{lane}", self.tokens[lane], float("inf"))

    def remaining(self) -> float:
        return float("inf")


def consume_context(app: App) -> ConsumeContext:
    """What the handlers of an App share."""
    settings = app.settings
    return ConsumeContext(
        database=app.database,
        registry=app.registry,
        handlers=app.handlers,
        outlet=app.outlet,
        hooks=app.hooks,
        deadlines=Deadlines(app.clock),
        holder=lambda: HOLDER,
        handler_timeout_seconds=settings.handler_timeout,
        dedupe_window_seconds=settings.dedupe_window,
        effect_wait_seconds=0.0,  # nobody else calls
        workers=settings.workers,
    )


def all_ready(limit: int) -> Statement:
    """The messages that wait in the outbox."""
    return Box("outbox", "outbox").read(Reading(list(_ALL), [], [], limit), 0)


def _take_all(scope: str) -> Steps[_AllLanes]:
    yield Statement("lease.seed", {"scope": scope, "lanes": LANES})
    values = {"scope": scope, "lanes": list(_ALL), "holder": HOLDER}
    taken = yield Statement("lease.take", values)
    return _AllLanes(scope, dict(taken.rows))


def _receive(
    entries: Sequence[Entry], rejected: Collection[Unhandled], *, ordered: bool
) -> Steps[None]:
    """Keep what arrived as rows; where another message has the business key, it waits."""
    for entry in entries:
        found = (yield Statement("inbox.look", entry.identity.where)).rows
        message = entry.delivery.message
        if not found:
            row = received_row(entry.identity, message, ordered=ordered)
            yield Statement("inbox.receive", many=[row])
        elif (ending := judged(found[0][0], found[0][1], message.id)).end is End.BUSY:
            busy = Unhandled(entry.identity, message, ending, Retry(attempts=1), ordered)
            yield from store([busy])
    if rejected:
        yield from store(list(rejected))


def _single(statement: Statement) -> Steps[Result]:
    return (yield statement)
