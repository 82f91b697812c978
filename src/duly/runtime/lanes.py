"""The one lane reader, for the outbox and the inbox alike.

Theory of operation.  The node that holds a lane (``LaneOwnership``) is its only reader, so it reads
rows in the order of their ids: no claim, no row locks.  One loop starts, whenever it can, four
kinds of work, and is woken when any of it ends:

    fill      read the next rows (due retries, drained followers, ready ones) meanwhile
    waves     hand rows over to the work, at most one per order key at a time
    settle    one statement for everything that was confirmed meanwhile
    failures  store attempts, holds and held followers, fenced by the lane's token

Which rows may go is decided in memory (``LaneMemory``); here are the tasks, the times and the
trouble.  The invariants: a row is handed over only while its lane's lease outlives the hand-over's
deadline; what cannot be stored now stays listed until it is.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from duly.errors import OutcomeUnknownError, RetryableError, StaleLeaseError
from duly.kernel import failpoints
from duly.kernel.backoff import Retry
from duly.kernel.lease import LeaseTerm
from duly.kernel.lifecycle import OUTBOX
from duly.observe.facts import Failed, HandlerFailed, Held, SendFailed, StillStuck
from duly.observe.hooks import Hooks
from duly.ports import Clock, Statement
from duly.runtime.aside import REPORT_SECONDS, Aside, note, note_name, noted
from duly.runtime.box import Box, Failure, Key, Reading
from duly.runtime.connection import ConnectionThread
from duly.runtime.floor import Writers
from duly.runtime.memory import FACTS, LaneMemory
from duly.runtime.ownership import LaneOwnership
from duly.runtime.work import LaneWork, Row, Verdict, VerdictKind

__all__ = ["LaneReader", "LaneTiming"]

DEADLINE_MIN_SECONDS = 0.3  # nothing is handed over with less time than this, or this share of ttl
WAIT_SECONDS = 0.5  # of a row that waits for somebody else
TELL_SECONDS = 3.0  # a trouble that lasts so long is told
HORIZON_SECONDS = 0.05  # between two looks at who is writing
IDLE_SWEEP_SECONDS = 60.0  # a reader that had nothing to do since its last sweep sweeps this rarely

K = VerdictKind
_log = logging.getLogger("duly.lanes")
_TROUBLE = Retry(attempts=10_000, base="50ms", max="2s")  # of a whole database or broker


@dataclass(frozen=True, kw_only=True)
class LaneTiming:
    """The times of a lane reader, in seconds, and how many rows are read at once."""

    send_timeout: float = 3.0
    poll_every: float = 1.0
    sweep_every: float = 10.0
    deadline_min: float = DEADLINE_MIN_SECONDS
    batch: int = 1000


class LaneReader:
    """Reads the lanes of one scope and has their rows worked on, until stopped.

    on_idle: awaited when everything readable was read, before the reader waits; True asks for one
    more look.
    """

    def __init__(
        self,
        work: LaneWork,
        box: Box,
        ownership: LaneOwnership,
        *,
        reader: ConnectionThread,
        writer: ConnectionThread,
        clock: Clock,
        hooks: Hooks,
        timing: LaneTiming,
        on_idle: Callable[[], Awaitable[bool]] | None = None,
    ) -> None:
        self._work, self._box, self._own = work, box, ownership
        self._reader, self._writer = reader, writer
        self._clock, self._hooks, self._timing, self._on_idle = clock, hooks, timing, on_idle
        self._memory = LaneMemory(work)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._waves: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._stopping = self._active = self._read_since_look = self._restless = False
        self._troubles = 0
        self._trouble_since = self._next_told = 0.0
        self._quiet_until = self._next_look = self._next_horizon = 0.0
        self._next_sweep = self._next_busy_sweep = 0.0
        self._aside = Aside()
        self._notes: dict[str, str | None] = {}  # for the operator; None takes one back
        self._learned_notes = False
        self._paused: frozenset[str] | None = frozenset()
        self._error: BaseException | None = None

    # --- what others tell -------------------------------------------------------------------------
    def hint(self) -> None:
        """New rows may be there. From the loop's thread."""
        self._memory.look_ready = True
        self._changed.set()

    def hint_due(self) -> None:
        """Retries may be due."""
        self._memory.look_due = True
        self._changed.set()

    def pause(self, topics: frozenset[str] | None) -> None:
        """These topics are set aside until the next call; None: everything is."""
        if topics != self._paused:
            self._paused = topics
            self._memory.put_back_queued(lambda row: topics is None or row.topic in topics)
            self._memory.look_everywhere(from_start=True)
            self._changed.set()

    def lanes_moved(self) -> None:
        """Which lanes are to be read may have changed."""
        self._changed.set()

    def lanes_lost(self) -> None:
        """All lanes are gone."""
        self._memory.forget_lanes()
        self._changed.set()

    def stop(self) -> None:
        """Hand nothing more over; ``run`` returns when what is under way is stored."""
        self._stopping = True
        self._memory.put_back_queued()
        self._changed.set()

    @property
    def idle(self) -> bool:
        """Nothing in memory and nothing known to be in the table."""
        return self._memory.idle

    @property
    def resting(self) -> bool:
        """Idle, and no read, hand-over or store is under way that could change that."""
        return self._memory.idle and not self._tasks and not self._waves

    # --- the loop ---------------------------------------------------------------------------------
    async def run(self) -> None:
        """Read and work until stopped. Raises what the work or a statement raised unexpectedly."""
        try:
            while not (self._stopping and not self._memory.busy and not self._tasks):
                self._step()
                await self._pause()
                if self._error is not None:
                    raise self._error
        finally:
            tasks = [*self._tasks.values(), *self._waves]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _step(self) -> None:
        now = self._clock.monotonic()
        self._memory.keep(self._own.readable)
        if self._aside.wake(now):
            self._memory.look_everywhere(from_start=True)
        if now >= self._quiet_until:
            memory = self._memory
            if not self._stopping:  # first what the broker can do while the database is asked
                self._start_waves(now)
                self._start_reading(now)
            if memory.settling:
                self._start("settle", self._settle)
            if self._notes:
                self._start("notes", self._store_notes)
            if memory.failing or memory.following or memory.freeing:  # waves may meet followers
                self._start("failures", self._store_failures)
        self._start_releasing()

    async def _pause(self) -> None:
        quiet = self._quiet_until - self._clock.monotonic()
        timeout = min(max(quiet, 0.001), 1.0) if quiet > 0 else self._timing.poll_every
        try:
            async with asyncio.timeout(timeout):
                await self._changed.wait()
        except TimeoutError:
            pass  # time for the next look
        self._changed.clear()

    def _start(self, name: str, job: Callable[[], Coroutine[Any, Any, None]]) -> None:
        if name not in self._tasks:
            task = asyncio.create_task(job(), name=f"duly {self._box.scope} {name}")
            self._tasks[name] = task
            task.add_done_callback(lambda done: self._ended(done, name))

    def _ended(self, task: asyncio.Task[None], name: str | None) -> None:
        if name is None:
            self._waves.discard(task)
        else:
            self._tasks.pop(name, None)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, RetryableError | StaleLeaseError | OutcomeUnknownError):
            _log.warning("%s: %s", self._box.scope, error, extra={"code": error.code})
            self._memory.put_back_queued()
            self._memory.look_everywhere()
            self._rest()
        elif error is not None:
            self._error = error
        self._changed.set()

    def _rest(self) -> None:
        """Database or broker are in trouble: nothing happens for a while."""
        now = self._clock.monotonic()
        if not self._troubles:
            self._trouble_since = now
        self._troubles += 1
        self._quiet_until = now + _TROUBLE.delay(self._troubles, random.random())

    def _tell_of_trouble(self, error: str, count: int) -> None:
        """Once it lasts, and every minute then: a broker may be there and answer nothing."""
        now = self._clock.monotonic()
        age = now - self._trouble_since
        if age < TELL_SECONDS or now < self._next_told:
            return
        self._next_told = now + REPORT_SECONDS
        code = error.partition(":")[0]
        _log.warning("%s: stuck for %.0f s: %s", self._box.scope, age, error, extra={"code": code})
        if age >= REPORT_SECONDS:
            name = self._box.name
            self._hooks.emit(StillStuck(what=name, code=code, count=count, oldest_seconds=age))

    # --- reading ----------------------------------------------------------------------------------
    def _start_reading(self, now: float) -> None:
        memory, batch = self._memory, self._timing.batch
        if not self._own.readable or self._paused is None:
            return
        busy = self._active or memory.holding
        due = now >= (min(self._next_sweep, self._next_busy_sweep) if busy else self._next_sweep)
        if due or not self._own.readable <= memory.known_lanes:
            self._start("fill", self._sweep)
        elif memory.queued < batch and len(memory.busy) < 4 * batch:
            if self._read_since_look and now >= self._next_look:
                self._read_since_look = False
                self._next_look = now + self._timing.poll_every
                memory.look_ready = True
            looking = memory.look_ready or memory.look_due or memory.look_held
            if looking or (self._restless and not memory.busy):
                self._start("fill", self._fill)

    async def _sweep(self) -> None:
        """Repair holds, learn them anew and read everything from the beginning."""
        if not self._learned_notes:
            await self._learn_notes()
        lanes = self._own.readable
        self._memory.learning(lanes)
        began, self._active = self._clock.monotonic(), False
        self._next_sweep = began + IDLE_SWEEP_SECONDS
        self._next_busy_sweep = began + self._timing.sweep_every
        holds = await self._writer.run(lambda: self._box.sweep(lanes))
        self._memory.learn_holds(holds)

    async def _fill(self) -> None:
        memory, batch = self._memory, self._timing.batch
        if memory.look_due:
            memory.look_due = False
            rows = await self._ask_rows(self._box.due(self._reading()))
            memory.look_due = rows is None or len(rows) == batch
            self._admit(rows or (), drained=True)
        if memory.look_held:
            memory.look_held = False
            rows = await self._ask_rows(self._box.drain(self._reading()))
            memory.look_held = memory.look_held or rows is None
            self._admit(rows or (), drained=True)
        if memory.look_ready and memory.queued < batch:
            await self._read_ready()
        if not memory.look_ready and not memory.busy and await self._one_more_look():
            await self._read_ready()

    async def _one_more_look(self) -> bool:
        self._restless = False
        return self._on_idle is not None and await self._on_idle()

    async def _read_ready(self) -> None:
        memory = self._memory
        memory.look_ready = False
        writers = await self._ask_writers()
        reading = self._reading()  # no wait between these lanes and the epoch of the read
        rows = await self._ask_rows(self._box.read(reading, memory.floor.after))
        if rows is None:
            memory.look_ready = True
            return
        complete = len(rows) < reading.limit
        memory.look_ready = memory.look_ready or not complete
        if rows:
            self._read_since_look = True
            self._admit(rows, drained=False)
        memory.floor.read(
            rows[-1].id if rows else None,
            writers,
            complete=complete,
            lowest_busy=min(memory.busy, default=None),
            now=self._clock.monotonic(),
        )

    async def _ask_writers(self) -> Writers | None:
        """What the floor needs; asked for now and then, it only saves time."""
        now = self._clock.monotonic()
        if now < self._next_horizon:
            return None
        self._next_horizon = now + HORIZON_SECONDS
        flushes, oldest, following = (await self._reader.ask(self._box.horizon())).rows[0]
        return Writers(frozenset(flushes or ()), oldest, following)

    def _reading(self) -> Reading:
        aside = self._aside.topics(self._clock.monotonic()) | (self._paused or frozenset())
        self._memory.keep(self._own.readable)
        return Reading(self._memory.known_lanes, self._memory.busy, aside, self._timing.batch)

    async def _ask_rows(self, statement: Statement) -> list[Row] | None:
        """The rows of a read, None when rows were put back meanwhile: one might come first."""
        epoch = self._memory.epoch
        result = await self._reader.ask(statement)
        return [Row(*values) for values in result.rows] if epoch == self._memory.epoch else None

    def _admit(self, rows: Sequence[Row], *, drained: bool) -> None:
        if rows and not self._stopping:
            self._restless = self._on_idle is not None  # to be asked again when these are settled
            failpoints.hit(failpoints.RELAY_READ)
            self._memory.admit(rows, drained=drained)

    # --- waves ------------------------------------------------------------------------------------
    def _start_waves(self, now: float) -> None:
        limit = 4 * self._timing.batch
        while len(self._waves) < self._work.in_flight_max and len(self._memory.settling) < limit:
            deadline = min(self._timing.send_timeout, self._own.remaining())
            if deadline < self._timing.deadline_min:
                return
            ours = self._is_ours if self._own.leaving else None
            rows = self._memory.take(self._work.batch_max, ours=ours)
            if not rows:
                return
            self._active = True
            task = asyncio.create_task(
                self._deliver(rows, deadline), name=f"duly {self._box.scope}"
            )
            self._waves.add(task)
            task.add_done_callback(lambda done: self._ended(done, None))

    def _is_ours(self, lane: int) -> bool:
        return lane in self._own.readable

    async def _deliver(self, rows: list[Row], deadline: float) -> None:
        verdicts: Sequence[Verdict] = [Verdict(K.LATER, "CANCELLED")] * len(rows)
        era = self._memory.era
        try:
            verdicts = await self._work.deliver(
                rows, deadline_seconds=deadline, terms=self._own.term
            )
        finally:
            if era != self._memory.era:  # under the next lease only facts are stored
                verdicts = [v if v.kind in FACTS else Verdict(K.STALE) for v in verdicts]
            self._judge(rows, verdicts)

    def _judge(self, rows: Sequence[Row], verdicts: Sequence[Verdict]) -> None:
        later = self._memory.judge(rows, verdicts)
        if not later:
            self._troubles = 0
            if self._aside:
                well = self._aside.went_well({row.topic for row in rows})
                self._notes |= dict.fromkeys(well)
            return
        whole = [verdict.error for verdict in verdicts if verdict.kind is K.LATER]
        if whole:
            self._rest()
            self._tell_of_trouble(whole[0], len(later))
        failed = [
            (row.topic, verdict.error)
            for row, verdict in zip(rows, verdicts, strict=True)
            if verdict.kind is K.TOPIC_LATER
        ]
        counts = Counter(topic for topic, _ in failed)
        for topic, error in dict(failed).items():
            self._set_aside(topic, error, count=counts[topic])

    def _set_aside(self, topic: str, error: str, *, count: int) -> None:
        """A destination is in trouble: its rows wait in the table, the others go on."""
        now = self._clock.monotonic()
        trouble = self._aside.put(topic, error, now=now, chance=random.random())
        if trouble is None:
            return
        scope, age, pause = self._box.scope, now - trouble.since, trouble.until - now
        _log.warning("%s: topic %s set aside for %.2f s: %s", scope, topic, pause, error)
        if trouble.lasting:
            trouble.told = True
            self._notes[topic] = note(error, since=self._clock.time() - age, tries=trouble.tries)
        if trouble.report_due(now):
            code, what = error.partition(":")[0], f"{self._box.name}/{topic}"
            self._hooks.emit(StillStuck(what=what, code=code, count=count, oldest_seconds=age))

    async def _store_notes(self) -> None:
        """Write down for the operator which topics are in trouble, and take back which are not."""
        for topic, text in list(self._notes.items()):
            values = {"name": note_name(self._box.name, topic)}
            if text is None:
                await self._writer.ask(Statement("meta.drop", values))
            else:
                await self._writer.ask(Statement("meta.put", {**values, "value": text}))
            if self._notes.get(topic) == text:
                del self._notes[topic]

    async def _learn_notes(self) -> None:
        """What a reader before this one has written down."""
        names = [name for name, _ in (await self._reader.ask(Statement("meta.all"))).rows]
        self._aside.learn(noted(names, self._box.name), self._clock.monotonic())
        self._learned_notes = True

    # --- storing ----------------------------------------------------------------------------------
    async def _settle(self) -> None:
        memory = self._memory
        rows = memory.settling.copy()
        held = [pair for pair in rows if memory.is_held(pair[0])] if memory.freeing_any else []
        free = [pair for pair in rows if not memory.is_held(pair[0])] if held else rows
        if free:
            await self._writer.ask(self._box.settle(free))
        if held:
            memory.holds_died(await self._writer.run(lambda: self._box.settle_held(held)))
        failpoints.hit(failpoints.RELAY_SETTLED)
        memory.settled([row for row, _ in rows])

    async def _store_failures(self) -> None:
        """In this order: the failures with their holds, their followers, what was freed."""
        memory = self._memory
        while memory.failing:
            await self._store_failure(*memory.failing[0])
        if following := list(memory.following):
            await self._hold(following)
        if freeing := list(memory.freeing):
            died = await self._writer.run(lambda: self._box.free_settled(freeing))
            memory.freed(freeing, died)

    async def _store_failure(self, row: Row, verdict: Verdict) -> None:
        term = self._own.term(row.lane)
        died: set[Key] = set()
        if term is not None:
            failure = self._failure(row, verdict, term)
            failpoints.hit(failpoints.RELAY_FAILED)
            try:
                died = await self._writer.run(lambda: self._box.fail(failure))
            except StaleLeaseError as error:
                _log.warning("%s: %s; %s is its owner's", self._box.scope, error, row.message_id)
            else:
                self._report(failure, verdict)
        failpoints.hit(failpoints.RELAY_FAILURE_STORED)
        self._memory.failure_stored(row)
        self._memory.holds_died(died)

    def _failure(self, row: Row, verdict: Verdict, term: LeaseTerm) -> Failure:
        retry = self._work.retry_of(row)
        waits = verdict.kind is K.WAIT
        attempts = row.attempts + (not waits)
        again = waits or (verdict.kind is K.RETRY and not retry.exhausted(attempts))
        delay = WAIT_SECONDS if waits else retry.delay(attempts, random.random())
        return Failure(
            row=row,
            term=term,
            holder=self._own.holder,
            status="retry" if again else "held" if verdict.kind is K.HELD else "failed",
            attempts=attempts,
            error=verdict.error[:1000] or "UNKNOWN",
            delay_seconds=delay if again else None,
            blocks=self._work.order_key(row) is not None and (again or self._work.blocks(row)),
        )

    def _report(self, failure: Failure, verdict: Verdict) -> None:
        row, emit = failure.row, self._hooks.emit
        name, group, topic = self._box.name, self._box.group, row.topic
        message_id, code = row.message_id, failure.error.partition(":")[0]
        if failure.status == "held":
            held = Held(
                box=name, topic=topic, code=code, count=1, group=group, message_id=message_id
            )
            emit(held)
            return
        if verdict.kind is K.RETRY or (verdict.kind is K.FAILED and name == OUTBOX):
            emit(self._attempt_failed(failure, code))
        if failure.delay_seconds is None:
            fact = Failed(
                box=name,
                message_id=message_id,
                topic=topic,
                code=code,
                attempts=failure.attempts,
                group=group,
                handler=row.handler,
            )
            emit(fact)

    def _attempt_failed(self, failure: Failure, code: str) -> SendFailed | HandlerFailed:
        row, due, attempts = failure.row, failure.delay_seconds, failure.attempts
        if self._box.name == OUTBOX:
            return SendFailed(
                message_id=row.message_id,
                topic=row.topic,
                code=code,
                attempts=attempts,
                due_in_seconds=due,
            )
        return HandlerFailed(
            group=self._box.group,
            handler=row.handler,
            message_id=row.message_id,
            code=code,
            attempts=attempts,
            due_in_seconds=due,
        )

    async def _hold(self, rows: list[Row]) -> None:
        count = 0
        terms = [self._own.term(lane) for lane in sorted({row.lane for row in rows})]
        fence = [term for term in terms if term is not None]
        if len(fence) == len(terms):
            holder = self._own.holder
            try:
                count = await self._writer.run(
                    lambda: self._box.hold_followers(rows, fence, holder=holder)
                )
            except StaleLeaseError as error:
                _log.warning("%s: %s; %d rows are its owner's", self._box.scope, error, len(rows))
        if count < len(rows):  # a hold died meanwhile, what was not marked is ready: learn anew
            self._next_sweep = 0.0
        self._memory.followers_stored(rows)
        if count:
            topic, group = rows[0].topic, self._box.group
            fact = Held(box=self._box.name, topic=topic, code="KEY_HELD", count=count, group=group)
            self._hooks.emit(fact)

    # --- giving lanes back ------------------------------------------------------------------------
    def _start_releasing(self) -> None:
        leaving = self._own.leaving
        if leaving:
            self._memory.put_back_queued(lambda row: row.lane in leaving)
            free = leaving - {row.lane for row in self._memory.busy.values()}
            if free and "release" not in self._tasks:
                let_go = self._own.let_go(free)
                self._start("release", lambda: self._own.release(let_go))
