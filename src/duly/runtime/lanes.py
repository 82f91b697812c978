"""The one lane reader, for the outbox and the inbox alike.

Theory of operation.  The node that holds a lane (``LaneOwnership``) is its only reader, so it
simply reads rows in the order of their ids: no claim, no row locks.  One loop starts, whenever it
can, four kinds of work, and is woken when any of it ends:

    fill      read the next rows (due retries, drained followers, ready ones) meanwhile
    waves     hand rows over to the work, at most one per order key at a time
    settle    one statement for everything that was confirmed meanwhile
    failures  store attempts, holds and held followers, fenced by the lane's token

Every row in memory is ``busy`` from the read until it is settled, stored as failed, or put back.
Putting back is only forgetting: the row is still in its table, and the next read finds it.  The
invariants:

* a row is handed over only while its lane's lease outlives the hand-over's deadline;
* of one order key at most one row is under way, and a row of a held key goes only through the
  drain;
* when anything had to be put back, everything queued is put back and nothing is read until what is
  under way has ended, so a follower can never overtake.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any

from duly.errors import DulyError, RetryableError, StaleLeaseError
from duly.kernel import failpoints
from duly.kernel.backoff import Retry
from duly.kernel.waves import Waves
from duly.observe.facts import Failed, Held
from duly.observe.hooks import Hooks
from duly.ports import Clock
from duly.runtime.box import Box, Failure, Key, Reading
from duly.runtime.connection import ConnectionThread
from duly.runtime.floor import Floor
from duly.runtime.ownership import LaneOwnership
from duly.runtime.work import LaneWork, Row, Verdict, VerdictKind

__all__ = ["LaneReader", "LaneTiming"]

DEADLINE_MIN_SECONDS = 0.3  # nothing is handed over with less time than this
IDLE_SWEEP_SECONDS = 60.0  # a reader that had nothing to do since its last sweep sweeps this rarely

K = VerdictKind
_log = logging.getLogger("duly.lanes")
_TROUBLE = Retry(
    attempts=10_000, base="50ms", max="2s"
)  # of a whole database or broker, not of a message
_TOPIC_TROUBLE = Retry(attempts=10_000, base="250ms", max="15s")


class LaneTiming:
    """The times of a lane reader, in seconds."""

    def __init__(
        self,
        *,
        send_timeout: float = 3.0,
        poll_every: float = 1.0,
        sweep_every: float = 10.0,
        batch: int = 1000,
    ) -> None:
        self.send_timeout, self.poll_every, self.sweep_every, self.batch = (
            send_timeout,
            poll_every,
            sweep_every,
            batch,
        )


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
        self._waves: Waves[Row] = Waves(work.wave_key)
        self._floor = Floor()
        self._busy: dict[int, Row] = {}
        self._drained: set[int] = (
            set()
        )  # rows read by due or drain: they may go although their key is held
        self._holds: set[Key] = set()
        self._settling: list[tuple[Row, str]] = []
        self._failing: list[tuple[Row, Verdict]] = []
        self._following: list[Row] = []
        self._freeing: list[
            Row
        ] = []  # settled by the work itself; what they blocked is not free yet
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._wave_tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._stopping = self._active = False
        self._epoch = 0  # counts the times that rows were put back: what was read before is void
        self._more = True  # a read may find something
        self._look_due = self._look_held = False
        self._troubles = 0
        self._quiet_until = self._next_sweep = self._next_rewind = self._next_horizon = 0.0
        self._read_since_rewind = False
        self._aside: dict[str, tuple[int, float]] = {}
        self._paused: frozenset[str] | None = frozenset()
        self._error: BaseException | None = None

    # --- what others tell -------------------------------------------------------------------------
    def hint(self) -> None:
        """New rows may be there. From the loop's thread."""
        self._more = True
        if not self._busy:
            self._floor.rewind()
        self._changed.set()

    def hint_due(self) -> None:
        """Retries may be due."""
        self._look_due = True
        self._changed.set()

    def pause(self, topics: frozenset[str] | None) -> None:
        """These topics are set aside until the next call; None: everything is."""
        if topics != self._paused:
            self._paused = topics
            self._put_back(self._waves.forget(lambda row: topics is None or row.topic in topics))
            self._more = self._look_due = self._look_held = True
            self._floor.rewind()
            self._changed.set()

    def lanes_taken(self) -> None:
        """Lanes were added: read from the beginning and look at their holds first."""
        self._next_sweep = 0.0
        self._changed.set()

    def lanes_lost(self) -> None:
        """All lanes are gone: forget what is queued. What is under way ends and is settled by (id,
        message_id).
        """
        self._put_back(self._waves.forget(lambda _: True))
        self._holds.clear()
        self._changed.set()

    def stop(self) -> None:
        """Hand nothing more over; ``run`` returns when what is under way is stored."""
        self._stopping = True
        self._put_back(self._waves.forget(lambda _: True))
        self._changed.set()

    @property
    def idle(self) -> bool:
        """Nothing in memory and nothing known to be in the table."""
        return not self._busy and not self._more and not self._look_due and not self._look_held

    # --- the loop ---------------------------------------------------------------------------------
    async def run(self) -> None:
        """Read and work until stopped. Raises what the work or a statement raised unexpectedly."""
        try:
            while not (self._stopping and not self._busy and not self._tasks):
                self._step()
                await self._pause()
                if self._error is not None:
                    raise self._error
        finally:
            for task in [*self._tasks.values(), *self._wave_tasks]:
                task.cancel()
            await asyncio.gather(*self._tasks.values(), *self._wave_tasks, return_exceptions=True)

    def _step(self) -> None:
        now = self._clock.monotonic()
        self._wake_aside(now)
        if now >= self._quiet_until:
            if self._settling:
                self._start("settle", self._settle)
            if self._failing or self._following or self._freeing:
                self._start("failures", self._store_failures)
            if not self._stopping:
                self._start_reading(now)
                self._start_waves()
        self._start_releasing()

    def _start_reading(self, now: float) -> None:
        if not self._own.readable or self._paused is None:
            return
        if now >= self._next_sweep:
            self._start("fill", self._sweep)
        elif len(self._waves) < self._timing.batch and len(self._busy) < 4 * self._timing.batch:
            if self._read_since_rewind and now >= self._next_rewind:
                self._read_since_rewind = False
                self._next_rewind = now + self._timing.poll_every
                self._floor.rewind()
                self._more = True
            if self._more or self._look_due or self._look_held:
                self._start("fill", self._fill)

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
            self._tasks[name] = task = asyncio.create_task(
                job(), name=f"duly {self._box.scope} {name}"
            )
            task.add_done_callback(lambda done: self._ended(done, name))

    def _ended(self, task: asyncio.Task[None], name: str | None) -> None:
        if name is None:
            self._wave_tasks.discard(task)
        else:
            self._tasks.pop(name, None)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, RetryableError | StaleLeaseError) or (
            isinstance(error, DulyError) and error.code == "OUTCOME_UNKNOWN"
        ):
            self._trouble(error)
        elif error is not None:
            self._error = error
        self._changed.set()

    def _trouble(self, error: BaseException) -> None:
        """Database or broker are in trouble: everything queued goes back, and nothing happens for a
        while.
        """
        self._troubles += 1
        delay = _TROUBLE.delay(self._troubles, random.random())
        self._quiet_until = self._clock.monotonic() + delay
        _log.warning("%s: %s; again in %.2f s", self._box.scope, error, delay)
        self._put_back(self._waves.forget(lambda _: True))
        self._floor.rewind()
        self._more = self._look_due = self._look_held = True

    # --- reading ----------------------------------------------------------------------------------
    def _reading(self) -> Reading:
        now = self._clock.monotonic()
        aside = {topic for topic, (_, until) in self._aside.items() if until > now} | (
            self._paused or frozenset()
        )
        return Reading(self._own.readable, self._busy, aside, self._timing.batch)

    async def _sweep(self) -> None:
        """Repair holds, learn them anew and read everything from the beginning.

        What is queued goes back first: a hold that is gone now may have had a follower that is not
        in memory.
        """
        lanes = self._own.readable
        holds = await self._writer.run(lambda: self._box.sweep(lanes))
        self._holds = {(topic, key) for topic, key, _ in holds} | self._keys_in_question()
        self._put_back(self._waves.forget(lambda _: True))
        self._look_held = any(blocker is None for _, _, blocker in holds)
        self._look_due = self._more = True
        self._floor.reset()
        every = self._timing.sweep_every if self._active else IDLE_SWEEP_SECONDS
        self._active = False
        self._next_sweep = self._clock.monotonic() + every

    def _keys_in_question(self) -> set[Key]:
        """Keys with a failure or a follower that is not stored yet: on hold, whatever the table
        says.
        """
        rows = [row for row, _ in self._failing] + self._following
        return {key for row in rows if (key := self._work.order_key(row)) is not None}

    async def _fill(self) -> None:
        if self._look_due:
            self._look_due = False
            rows = await self._ask_rows(self._box.due(self._reading()))
            self._look_due = rows is None or len(rows) == self._timing.batch
            self._admit(rows or (), drained=True)
        if self._look_held:
            self._look_held = False
            rows = await self._ask_rows(self._box.drain(self._reading()))
            self._look_held = rows is None
            self._admit(rows or (), drained=True)
        if self._more and len(self._waves) < self._timing.batch:
            await self._read_ready()
        if (
            not self._more
            and not self._busy
            and self._on_idle is not None
            and await self._on_idle()
        ):
            await self._read_ready()

    async def _read_ready(self) -> None:
        self._more = False
        reading = self._reading()
        from_floor = self._floor.cursor == self._floor.floor
        writers = (
            await self._ask_writers()
            if from_floor and self._clock.monotonic() >= self._next_horizon
            else None
        )
        rows = await self._ask_rows(self._box.read(reading, self._floor.cursor))
        if rows is None:
            self._floor.rewind()
            self._more = True
            return
        self._more = self._more or len(rows) == reading.limit
        if rows:
            self._read_since_rewind = True
            self._floor.read(rows[-1].id)
            self._admit(rows, drained=False)
        if writers is not None:
            reached = rows[-1].id if len(rows) == reading.limit else None
            lowest = min(self._busy, default=None)
            self._floor.observe(
                *writers, now=self._clock.monotonic(), reached=reached, lowest_busy=lowest
            )

    async def _ask_writers(self) -> tuple[int, int]:
        self._next_horizon = self._clock.monotonic() + self._timing.poll_every
        row = (await self._reader.ask(self._box.horizon())).rows[0]
        return row[0], row[1]

    async def _ask_rows(self, statement: Any) -> list[Row] | None:
        """The rows of a read, None when rows were put back meanwhile: one of those might come
        first.
        """
        epoch = self._epoch
        result = await self._reader.ask(statement)
        return [Row(*values) for values in result.rows] if epoch == self._epoch else None

    def _admit(self, rows: Sequence[Row], *, drained: bool) -> None:
        lanes = self._own.readable
        fresh = [row for row in rows if row.lane in lanes and row.id not in self._busy]
        if self._stopping:
            return
        if drained and (unstored := self._keys_in_question()):
            fresh = [row for row in fresh if self._work.order_key(row) not in unstored]
        self._busy.update((row.id, row) for row in fresh)
        if drained:
            self._drained.update(row.id for row in fresh)
        failpoints.hit(failpoints.RELAY_READ)
        self._waves.offer(fresh)

    def _put_back(self, rows: Sequence[Row]) -> None:
        """Forget rows: they are still in their table, and what is being read just now is void."""
        for row in rows:
            self._busy.pop(row.id, None)
            self._drained.discard(row.id)
        if rows:
            self._epoch += 1
            self._floor.rewind()
            self._more = self._look_due = self._look_held = True

    # --- waves ------------------------------------------------------------------------------------
    def _start_waves(self) -> None:
        while (
            len(self._wave_tasks) < self._work.in_flight_max
            and len(self._settling) < 4 * self._timing.batch
        ):
            deadline = min(self._timing.send_timeout, self._lease_left())
            if deadline < DEADLINE_MIN_SECONDS:
                return
            rows = self._sendable(self._waves.take(self._work.batch_max))
            if not rows:
                return
            self._active = True
            task = asyncio.create_task(
                self._deliver(rows, deadline), name=f"duly {self._box.scope} wave"
            )
            self._wave_tasks.add(task)
            task.add_done_callback(lambda done: self._ended(done, None))

    def _lease_left(self) -> float:
        lane = next(iter(self._own.readable), None)
        term = None if lane is None else self._own.term(lane)
        return 0.0 if term is None else term.until_monotonic - self._clock.monotonic()

    def _sendable(self, rows: list[Row]) -> list[Row]:
        """The rows that may go; followers of a held key go to be marked, rows of lost lanes are put
        back.
        """
        if not self._holds and not self._own.leaving:
            return rows
        sendable, others = [], []
        for row in rows:
            key = self._work.order_key(row)
            follower = key is not None and key in self._holds and row.id not in self._drained
            if follower:
                self._following.append(row)
            elif self._own.term(row.lane) is None or row.lane in self._own.leaving:
                others.append(row)
            else:
                sendable.append(row)
                continue
        kept = {row.id for row in sendable}
        self._waves.finish(row for row in rows if row.id not in kept)
        self._put_back(others)
        return sendable

    async def _deliver(self, rows: list[Row], deadline: float) -> None:
        verdicts: Sequence[Verdict] = [Verdict(K.LATER, "CANCELLED")] * len(rows)
        try:
            verdicts = await self._work.deliver(
                rows, deadline_seconds=deadline, terms=self._own.term
            )
        finally:
            self._judge(rows, verdicts)

    def _judge(self, rows: Sequence[Row], verdicts: Sequence[Verdict]) -> None:
        later: list[Row] = []
        for row, verdict in zip(rows, verdicts, strict=True):
            if verdict.kind in (K.DONE, K.UNROUTED):
                self._settling.append((row, "sent" if verdict.kind is K.DONE else "unrouted"))
                if self._aside:
                    self._aside.pop(row.topic, None)
            elif verdict.kind is K.SETTLED:
                self._settled_elsewhere(row)
            elif verdict.kind in (K.RETRY, K.FAILED, K.HELD):
                self._failing.append((row, verdict))
            else:
                later.append(row)
                if verdict.kind is K.TOPIC_LATER:
                    self._set_aside(row.topic, verdict.error)
        if later:
            self._put_later_back(later, verdicts)
        else:
            self._troubles = 0
        self._finish_keys(rows, verdicts)

    def _finish_keys(self, rows: Sequence[Row], verdicts: Sequence[Verdict]) -> None:
        """Let the next of each key go - but after a failure its followers become held first."""
        for row, verdict in zip(rows, verdicts, strict=True):
            key = self._work.order_key(row)
            if verdict.kind in (K.RETRY, K.FAILED, K.HELD) and key is not None:
                self._holds.add(key)
                self._epoch += 1
                followers = self._waves.forget(lambda r, key=key: self._work.order_key(r) == key)  # type: ignore[misc]
                self._following.extend(r for r in followers if r.id not in self._drained)
                self._forget_drained(r for r in followers if r.id in self._drained)
        self._waves.finish(rows)

    def _forget_drained(self, rows: Iterable[Row]) -> None:
        for row in rows:
            self._drained.discard(row.id)
            self._busy.pop(row.id, None)

    def _put_later_back(self, later: list[Row], verdicts: Sequence[Verdict]) -> None:
        """Not tried, or nobody knows: everything queued of the same trouble goes back, so that no
        follower overtakes.
        """
        topics = {row.topic for row in later}
        whole = any(verdict.kind is K.LATER for verdict in verdicts)
        self._put_back(later)
        self._put_back(self._waves.forget(lambda row: whole or row.topic in topics))
        if whole:
            self._troubles += 1
            self._quiet_until = self._clock.monotonic() + _TROUBLE.delay(
                self._troubles, random.random()
            )

    def _set_aside(self, topic: str, error: str) -> None:
        """A destination is in trouble: its rows wait in the table, the others go on."""
        tries, _ = self._aside.get(topic, (0, 0.0))
        delay = _TOPIC_TROUBLE.delay(tries + 1, random.random())
        self._aside[topic] = (tries + 1, self._clock.monotonic() + delay)
        _log.warning("%s: topic %s set aside for %.2f s: %s", self._box.scope, topic, delay, error)

    def _wake_aside(self, now: float) -> None:
        """Topics whose time is over are read again; how often they failed is remembered until one
        goes well.
        """
        for topic, (tries, until) in self._aside.items():
            if 0 < until <= now:
                self._aside[topic] = (tries, 0.0)
                self._floor.rewind()
                self._more = self._look_due = self._look_held = True

    # --- settling ---------------------------------------------------------------------------------
    async def _settle(self) -> None:
        rows, self._settling = self._settling, []
        try:
            held = [pair for pair in rows if self._is_held(pair[0])]
            free = [pair for pair in rows if not self._is_held(pair[0])]
            if free:
                await self._writer.ask(self._box.settle(free))
            if held:
                self._release_holds(await self._writer.run(lambda: self._box.settle_held(held)))
        except BaseException:
            self._settling = rows + self._settling
            raise
        self._forget_settled(row for row, _ in rows)

    def _is_held(self, row: Row) -> bool:
        return row.id in self._drained or (row.topic, row.key) in self._holds

    def _settled_elsewhere(self, row: Row) -> None:
        if self._is_held(row) and row.key is not None:
            self._freeing.append(row)
        else:
            self._forget_settled([row])

    def _release_holds(self, died: set[Key]) -> None:
        self._holds -= died - self._keys_in_question()
        self._look_held = True

    def _forget_settled(self, rows: Iterable[Row]) -> None:
        for row in rows:
            self._busy.pop(row.id, None)
            self._drained.discard(row.id)
        failpoints.hit(failpoints.RELAY_SETTLED)

    # --- failures ---------------------------------------------------------------------------------
    async def _store_failures(self) -> None:
        """In this order: the failures with their holds, their followers, what was freed. Each stays
        listed until stored.
        """
        while self._failing:
            await self._store_failure(*self._failing[0])
            self._failing.pop(0)
        if following := list(self._following):
            await self._hold(following)
            del self._following[: len(following)]
        if freeing := list(self._freeing):
            died = await self._writer.run(lambda: self._box.free_settled(freeing))
            del self._freeing[: len(freeing)]
            self._release_holds(died)
            self._forget_settled(freeing)

    async def _store_failure(self, row: Row, verdict: Verdict) -> None:
        term = self._own.term(row.lane)
        if term is not None:
            failure = self._failure(row, verdict, term)
            try:
                died = await self._writer.run(lambda: self._box.fail(failure))
            except StaleLeaseError as error:
                _log.warning(
                    "%s: %s; message %s is its new owner's", self._box.scope, error, row.message_id
                )
            else:
                self._report(failure, verdict)
                self._release_holds(died)
        self._epoch += 1  # a drain that began before the hold was stored may have read a follower
        self._look_held = True
        self._busy.pop(row.id, None)
        self._drained.discard(row.id)
        failpoints.hit(failpoints.RELAY_FAILURE_STORED)

    def _failure(self, row: Row, verdict: Verdict, term: Any) -> Failure:
        retry = self._work.retry_of(row)
        attempts = row.attempts + 1
        again = verdict.kind is K.RETRY and not retry.exhausted(attempts)
        status = "retry" if again else "held" if verdict.kind is K.HELD else "failed"
        return Failure(
            row=row,
            term=term,
            holder=self._own.holder,
            status=status,
            attempts=attempts,
            error=verdict.error[:1000] or "UNKNOWN",
            delay_seconds=retry.delay(attempts, random.random()) if again else None,
            blocks=self._work.order_key(row) is not None and (again or self._work.blocks(row)),
        )

    def _report(self, failure: Failure, verdict: Verdict) -> None:
        if failure.delay_seconds is not None:
            return
        row, code = failure.row, verdict.error.partition(":")[0]
        self._hooks.emit(
            Failed(
                box=self._box.name,
                message_id=row.message_id,
                topic=row.topic,
                code=code,
                attempts=failure.attempts,
                group=self._box.group,
                handler=row.handler,
            )
        )

    async def _hold(self, rows: list[Row]) -> None:
        count = await self._writer.run(lambda: self._box.hold_followers(rows))
        for row in rows:
            self._busy.pop(row.id, None)
        if count < len(
            rows
        ):  # a hold died meanwhile, and what was not marked is still ready: learn the holds anew
            self._next_sweep = 0.0
        if count:
            self._hooks.emit(
                Held(
                    box=self._box.name,
                    topic=rows[0].topic,
                    code="KEY_HELD",
                    count=count,
                    group=self._box.group,
                )
            )

    # --- giving lanes back ------------------------------------------------------------------------
    def _start_releasing(self) -> None:
        leaving = self._own.leaving
        if not leaving:
            return
        self._put_back(self._waves.forget(lambda row: row.lane in leaving))
        in_use = {row.lane for row in self._busy.values()}
        if free := leaving - in_use:
            self._start("release", lambda: self._own.release(free))
