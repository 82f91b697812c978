"""The rows of a table, read in chunks beside the stream and given in their place there.

Everything that is streamed from before a chunk is read is laid over its rows, once the stream has
passed the place of the log where it was read: so a chunk is the table as it stands where it is
given.  Invariants: a chunk waits until every transaction streamed before it is visible to it - a
commit is in the log before it can be seen, and of an XA transaction no snapshot says when; a
chunk's cursor is all that is needed to go on.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from hashlib import sha256
from typing import Protocol

from duly.databases.mysql.changes_assembly import Item
from duly.databases.mysql.changes_chunk import Chunk, TableChunks
from duly.databases.mysql.changes_place import Place, Position
from duly.databases.overlay import Row, laid_over
from duly.errors import GapError
from duly.kernel import failpoints
from duly.kernel.changes import Change, SnapshotChunk, Transaction

__all__ = ["Beside", "Snapshot"]

CHUNK_BYTES = 2 * 1024 * 1024
CHUNK_ROWS_MAX = 10_000
_FIRST_ROWS = 200
_AGAIN_SECONDS = 0.02


class Beside(Protocol):
    """What a snapshot needs of the stream it is read beside. reached: up to where all was given;
    given: the end of the last transaction that was; decided: XA transactions among those.
    """

    source: str
    reached: Position
    given: Place
    decided: Sequence[bytes]

    def watch(self, snapshot: Snapshot) -> None:
        """Tell it of every transaction from now on."""

    def unwatch(self, snapshot: Snapshot) -> None:
        """Tell it no more."""

    def put(self, item: Item, size: int) -> None:
        """Give something to the caller of the stream, now."""

    async def room(self) -> None:
        """Wait until the caller has taken most of what is there."""


class Snapshot:
    """Reads one table from a cursor to its end. Raises GapError for a cursor of another key."""

    def __init__(self, stream: Beside, chunks: TableChunks, *, cursor: str) -> None:
        self._stream = stream
        self._chunks = chunks
        self._table = chunks.table
        self._last = self._start(cursor)
        self._limit = _FIRST_ROWS
        self._late: list[Transaction] = []

    def _start(self, cursor: str) -> list[str]:
        if not cursor:
            return []
        try:
            stored = json.loads(cursor)
            same = stored["key"] == list(self._table.primary_key)
            last = [str(value) for value in stored["after"]]
        except (ValueError, TypeError, KeyError):
            same, last = False, []
        if not same or len(last) != len(self._table.primary_key):
            text = f"the cursor of {self._table.spec.name} does not fit its primary key"
            raise GapError(f"{text}; take the snapshot from the beginning", code="CDC_CURSOR")
        return last

    def saw(self, transaction: Transaction) -> None:
        """The stream gives this transaction now."""
        self._late.append(transaction)

    async def run(self) -> None:
        """Give all chunks. Raises PyMySQL's errors, GapError."""
        await asyncio.to_thread(self._chunks.open)
        try:
            done = False
            while not done:
                await self._stream.room()
                done = await self._chunk()
        finally:
            self._stream.unwatch(self)
            self._chunks.close()

    async def _chunk(self) -> bool:
        chunk = await self._read_after_all_before()
        failpoints.hit(failpoints.CDC_CHUNK_READ)
        await self._passed(chunk)
        # Nothing is awaited from here on: what the stream gives next comes behind the chunk.
        self._stream.unwatch(self)
        begin = self._cursor()
        self._last = chunk.last or self._last
        position = self._stream.reached
        # Two chunks can stand at one position, and a commit can begin there: ids must differ.
        name = self._table.spec.name
        digest = sha256(f"{name}\0{begin}".encode()).hexdigest()[:8]
        where = f"{position.place.text}.{digest}"
        changes = [
            Change(self._stream.source, name, "read", key, None, row, where, n)
            for n, (key, row) in enumerate(self._now(chunk.rows))
        ]
        given = SnapshotChunk(name, position.text, changes, self._cursor(), chunk.done)
        self._stream.put(given, chunk.size)
        self._limit = max(1, min(CHUNK_ROWS_MAX, self._limit * CHUNK_BYTES // max(1, chunk.size)))
        return chunk.done

    async def _read_after_all_before(self) -> Chunk:
        """Read until the chunk sees all that was streamed before it began."""
        while True:
            self._late = []
            self._stream.watch(self)
            before, decided = self._stream.given, frozenset(self._stream.decided)
            failpoints.hit(failpoints.CDC_CHUNK_MARKED)
            read = self._chunks.read
            chunk = await asyncio.to_thread(read, self._last, self._limit, decided)
            if chunk is not None and (chunk.seen is None or chunk.seen >= before.order):
                return chunk
            self._stream.unwatch(self)
            await asyncio.sleep(_AGAIN_SECONDS)

    async def _passed(self, chunk: Chunk) -> None:
        """Wait until the stream has given all that the chunk can contain."""
        while self._stream.reached.place.order < chunk.end:  # noqa: ASYNC110  # every few ms
            await asyncio.sleep(_AGAIN_SECONDS)

    def _now(self, rows: list[Row]) -> list[Row]:
        """The rows as the transactions since have left them. Those that the chunk has seen leave
        them as they are, so none has to be told from the others.
        """
        late, self._late = self._late, []
        name = self._table.spec.name
        return laid_over(rows, (c for one in late for c in one.changes if c.table == name))

    def _cursor(self) -> str:
        return json.dumps({"key": list(self._table.primary_key), "after": self._last})
