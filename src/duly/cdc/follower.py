"""One reading of a stream: from the claim of its offset to the first thing that ends it.

    claim -> prepare -> open -> [ take items -> rules -> one write -> confirm ]*

Owns that order.  The invariants: position, state and messages are one transaction, conditional on
the token of the claim; the source is told only what is stored; after an error that leaves open
what was stored nothing goes on from memory, the next reading begins from the row.  Waiting for
another node, and what becomes of errors, is the role's business.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

from msgspec import structs

from duly.cdc.effects import Effects, Frame
from duly.cdc.feeding import Feeding
from duly.cdc.intake import Intake, Item, position_of, weight_of
from duly.cdc.offsets import Offset, Request, SnapshotState, State, Trouble, move, requests
from duly.cdc.outgoing import Evaluated, Evaluator
from duly.cdc.registry import StreamRules
from duly.errors import DulyError, GapError
from duly.kernel import failpoints
from duly.kernel.backoff import Retry
from duly.kernel.changes import SnapshotChunk, Transaction
from duly.kernel.rules import RuleFailedError
from duly.observe.facts import Captured, CaptureStopped
from duly.observe.hooks import Hooks
from duly.outbox.publish import MessageOutlet
from duly.ports import Clock, Pending, Statement, Steps
from duly.runtime.connection import ConnectionThread
from duly.sources import ChangeSource, ChangeStream

__all__ = ["Follower", "Pace"]

_log = logging.getLogger("duly.cdc")
_AGAIN = Retry(attempts=10_000, base="500ms", max="30s")


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How much at once. batch: changes in one write; buffer: changes read ahead; lazy: from how
    many changes on a transaction becomes messages while it is written; idle_seconds: how long a
    position with nothing to tell may stay unstored; look_seconds: how often a waiting writer looks
    up.
    """

    batch: int = 1000
    buffer: int = 10_000
    lazy: int = 5000
    idle_seconds: float = 5.0
    look_seconds: float = 0.2


@dataclass
class _Unstored:
    """A position that was reached and is not in the row. since: by the clock's ``monotonic``."""

    position: str = ""
    since: float = 0.0


class Follower:
    """Reads one stream until told to stop. connection: where it writes; asked: what a person asks
    for now; tell: called with the code of what stands in the way, empty when nothing does; effects:
    where rules write, too; feeding: of the sink that is fed, instead.
    """

    def __init__(
        self,
        rules: StreamRules,
        source: ChangeSource,
        *,
        outlet: MessageOutlet,
        connection: ConnectionThread,
        clock: Clock,
        hooks: Hooks,
        tell: Callable[[str], None],
        pace: Pace,
        effects: Effects | None = None,
        feeding: Feeding | None = None,
    ) -> None:
        self._rules, self._source, self._outlet = rules, source, outlet
        self._connection, self._clock, self._hooks = connection, clock, hooks
        self._tell, self._pace, self._effects = tell, pace, effects
        self._feeding = feeding
        self._evaluator = Evaluator(rules, outlet)
        self._tables = {table.name: table for table in rules.tables()}
        self._naming = rules.naming
        self._intake = Intake(changes_max=pace.buffer)
        self._offset = Offset()
        self._unstored = _Unstored()
        self._active = ""  # the table whose snapshot is under way
        self._busy = False
        self._served: set[str] = set()
        self.asked: Sequence[Request] = ()
        self.writing = False

    @property
    def offset(self) -> Offset:
        """The row as this reader knows it."""
        return self._offset

    def reached(self, position: str) -> bool:
        """Whether everything up to here is done with, and no snapshot is under way."""
        here = max(self._offset.position, self._unstored.position)
        return bool(here) and here >= position and not (self._busy or self._pending_tables())

    # --- the way ----------------------------------------------------------------------------------
    async def run(self, offset: Offset, stopping: asyncio.Event) -> None:
        """Read on from the claimed offset until told to stop.

        Raises GapError, UndecodableError, ConfigurationError (a person decides), StaleLeaseError
        (another reader has it), RetryableError and OutcomeUnknownError (begin again from the row).
        """
        self._offset = offset
        await self._begin()
        if self._feeding is not None:
            await self._store_state(await self._feeding.begun(self._offset))
            await self._store_state(await self._feeding.open(self._offset))
            await self._renew_copy(self._feeding)
        stream = await self._source.open(
            list(self._tables.values()), position=self._offset.position, token=offset.token
        )
        reading = None
        try:
            await self._settle_in(stream)
            reading = asyncio.create_task(self._read(stream), name=f"duly {self._rules.name} read")
            await self._write_all(stream, reading, stopping)
        finally:
            if reading is not None:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
            await stream.close()

    async def _settle_in(self, stream: ChangeStream) -> None:
        """It could be opened: what stopped it is over. Then what was asked meanwhile, before
        anything is read: a snapshot can be what mends the capture of a table.
        """
        state = self._offset.state
        if state.trouble is not None and state.trouble.stopped:
            state = state.with_trouble(None)
            await self._store((), position=self._offset.position, state=state)
        self._tell("" if state.trouble is None else state.trouble.code)
        self.asked = await self._connection.run(lambda: requests(self._rules.name))
        await self._serve(stream)

    async def _begin(self) -> None:
        """Compare the source with the row, make what capturing needs, store where it begins."""
        position, state = self._offset.position, self._offset.state
        identity = await self._source.identity()
        if state.identity not in ("", identity):
            text = f"{self._rules.name} was reading {state.identity}, and this is {identity}"
            raise GapError(f"{text}; see `duly cdc rewind --to start`", code="CDC_OTHER_SOURCE")
        start = await self._source.prepare(list(self._tables.values()))
        fresh = [name for name in self._rules.initial() if name not in state.tables]
        if position and state.identity and not fresh:
            return
        tables = {**state.tables, **{name: SnapshotState() for name in fresh}}
        begun = structs.replace(state, identity=identity, tables=tables)
        await self._store((), position=position or start, state=begun)

    async def _read(self, stream: ChangeStream) -> None:
        async for item in stream.items():
            failpoints.hit(failpoints.CDC_READ)
            await self._intake.put(self._of_run(item))

    def _of_run(self, item: Item) -> Item:
        """A chunk of a snapshot that was asked for, under ids of its own: where nothing changed
        since the last one, its rows would else be dropped as those of that one.
        """
        if not isinstance(item, SnapshotChunk):
            return item
        snapshot = self._offset.state.tables.get(self._naming.of(item.table))
        if snapshot is None or not snapshot.run:
            return item
        rows = [
            structs.replace(row, position=f"{row.position}.{snapshot.run}") for row in item.rows
        ]
        return replace(item, rows=rows)

    async def _write_all(
        self, stream: ChangeStream, reading: asyncio.Task[None], stopping: asyncio.Event
    ) -> None:
        while not stopping.is_set():
            await self._serve(stream)
            items: Sequence[Item] = await self._intake.take(
                changes_max=self._pace.batch, timeout_seconds=self._pace.look_seconds
            )
            if not items and reading.done():
                reading.result()
                raise GapError(f"{self._rules.name} ended by itself", code="CDC_STREAM_ENDED")
            self._busy = bool(items)
            while items and not stopping.is_set():
                items = await self._advance(stream, items, stopping)
            self._busy = False
            await self._store_idle(stream, force=False)
        await self._store_idle(stream, force=True)

    async def _advance(
        self, stream: ChangeStream, items: Sequence[Item], stopping: asyncio.Event
    ) -> Sequence[Item]:
        """Do the first of these items, as many as go into one write; returns the others."""
        began = self._clock.monotonic()
        sizes = enumerate(map(weight_of, items))
        large = next((place for place, size in sizes if size >= self._pace.lazy), len(items))
        done = await self._done_of(stream, items[: max(1, large)], began)
        rest = items[len(done.items) :]
        if done.failed is not None:
            return await self._fail(done.failed, rest, stopping)
        self._tell("")
        return rest

    async def _done_of(
        self, stream: ChangeStream, items: Sequence[Item], began: float
    ) -> Evaluated:
        """Make of items what the rules make of them, store and confirm it: small ones together, or
        a large one by itself.
        """
        if self._feeding is not None:
            return await self._write_fed(stream, items, self._feeding, began=began)
        if self._effects is not None:
            return await self._write_effects(stream, items, began)
        if weight_of(items[0]) >= self._pace.lazy:
            failed = await self._write_large(stream, items[0], began)
            return Evaluated(() if failed else items, (), failed)
        done = await asyncio.to_thread(self._evaluator.evaluate, items)
        await self._write(stream, done, began)
        return done

    # --- writing ----------------------------------------------------------------------------------
    async def _write(self, stream: ChangeStream, done: Evaluated, began: float) -> None:
        if not done.items:
            return
        position = position_of(done.items[-1])
        state = self._state_after(done.items)
        if not done.messages and state == self._offset.state:
            self._leave_unstored(position, began)
            return
        await self._store([done.messages], position=position, state=state)
        self._outlet.committed(done.messages)
        self._told(done.items, len(done.messages), began)
        await self._confirm(stream, done.items)

    async def _write_large(
        self, stream: ChangeStream, item: Item, began: float
    ) -> RuleFailedError | None:
        counted: list[int] = []

        def pieces() -> Steps[None]:
            counted.clear()
            for piece in self._evaluator.pieces(item):
                counted.append(len(piece))
                yield from self._outlet.write(piece)
                failpoints.hit(failpoints.CDC_WRITTEN)

        state = self._state_after([item])
        try:
            await self._store_with(pieces, position=position_of(item), state=state)
        except RuleFailedError as error:
            return error
        self._outlet.committed(())
        self._told([item], sum(counted), began)
        await self._confirm(stream, [item])
        return None

    async def _write_effects(
        self, stream: ChangeStream, items: Sequence[Item], began: float
    ) -> Evaluated:
        """Rules, messages and position in one transaction that the rules write in, too."""
        effects, before = self._effects, self._offset
        assert effects is not None

        def after(done: Sequence[Item]) -> Offset:
            return before._replace(position=position_of(done[-1]), state=self._state_after(done))

        frame = Frame(
            first=lambda: move(self._rules.name, before),
            last=lambda done: move(self._rules.name, after(done)),
            due=lambda done: after(done).state != before.state,
        )
        self.writing = True
        try:
            working = self._connection.submit(lambda _: effects.apply(items, frame))
            applied = await asyncio.wrap_future(working)
        finally:
            self.writing = False
        if applied.stored:
            self._offset, self._unstored = after(applied.items), _Unstored()
            failpoints.hit(failpoints.CDC_STORED)
            self._outlet.committed(applied.messages)
            self._told(applied.items, applied.made, began)
            await self._confirm(stream, applied.items)
        elif applied.items:
            self._leave_unstored(position_of(applied.items[-1]), began)
        return Evaluated(applied.items, applied.messages, applied.failed)

    async def _write_fed(
        self, stream: ChangeStream, items: Sequence[Item], feeding: Feeding, *, began: float
    ) -> Evaluated:
        """The sink first, then the position: what is applied twice is found out there."""
        state = self._offset.state
        if state.epoch != state.fed and not feeding.knows(items[0]):
            here = max(self._offset.position, feeding.had)  # all that it has was passed by
            await self._store((), position=here, state=state)
            await self._renew_copy(feeding)
        done = await feeding.apply(items)
        if done.items:
            state = self._state_after(done.items)
            await self._store((), position=position_of(done.items[-1]), state=state)
            self._told(done.items, 0, began)
            await self._confirm(stream, done.items)
        return done

    async def _renew_copy(self, feeding: Feeding) -> None:
        """Begin the copy anew if that is due, and the stream is as far as the sink: what that has
        and nobody knows of any more would be applied again.
        """
        position, state = self._offset.position, self._offset.state
        if state.epoch != state.fed and position >= feeding.had:
            await self._store_state(await feeding.renew(self._offset))

    def _leave_unstored(self, position: str, began: float) -> None:
        if not self._unstored.position:
            self._unstored.since = began
        self._unstored.position = position

    async def _store(
        self, batches: Sequence[Sequence[Pending]], *, position: str, state: State
    ) -> None:
        def writes() -> Steps[None]:
            for batch in batches:
                yield from self._outlet.write(batch)
                failpoints.hit(failpoints.CDC_WRITTEN)

        await self._store_with(writes, position=position, state=state)

    async def _store_state(self, state: State) -> None:
        if state != self._offset.state:
            await self._store((), position=self._offset.position, state=state)

    async def _store_with(
        self, writes: Callable[[], Steps[None]], *, position: str, state: State, note: str = ""
    ) -> None:
        """Position, state and messages in one transaction; note: of a request that is taken up."""
        offset = self._offset._replace(position=position, state=state)

        def steps() -> Steps[None]:
            yield from move(self._rules.name, offset)
            if note:
                yield Statement("meta.drop", {"name": note})
            yield from writes()

        self.writing = True
        try:
            await self._connection.run(steps)
        finally:
            self.writing = False
        self._offset, self._unstored = offset, _Unstored()
        failpoints.hit(failpoints.CDC_STORED)

    async def _confirm(self, stream: ChangeStream, items: Sequence[Item]) -> None:
        await stream.confirm(self._offset.position)
        failpoints.hit(failpoints.CDC_CONFIRMED)
        for item in items:
            if isinstance(item, SnapshotChunk):
                failpoints.hit(failpoints.CDC_CHUNK_STORED)
                item.release()
                if item.done and self._naming.of(item.table) == self._active:
                    self._active = ""

    async def _store_idle(self, stream: ChangeStream, *, force: bool) -> None:
        """Store a position that has nothing to tell, now and then, or the end of some trouble."""
        unstored, state = self._unstored, self._offset.state
        position = unstored.position
        waited = self._clock.monotonic() - unstored.since
        if position and (force or waited >= self._pace.idle_seconds):
            await self._store((), position=position, state=state.with_trouble(None))
            await stream.confirm(position)

    def _state_after(self, items: Sequence[Item]) -> State:
        """Snapshots further on by these items, and no trouble: they went well."""
        state = self._offset.state.with_trouble(None)
        for item in items:
            if isinstance(item, SnapshotChunk) and (table := self._naming.of(item.table)):
                cursor = item.cursor if item.resumable else ""
                before = state.tables.get(table, SnapshotState())
                snapshot = structs.replace(before, cursor=cursor, done=item.done)
                state = state.with_table(table, snapshot)
        return state

    # --- what goes wrong in a rule ----------------------------------------------------------------
    async def _fail(
        self, error: DulyError, items: Sequence[Item], stopping: asyncio.Event
    ) -> Sequence[Item]:
        """Say so, wait, and return what is to be done then: the same, or without the first.

        Raises the error where it is not to be tried again.
        """
        place = position_of(items[0])
        before = self._offset.state.trouble
        tries = before.tries + 1 if before is not None and before.position == place else 1
        since = before.since if before is not None and tries > 1 else self._clock.time()
        trouble = Trouble(error.code, error.detail, place, since, tries)
        position = self._unstored.position or self._offset.position
        await self._store((), position=position, state=self._offset.state.with_trouble(trouble))
        self._tell(error.code)
        self._hooks.emit(CaptureStopped(stream=self._rules.name, code=error.code, tries=tries))
        retry = self._rules.retry_after(error) or _AGAIN
        delay_seconds = 0.0 if retry.exhausted(tries) else retry.delay(tries, random.random())
        until = self._clock.monotonic() + delay_seconds
        while not stopping.is_set():
            if await self._skipped(items[0]):
                return items[1:]
            if self._clock.monotonic() >= until:
                break
            await self._clock.sleep(min(self._pace.look_seconds, 0.2))
        if retry.exhausted(tries):
            raise error
        return items

    async def _skipped(self, item: Item) -> bool:
        """Whether a person has asked to leave this item out; that is stored then."""
        place = position_of(item)
        for request in self.asked:
            if request.verb == "skip" and request.argument == place:
                state = self._state_after([item])
                if self._feeding is not None:
                    await self._feeding.pass_by(place)
                await self._store_with(_nothing, position=place, state=state, note=request.name)
                _log.warning("%s: skipped %s as asked", self._rules.name, place)
                return True
        return False

    # --- what a person asks for -------------------------------------------------------------------
    async def _serve(self, stream: ChangeStream) -> None:
        """Take up requests of snapshots, and begin the next one that is due."""
        for request in self.asked:
            # Whoever looks for requests may have looked before the note of this one was dropped.
            if request.verb == "snapshot" and request.mark not in self._served:
                state = self._offset.state
                if request.argument in self._tables and request.argument != self._active:
                    run = sha256(request.mark.encode()).hexdigest()[:8]
                    state = state.with_table(request.argument, SnapshotState(run=run))
                    state = structs.replace(state, epoch=state.anew().epoch)
                here = self._unstored.position or self._offset.position
                await self._store_with(_nothing, position=here, state=state, note=request.name)
                self._served.add(request.mark)
                if self._feeding is not None:
                    await self._renew_copy(self._feeding)
            elif request.verb == "skip" and self._offset.state.trouble is None:
                # It went well before anybody skipped it: that must not be skipped another time.
                await self._connection.ask(Statement("meta.drop", {"name": request.name}))
        pending = self._pending_tables()
        if not self._active and pending:
            table = pending[0]
            cursor = self._offset.state.tables[table].cursor
            await stream.snapshot(self._tables[table], cursor=cursor)
            self._active = table

    def _pending_tables(self) -> list[str]:
        tables = self._offset.state.tables.items()
        wanted = sorted(name for name, snapshot in tables if not snapshot.done)
        return [name for name in wanted if name in self._tables]

    def _told(self, items: Sequence[Item], messages: int, began: float) -> None:
        if not self._hooks.listening:
            return
        transactions = [item for item in items if isinstance(item, Transaction)]
        commits = [t.committed_at for t in transactions if t.committed_at is not None]
        lag = time.time() - min(commits).timestamp() if commits else 0.0
        self._hooks.emit(
            Captured(
                stream=self._rules.name,
                transactions=len(transactions),
                changes=sum(map(weight_of, items)),
                messages=messages,
                seconds=self._clock.monotonic() - began,
                lag_seconds=max(0.0, lag),
            )
        )


def _nothing() -> Steps[None]:
    yield from ()
