"""Whole transactions, put together from the events of the binary log.

Owns what events mean together: which group is open, what was undone in it, which prepared XA
transactions wait for their decision, where in the log all of that is.  Invariants: a transaction is
given at its commit and whole, or not at all; rows of XA PREPARE are given by XA COMMIT only; a
position is the end of a group, never a place inside, and tells where to read again from while
something prepared is held.  The ordinal of a row counts the captured rows of its transaction.  No
I/O but the spool's.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

from duly.databases.mysql.changes_ddl import Effect, TableName, effects_of
from duly.databases.mysql.changes_place import (
    OFFSET_MAX,
    Place,
    Position,
    file_number,
)
from duly.databases.mysql.changes_spool import Changes, Facts, Gathered, Reading
from duly.databases.mysql.changes_zstd import unzstd
from duly.databases.overlay import kept
from duly.errors import GapError
from duly.kernel.changes import Intent, SnapshotChunk, Transaction
from duly.sources import TableSpec
from duly.wire.binlog import Decoder, Event
from duly.wire.binlog_bytes import undecodable
from duly.wire.binlog_events import (
    Checkpoint,
    Comment,
    Commit,
    Context,
    FormatDescription,
    GtidList,
    Heartbeat,
    Ignored,
    Incident,
    MariadbGtid,
    MysqlGtid,
    PreviousGtids,
    Query,
    Rotate,
    StartEncryption,
    Stop,
    Xa,
    XaPrepare,
    action_of,
    xa_of,
)
from duly.wire.binlog_rows import RowReader, Rows
from duly.wire.binlog_table import Table

__all__ = ["Assembly", "Captured", "Item"]

Item = Transaction | SnapshotChunk | str
_ARTIFICIAL: Final = 0x20
_FORMAT: Final = 15
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_RECENT: Final = 4096
_READINGS_MAX: Final = 1000
_LAYOUTS_AGO: Final = object()
_SAVEPOINT = re.compile(
    r"\s*(?:SAVEPOINT|ROLLBACK\s+(?:WORK\s+)?TO(?:\s+SAVEPOINT)?)\s+(.*?)\s*\Z",
    re.IGNORECASE | re.DOTALL,
)


class Captured(NamedTuple):
    """A table that is captured, as the catalog has it. declared: the types of its columns, of which
    the log does not say all; generated: columns that are computed, and are not told.
    """

    spec: TableSpec
    primary_key: tuple[str, ...]
    declared: Mapping[str, str]
    generated: frozenset[str]


class _Open:
    """A group that is being received. begun: it ends by a commit, not by its first statement."""

    def __init__(self, gtid: str, start: Place, *, begun: bool) -> None:
        self.gtid, self.start, self.begun = gtid, start, begun
        self.rows = Gathered()
        self.intents: list[Intent] = []
        self.savepoints: dict[str, tuple[int, int]] = {}
        self.decided: Xa | None = None  # the XA transaction that it commits
        self.inert = False  # its statement does nothing
        self.committed_us: int | None = None

    def save(self, savepoint: str) -> None:
        self.savepoints[savepoint] = self.rows.mark, len(self.intents)

    def undo(self, savepoint: str) -> None:
        rows, intents = self.savepoints[savepoint]
        self.rows.undo(rows)
        del self.intents[intents:]


class Assembly:
    """Events in, transactions out.

    source: the identity of the database. tables: what is captured, by schema and name. intents: the
    table whose rows are words of their transaction. position: where the stream begins. give: called
    with each transaction and its bytes, in order of commit. looking: pass over what would be a gap,
    for nobody follows.
    """

    def __init__(
        self,
        source: str,
        tables: Mapping[TableName, Captured],
        *,
        intents: TableName,
        position: Position,
        give: Callable[[Transaction, int], None],
        looking: bool = False,
    ) -> None:
        self.source = source
        self._looking = looking
        self.reached = position
        self.given = position.place  # the end of the last transaction that was given
        self.decided: deque[bytes] = deque(maxlen=_RECENT)  # XA transactions that were committed
        self._done = position.place
        self._asked = position.start
        self._tables, self._intents, self._give = tables, intents, give
        self._decoder = Decoder(unzstd=unzstd)
        self._readings: dict[Table, Reading | None] = {}
        self._file, self._made, self._offset = position.start.file, 0, position.start.offset
        self._before = self._begun_at = position.start
        self._open: _Open | None = None
        self._held: dict[Any, _Open] = {}
        self._tell: dict[type, Callable[[Event, Any], None]] = {
            FormatDescription: self._file_begins,
            Rotate: self._rotate,
            Stop: self._nothing,
            MariadbGtid: self._mariadb_gtid,
            MysqlGtid: self._mysql_gtid,
            PreviousGtids: self._nothing,
            GtidList: self._nothing,
            Query: self._query,
            Commit: self._commit,
            XaPrepare: self._prepare,
            Comment: self._nothing,
            Table: self._nothing,
            Rows: self._rows,
            Heartbeat: self._nothing,
            Incident: self._incident,
            StartEncryption: self._nothing,
            Checkpoint: self._nothing,
            Ignored: self._nothing,
            Context: self._nothing,
        }

    def feed(self, data: bytes) -> None:
        """One event. Raises UndecodableError, GapError, DatabaseUnavailableError."""
        self._move(data)
        for event in self._decoder.feed(data):
            tell = self._tell.get(type(event.body))
            if tell is None:
                undecodable(f"an event {type(event.body).__name__}, which means nothing here")
            tell(event, event.body)
        if self._open is None and self._made and self._here.order >= self._done.order:
            self.reached = self._position(self._here)

    # --- places -----------------------------------------------------------------------------------
    @property
    def _here(self) -> Place:
        return Place(self._file, self._offset, self._made)

    def _move(self, data: bytes) -> None:
        """Step behind an event. Inside of a transaction newer servers do not say where it ends, and
        what they say has 32 bits.
        """
        if len(data) < 19:
            undecodable(f"an event of {len(data)} bytes")
        end, flags = int.from_bytes(data[13:17], "little"), int.from_bytes(data[17:19], "little")
        self._before = self._here
        if flags & _ARTIFICIAL or (data[4] == _FORMAT and end == 0):  # sent again, not read there
            return
        if end == 0:
            self._offset += len(data)
            return
        wide = self._offset & ~OFFSET_MAX | end
        self._offset = wide if wide >= self._offset else wide + OFFSET_MAX + 1

    def _position(self, place: Place) -> Position:
        """Of everything up to a place."""
        starts = [one.start for one in self._held.values()]
        if place.offset > OFFSET_MAX:
            starts.append(self._begun_at)  # the place itself cannot be asked for
        return Position(place, min(starts, default=None))

    def _rotate(self, event: Event, body: Rotate) -> None:
        try:
            self._file = file_number(body.file)
        except ValueError:
            undecodable(f"a log file named {body.file!r:.80}")
        self._offset, self._made = body.position, 0

    def _file_begins(self, event: Event, body: FormatDescription) -> None:
        """What a crash cut off is rolled back when the server starts again, in a new file."""
        self._open = None
        self._made = event.header.seconds
        asked = self._asked
        if self._file == asked.file and asked.made not in (0, self._made):
            text = f"log file {asked.file} was made at {self._made}, the one known at {asked.made}"
            raise GapError(
                f"{text}: the log was begun anew (RESET MASTER, another server); see `duly cdc"
                " rewind --to start`",
                code="CDC_SOURCE_CHANGED",
            )

    # --- groups -----------------------------------------------------------------------------------
    def _nothing(self, event: Event, body: Any) -> None:
        """It changes no row, and ends nothing."""

    def _mariadb_gtid(self, event: Event, body: MariadbGtid) -> None:
        self._begin(f"{body.domain}-{body.server_id}-{body.number}", begun=not body.standalone)
        # Of an ALTER TABLE in two parts only the second one is the change.
        self._group("a transaction").inert = body.alter in ("start", "rollback")

    def _mysql_gtid(self, event: Event, body: MysqlGtid) -> None:
        tag = f":{body.tag}" if body.tag else ""
        self._begin(f"{body.source}{tag}:{body.number}" if body.source else "", begun=False)
        self._group("a transaction").committed_us = body.committed_us

    def _begin(self, gtid: str, *, begun: bool) -> None:
        if self._open is not None:
            undecodable("a transaction inside of another one")
        if self._before.offset > OFFSET_MAX:
            raise GapError(
                f"log file {self._file} goes on behind 4 GiB, where it cannot be asked for; take a"
                " new snapshot",
                code="CDC_LOG_TOO_LARGE",
            )
        self._begun_at = self._before
        self._open = _Open(gtid, self._before, begun=begun)

    def _group(self, what: str) -> _Open:
        if self._open is None:
            undecodable(f"{what} outside of any transaction")
        return self._open

    def _query(self, event: Event, body: Query) -> None:
        action = action_of(body.text)
        if self._open is None:
            self._begin("", begun=False)
        opened = self._group("a statement")
        if action in ("begin", "xa start"):
            opened.begun = True
        elif action == "commit":
            self._finish(event, opened)
        elif action == "rollback":
            self._open = None
        elif action in ("savepoint", "rollback to"):
            self._savepoint(opened, body.text, back=action == "rollback to")
        elif action in ("xa commit", "xa rollback"):
            self._decide(event, opened, body.text, commit=action == "xa commit")
        elif action == "other":
            self._statement(event, opened, body)

    def _savepoint(self, opened: _Open, text: str, *, back: bool) -> None:
        found = _SAVEPOINT.match(text)
        name = found[1].strip('`"').casefold() if found else ""
        if not back:
            opened.save(name)
        elif name in opened.savepoints:
            opened.undo(name)
        else:
            undecodable("a rollback to a savepoint that was never set")

    def _statement(self, event: Event, opened: _Open, body: Query) -> None:
        if self._here.order > self._done.order and not opened.inert:
            for effect in effects_of(body.text, body.schema, self._tables):
                self._befell(opened, effect)
        if not opened.begun:
            self._finish(event, opened)

    def _befell(self, opened: _Open, effect: Effect) -> None:
        name = self._tables[effect.table].spec.name
        if effect.kind == "truncate":
            opened.rows.truncate(name)
            return
        if self._looking:
            return
        where = f"in transaction {opened.gtid or 'without a name'}"
        said = f"{where}; see `duly cdc rewind APP start --yes`"
        if effect.kind == "rows":
            text = f"a statement that may change {name} was logged as text (binlog_format), {said}"
            raise GapError(text, code="CDC_STATEMENT_LOGGED")
        text = f"{name} was dropped, renamed, replaced or lost a partition, {said}"
        raise GapError(text, code="CDC_TABLE_LOST")

    def _rows(self, event: Event, body: Rows) -> None:
        opened = self._group("rows")
        reading = self._reading(body.table)
        if reading is None:
            return
        if (body.table.schema, body.table.name) == self._intents:
            self._say(opened, reading.read(body))
        else:
            opened.rows.append(reading, body)

    def _say(self, opened: _Open, rows: Sequence[Any]) -> None:
        for op, _, _, after in rows:
            if op == "create" and after is not None:
                data = after.get("data") or b""
                data = data.encode() if isinstance(data, str) else data
                opened.intents.append(Intent(str(after["name"]), data))

    def _reading(self, table: Table) -> Reading | None:
        found: Any = self._readings.get(table, _LAYOUTS_AGO)
        if found is _LAYOUTS_AGO:
            if len(self._readings) >= _READINGS_MAX:
                self._readings.clear()
            found = self._readings[table] = self._describe(table)
        return found  # type: ignore[no-any-return]  # the mark for an unknown one is gone

    def _describe(self, table: Table) -> Reading | None:
        where = (table.schema, table.name)
        names = [column.name for column in table.columns]
        if where == self._intents:
            words = RowReader(table, table.name, keep=("name", "data"), key=("name",))
            return Reading(words, before=True)
        captured = self._tables.get(where)
        if captured is None:
            return None
        spec = captured.spec
        key = spec.key or table.key or captured.primary_key
        if table.described and (missing := {*key} - {*names}):
            text = f"{spec.name} has no column {min(missing)!r} any more, which names its rows"
            raise GapError(text, code="CDC_KEY_COLUMN_GONE")
        keep = kept(spec, [name for name in names if name not in captured.generated])
        declared = {name: kind for name, kind in captured.declared.items() if name in names}
        reader = RowReader(table, spec.name, keep=keep, key=key, declared=declared)
        return Reading(reader, spec.before_image)

    def _incident(self, event: Event, body: Incident) -> None:
        text = f"the server could not log everything ({body.message or body.number})"
        raise GapError(f"{text}; take a new snapshot", code="CDC_INCIDENT")

    # --- what becomes of them ---------------------------------------------------------------------
    def _commit(self, event: Event, body: Commit) -> None:
        self._finish(event, self._group("a commit"))

    def _prepare(self, event: Event, body: XaPrepare) -> None:
        opened = self._group("XA PREPARE")
        if body.one_phase:
            self._finish(event, opened)
        else:
            self._held[body.xa] = opened
            self._open = None

    def _decide(self, event: Event, opened: _Open, text: str, *, commit: bool) -> None:
        xa = xa_of(text)
        held = self._held.pop(xa, None)
        if not commit:
            self._open = None
            return
        if held is None and self._here.order > self._done.order and not self._looking:
            raise GapError(
                f"the XA transaction {opened.gtid} was prepared before this stream begins: what it"
                " changed is not known; see `duly cdc rewind APP start --yes`",
                code="CDC_XA_UNKNOWN",
            )
        if held is not None:
            opened.rows, opened.intents = held.rows, held.intents
            opened.decided = xa
        self._finish(event, opened)

    def _finish(self, event: Event, opened: _Open) -> None:
        self._open = None
        place = self._here
        intents = tuple(opened.intents)
        if place.order <= self._done.order or not (opened.rows.count or intents):
            return
        position = self._position(place)
        at = datetime.fromtimestamp(event.header.seconds, UTC)
        if opened.committed_us is not None:
            at = _EPOCH + timedelta(microseconds=opened.committed_us)
        facts = Facts(self.source, place.text, opened.gtid, at, intents)
        given = Transaction(
            source=self.source,
            position=place.text,
            commit=position.text,
            xid=opened.gtid,
            committed_at=at,
            changes=Changes(opened.rows, facts),
            intents=intents,
        )
        if opened.decided is None:
            self.given = place
        else:
            self.decided.append(opened.decided.global_id + opened.decided.branch)
        self._give(given, opened.rows.memory_bytes)
