"""An open stream of a PostgreSQL: what is received waits here, bounded, until it is asked for.

Owns the one reader of a slot: what is told to the server and when, the pause while nobody takes,
the watch over a server that went quiet.  Invariants: the server hears only of positions that the
caller confirmed; it hears from us however long a handler takes; nothing is given behind an error.
A second connection stays open beside the stream: it writes the heartbeat of an idle stream, and a
server that shuts down closes it first - it would wait for this reader for ever.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

from duly.databases.postgres.changes_assembly import Assembly, Item, lsn_text
from duly.databases.postgres.changes_catalog import (
    HEARTBEAT,
    Table,
    captured,
    find_tables,
    missing_from_publication,
)
from duly.databases.postgres.changes_link import Link
from duly.databases.postgres.changes_snapshot import Snapshot
from duly.databases.postgres.changes_spool import unreadable
from duly.errors import (
    ConfigurationError,
    DatabaseUnavailableError,
    GapError,
    PermanentError,
    UndecodableError,
)
from duly.kernel.changes import Transaction
from duly.ports import Clock
from duly.sources import TableSpec
from duly.wire.pgoutput import DATA, KEEPALIVE, parse_keepalive, status_update, undecodable

__all__ = ["PostgresChangeStream"]

TICK_SECONDS = 1.0
IDLE_SECONDS = 10.0  # between two positions with nothing to tell, and two heartbeats
TABLES_SECONDS = 30.0
FEEDBACK_SECONDS_MAX = 10.0
WAITING_BYTES = 16 * 1024 * 1024
WAITING_ITEMS = 5_000
_ITEM_BYTES = 500
_EPOCH_SECONDS = 946_684_800
Verdict = Callable[[Exception], Awaitable[Exception]]


class PostgresChangeStream:
    """One reader of a slot.

    side: a connection for SQL, which this object closes. verdict: what a failure means.
    silent_seconds: the server's own limit for a peer that says nothing, None where it has none.
    """

    def __init__(
        self,
        side: Any,
        *,
        source: str,
        tables: Sequence[Table],
        name: str,
        position: str,
        clock: Clock,
        url: str,
        silent_seconds: float | None,
        beats: bool,
        verdict: Verdict,
    ) -> None:
        start = int(position, 16)
        self.assembly = Assembly(
            source,
            captured(tables),
            start=start,
            give=self._given,
        )
        self._side, self._name, self._url = side, name, url
        self._tables = tables
        self._clock = clock
        self.beats = beats
        self._verdict = verdict
        self._limit = silent_seconds or 60.0
        self._every = min(FEEDBACK_SECONDS_MAX, self._limit / 3)
        self._link: Link | None = None
        self._ready: deque[tuple[Item, int]] = deque()
        self._waiting_bytes = 0
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._failure: Exception | None = None
        self._closed = False
        self._confirmed = start
        self._told = start
        now = clock.monotonic()
        self._heard_at = self._said_at = self._looked_at = now
        self._idle_at = now - IDLE_SECONDS
        self._beat_at: float | None = None
        self._watchers: list[Snapshot] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, raw: Any, command: str) -> None:
        """Begin to read. raw: the replication connection. Raises psycopg's errors."""
        self._link = Link(raw, take=self._frames, failed=self._fail)
        try:
            await self._link.start(command)
        except BaseException:
            self._link.cut()
            raise
        self._tasks.append(asyncio.create_task(self._tend()))

    # --- what the caller asks ---------------------------------------------------------------------
    async def items(self) -> AsyncIterator[Item]:
        """As ``ChangeStream.items``."""
        while not self._closed:
            while self._ready:
                item, size = self._ready.popleft()
                self._waiting_bytes -= size
                if not self._room.is_set() and self._waiting_bytes < WAITING_BYTES // 2:
                    self._resume()
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
        found = next((known for known in self._tables if known.spec.name == table.name), None)
        if found is None:
            text = f"{table.name} is not captured by this stream"
            raise ConfigurationError(text, code="CDC_TABLE_MISSING")
        job = Snapshot(self, found, url=self._url, publication=self._name, cursor=cursor)
        self._tasks.append(asyncio.create_task(self._guarded(job.run())))

    async def confirm(self, position: str) -> None:
        """As ``ChangeStream.confirm``."""
        lsn = int(position, 16)
        if lsn > self.assembly.reached:
            text = f"{position} was never read; the stream is at {lsn_text(self.assembly.reached)}"
            raise PermanentError(text, code="CDC_POSITION_AHEAD")
        if lsn > self._confirmed:
            self._confirmed = lsn
            self._feedback()

    async def close(self) -> None:
        """As ``ChangeStream.close``."""
        self._closed = True
        self._wake.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._link is not None:
            self._link.cut()
        await self._side.close()

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
        self._told = max(self._told, self.assembly.reached)
        self._wake.set()
        if self._waiting_bytes > WAITING_BYTES or len(self._ready) > WAITING_ITEMS:
            self._room.clear()
            if self._link is not None:
                self._link.pause()

    async def room(self) -> None:
        """Wait until the caller has taken most of what is there."""
        await self._room.wait()

    # --- what comes in ----------------------------------------------------------------------------
    def _frames(self, frames: Sequence[bytes]) -> None:
        feed = self.assembly.feed
        for frame in frames:
            if frame[0] == DATA:
                feed(frame)
            elif frame[0] == KEEPALIVE:
                alive = parse_keepalive(frame)
                self.assembly.alive(alive.wal_end)
                if alive.reply:
                    self._feedback()
            else:
                undecodable(f"a frame of the unknown kind {frame[0]}")

    def _given(self, transaction: Transaction, size: int) -> None:
        for snapshot in self._watchers:
            snapshot.saw(transaction)
        self.put(transaction, size)

    def _resume(self) -> None:
        self._room.set()
        self._heard_at = self._clock.monotonic()
        if self._link is not None:
            self._link.resume()

    def _fail(self, error: Exception) -> None:
        if self._failure is None:
            self._failure = unreadable(error) if isinstance(error, UndecodableError) else error
        if self._link is not None:
            self._link.cut()  # at once: a server that shuts down waits for this connection
        self._wake.set()

    # --- what goes out ----------------------------------------------------------------------------
    def _feedback(self, *, ask: bool = False) -> None:
        now = int((self._clock.time() - _EPOCH_SECONDS) * 1_000_000)
        frame = status_update(
            received=self.assembly.reached, confirmed=self._confirmed, now_us=now, ask=ask
        )
        self._said_at = self._clock.monotonic()
        if self._link is not None:
            self._link.send(frame)

    async def _guarded(self, work: Awaitable[None]) -> None:
        """Whatever ends a task of ours ends the stream."""
        try:
            await work
        except Exception as error:  # noqa: BLE001  # it is told to the caller of items()
            self._fail(error)

    async def _tend(self) -> None:
        await self._guarded(self._watch_over())

    async def _watch_over(self) -> None:
        while True:
            # Nobody notifies: this waits, and ends at once when the server closes the connection.
            async for _ in self._side.notifies(timeout=TICK_SECONDS):
                pass
            now = self._clock.monotonic()
            if self._link is not None and self._link.heard:
                self._link.heard, self._heard_at = False, now
            if now - self._said_at >= self._every:
                self._feedback(ask=now - self._heard_at >= self._every)
            if self._room.is_set() and now - self._heard_at > self._limit:
                text = f"the server said nothing for {now - self._heard_at:.0f} s"
                raise DatabaseUnavailableError(text)
            self._idle(now)
            if now - self._heard_at >= IDLE_SECONDS and (
                self._beat_at is None or now - self._beat_at >= IDLE_SECONDS
            ):
                self._beat_at = now
                if self.beats:
                    await self._side.execute(HEARTBEAT)
            if now - self._looked_at >= TABLES_SECONDS:
                self._looked_at = now
                await self._look()

    def _idle(self, now: float) -> None:
        """A position with nothing to tell, seldom: to store it writes to the log again."""
        if self.assembly.reached > self._told and now - self._idle_at >= IDLE_SECONDS:
            self._idle_at = now
            self.put(lsn_text(self.assembly.reached), 0)

    async def _look(self) -> None:
        """A captured table that was dropped, renamed or made anew would fall silent."""
        now = {t.spec.name: t.oid for t in await find_tables(self._side, self._specs())}
        gone = [t for t in self._tables if now.get(t.spec.name) != t.oid]
        gone += await missing_from_publication(self._side, self._name, self._tables)
        if gone:
            text = f"{gone[0].spec.name} was dropped, renamed, made anew or left the publication"
            raise GapError(f"{text}; start again and take a new snapshot", code="CDC_TABLE_LOST")

    def _specs(self) -> list[TableSpec]:
        return [table.spec for table in self._tables]
