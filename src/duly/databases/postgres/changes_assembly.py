"""Whole transactions, put together from the messages of ``pgoutput``.

Owns what messages mean together: what is open, which pieces belong to which streamed transaction,
which subtransactions were undone, how each relation is laid out now.  Invariants: a transaction is
given at its commit and whole, or not at all; a position counts as reached only while nothing is
open.  The ordinal of a row counts every row of the transaction, captured or not, so that it stays
the same when another table is captured.  No I/O but the spool's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

from duly.databases.overlay import kept
from duly.databases.postgres.changes_spool import Changes, Facts, Rows
from duly.errors import GapError
from duly.kernel.changes import Intent, SnapshotChunk, Transaction
from duly.sources import TableSpec
from duly.wire.pgoutput import (
    DELETE,
    HEADER_BYTES,
    INSERT,
    UPDATE,
    Begin,
    Commit,
    LogicalMessage,
    Message,
    Origin,
    Relation,
    StreamAbort,
    StreamCommit,
    StreamStart,
    StreamStop,
    Truncate,
    Type,
    parse_message,
    undecodable,
)
from duly.wire.pgrows import RowReader

__all__ = ["INTENT_PREFIX", "Assembly", "Captured", "Item", "lsn_text"]

INTENT_PREFIX: Final = "duly.intent:"
Item = Transaction | SnapshotChunk | str
_ROWS: Final = frozenset((INSERT, UPDATE, DELETE))
_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
_RECENT = 4096
_UNKNOWN: Final = object()
_FIRST = slice(HEADER_BYTES + 1, HEADER_BYTES + 5)  # a row's relation, in a block its xid
_SECOND = slice(HEADER_BYTES + 5, HEADER_BYTES + 9)


class Captured(NamedTuple):
    """A table that is captured, as the catalog describes it. identity: as in ``Relation``."""

    spec: TableSpec
    oid: int
    schema: str
    name: str
    primary_key: tuple[str, ...]


def lsn_text(lsn: int) -> str:
    """A position: 16 hexadecimal digits, so that text compares like numbers."""
    return f"{lsn:016X}"


class _Open:
    """A transaction that is being received."""

    def __init__(self, xid: int, *, streaming: bool) -> None:
        self.xid = xid
        self.streaming = streaming
        self.rows = Rows(streaming=streaming)
        self.readers: dict[bytes, RowReader | None] = {}
        self.intents: list[tuple[int, Intent]] = []
        self.undone: set[int] = set()

    def undo(self, subxid: int) -> None:
        self.undone.add(subxid)
        self.rows.undo(subxid)


class Assembly:
    """Frames in, transactions out.

    source: the identity of the database. tables: what is captured, by schema and name. start: the
    position the stream begins at. give: called with each transaction, in order of commit.
    """

    def __init__(
        self,
        source: str,
        tables: Mapping[tuple[str, str], Captured],
        *,
        start: int,
        give: Callable[[Transaction, int], None],
    ) -> None:
        self.reached = start
        self.recent: deque[int] = deque(maxlen=_RECENT)
        self.source = source
        self._tables = tables
        self._give = give
        self._readers: dict[bytes, RowReader | None] = {}
        self._open: _Open | None = None
        self._pieces: dict[int, _Open] = {}
        self._begin: Begin | None = None
        self._tell: dict[type, Callable[[Any], None]] = {
            Begin: self._begin_whole,
            Commit: self._commit,
            Relation: self._relation,
            Type: self._nothing,
            Origin: self._nothing,
            LogicalMessage: self._say,
            StreamStart: self._block,
            StreamStop: self._block_end,
            StreamCommit: self._stream_commit,
            StreamAbort: self._abort,
        }

    def feed(self, frame: bytes) -> None:
        """One frame of kind ``w``. Raises UndecodableError, GapError, DatabaseUnavailableError."""
        if len(frame) <= HEADER_BYTES:
            undecodable(f"a frame of {len(frame)} bytes")
        if frame[HEADER_BYTES] in _ROWS:  # first, and with few calls: there are millions of them
            opened = self._open
            if opened is None:
                undecodable("a row outside of any transaction")
            elif opened.streaming:
                subxid = int.from_bytes(frame[_FIRST], "big")
                opened.rows.append(self._reader(opened, frame[_SECOND]), frame, subxid)
            else:
                opened.rows.append(self._reader(opened, frame[_FIRST]), frame, 0)
            return
        streaming = self._open is not None and self._open.streaming
        message = parse_message(frame, HEADER_BYTES, streaming=streaming)
        if isinstance(message, Truncate):
            self._truncate(message, frame)
        else:
            self._told(message)

    def alive(self, wal_end: int) -> None:
        """The server has sent all there is up to here; counts only while nothing is open."""
        if self._open is None and wal_end > self.reached:
            self.reached = wal_end

    def _truncate(self, message: Truncate, frame: bytes) -> None:
        if self._open is None:
            undecodable("a truncate outside of any transaction")
        for oid in message.oids:
            reader = self._reader(self._open, oid.to_bytes(4, "big"))
            self._open.rows.append(reader, frame, message.xid)

    def _reader(self, opened: _Open, oid: bytes) -> RowReader | None:
        """What reads the rows of a relation, by the bytes of its number."""
        found = opened.readers.get(oid, _UNKNOWN) if opened.readers else _UNKNOWN
        if found is _UNKNOWN:
            found = self._readers.get(oid, _UNKNOWN)
        if found is _UNKNOWN:
            undecodable(f"a row of the relation {oid.hex()}, which was never described")
        return found  # type: ignore[return-value]  # the mark for an unknown one is gone

    def _told(self, message: Message) -> None:
        tell = self._tell.get(type(message))
        if tell is None:
            raise GapError(
                "the slot decodes prepared transactions; make it anew without two_phase",
                code="CDC_SLOT_TWO_PHASE",
            )
        tell(message)

    def _nothing(self, message: Origin | Type) -> None:
        """Whose change it was first, and what a type is called, changes no value."""

    def _begin_whole(self, message: Begin) -> None:
        self._none_open("a begin")
        self._begin = message
        self._open = _Open(message.xid, streaming=False)

    def _relation(self, message: Relation) -> None:
        readers = self._readers if self._open is None else self._open.readers
        readers[message.oid.to_bytes(4, "big")] = self._describe(message)

    def _block(self, message: StreamStart) -> None:
        self._none_open("a stream block")
        if message.xid not in self._pieces:
            if not message.first:
                undecodable("a later piece of a streamed transaction that was never seen")
            self._pieces[message.xid] = _Open(message.xid, streaming=True)
        self._open = self._pieces[message.xid]

    def _block_end(self, message: StreamStop) -> None:
        if self._open is None or not self._open.streaming:
            undecodable("the end of a stream block that did not begin")
        self._open = None

    def _none_open(self, what: str) -> None:
        if self._open is not None:
            undecodable(f"{what} inside of a transaction")

    def _commit(self, message: Commit) -> None:
        opened, begin = self._open, self._begin
        if opened is None or begin is None or opened.streaming:
            undecodable("a commit without its begin")
        if begin.final_lsn != message.commit_lsn:
            undecodable("a commit at another position than its begin said")
        self._open = self._begin = None
        self._finish(opened, message.commit_lsn, message)

    def _stream_commit(self, message: StreamCommit) -> None:
        self._none_open("a stream commit")
        opened = self._pieces.pop(message.xid, None)
        if opened is None:
            undecodable("the commit of a streamed transaction that was never seen")
        self._finish(opened, message.commit_lsn, message)

    def _abort(self, message: StreamAbort) -> None:
        self._none_open("a stream abort")
        if message.subxid == message.xid:
            self._pieces.pop(message.xid, None)
        elif message.xid in self._pieces:
            self._pieces[message.xid].undo(message.subxid)

    def _finish(self, opened: _Open, commit: int, message: Commit | StreamCommit) -> None:
        self._readers.update(opened.readers)
        self.recent.append(opened.xid)
        self.reached = max(self.reached, message.end_lsn)
        intents: tuple[Intent, ...] = ()
        if opened.intents:
            intents = tuple(i for subxid, i in opened.intents if subxid not in opened.undone)
        if not len(opened.rows) and not intents:
            return
        at = _EPOCH + timedelta(microseconds=message.committed_us)
        facts = Facts(self.source, lsn_text(commit), str(opened.xid), at, intents)
        changes = Changes(opened.rows, facts)
        given = Transaction(
            source=self.source,
            position=facts.position,
            commit=lsn_text(message.end_lsn),
            xid=facts.xid,
            committed_at=at,
            changes=changes,
            intents=intents,
        )
        self._give(given, opened.rows.memory_bytes)

    def _say(self, message: LogicalMessage) -> None:
        prefix, name = message.prefix[: len(INTENT_PREFIX)], message.prefix[len(INTENT_PREFIX) :]
        if message.transactional and prefix == INTENT_PREFIX and name and self._open is not None:
            self._open.intents.append((message.xid, Intent(name, message.content)))

    def _describe(self, relation: Relation) -> RowReader | None:
        captured = self._tables.get((relation.schema, relation.name))
        if captured is None:
            return None
        spec = captured.spec
        keep = kept(spec, [column.name for column in relation.columns])
        flagged = tuple(column.name for column in relation.columns if column.key)
        named_by = flagged if relation.identity in "di" else captured.primary_key
        try:
            return RowReader(relation, spec.name, keep=keep, key=spec.key or named_by or flagged)
        except KeyError as error:
            text = f"{spec.name} has no column {error} any more, which names its rows"
            raise GapError(text, code="CDC_KEY_COLUMN_GONE") from error
