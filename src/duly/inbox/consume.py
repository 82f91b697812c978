"""From the broker to the handlers of one group, and back with the acknowledgement.

Theory of operation.  A batch is sorted first (``intake``): what is nobody's business here is let
go, what cannot be handled is stored, what is done already (one SELECT per batch) is let go; the
rest becomes jobs for the handlers' crews, or, in an ordered group, rows of the inbox that the lane
owners run.  Ends come back from any thread, are collected for some milliseconds and acknowledged
together.

The invariants: a message is acknowledged only after the commit that handled it, stored it, or was
found; a message whose end is not known is released, and its redelivery finds the record; at most
``in_flight_max`` messages are in memory.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import suppress
from itertools import groupby
from operator import attrgetter
from typing import Any, NamedTuple

from duly.errors import DulyError
from duly.inbox.claims import judged
from duly.inbox.context import ConsumeContext, Job
from duly.inbox.crew import Crew, Task, crew_of
from duly.inbox.ending import End, Ending, all_done
from duly.inbox.failures import STORED, Unhandled, received_row, store
from duly.inbox.handlers import Handler
from duly.inbox.identity import Identity
from duly.inbox.intake import Entry, Intake, Rejected, seconds_since, sort
from duly.kernel import failpoints
from duly.kernel.backoff import Retry
from duly.message import Message
from duly.observe.facts import Duplicate, Failed, Handled, HandlerFailed, Held, Received, Skipped
from duly.ports import Delivery, Statement, Steps, Subscription
from duly.runtime.connection import ConnectionThread

__all__ = ["Consumer"]

_log = logging.getLogger("duly.consume")

COLLECT_SECONDS = 0.004  # ends are acknowledged together; far below any round trip's notice
COLLECT_ENOUGH = 100  # messages of one job are acknowledged at once: the broker waits to send more
TROUBLE_SECONDS = 0.5  # between a release and the next batch, so that trouble does not spin
_source, _handler = attrgetter("source"), attrgetter("handler")
_FINISHED = (End.DONE, End.DUPLICATE, End.OWNED, *STORED)


class _Ended(NamedTuple):
    job: Job
    endings: Sequence[Ending]
    began: float


class Consumer:
    """The receiving side of one group in this process.

    connection: for looking and storing, shared or not. in_flight_max: messages in memory at once.
    """

    def __init__(
        self,
        context: ConsumeContext,
        group: str,
        *,
        connection: ConnectionThread,
        in_flight_max: int = 2000,
    ) -> None:
        self.group = group
        self._context, self._connection = context, connection
        self._ordered = context.handlers.order_of(group) == "key"
        self._in_flight_max = max(
            in_flight_max, context.handlers.subscription(group, prefetch=0).prefetch
        )
        self._crews: dict[Handler, Crew] = {}
        self._ended: deque[_Ended] = deque()
        self._waiting: dict[Handler, deque[Entry]] = {}
        self._jobs: Counter[Handler] = Counter()  # with the crews: queued or under way
        self._notified = False
        self._in_flight = 0
        self._room = asyncio.Event()
        self._acks: set[asyncio.Task[None]] = set()
        self._subscription: Subscription | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = False

    async def run(self, subscription: Subscription) -> None:
        """Receive until ``stop``, or until the subscription is closed. Raises what is a fault of
        ours.
        """
        self._subscription, self._loop = subscription, asyncio.get_running_loop()
        await asyncio.to_thread(self._load_engines)
        batches = aiter(subscription.batches())
        try:
            while not self._stopping:
                try:
                    batch = await anext(batches)
                except StopAsyncIteration:
                    return
                await self._receive(batch)
        finally:
            close = getattr(batches, "aclose", None)
            if close is not None:
                await close()

    @property
    def idle(self) -> bool:
        """Nothing of the broker's is in memory."""
        return self._in_flight == 0

    def stop(self) -> None:
        """Start nothing more; ``drain`` gives back what is queued and not begun."""
        self._stopping = True
        self._room.set()

    async def drain(self, timeout_seconds: float) -> bool:
        """After ``stop``: wait for what is under way, acknowledge it, give back the rest; False
        when some did not end.
        """
        self.stop()
        failpoints.hit(failpoints.DRAIN_STARTED)
        queued = [task for crew in self._crews.values() for task in crew.stop()]
        tokens = [token for task in queued for token in task.job.tokens]
        tokens += [entry.delivery.token for waiting in self._waiting.values() for entry in waiting]
        self._waiting.clear()
        await self._release(tokens)
        self._in_flight -= len(tokens)
        ended = await asyncio.gather(*(crew.join(timeout_seconds) for crew in self._crews.values()))
        self._crews.clear()
        self._collect()
        while self._acks:
            await asyncio.gather(*self._acks, return_exceptions=True)
        return all(ended)

    def _load_engines(self) -> None:
        """Import what the handlers' connections need before a message waits for it."""
        colours = {h.is_async for h in self._context.handlers.of_group(self.group)}
        with suppress(DulyError):  # told by whoever opens a connection, who tries again
            if False in colours:
                self._context.database.engine()
            if True in colours:
                self._context.database.async_engine()

    # --- receiving --------------------------------------------------------------------------------
    async def _receive(self, batch: Sequence[Delivery]) -> None:
        failpoints.hit(failpoints.CONSUME_RECEIVED)
        for source, count in Counter(map(_source, batch)).items():
            self._context.hooks.emit(Received(group=self.group, source=source, count=count))
        while self._in_flight >= self._in_flight_max and not self._stopping:
            self._room.clear()
            await self._room.wait()
        self._in_flight += len(batch)
        intake = sort(self._context, self.group, batch)
        batch = intake.order  # the same deliveries, each with an id
        entries: Sequence[Entry] = []
        try:
            if intake.doubtful:
                intake.decide(await self._received_before(intake.doubtful))
            if rejected := self._rejected(intake):
                await self._connection.run(lambda: store([one.unhandled for one in rejected]))
            if self._ordered:
                await self._keep_rows(intake)
            else:
                entries = await self._unfinished(intake.entries)
        except DulyError as error:
            await self._trouble(batch, error)
            return
        self._told(intake)
        if len(entries) < len(batch):
            kept = {id(entry.delivery) for entry in entries}
            await self._ack([d.token for d in batch if id(d) not in kept])
        self._hand_out(entries)

    def _rejected(self, intake: Intake) -> Sequence[Rejected]:
        """What is stored as it is; of an ordered group the lane owners judge the rest, in its place
        of the order.
        """
        return [one for one in intake.stored if one.final] if self._ordered else intake.stored

    async def _received_before(self, entries: Sequence[Entry]) -> set[str]:
        """The ids of those whose content the inbox has a row of."""
        ids = sorted({entry.delivery.message.id for entry in entries})
        names = sorted({entry.handler.name for entry in entries})
        values = {"group": self.group, "handlers": names, "message_ids": ids}
        rows = (await self._connection.ask(Statement("inbox.of_message", values))).rows
        return {message_id for message_id, status in rows if status}

    async def _unfinished(self, entries: Sequence[Entry]) -> Sequence[Entry]:
        """The entries whose messages are not done yet."""
        seen: dict[tuple[str, str], tuple[str, str]] = {}
        by_handler: dict[str, list[str]] = {}
        for entry in entries:
            if (
                entry.handler.batch is None
            ):  # a batch is claimed before its handler is called: nothing to look for
                by_handler.setdefault(entry.handler.name, []).append(entry.identity.dedupe_key)
        for name, keys in by_handler.items():
            values = {"group": self.group, "handler": name, "dedupe_keys": keys}
            result = await self._connection.ask(Statement("inbox.seen", values))
            seen.update(
                {(name, key): (message_id, status) for key, message_id, status in result.rows}
            )
        if not seen:
            return await self._store_recovered(entries)
        left, busy, duplicates = [], [], Counter[str]()
        for entry in entries:
            found = seen.get((entry.handler.name, entry.identity.dedupe_key))
            ending = None if found is None else judged(*found, entry.delivery.message.id)
            if ending is None:
                left.append(entry)
            elif ending.end is End.BUSY:
                busy.append(entry.as_unhandled(ending))
            else:
                duplicates[entry.handler.name] += 1
        if busy:
            await self._connection.run(lambda: store(busy))
            for one in busy:
                self._tell_stored(one.message, one.identity.handler, one.ending)
        self._tell_duplicates(duplicates)
        return await self._store_recovered(left)

    async def _store_recovered(self, entries: Sequence[Entry]) -> Sequence[Entry]:
        """What may have ended a process before is stored first and run from there, one by one,
        attempts committed.
        """
        careful = self._context.after_unclean_exit()
        recovered = [entry for entry in entries if careful or entry.delivery.redelivered]
        if not recovered:
            return entries
        rows = [
            entry.as_unhandled(Ending(End.LATER, "REDELIVERED: handled from the inbox"))
            for entry in recovered
        ]
        await self._connection.run(lambda: store(rows))
        self._context.wake()
        chosen = {id(entry) for entry in recovered}
        return [entry for entry in entries if id(entry) not in chosen]

    async def _keep_rows(self, intake: Intake) -> None:
        """An ordered group: everything waits in the inbox, in the order of arrival; the lane owners
        decide the rest.
        """
        kept = [(e.delivery, e.identity, e.decoded) for e in intake.entries]
        kept += [(r.delivery, r.unhandled.identity, False) for r in intake.stored if not r.final]
        if not kept:
            return
        place = {id(d): n for n, d in enumerate(intake.order)}
        kept.sort(key=lambda one: place[id(one[0])])
        rows = [received_row(identity, d.message, ordered=True) for d, identity, _ in kept]
        keyed = [(identity, d.message) for d, identity, decoded in kept if decoded]
        await self._connection.run(lambda: _receive_steps(rows, keyed))
        failpoints.hit(failpoints.CONSUME_STORED)
        self._context.wake()

    async def _trouble(self, batch: Sequence[Delivery], error: DulyError) -> None:
        """The database does not take it now: everything goes back, and nothing is received for a
        moment.
        """
        await self._release([d.token for d in batch])
        self._leave(len(batch))
        _log.warning(
            "group %s: %s; receiving again soon", self.group, error.code, extra={"code": error.code}
        )
        await asyncio.sleep(TROUBLE_SECONDS)

    def _hand_out(self, entries: Sequence[Entry]) -> None:
        handlers = {}
        for handler, mine in groupby(entries, _handler):
            handlers[handler] = self._waiting.setdefault(handler, deque())
            handlers[handler].extend(mine)
        for handler in handlers:
            self._start(handler)

    def _start(self, handler: Handler) -> None:
        """Give full jobs to the crew at once, a smaller one only while it has none in reserve.

        A broker delivers in the small pieces of its socket; what comes while every worker is busy
        grows into one batch instead of many transactions.
        """
        crew = self._crews.get(handler)
        if crew is None:
            crew = self._crews[handler] = crew_of(self._context, handler)
        waiting, size, began = self._waiting[handler], handler.batch or 1, time.monotonic()
        workers = handler.concurrency or self._context.workers
        while waiting and (len(waiting) >= size or self._jobs[handler] <= workers):
            mine = [waiting.popleft() for _ in range(min(size, len(waiting)))]
            self._jobs[handler] += 1
            crew.submit(
                Task(
                    _job(handler, mine),
                    lambda done, endings: self._done(done, endings, began),
                    stores=True,
                )
            )

    # --- ends -------------------------------------------------------------------------------------
    def _done(self, job: Job, endings: Sequence[Ending], began: float) -> None:
        """From any thread."""
        self._ended.append(_Ended(job, endings, began))
        loop = self._loop
        assert loop is not None
        if len(endings) >= COLLECT_ENOUGH:
            loop.call_soon_threadsafe(self._collect)
        elif not self._notified:
            self._notified = True
            loop.call_soon_threadsafe(loop.call_later, COLLECT_SECONDS, self._collect)

    def _collect(self) -> None:
        self._notified = False
        acks: list[Any] = []
        back: list[Any] = []
        ended = []
        while self._ended:
            one = self._ended.popleft()
            ended.append(one)
            self._jobs[one.job.handler] -= 1
            if all_done(one.endings):
                acks += one.job.tokens
                continue
            for token, ending in zip(one.job.tokens, one.endings, strict=True):
                (acks if ending.end in _FINISHED else back).append(token)
        for handler in {one.job.handler for one in ended} if not self._stopping else ():
            self._start(handler)
        if ended:
            self._report(ended)
            task = asyncio.ensure_future(self._answer(acks, back))
            self._acks.add(task)
            task.add_done_callback(self._acks.discard)

    async def _answer(self, acks: list[Any], back: list[Any]) -> None:
        if acks:
            await self._ack(acks)
        if back:
            await self._release(back)
            self._leave(len(back))

    async def _ack(self, tokens: Sequence[Any]) -> None:
        if tokens and self._subscription is not None:
            await self._subscription.ack(tokens)
            failpoints.hit(failpoints.CONSUME_ACKED)
            self._leave(len(tokens))

    async def _release(self, tokens: Sequence[Any]) -> None:
        if tokens and self._subscription is not None:
            await self._subscription.release(tokens)

    def _leave(self, count: int) -> None:
        self._in_flight -= count
        self._room.set()

    # --- facts ------------------------------------------------------------------------------------
    def _told(self, intake: Intake) -> None:
        for name, count in intake.skipped.items():
            self._context.hooks.emit(Skipped(group=self.group, type=name, count=count))
        for one in self._rejected(intake):
            self._tell_stored(
                one.unhandled.message, one.unhandled.identity.handler, one.unhandled.ending
            )

    def _tell_duplicates(self, counts: Counter[str]) -> None:
        for name, count in counts.items():
            self._context.hooks.emit(Duplicate(group=self.group, handler=name, count=count))

    def _report(self, ended: Sequence[_Ended]) -> None:
        now = time.monotonic()
        done: Counter[str] = Counter()
        duplicates: Counter[str] = Counter()
        oldest: dict[str, tuple[float, float]] = {}
        for job, endings, began in ended:
            name = job.handler.name
            if all_done(endings):
                done[name] += len(endings)
            else:
                for message, ending in zip(job.messages, endings, strict=True):
                    if ending.end is End.DONE:
                        done[name] += 1
                    elif ending.end in (End.DUPLICATE, End.OWNED):
                        duplicates[name] += 1
                    elif ending.end in STORED:
                        self._tell_stored(message, name, ending)
            first = job.messages[0]
            age = seconds_since(first)
            before = oldest.get(name, (began, age))
            oldest[name] = (min(before[0], began), max(before[1], age))
        for name, count in done.items():
            began, lag = oldest[name]
            self._context.hooks.emit(
                Handled(
                    group=self.group,
                    handler=name,
                    count=count,
                    seconds=now - began,
                    lag_seconds=lag,
                )
            )
        self._tell_duplicates(duplicates)

    def _tell_stored(self, message: Message, handler: str, ending: Ending) -> None:
        emit, code = self._context.hooks.emit, ending.error.partition(":")[0]
        topic, message_id = message.topic, message.id
        if ending.end in (End.HELD, End.BUSY):
            emit(
                Held(
                    box="inbox",
                    topic=topic,
                    code=code,
                    count=1,
                    group=self.group,
                    message_id=message_id,
                )
            )
            return
        due = ending.due_in_seconds or None
        if ending.end is End.RETRY:
            failed = HandlerFailed(
                group=self.group,
                handler=handler,
                message_id=message_id,
                code=code,
                attempts=1,
                due_in_seconds=due,
            )
            emit(failed)
        if ending.end is End.FAILED or (ending.end is End.RETRY and due is None):
            emit(
                Failed(
                    box="inbox",
                    message_id=message_id,
                    topic=topic,
                    code=code,
                    attempts=1,
                    group=self.group,
                    handler=handler,
                )
            )


def _job(handler: Handler, entries: Sequence[Entry]) -> Job:
    return Job(
        handler,
        [entry.delivery.message for entry in entries],
        [entry.identity for entry in entries],
        [entry.delivery.token for entry in entries],
        values={place: entry.value for place, entry in enumerate(entries) if entry.decoded},
    )


def _receive_steps(
    rows: Sequence[dict[str, Any]], keyed: Sequence[tuple[Identity, Message]]
) -> Steps[None]:
    """Insert rows; of those with a business key that another message has, the ones that must not be
    let go are held.
    """
    yield Statement("inbox.receive", many=rows)
    busy = []
    for identity, message in keyed:
        found = yield Statement("inbox.look", identity.where)
        if (
            found.rows
            and (ending := judged(found.rows[0][0], found.rows[0][1], message.id)).end is End.BUSY
        ):
            busy.append(Unhandled(identity, message, ending, Retry(attempts=1), ordered=True))
    if busy:
        yield from store(busy)
    yield Statement("inbox.wake")
