"""The rows of a table, read in chunks beside the stream and given in their place there.

Each chunk is one short transaction that says which transactions it saw.  What was streamed since it
began and was not seen is laid over its rows once the stream has passed the place of the log where
the chunk was read: so a chunk is the table as it stands where it is given.  Invariants: a chunk
waits until every transaction streamed before it is visible to it - a commit is in the log before it
can be seen; keys are compared in SQL only; a chunk's cursor is all that is needed to go on.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Any, Final, NamedTuple, Protocol

from duly.databases.overlay import Row, Values, kept, laid_over
from duly.databases.postgres.changes_assembly import Assembly, Item, lsn_text
from duly.databases.postgres.changes_catalog import HEARTBEAT, Table
from duly.databases.postgres.changes_link import connect
from duly.errors import ConfigurationError, GapError
from duly.kernel import failpoints
from duly.kernel.changes import Change, SnapshotChunk, Transaction
from duly.wire.pgvalues import Read, reader_of

__all__ = ["Beside", "Snapshot", "visible"]

CHUNK_BYTES = 2 * 1024 * 1024
CHUNK_ROWS_MAX = 10_000
_FIRST_ROWS = 200
_AGAIN_SECONDS = 0.02
_NUDGE_SECONDS = 0.5
_ROW_BYTES = 200
_COLUMNS = """
SELECT a.attname::text, quote_ident(a.attname), a.atttypid::int8,
  format_type(a.atttypid, a.atttypmod), to_jsonb(p) ->> 'rowfilter'
FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_publication_tables p
  ON p.pubname = %s AND p.schemaname = n.nspname AND p.tablename = c.relname
WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
  AND coalesce(to_jsonb(p) -> 'attnames' ? a.attname, true)
ORDER BY a.attnum
"""
_SEEN = "SELECT pg_current_snapshot()::text"
_PLACE = """
SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()
  ELSE pg_current_wal_insert_lsn() END - '0/0'::pg_lsn
"""
_HALF: Final = 1 << 31


class Beside(Protocol):
    """What a snapshot needs of the stream it is read beside."""

    assembly: Assembly
    beats: bool

    def watch(self, snapshot: Snapshot) -> None:
        """Tell it of every transaction from now on."""

    def unwatch(self, snapshot: Snapshot) -> None:
        """Tell it no more."""

    def put(self, item: Item, size: int) -> None:
        """Give something to the caller of the stream, now."""

    async def room(self) -> None:
        """Wait until the caller has taken most of what is there."""


class _Column(NamedTuple):
    name: str
    quoted: str
    read: Read
    type: str


class _Rows(NamedTuple):
    """One chunk as it was read. seen: whether a transaction's work is in it; place: of the log."""

    rows: list[Row]
    seen: Callable[[int], bool]
    place: int
    last: list[str]
    size: int
    done: bool


class Snapshot:
    """Reads one table from a cursor to its end. Raises ConfigurationError without a primary key."""

    def __init__(
        self, stream: Beside, table: Table, *, url: str, publication: str, cursor: str
    ) -> None:
        if not table.primary_key:
            text = f"a snapshot of {table.spec.name} needs a primary key"
            raise ConfigurationError(text, code="CDC_NO_PRIMARY_KEY")
        self._stream = stream
        self._table = table
        self._url = url
        self._publication = publication
        self._last = self._start(cursor)
        self._limit = _FIRST_ROWS
        self._late: list[Transaction] = []
        self._seen: Callable[[int], bool] | None = None

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
        if self._seen is None or not self._seen(int(transaction.xid)):
            self._late.append(transaction)

    async def run(self) -> None:
        """Give all chunks. Raises psycopg's errors, GapError."""
        connection = await connect(self._url, name="duly cdc snapshot")
        try:
            done = False
            while not done:
                await self._stream.room()
                done = await self._chunk(connection)
        finally:
            self._stream.unwatch(self)
            await connection.close()

    async def _chunk(self, connection: Any) -> bool:
        read = await self._read_after_all_before(connection)
        failpoints.hit(failpoints.CDC_CHUNK_READ)
        self._seen = read.seen
        self._late = [t for t in self._late if not read.seen(int(t.xid))]
        await self._passed(connection, read.place)
        # Nothing is awaited from here on: what the stream gives next comes behind the chunk.
        self._stream.unwatch(self)
        begin = _cursor_text(self._table, self._last)
        self._last = read.last or self._last
        cursor = _cursor_text(self._table, self._last)
        rows = self.fold(read.rows)
        position = lsn_text(self._stream.assembly.reached)
        name = self._table.spec.name
        # Two chunks can stand at one position, and a commit can begin there: ids must differ.
        digest = sha256(f"{name}\0{begin}".encode()).hexdigest()[:8]
        changes = [
            Change(
                self._stream.assembly.source,
                name,
                "read",
                key,
                None,
                row,
                f"{position}.{digest}",
                n,
            )
            for n, (key, row) in enumerate(rows)
        ]
        chunk = SnapshotChunk(name, position, changes, cursor, read.done)
        self._stream.put(chunk, read.size)
        self._limit = max(1, min(CHUNK_ROWS_MAX, self._limit * CHUNK_BYTES // max(1, read.size)))
        return read.done

    async def _read_after_all_before(self, connection: Any) -> _Rows:
        """Read until the chunk sees all that was streamed before it began."""
        while True:
            self._late, self._seen = [], None
            self._stream.watch(self)
            before = list(self._stream.assembly.recent)
            failpoints.hit(failpoints.CDC_CHUNK_MARKED)
            read = await self._read(connection)
            if all(read.seen(xid) for xid in before):
                return read
            self._stream.unwatch(self)
            await asyncio.sleep(_AGAIN_SECONDS)

    async def _passed(self, connection: Any, place: int) -> None:
        """Wait until the stream has given all that the chunk can contain."""
        loop = asyncio.get_running_loop()
        nudge_at = loop.time() + _NUDGE_SECONDS
        while self._stream.assembly.reached < place:
            await asyncio.sleep(_AGAIN_SECONDS)
            if self._stream.beats and loop.time() >= nudge_at:
                await connection.execute(HEARTBEAT)  # an idle log can end within a page's header
                nudge_at = loop.time() + 10 * _NUDGE_SECONDS

    def fold(self, rows: list[Row]) -> list[Row]:
        """The rows as the transactions that the chunk did not see left them."""
        late, self._late = self._late, []
        name = self._table.spec.name
        changes = (c for transaction in late for c in transaction.changes if c.table == name)
        return laid_over(rows, changes)

    async def _read(self, connection: Any) -> _Rows:
        await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        try:
            snapshot = (await (await connection.execute(_SEEN)).fetchone())[0]
            columns, row_filter = await self._columns(connection)
            cursor = await connection.execute(self._select(columns, row_filter), self._last)
            result = cursor.pgresult
        finally:
            await connection.execute("ROLLBACK")
        place = int((await (await connection.execute(_PLACE)).fetchone())[0])
        rows, size = self._values(columns, result)
        last: list[str] = []
        if rows:
            places = [column.name for column in columns]
            bottom = result.ntuples - 1
            texts = [result.get_value(bottom, places.index(n)) for n in self._table.primary_key]
            last = [text.decode() for text in texts]
        return _Rows(rows, visible(snapshot), place, last, size, result.ntuples < self._limit)

    def _values(self, columns: Sequence[_Column], result: Any) -> tuple[list[Row], int]:
        """The rows of an answer, and their bytes; from the same text as the stream's."""
        spec = self._table.spec
        names = kept(spec, [column.name for column in columns])
        named_by = spec.key or self._table.primary_key
        found: list[Row] = []
        size = result.ntuples * _ROW_BYTES
        for n in range(result.ntuples):
            row: Values = {}
            for m, column in enumerate(columns):
                text = result.get_value(n, m)
                row[column.name] = None if text is None else column.read(text)
                size += len(text or b"")
            key = {name: row[name] for name in named_by}
            found.append((key, {name: row[name] for name in names}))
        return found, size

    async def _columns(self, connection: Any) -> tuple[list[_Column], str | None]:
        values = [self._publication, self._table.oid]
        rows = await (await connection.execute(_COLUMNS, values)).fetchall()
        columns = [
            _Column(name, quoted, reader_of(oid), kind) for name, quoted, oid, kind, _ in rows
        ]
        needed = {*self._table.primary_key, *self._table.spec.key}
        if missing := needed - {column.name for column in columns}:
            text = f"{self._table.spec.name} publishes no column {min(missing)!r}"
            raise GapError(f"{text}, which names its rows", code="CDC_KEY_COLUMN_GONE")
        return columns, rows[0][4]

    def _select(self, columns: Sequence[_Column], row_filter: str | None) -> str:
        """The chunk behind ``self._last``, by the primary key in the database's own order."""
        by_name = {column.name: column for column in columns}
        key = [by_name[name] for name in self._table.primary_key]
        order = ", ".join(column.quoted for column in key)
        wanted = ", ".join(column.quoted for column in columns)
        only = "" if self._table.kind == "p" else "ONLY "
        parts = [f"({row_filter})"] if row_filter else []
        text = f"SELECT {wanted} FROM {only}{self._table.quoted}".replace("%", "%%")
        conditions = [part.replace("%", "%%") for part in parts]
        order = order.replace("%", "%%")
        if self._last:
            marks = ", ".join(f"%s::{column.type}" for column in key)
            conditions.append(f"({order}) > ({marks})")
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        return f"{text}{where} ORDER BY {order} LIMIT {self._limit}"


def _cursor_text(table: Table, last: Sequence[str]) -> str:
    return json.dumps({"key": list(table.primary_key), "after": list(last)})


def visible(snapshot: str) -> Callable[[int], bool]:
    """Whether a snapshot ``xmin:xmax:running`` contains a transaction, by its 32-bit number."""
    low, high, running = snapshot.split(":")
    xmin, xmax = int(low), int(high)
    open_ = {int(xid) for xid in running.split(",") if xid}

    def seen(xid: int) -> bool:
        wide = xmax + (xid - xmax + _HALF) % (2 * _HALF) - _HALF
        return wide < xmin or (wide < xmax and wide not in open_)

    return seen
