"""The binlog of MySQL and MariaDB: frames, checksums, compression, and which table rows belong to.

Owns what hangs on the events before, in binlog format version 4; what an event says by itself is
left to ``binlog_events``, rows to ``binlog_rows``, what all of them mean together (transactions,
XA, positions) to the reader of the stream.  Invariant: bytes that do not fit to the last one, and
events that are not known and not marked as ignorable, are an UndecodableError - never a guess,
never another exception.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from struct import Struct
from typing import Final, Literal, NamedTuple
from zlib import crc32

from duly.wire.binlog_bytes import Bytes, inflated, undecodable
from duly.wire.binlog_events import (
    Context,
    FormatDescription,
    Header,
    Said,
    fields_of,
    parsed,
    query,
)
from duly.wire.binlog_rows import Rows
from duly.wire.binlog_table import Table, parse_table

__all__ = ["Body", "Decoder", "Event", "split"]

HEADER_BYTES: Final = 19
CHECKSUM_BYTES: Final = 4
FILE_MAGIC_BYTES: Final = 4
_HEADER: Final = Struct("<IBIIIH").unpack_from
_IN_USE: Final = 0x01
_TABLES_MAX: Final = 1024
_MARIADB_EVENTS: Final = 160
_UNMAPPED: Final = (0xFFFFFF, 0xFFFFFFFF)  # tables of an event that only ends a statement
Body = FormatDescription | Table | Rows | Said


class Event(NamedTuple):
    """An event of the log."""

    header: Header
    body: Body


class Decoder:
    """The events of one connection, or of one file, in their order; it knows the file's format and
    the tables of the statement under way.

    inflated_bytes_max: of what a compressed event or transaction becomes. unzstd: makes the plain
    bytes of a compressed transaction of MySQL of its bytes and their size, and raises ValueError
    where they are damaged; without it such a transaction is refused (BINLOG_ZSTD).
    """

    def __init__(
        self,
        *,
        inflated_bytes_max: int = 1 << 30,
        unzstd: Callable[[bytes, int], bytes] | None = None,
    ) -> None:
        self._bytes_max = inflated_bytes_max
        self._unzstd = unzstd
        self._format: FormatDescription | None = None
        self._tables: dict[int, Table] = {}
        self._known: dict[bytes, Table] = {}

    def feed(self, data: bytes) -> list[Event]:
        """One event, whole, as it stands in the file or came in a packet behind the first byte.

        Gives several for a compressed transaction. Raises UndecodableError (BINLOG_CHECKSUM,
        BINLOG_UNKNOWN_EVENT, BINLOG_ZSTD, BINLOG_UNDECODABLE); after one the decoder is of no use.
        """
        header = _header(data)
        if header.kind == _FORMAT:
            return [Event(header, self._begin(header, data))]
        if self._format is None:
            if header.kind not in _BEFORE_FORMAT:
                undecodable(f"an event of the kind {header.kind} before the format of its file")
            checked = _checksum_fits(data)
        else:
            checked = self._format.checksum
            if checked and not _checksum_fits(data):
                undecodable(f"an event of the kind {header.kind}", code="BINLOG_CHECKSUM")
        body = data[HEADER_BYTES : len(data) - CHECKSUM_BYTES * checked]
        if header.kind == _TRANSACTION:
            inner = split(self._transaction(Bytes(body)), 0)
            return [self._event(_header(one), one[HEADER_BYTES:]) for one in inner]
        return [self._event(header, body)]

    def _event(self, header: Header, body: bytes) -> Event:
        kind = header.kind
        if kind in _ROWS:
            return Event(header, self._rows(kind, body))
        read = Bytes(body)
        if kind == _TABLE:
            return Event(header, self._table(read))
        if kind == _COMPRESSED_QUERY:
            return Event(header, query(read, unpack=self._inflated))
        return Event(header, parsed(header, read))

    def _begin(self, header: Header, data: bytes) -> FormatDescription:
        """The format of a file, checked before anything in it is believed."""
        if len(data) < HEADER_BYTES + _FORMAT_BYTES:
            undecodable(f"a format of {len(data)} bytes")
        algorithm = data[-CHECKSUM_BYTES - 1]
        if algorithm > 1:
            undecodable(f"the checksum of the kind {algorithm}")
        plain = bytearray(data)
        plain[_FLAGS_AT] &= ~_IN_USE  # set in the file of a server that runs
        if algorithm and not _checksum_fits(plain):
            undecodable("the format of a file", code="BINLOG_CHECKSUM")
        read = Bytes(data[HEADER_BYTES : -CHECKSUM_BYTES - 1])
        version, server = read.number(2), read.text(50).rstrip("\0")
        read.take(4)
        lengths = read.rest()
        if version != 4 or any(lengths[n : n + 1] != size for n, size in _LENGTHS.items()):
            undecodable(f"a log of version {version} with other lengths than those known")
        mariadb = len(lengths) > _MARIADB_EVENTS
        self._format = FormatDescription(server, mariadb, algorithm == 1)
        self._tables.clear()
        self._known.clear()
        return self._format

    def _table(self, read: Bytes) -> Table:
        number, layout = read.number(6), read.rest()
        table = self._known.get(layout)
        if table is None:
            if len(self._known) >= _TABLES_MAX:
                self._known.clear()
            assert self._format is not None, "feed asks for it first"
            table = parse_table(layout, mariadb=self._format.mariadb)
            self._known[layout] = table
        self._tables[number] = table
        return table

    def _rows(self, kind: int, body: bytes) -> Rows | Context:
        op, extra, compressed = _ROWS[kind]
        read = Bytes(body)
        number, flags = read.number(6), read.number(2)
        if extra:
            read.take(max(read.number(2), 2) - 2)
        table, last = self._tables.get(number), bool(flags & 1)
        if last:
            self._tables.clear()  # each statement describes its own
        if table is None:
            if number in _UNMAPPED and last:
                return Context(kind)
            undecodable(f"rows of table {number}, which was not described")
        if read.packed() != len(table.columns):
            undecodable(f"rows of {table.schema}.{table.name} with another number of columns")
        size = (len(table.columns) + 7) // 8
        images = tuple(read.take(size) for _ in range(1 + (op == "update")))
        raw = self._inflated(read.rest()) if compressed else read.rest()
        return Rows(op, table, images, raw, partial=kind == _PARTIAL_UPDATE, last=last)

    def _inflated(self, data: bytes) -> bytes:
        return inflated(data, bytes_max=self._bytes_max)

    def _transaction(self, read: Bytes) -> bytes:
        """The events of a compressed transaction, one behind the other, without checksums."""
        fields = dict(fields_of(read))
        compression, size = fields.get(2), fields.get(3)
        if compression is None or size is None:
            undecodable("a compressed transaction that does not say how")
        kind, count, data = compression.packed(), size.packed(), read.rest()
        if count > self._bytes_max:
            undecodable(f"{count} bytes in a compressed transaction, more than {self._bytes_max}")
        if kind == _ZSTD:
            data = self._unzipped(data, count)
        elif kind != _PLAIN:
            undecodable(f"a transaction compressed in the unknown way {kind}")
        if len(data) != count:
            undecodable(f"a compressed transaction of {len(data)} bytes, not {count}")
        return data

    def _unzipped(self, data: bytes, count: int) -> bytes:
        if self._unzstd is None:
            undecodable("a transaction that zstd compressed", code="BINLOG_ZSTD")
        try:
            return self._unzstd(data, count)
        except ValueError as problem:
            undecodable(f"a compressed transaction: {problem}")


def split(data: bytes, at: int = FILE_MAGIC_BYTES) -> Iterator[bytes]:
    """The events of a file, or of a part of one that begins with one. Raises UndecodableError."""
    while at < len(data):
        if at + HEADER_BYTES > len(data):
            undecodable(f"{len(data) - at} bytes behind the last event")
        size = _HEADER(data, at)[3]
        if size < HEADER_BYTES or at + size > len(data):
            undecodable(f"an event of {size} bytes, {len(data) - at} left")
        yield data[at : at + size]
        at += size


def _header(data: bytes) -> Header:
    if len(data) < HEADER_BYTES:
        undecodable(f"an event of {len(data)} bytes")
    header = Header._make(_HEADER(data))
    if header.size != len(data):
        undecodable(f"an event of {header.size} bytes in {len(data)}")
    return header


def _checksum_fits(data: bytes | bytearray) -> bool:
    at = len(data) - CHECKSUM_BYTES
    if at < HEADER_BYTES:
        return False
    return crc32(memoryview(data)[:at]).to_bytes(CHECKSUM_BYTES, "little") == data[at:]


_FORMAT, _TABLE, _PARTIAL_UPDATE, _TRANSACTION, _COMPRESSED_QUERY = 15, 19, 39, 40, 165
_FORMAT_BYTES: Final = 62
_FLAGS_AT: Final = 17
_ZSTD, _PLAIN = 0, 255
_BEFORE_FORMAT: Final = (4, 27, 41)  # made for the reader
_LENGTHS: Final = {0: b"\x13", 2: b"\x0d", 19: b"\x08", 23: b"\x08", 24: b"\x08", 25: b"\x08"}
# Operation, whether more stands before the columns, whether the rows are compressed.
_ROWS: Final[Mapping[int, tuple[Literal["create", "update", "delete"], bool, bool]]] = {
    23: ("create", False, False), 24: ("update", False, False), 25: ("delete", False, False),
    30: ("create", True, False), 31: ("update", True, False), 32: ("delete", True, False),
    166: ("create", False, True), 167: ("update", False, True), 168: ("delete", False, True),
    169: ("create", True, True), 170: ("update", True, True), 171: ("delete", True, True),
    _PARTIAL_UPDATE: ("update", True, False),
}  # fmt: skip
