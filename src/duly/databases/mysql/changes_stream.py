"""An open stream of a MySQL or MariaDB: what is received waits here, bounded, until asked for.

Owns the way from the link's thread to the caller's loop, the pause while nobody takes, and the
positions with nothing to tell.  Invariants: what the thread puts together reaches the loop in its
order, together with the position behind it; nothing is given behind an error; closing waits for the
thread.  The server keeps its log by its own clock: to confirm moves nothing there.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress

from duly.databases.mysql.changes_assembly import Assembly, Item
from duly.databases.mysql.changes_chunk import TableChunks
from duly.databases.mysql.changes_link import Link
from duly.databases.mysql.changes_place import Place, Position
from duly.databases.mysql.changes_snapshot import Snapshot
from duly.databases.mysql.changes_spool import unreadable
from duly.errors import ConfigurationError, PermanentError, UndecodableError
from duly.kernel.changes import Transaction
from duly.ports import Clock
from duly.sources import TableSpec

__all__ = ["MysqlChangeStream"]

IDLE_SECONDS = 10.0  # between two positions with nothing to tell
WAITING_BYTES = 16 * 1024 * 1024
WAITING_ITEMS = 5_000
_TICK_SECONDS = 0.2
_JOIN_SECONDS = 10.0
_LOOK_SECONDS = 1.0
_BATCHES_AHEAD = 4  # of the loop
_ITEM_BYTES = 500
Verdict = Callable[[Exception], Awaitable[Exception]]
_Sized = tuple[Transaction, int]


class MysqlChangeStream:
    """One reader of a server's log.

    assemble: makes what puts transactions together, given what to call with each. verdict: what a
    failure means. snapshot_of: what reads a table beside the stream; None for a table that is not
    captured.
    """

    def __init__(
        self,
        *,
        position: Position,
        clock: Clock,
        assemble: Callable[[Callable[[Transaction, int], None]], Assembly],
        snapshot_of: Callable[[TableSpec], TableChunks | None],
        verdict: Verdict,
    ) -> None:
        self._batch: list[_Sized] = []  # the thread's
        self._assembly = assemble(lambda transaction, size: self._batch.append((transaction, size)))
        self._loop = asyncio.get_running_loop()
        self._clock = clock
        self._snapshot_of, self._verdict = snapshot_of, verdict
        self.source = self._assembly.source
        self.reached = position
        self.given: Place = position.place
        self.decided: Sequence[bytes] = ()
        self._link: Link | None = None
        self._ready: deque[tuple[Item, int]] = deque()
        self._waiting_bytes = 0
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._may_read = threading.Event()
        self._may_read.set()
        self._ahead = threading.Semaphore(_BATCHES_AHEAD)
        self._failure: Exception | None = None
        self._closed = False
        self._told = position.place.order
        self._idle_at = clock.monotonic() - IDLE_SECONDS
        self._watchers: list[Snapshot] = []
        self._tasks: list[asyncio.Task[None]] = []

    def follow(self, link: Link) -> None:
        """Look after a link whose thread calls ``take`` and ``fail``."""
        self._link = link
        self._tasks.append(asyncio.create_task(self._tend()))

    # --- on the link's thread ---------------------------------------------------------------------
    def take(self, events: list[bytes]) -> None:
        """Put events together and hand over what came out; waits while too much is waiting."""
        feed = self._assembly.feed
        try:
            for data in events:
                feed(data)
        finally:
            # What lies before an event that cannot be read was whole.
            batch, self._batch = self._batch, []
            reached, given = self._assembly.reached, self._assembly.given
            decided = tuple(self._assembly.decided) if batch else None
            self._call(lambda: self._arrived(batch, reached, given=given, decided=decided))
        while not (self._ahead.acquire(timeout=_LOOK_SECONDS) or self._closed):
            pass
        while not (self._may_read.wait(_LOOK_SECONDS) or self._closed):
            pass

    def fail(self, error: Exception) -> None:
        """The stream ended."""
        self._call(lambda: self._failed(error))

    def _call(self, what: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody is there to be told
            self._loop.call_soon_threadsafe(what)

    # --- what the caller asks ---------------------------------------------------------------------
    async def items(self) -> AsyncIterator[Item]:
        """As ``ChangeStream.items``."""
        while not self._closed:
            while self._ready:
                item, size = self._ready.popleft()
                self._waiting_bytes -= size
                if not self._room.is_set() and self._waiting_bytes < WAITING_BYTES // 2:
                    self._room.set()
                    self._may_read.set()
                yield item
            if self._failure is not None:
                verdict = await self._verdict(self._failure)
                raise verdict from (None if verdict is self._failure else self._failure)
            self._wake.clear()
            await self._wake.wait()

    async def snapshot(self, table: TableSpec, *, cursor: str = "") -> None:
        """As ``ChangeStream.snapshot``. Raises ConfigurationError for a table without a primary
        key or not captured here, GapError for a cursor of another key.
        """
        chunks = self._snapshot_of(table)
        if chunks is None:
            text = f"{table.name} is not captured by this stream"
            raise ConfigurationError(text, code="CDC_TABLE_MISSING")
        job = Snapshot(self, chunks, cursor=cursor)
        self._tasks.append(asyncio.create_task(self._guarded(job.run())))

    async def confirm(self, position: str) -> None:
        """As ``ChangeStream.confirm``: there is nobody to tell; it only must have been read."""
        if Position.parse(position).place.order > self.reached.place.order:
            text = f"{position} was never read; the stream is at {self.reached.text}"
            raise PermanentError(text, code="CDC_POSITION_AHEAD")

    async def close(self) -> None:
        """As ``ChangeStream.close``."""
        self._closed = True
        self._wake.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._link is not None:
            self._link.cut()
            await asyncio.to_thread(self._link.join, _JOIN_SECONDS)

    # --- what a snapshot beside the stream needs --------------------------------------------------
    def watch(self, snapshot: Snapshot) -> None:
        """Tell it of every transaction from now on."""
        self._watchers.append(snapshot)

    def unwatch(self, snapshot: Snapshot) -> None:
        """Tell it no more."""
        with suppress(ValueError):
            self._watchers.remove(snapshot)

    def put(self, item: Item, size: int) -> None:
        """Give something to the caller, in its place."""
        size += _ITEM_BYTES
        self._ready.append((item, size))
        self._waiting_bytes += size
        self._wake.set()
        if self._waiting_bytes > WAITING_BYTES or len(self._ready) > WAITING_ITEMS:
            self._room.clear()
            self._may_read.clear()

    async def room(self) -> None:
        """Wait until the caller has taken most of what is there."""
        await self._room.wait()

    # --- what comes in ----------------------------------------------------------------------------
    def _arrived(
        self,
        batch: Sequence[_Sized],
        reached: Position,
        *,
        given: Place,
        decided: Sequence[bytes] | None,
    ) -> None:
        self._ahead.release()
        for transaction, size in batch:
            for snapshot in self._watchers:
                snapshot.saw(transaction)
            self.put(transaction, size)
        self.reached, self.given = reached, given
        if batch:
            self._told = reached.place.order
        if decided is not None:
            self.decided = decided

    def _failed(self, error: Exception) -> None:
        if self._failure is None:
            self._failure = unreadable(error) if isinstance(error, UndecodableError) else error
        self._wake.set()
        if self._link is not None:
            self._link.cut()

    async def _guarded(self, work: Awaitable[None]) -> None:
        """Whatever ends a task of ours ends the stream."""
        try:
            await work
        except Exception as error:  # noqa: BLE001  # it is told to the caller of items()
            self._failed(error)

    async def _tend(self) -> None:
        """A position with nothing to tell, seldom: to store it may write to the same log."""
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            now = self._clock.monotonic()
            if self.reached.place.order > self._told and now - self._idle_at >= IDLE_SECONDS:
                self._idle_at, self._told = now, self.reached.place.order
                self.put(self.reached.text, 0)
