"""PostgreSQL's logical replication: frames of the stream, and the messages of ``pgoutput`` in them.

Owns the layouts of protocol versions 1 to 4, from bytes to values and back.  Invariant: bytes that
do not fit to the last one, and kinds that are not known, are an UndecodableError - never a guess,
never another exception.  The tuples of a row are left to ``pgrows``; what messages mean together
(transactions, streamed pieces, aborts) to the reader of the stream.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Final, NamedTuple, NoReturn, Protocol

from duly.errors import UndecodableError

__all__ = [
    "DATA",
    "DELETE",
    "HEADER_BYTES",
    "INSERT",
    "KEEPALIVE",
    "TRUNCATE",
    "UPDATE",
    "Begin",
    "BeginPrepare",
    "Column",
    "Commit",
    "CommitPrepared",
    "Keepalive",
    "LogicalMessage",
    "Message",
    "Origin",
    "Prepare",
    "Relation",
    "RollbackPrepared",
    "StreamAbort",
    "StreamCommit",
    "StreamPrepare",
    "StreamStart",
    "StreamStop",
    "Truncate",
    "Type",
    "parse_keepalive",
    "parse_message",
    "status_update",
    "undecodable",
]

DATA: Final = ord("w")
KEEPALIVE: Final = ord("k")
INSERT, UPDATE, DELETE, TRUNCATE = b"IUDT"
HEADER_BYTES: Final = 25  # of a 'w' frame: its kind, two positions, a time
_KEEPALIVE = Struct(">BQqB")
_STATUS = Struct(">BQQQqB")


class Begin(NamedTuple):
    """A transaction follows whole. final_lsn: where it committed; times in µs since 2000."""

    final_lsn: int
    committed_us: int
    xid: int


class Commit(NamedTuple):
    """The transaction is complete. end_lsn: the place to go on behind."""

    commit_lsn: int
    end_lsn: int
    committed_us: int


class Origin(NamedTuple):
    """The transaction came from another server."""

    lsn: int
    name: str


class Column(NamedTuple):
    """A column of a relation. key: part of the replica identity (all are, where it is full)."""

    name: str
    oid: int
    modifier: int
    key: bool


class Relation(NamedTuple):
    """How the rows that follow are laid out. identity: 'd', 'n', 'f' or 'i'."""

    oid: int
    schema: str
    name: str
    identity: str
    columns: tuple[Column, ...]


class Type(NamedTuple):
    """The name of a type that is not built in."""

    oid: int
    schema: str
    name: str


class Truncate(NamedTuple):
    """Tables were emptied together. xid: of the subtransaction, 0 outside of a stream block."""

    xid: int
    cascade: bool
    restart_identity: bool
    oids: tuple[int, ...]


class LogicalMessage(NamedTuple):
    """What ``pg_logical_emit_message`` wrote. xid: as in Truncate."""

    xid: int
    transactional: bool
    lsn: int
    prefix: str
    content: bytes


class StreamStart(NamedTuple):
    """A piece of a transaction that is not committed yet. first: its first piece."""

    xid: int
    first: bool


class StreamStop(NamedTuple):
    """The piece ends; others may follow in between."""


class StreamCommit(NamedTuple):
    """A transaction that came in pieces is complete."""

    xid: int
    commit_lsn: int
    end_lsn: int
    committed_us: int


class StreamAbort(NamedTuple):
    """A streamed transaction, or one subtransaction of it, did not happen."""

    xid: int
    subxid: int


class BeginPrepare(NamedTuple):
    """The content of a prepared transaction follows."""

    prepare_lsn: int
    end_lsn: int
    prepared_us: int
    xid: int
    name: str


class Prepare(NamedTuple):
    """The prepared transaction's content is complete; whether it commits is open."""

    prepare_lsn: int
    end_lsn: int
    prepared_us: int
    xid: int
    name: str


class CommitPrepared(NamedTuple):
    """A prepared transaction happened."""

    commit_lsn: int
    end_lsn: int
    committed_us: int
    xid: int
    name: str


class RollbackPrepared(NamedTuple):
    """A prepared transaction did not happen."""

    prepare_end_lsn: int
    end_lsn: int
    prepared_us: int
    rolled_back_us: int
    xid: int
    name: str


class StreamPrepare(NamedTuple):
    """A transaction that came in pieces is prepared."""

    prepare_lsn: int
    end_lsn: int
    prepared_us: int
    xid: int
    name: str


Message = (
    Begin
    | Commit
    | Origin
    | Relation
    | Type
    | Truncate
    | LogicalMessage
    | StreamStart
    | StreamStop
    | StreamCommit
    | StreamAbort
    | BeginPrepare
    | Prepare
    | CommitPrepared
    | RollbackPrepared
    | StreamPrepare
)


class Keepalive(NamedTuple):
    """The server lives. wal_end: how far it has read and sent; reply: it waits for an answer."""

    wal_end: int
    reply: bool


def undecodable(detail: str) -> NoReturn:
    """Raise UndecodableError (code PGOUTPUT_UNDECODABLE)."""
    raise UndecodableError(f"pgoutput: {detail}", code="PGOUTPUT_UNDECODABLE")


def parse_keepalive(frame: bytes) -> Keepalive:
    """A frame of kind ``k``. Raises UndecodableError."""
    if len(frame) != _KEEPALIVE.size or frame[0] != KEEPALIVE:
        undecodable(f"a keepalive of {len(frame)} bytes")
    _, wal_end, _, reply = _KEEPALIVE.unpack(frame)
    return Keepalive(wal_end, reply != 0)


def status_update(*, received: int, confirmed: int, now_us: int, ask: bool = False) -> bytes:
    """The frame ``r`` that tells the server how far we are.

    received: position that was read. confirmed: everything up to there is stored, the server may
    forget it. now_us: µs since 2000. ask: for an answer at once.
    """
    return _STATUS.pack(ord("r"), received, confirmed, confirmed, now_us, ask)


class _Bytes:
    """A message that is read from front to back; every read is checked against its end."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes, at: int) -> None:
        self._data = data
        self._at = at

    def take(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._data):
            undecodable(f"{count} bytes wanted, {self.left} left")
        found = self._data[self._at : end]
        self._at = end
        return found

    def number(self, count: int) -> int:
        return int.from_bytes(self.take(count), "big")

    def text(self) -> str:
        end = self._data.find(0, self._at)
        if end < 0:
            undecodable("a text without its end")
        found = self.take(end - self._at)
        self._at += 1
        try:
            return found.decode()
        except UnicodeDecodeError:
            undecodable("a text that is not UTF-8")

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def end(self) -> None:
        if self.left:
            undecodable(f"{self.left} bytes too many")


class _Parser(Protocol):
    def __call__(self, read: _Bytes, xid: int) -> Message: ...


def parse_message(data: bytes, at: int, *, streaming: bool = False) -> Message:
    """The message that begins at a place of ``data`` and ends with it; rows are not read here.

    streaming: inside a stream block, where most messages carry their subtransaction's xid. Raises
    UndecodableError, also for a kind that is not known.
    """
    fixed = _FIXED.get(data[at : at + 1])
    if fixed is not None:
        layout, made = fixed
        if len(data) != at + layout.size:
            undecodable(f"a message of {len(data) - at} bytes, not {layout.size}")
        return made(layout.unpack_from(data, at))
    read = _Bytes(data, at)
    kind = read.take(1)
    parser = _PARSERS.get(kind)
    if parser is None:
        undecodable(f"a message of the unknown kind {kind!r}")
    xid = read.number(4) if streaming and kind in _WITH_XID else 0
    message = parser(read, xid)
    read.end()
    return message


def _commit(values: tuple[int, ...]) -> Commit:
    if values[0]:
        undecodable(f"the unknown flags {values[0]}")
    return Commit._make(values[1:])


def _origin(read: _Bytes, xid: int) -> Origin:
    return Origin(read.number(8), read.text())


def _relation(read: _Bytes, xid: int) -> Relation:
    oid, schema, name = read.number(4), read.text(), read.text()
    identity = read.take(1)
    if identity not in _IDENTITIES:
        undecodable(f"the unknown replica identity {identity!r}")
    columns = tuple(_column(read) for _ in range(read.number(2)))
    if len({column.name for column in columns}) != len(columns):
        undecodable("two columns of one name")
    return Relation(oid, schema or "pg_catalog", name, identity.decode(), columns)


def _column(read: _Bytes) -> Column:
    flags, name, oid = read.number(1), read.text(), read.number(4)
    if flags > 1:
        undecodable(f"the unknown flags {flags} of a column")
    return Column(name, oid, _signed(read.number(4), 32), flags == 1)


def _type(read: _Bytes, xid: int) -> Type:
    return Type(read.number(4), read.text() or "pg_catalog", read.text())


def _truncate(read: _Bytes, xid: int) -> Truncate:
    count, options = read.number(4), read.number(1)
    if options > 3:
        undecodable(f"the unknown options {options} of a truncate")
    oids = read.take(4 * count)
    found = tuple(int.from_bytes(oids[n : n + 4], "big") for n in range(0, len(oids), 4))
    return Truncate(xid, bool(options & 1), bool(options & 2), found)


def _logical_message(read: _Bytes, xid: int) -> LogicalMessage:
    flags = read.number(1)
    if flags > 1:
        undecodable(f"the unknown flags {flags} of a logical message")
    lsn, prefix = read.number(8), read.text()
    return LogicalMessage(xid, flags == 1, lsn, prefix, read.take(read.number(4)))


def _stream_start(read: _Bytes, xid: int) -> StreamStart:
    return StreamStart(read.number(4), read.number(1) == 1)


def _stream_stop(read: _Bytes, xid: int) -> StreamStop:
    return StreamStop()


def _stream_commit(read: _Bytes, xid: int) -> StreamCommit:
    of = read.number(4)
    _no_flags(read)
    return StreamCommit(of, read.number(8), read.number(8), _time(read))


def _stream_abort(read: _Bytes, xid: int) -> StreamAbort:
    abort = StreamAbort(read.number(4), read.number(4))
    if read.left:  # version 4 in parallel adds where and when
        read.take(16)
    return abort


def _begin_prepare(read: _Bytes, xid: int) -> BeginPrepare:
    return BeginPrepare(*_prepared(read))


def _prepare(read: _Bytes, xid: int) -> Prepare:
    _no_flags(read)
    return Prepare(*_prepared(read))


def _commit_prepared(read: _Bytes, xid: int) -> CommitPrepared:
    _no_flags(read)
    return CommitPrepared(*_prepared(read))


def _rollback_prepared(read: _Bytes, xid: int) -> RollbackPrepared:
    _no_flags(read)
    prepare_end, end = read.number(8), read.number(8)
    prepared_us, rolled_back_us = _time(read), _time(read)
    return RollbackPrepared(
        prepare_end, end, prepared_us, rolled_back_us, read.number(4), read.text()
    )


def _stream_prepare(read: _Bytes, xid: int) -> StreamPrepare:
    _no_flags(read)
    return StreamPrepare(*_prepared(read))


def _prepared(read: _Bytes) -> tuple[int, int, int, int, str]:
    return read.number(8), read.number(8), _time(read), read.number(4), read.text()


def _time(read: _Bytes) -> int:
    return _signed(read.number(8), 64)


def _signed(number: int, bits: int) -> int:
    return number - (1 << bits) if number >> (bits - 1) else number


def _no_flags(read: _Bytes) -> None:
    if flags := read.number(1):
        undecodable(f"the unknown flags {flags}")


_IDENTITIES = (b"d", b"n", b"f", b"i")
_WITH_XID = frozenset((b"R", b"Y", b"T", b"M"))
# Read at once: every transaction has one of each.
_FIXED: dict[bytes, tuple[Struct, Callable[[tuple[int, ...]], Message]]] = {
    b"B": (Struct(">xQqI"), Begin._make),
    b"C": (Struct(">xBQQq"), _commit),
}
_PARSERS: dict[bytes, _Parser] = {
    b"O": _origin,
    b"R": _relation,
    b"Y": _type,
    b"T": _truncate,
    b"M": _logical_message,
    b"S": _stream_start,
    b"E": _stream_stop,
    b"c": _stream_commit,
    b"A": _stream_abort,
    b"b": _begin_prepare,
    b"P": _prepare,
    b"K": _commit_prepared,
    b"r": _rollback_prepared,
    b"p": _stream_prepare,
}
