"""Events of the binlog of MySQL and MariaDB that say something by themselves.

Owns their layouts and what they mean one by one; what hangs on the events before them (checksums,
compression, tables and rows) is left to ``binlog``.  Invariant: an event is read to its last byte;
what newer servers put behind it is passed over only where its writer promises that it can be.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Final, Literal, NamedTuple

from duly.errors import UndecodableError
from duly.wire.binlog_bytes import Bytes, undecodable, uuid_text
from duly.wire.binlog_texts import decoder_of

__all__ = [
    "Action",
    "Checkpoint",
    "Comment",
    "Commit",
    "Context",
    "FormatDescription",
    "GtidList",
    "Header",
    "Heartbeat",
    "Ignored",
    "Incident",
    "MariadbGtid",
    "MysqlGtid",
    "PreviousGtids",
    "Query",
    "Rotate",
    "Said",
    "StartEncryption",
    "Stop",
    "Xa",
    "XaPrepare",
    "action_of",
    "fields_of",
    "parsed",
    "query",
    "xa_of",
]

_ARTIFICIAL: Final = 0x20
_IGNORABLE: Final = 0x80
_ANSI_QUOTES: Final = 4

Alter = Literal["", "start", "commit", "rollback"]
Action = Literal[
    "begin", "commit", "rollback", "savepoint", "rollback to",
    "xa start", "xa end", "xa prepare", "xa commit", "xa rollback", "other",
]  # fmt: skip


class Header(NamedTuple):
    """What stands before every event. seconds: since 1970, of the statement; 0 for an event that
    the server makes for the reader. end: where the next one begins in its file; 0 where the server
    does not say it, and of events in a compressed transaction.
    """

    seconds: int
    kind: int
    server_id: int
    size: int
    end: int
    flags: int

    @property
    def artificial(self) -> bool:
        """The event stands in no file."""
        return bool(self.flags & _ARTIFICIAL)


class FormatDescription(NamedTuple):
    """A file begins. server: its version as text."""

    server: str
    mariadb: bool
    checksum: bool


class Rotate(NamedTuple):
    """The events that follow are in another file."""

    file: str
    position: int


class Stop(NamedTuple):
    """The server was shut down; another file follows."""


class MysqlGtid(NamedTuple):
    """A transaction of MySQL begins. source: UUID of the server it was committed on, empty for one
    without identity (gtid_mode OFF). committed_us: since 1970, None where the server is older than
    8.0. bytes: of the whole transaction in the log, None as well.
    """

    source: str
    tag: str
    number: int
    committed_us: int | None = None
    bytes: int | None = None


class PreviousGtids(NamedTuple):
    """What the files before hold: for each ``uuid`` or ``uuid:tag`` the first and last number of
    each run.
    """

    sets: Mapping[str, tuple[tuple[int, int], ...]]


class Xa(NamedTuple):
    """The name of a distributed transaction."""

    format: int
    global_id: bytes
    branch: bytes


class MariadbGtid(NamedTuple):
    """A transaction of MariaDB begins. standalone: one event follows, and no commit. xa: what it
    prepares, or completes. alter: "start", "commit" or "rollback" of an ALTER TABLE in two parts,
    whose text stands in both.
    """

    domain: int
    server_id: int
    number: int
    standalone: bool
    transactional: bool
    ddl: bool
    prepares: bool
    completes: bool
    xa: Xa | None
    alter: Alter


class GtidList(NamedTuple):
    """What the files before hold, of MariaDB: domain, server and number of the last of each."""

    gtids: tuple[tuple[int, int, int], ...]


class Query(NamedTuple):
    """A statement. text: bytes that are none of its client's character set are escaped.
    ansi_quotes: names stand in double quotes.
    """

    schema: str
    text: str
    error: int
    ansi_quotes: bool = False


class Commit(NamedTuple):
    """A transaction is complete. xid: the server's number of it."""

    xid: int


class XaPrepare(NamedTuple):
    """A distributed transaction is complete; whether it commits is open, but for one phase."""

    one_phase: bool
    xa: Xa


class Comment(NamedTuple):
    """The statement that made the rows that follow, with its comments."""

    text: str


class Heartbeat(NamedTuple):
    """Nothing happened up to here."""

    file: str
    position: int


class Incident(NamedTuple):
    """The log has a gap here, says its writer."""

    number: int
    message: str


class StartEncryption(NamedTuple):
    """The file is encrypted from here; a server that sends it has opened it already."""

    scheme: int


class Checkpoint(NamedTuple):
    """For the server's own recovery."""

    file: str


class Context(NamedTuple):
    """What belongs to a statement that follows, or to group replication; no rows."""

    kind: int


class Ignored(NamedTuple):
    """Not known, and marked by its writer as of no importance."""

    kind: int


Said = (
    Rotate
    | Stop
    | MysqlGtid
    | PreviousGtids
    | MariadbGtid
    | GtidList
    | Query
    | Commit
    | XaPrepare
    | Comment
    | Heartbeat
    | Incident
    | StartEncryption
    | Checkpoint
    | Context
    | Ignored
)


def parsed(header: Header, read: Bytes) -> Said:
    """An event by its kind, which is read to its end.

    Raises UndecodableError (BINLOG_UNKNOWN_EVENT) for one that is not known, unless its writer
    marked it as one that may be ignored.
    """
    parser = _PARSERS.get(header.kind)
    if parser is not None:
        found = parser(read, header)
        read.end()
        return found
    if header.kind in _CONTEXT:
        return Context(header.kind)
    if not header.flags & _IGNORABLE:
        undecodable(f"an event of the unknown kind {header.kind}", code="BINLOG_UNKNOWN_EVENT")
    return Ignored(header.kind)


def action_of(text: str) -> Action:
    """What a statement of the log does to its transaction, as the server writes such statements."""
    found = _ACTION.match(text)
    if found is None:
        return "other"
    words = " ".join(found[0].lower().split())
    return _ACTIONS[words]


def xa_of(text: str) -> Xa | None:
    """The transaction that an XA statement of the log names; None where it is no such statement."""
    found = _XA.match(text)
    if found is None:
        return None
    return Xa(int(found[3]), bytes.fromhex(found[1]), bytes.fromhex(found[2]))


_ACTION: Final = re.compile(
    r"\s*(?:(?:BEGIN|COMMIT|ROLLBACK)(?=\s*\Z)|SAVEPOINT(?=\s)|ROLLBACK\s+TO(?=\s)"
    r"|XA\s+(?:START|BEGIN|END|PREPARE|COMMIT|ROLLBACK)(?=\s))",
    re.IGNORECASE,
)
_ACTIONS: Final[Mapping[str, Action]] = {
    "begin": "begin", "commit": "commit", "rollback": "rollback", "savepoint": "savepoint",
    "rollback to": "rollback to", "xa start": "xa start", "xa begin": "xa start",
    "xa end": "xa end", "xa prepare": "xa prepare", "xa commit": "xa commit",
    "xa rollback": "xa rollback",
}  # fmt: skip
_XA: Final = re.compile(
    r"\s*XA\s+\w+\s+X'((?:[0-9A-F]{2})*)',X'((?:[0-9A-F]{2})*)',(\d{1,10})(?!\d)", re.IGNORECASE
)


def fields_of(read: Bytes) -> Iterator[tuple[int, Bytes]]:
    """Numbered fields, each behind its length, until the number 0."""
    while kind := read.packed():
        yield kind, Bytes(read.take(read.packed()))


def _rotate(read: Bytes, header: Header) -> Rotate:
    position = read.number(8)
    return Rotate(read.text(read.left), position)


def _stop(read: Bytes, header: Header) -> Stop:
    return Stop()


def query(
    read: Bytes, *, loads: bool = False, unpack: Callable[[bytes], bytes] | None = None
) -> Query:
    """A statement, read to its end. loads: it names pieces of a file. unpack: its text is
    compressed.
    """
    read.take(8)  # thread and seconds
    schema_bytes, problem, variables = read.number(1), read.number(2), read.number(2)
    if loads:
        read.take(13)  # where the file's pieces are
    said = _Variables(Bytes(read.take(variables)))
    schema, text = read.terminated(schema_bytes), read.rest()
    if unpack is not None:
        text = unpack(text)
    return Query(schema, _readable(text, said.decode), problem, said.ansi_quotes)


class _Variables:
    """What a statement says of its session, up to how its client wrote it."""

    def __init__(self, read: Bytes) -> None:
        self.decode: Callable[[bytes], str] = bytes.decode
        self.ansi_quotes = False
        while read.left:
            kind = read.number(1)
            if kind == _SQL_MODE:
                self.ansi_quotes = bool(read.number(8) & _ANSI_QUOTES)
            elif kind == _CATALOG:
                read.take(read.number(1))
            elif kind in _VARIABLE_BYTES:
                read.take(_VARIABLE_BYTES[kind])
            else:
                if kind == _CLIENT_COLLATION:
                    self._client(read.number(2))
                return  # what follows is of no interest, and not always known

    def _client(self, collation: int) -> None:
        with suppress(UndecodableError):  # without a codec what is ASCII is right all the same
            self.decode = decoder_of(collation)


def _readable(text: bytes, decode: Callable[[bytes], str] = bytes.decode) -> str:
    try:
        return decode(text)
    except ValueError:  # a statement may hold any bytes between its words
        return text.decode("utf-8", "backslashreplace")


def _commit(read: Bytes, header: Header) -> Commit:
    return Commit(read.number(8))


def _xa_prepare(read: Bytes, header: Header) -> XaPrepare:
    one_phase, form = read.number(1), read.number(4)
    first, second = read.number(4), read.number(4)
    return XaPrepare(bool(one_phase), Xa(form, read.take(first), read.take(second)))


def _rows_query(read: Bytes, header: Header) -> Comment:
    read.take(1)  # of its length, which may be too large for it
    return Comment(_readable(read.rest()))


def _annotate(read: Bytes, header: Header) -> Comment:
    return Comment(_readable(read.rest()))


def _incident(read: Bytes, header: Header) -> Incident:
    number = read.number(2)
    return Incident(number, _readable(read.take(read.number(1))))


def _heartbeat(read: Bytes, header: Header) -> Heartbeat:
    position = header.end or read.number(8)  # there it is too large for the header
    return Heartbeat(read.text(read.left), position)


def _long_heartbeat(read: Bytes, header: Header) -> Heartbeat:
    fields = dict(fields_of(read))
    if 1 not in fields or 2 not in fields:
        undecodable("a heartbeat without its place")
    return Heartbeat(fields[1].text(fields[1].left), fields[2].packed())


def _checkpoint(read: Bytes, header: Header) -> Checkpoint:
    return Checkpoint(read.text(read.number(4)))


def _start_encryption(read: Bytes, header: Header) -> StartEncryption:
    scheme = read.number(1)
    read.take(16)  # version of the key, nonce
    return StartEncryption(scheme)


def _mysql_gtid(read: Bytes, header: Header) -> MysqlGtid:
    read.take(1)
    source, number = uuid_text(read.take(16)), read.number(8)
    source = "" if header.kind == _ANONYMOUS else source
    committed_us = size = None
    if read.left and read.number(1) == 2:
        read.take(16)  # which transactions could run beside it
        if read.left:
            committed_us = read.number(7)
            if committed_us >> 55:  # the original server's follows
                committed_us &= (1 << 55) - 1
                read.take(7)
            size = read.packed() if read.left else None
    read.rest()  # versions of servers, and what newer ones add
    return MysqlGtid(source, "", number, committed_us, size)


def _tagged_gtid(read: Bytes, header: Header) -> MysqlGtid:
    """The fields of MySQL 8.3, each behind its number; those that may be missed come last."""
    for _ in range(2):
        _varied(read)  # version and size of this form
    needed = _varied(read)
    found: dict[int, int] = {}
    source = tag = ""
    while read.left:
        field = _varied(read)
        if field == 1:
            source = uuid_text(bytes(_varied(read) & 0xFF for _ in range(16)))
        elif field == 3:
            tag = read.text(_varied(read))
        elif field in _TAGGED_NUMBERS:
            found[field] = _varied(read)
        elif field > needed:
            read.rest()
        else:
            undecodable(f"the unknown field {field} of a GTID")
    number = found.get(2, 0)
    if not source or not number or number & 1:
        undecodable("a GTID without a source and a number")
    return MysqlGtid(source, tag, number >> 1, found.get(6), found.get(8))


def _varied(read: Bytes) -> int:
    """A number; the ones at the end of its first byte say how many bytes follow."""
    first = read.number(1)
    if first == 0xFF:
        return read.number(8)
    more = (~first & first + 1).bit_length() - 1
    return (first | read.number(more) << 8) >> (more + 1)


def _previous_gtids(read: Bytes, header: Header) -> PreviousGtids:
    count = read.number(8)
    form = count >> 56
    if form > 1:
        undecodable(f"GTIDs of the form {form}")
    sets: dict[str, tuple[tuple[int, int], ...]] = {}
    for _ in range(count >> 8 & (1 << 48) - 1 if form else count):
        source = uuid_text(read.take(16))
        tag = read.text(_varied(read)) if form else ""
        runs = tuple((read.number(8), read.number(8) - 1) for _ in range(read.number(8)))
        sets[f"{source}:{tag}" if tag else source] = runs
    return PreviousGtids(sets)


def _mariadb_gtid(read: Bytes, header: Header) -> MariadbGtid:
    number, domain, flags = read.number(8), read.number(4), read.number(1)
    if flags & 2:
        read.take(8)  # of the group it was committed in
    xa = None
    if flags & 0xC0:
        form, first, second = read.number(4), read.number(1), read.number(1)
        xa = Xa(form, read.take(first), read.take(second))
    more = read.number(1) if read.left else 0
    if more & ~0x1F:
        undecodable(f"the unknown flags {more} of a GTID")
    read.rest()  # what belongs to those flags, and zeros
    alter = next((name for bit, name in _ALTERS.items() if more & bit), _NO_ALTER)
    return MariadbGtid(
        domain,
        header.server_id,
        number,
        standalone=bool(flags & 1),
        transactional=bool(flags & 4),
        ddl=bool(flags & 0x20),
        prepares=bool(flags & 0x40),
        completes=bool(flags & 0x80),
        xa=xa,
        alter=alter,
    )


def _gtid_list(read: Bytes, header: Header) -> GtidList:
    count = read.number(4) & 0x0FFFFFFF
    gtids = tuple((read.number(4), read.number(4), read.number(8)) for _ in range(count))
    if not count:
        read.rest()
    return GtidList(gtids)


_ANONYMOUS: Final = 34
_CONTEXT: Final = (5, 9, 11, 13, 14, 17, 36, 37)
_SQL_MODE: Final = 1
_CLIENT_COLLATION: Final = 4
_CATALOG: Final = 6
_VARIABLE_BYTES: Final = {0: 4, 3: 4}
_TAGGED_NUMBERS: Final = (0, 2, 4, 5, 6, 7, 8, 9, 10, 11)
_NO_ALTER: Final[Alter] = ""
_ALTERS: Final[Mapping[int, Alter]] = {2: "start", 4: "commit", 8: "rollback"}
_PARSERS: Final[Mapping[int, Callable[[Bytes, Header], Said]]] = {
    2: lambda read, header: query(read),
    3: _stop,
    4: _rotate,
    16: _commit,
    18: lambda read, header: query(read, loads=True),
    26: _incident,
    27: _heartbeat,
    29: _rows_query,
    33: _mysql_gtid,
    _ANONYMOUS: _mysql_gtid,
    35: _previous_gtids,
    38: _xa_prepare,
    41: _long_heartbeat,
    42: _tagged_gtid,
    160: _annotate,
    161: _checkpoint,
    162: _mariadb_gtid,
    163: _gtid_list,
    164: _start_encryption,
}
