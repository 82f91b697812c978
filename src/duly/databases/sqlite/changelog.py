"""Rows of ``duly_change`` read as transactions.

Owns order, identity and decoding; whether the triggers are whole is ``reader``'s to ask.  The
invariant: a number that is missing, a gap mark, a text that is none are never passed over.
Triggers know no transaction: a change is one of its own, unless its writer put the marks BEGIN and
COMMIT around (``marks``) - the file has one writer, so all that lies between is that writer's.  A
marked transaction too large for memory stays in the file and is read as it is walked.
"""

from __future__ import annotations

import sqlite3
from bisect import bisect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, overload

from duly.databases.sqlite.capture import BEGIN, COMMIT, GAP, INTENT, MARK, shapes
from duly.databases.sqlite.triggers import CREATE, DELETE, Shape
from duly.errors import ConfigurationError, GapError, UndecodableError
from duly.kernel.changes import ABSENT, Change, Intent, Op, Transaction
from duly.sources import TableSpec

__all__ = ["Log", "Wanted", "connect", "number_of", "position_of"]

ROWS_MAX = 1000
BYTES_MAX = 8_000_000
_FIRST = 4  # the values of a change stand behind seq, shape, op, at
_EPOCH, _EPOCH_DAY = datetime(1970, 1, 1, tzinfo=UTC), 2440587.5
_OPS: dict[int, Op] = {1: "create", 2: "update", 3: "delete"}
Row = tuple[Any, ...]


class Wanted(NamedTuple):
    """A table that a reader reads. key: the columns that name a row."""

    spec: TableSpec
    key: tuple[str, ...]

    def carries(self, column: str) -> bool:
        """Whether this column is shown to the reader."""
        include, exclude = self.spec.include, self.spec.exclude
        return (not include or column in include) and column not in exclude


def connect(path: str, busy_seconds: float) -> sqlite3.Connection:
    """A connection to a file that is there."""
    return sqlite3.connect(
        f"{Path(path).as_uri()}?mode=rw",
        uri=True,
        timeout=busy_seconds,
        isolation_level=None,
        check_same_thread=False,
    )


def position_of(number: int) -> str:
    """A number of a change as a position."""
    return f"{number:020d}"


def number_of(position: str) -> int:
    """A position as a number. Raises ConfigurationError (CDC_POSITION)."""
    if not (position.isascii() and position.isdigit() and int(position) < 1 << 62):
        raise ConfigurationError(
            f"{ascii(position)[:60]} is no position of a SQLite source", code="CDC_POSITION"
        )
    return int(position)


class Log:
    """The changes behind a position, for the tables that are wanted.

    position: how far it was read. passing: tables, in lower case, whose gap marks are passed.
    """

    def __init__(self, path: str, source: str, wanted: Mapping[str, Wanted]) -> None:
        self.position = 0
        self.passing: set[str] = set()
        self._path, self._source, self._wanted = path, source, wanted
        self._decoders: dict[int, _Decoder | None] = {}

    def read(self, db: sqlite3.Connection, until: int) -> list[Transaction]:
        """The next transactions, up to this number; moves the position. In a read transaction of
        the caller.

        Raises GapError (CDC_PURGED, CDC_GAP), UndecodableError; what comes before is given
        first.
        """
        rows = self._rows(db, until)
        found: list[Transaction] = []
        at = 0
        while at < len(rows):
            row = rows[at]
            if trouble := self._trouble(row):
                if found or at:
                    break
                raise trouble
            begins = row[1:3] == (MARK, BEGIN)
            last = self._end_of_marked(db, rows, at=at, until=until) if begins else 0
            stored = last > rows[-1][0]
            if stored and at:
                break  # it may fit when it is the first one
            inner = rows[at + 1 : at + last - row[0]] if last else [row]
            if last and not stored and len(inner) != rows[at + len(inner)][0] - row[0]:
                raise purged(row[0])
            if stored:
                found += self._stored(db, row[0], last)
            elif last or row[1] != MARK or row[2] == INTENT:
                found += self._made(db, inner, last or row[0])
            self.position = last or row[0]
            if stored:
                break
            at += self.position - row[0] + 1 if last else 1
        return found

    def _rows(self, db: sqlite3.Connection, until: int) -> list[Row]:
        rows: list[Row] = []
        size = 0
        cursor = db.execute(
            "SELECT * FROM duly_change WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT ?",
            (self.position, until, ROWS_MAX),
        )
        while size < BYTES_MAX:
            try:
                row = cursor.fetchone()
            except sqlite3.OperationalError as error:
                if rows:
                    break  # what is good goes first; the next read begins here
                if "decode" not in str(error):
                    raise
                raise UndecodableError(
                    f"the change behind {position_of(self.position)} holds a text that is not "
                    "UTF-8; mend it in duly_change, or go on behind it and read the table anew",
                    code="CDC_TEXT",
                ) from error
            if row is None:
                break
            rows.append(row)
            size += sum([len(v) for v in row if v.__class__ is str or v.__class__ is bytes])
        return rows

    def _trouble(self, row: Row) -> GapError | None:
        gap = row[1:3] == (MARK, GAP)
        if gap and not self._passes(row[4]):
            what = f"table {row[4]!r}" if row[4] else "every table"
            return GapError(
                f"changes of {what} may be missing before {position_of(row[0])}: {row[5]}; read "
                "what is concerned anew: duly cdc snapshot MODULE:APP TABLE",
                code="CDC_GAP",
            )
        if row[0] != self.position + 1 and not gap:
            return purged(self.position)
        return None

    def _passes(self, table: str | None) -> bool:
        if table is None:
            return self.passing >= set(self._wanted)
        return table.lower() in self.passing or table.lower() not in self._wanted

    # --- transactions -----------------------------------------------------------------------------
    def _end_of_marked(
        self, db: sqlite3.Connection, rows: Sequence[Row], *, at: int, until: int
    ) -> int:
        """The number of the COMMIT mark that belongs to the BEGIN mark at a row; 0 for none: one
        that is not committed by now is of another transaction.
        """
        for row in islice(rows, at + 1, None):
            if row[1] == MARK and row[2] in (BEGIN, COMMIT):
                return int(row[0]) if row[2] == COMMIT else 0
        ask = "SELECT min(seq) FROM duly_change WHERE shape = 0 AND op = ? AND seq > ?"
        begin, commit = (db.execute(ask, (op, rows[at][0])).fetchone()[0] for op in (BEGIN, COMMIT))
        if commit is None or commit > until or (begin is not None and begin < commit):
            return 0
        return int(commit)

    def _made(self, db: sqlite3.Connection, rows: list[Row], commit: int) -> list[Transaction]:
        """A transaction of rows in memory; nothing where none of it is wanted."""
        intents = tuple(_intent(row) for row in rows if row[1] == MARK and row[2] == INTENT)
        changes, ordinal, position = [], 0, position_of(commit)
        for row in rows:
            if row[1] == MARK:
                continue
            decoder = self._decoder(db, row[1])
            if decoder is not None:
                changes.append(decoder.change(row, ordinal, (position, intents)))
            ordinal += 1
        if not changes and not intents:
            return []
        return [self._transaction(rows[-1], commit, changes=changes, intents=intents)]

    def _stored(self, db: sqlite3.Connection, begin: int, commit: int) -> list[Transaction]:
        inside = (begin + 1, commit - 1)
        count = db.execute(
            "SELECT count(*) FROM duly_change WHERE seq BETWEEN ? AND ?", inside
        ).fetchone()[0]
        if count != commit - begin - 1:
            raise purged(begin)
        marks = db.execute(
            "SELECT * FROM duly_change WHERE shape = 0 AND op = ? AND seq BETWEEN ? AND ? "
            "ORDER BY seq",
            (INTENT, *inside),
        ).fetchall()
        intents = tuple(_intent(row) for row in marks)
        present = db.execute(
            "SELECT shape, count(*) FROM duly_change WHERE seq BETWEEN ? AND ? GROUP BY shape",
            inside,
        ).fetchall()
        counts = {number: many for number, many in present if number != MARK}
        decoders = {n: found for n in counts if (found := self._decoder(db, n)) is not None}
        total = sum(counts[number] for number in decoders)
        if not total and not intents:
            return []
        changes = _Stored(
            self._path,
            inside,
            total=total,
            decoders=decoders,
            marks=[row[0] for row in marks],
            told=(position_of(commit), intents),
        )
        last = db.execute("SELECT * FROM duly_change WHERE seq = ?", (commit,)).fetchone()
        return [self._transaction(last, commit, changes=changes, intents=intents)]

    def _transaction(
        self, last: Row, commit: int, *, changes: Sequence[Change], intents: tuple[Intent, ...]
    ) -> Transaction:
        position = position_of(commit)
        return Transaction(
            source=self._source,
            position=position,
            commit=position,
            xid="",
            committed_at=_time(last[3]),
            changes=changes,
            intents=intents,
        )

    def _decoder(self, db: sqlite3.Connection, number: int) -> _Decoder | None:
        if number not in self._decoders:
            known = shapes(db)
            live = {shape.table.lower(): shape for shape, used in known.values() if used}
            for one, (shape, _) in known.items():
                wanted = self._wanted.get(shape.table.lower())
                newest = live.get(shape.table.lower(), shape).columns
                self._decoders[one] = wanted and _Decoder(shape, (self._source, wanted), newest)
        return self._decoders[number]


def purged(position: int) -> GapError:
    """What follows a position was taken away."""
    return GapError(
        f"what follows {position_of(position)} is not in duly_change any more; go on at its end, "
        "and read the tables anew: duly cdc rewind, then duly cdc snapshot",
        code="CDC_PURGED",
    )


# --- one change -----------------------------------------------------------------------------------
class _Decoder:
    """Rows of one shape. newest: the columns that its table is captured with now."""

    def __init__(self, shape: Shape, whose: tuple[str, Wanted], newest: tuple[str, ...]) -> None:
        self._source, wanted = whose
        self._table, self._key = wanted.spec.name, wanted.key
        known = {*shape.columns}
        late = [name for name in newest if name not in known and wanted.carries(name)]
        self._late: dict[str, Any] = dict.fromkeys(late, ABSENT)
        self._after = _places(shape.columns, _FIRST)
        self._old = _places(shape.before, _FIRST + len(shape.columns))
        self._only_old = _places(shape.before, _FIRST)
        self._carried = [(n, i) for n, i in self._after.items() if wanted.carries(n)]
        self._old_carried = {
            name: name in self._old for name in shape.columns if wanted.carries(name)
        }

    def change(self, row: Row, ordinal: int, told: tuple[str, tuple[Intent, ...]]) -> Change:
        """The change of a row. told: position and intents of its transaction."""
        op = row[2]
        old = self._only_old if op == DELETE else self._old
        places = old if op == DELETE else self._after
        after = None if op == DELETE else {n: row[i] for n, i in self._carried} | self._late
        before = None if op == CREATE else self._before(row, old)
        return Change(
            source=self._source,
            table=self._table,
            op=_OPS[op],
            key={n: row[places[n]] if n in places else ABSENT for n in self._key},
            before=before,
            after=after,
            position=told[0],
            ordinal=ordinal,
            committed_at=_time(row[3]),
            intents=told[1],
        )

    def _before(self, row: Row, places: Mapping[str, int]) -> dict[str, Any]:
        kept = self._old_carried.items()
        return {n: row[places[n]] if known else ABSENT for n, known in kept} | self._late


class _Stored(Sequence[Change]):
    """The changes of a transaction that stays in the file, until it is confirmed; each walk reads
    them again.
    """

    def __init__(
        self,
        path: str,
        inside: tuple[int, int],
        *,
        total: int,
        decoders: Mapping[int, _Decoder],
        marks: list[int],
        told: tuple[str, tuple[Intent, ...]],
    ) -> None:
        self._path, self._inside, self._total = path, inside, total
        self._decoders, self._marks, self._told = decoders, marks, told

    def __len__(self) -> int:
        return self._total

    def __iter__(self) -> Iterator[Change]:
        first, last = self._inside
        after = first - 1
        with closing(connect(self._path, 5.0)) as db:
            while after < last:
                rows = db.execute(
                    "SELECT * FROM duly_change WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT ?",
                    (after, last, ROWS_MAX),
                ).fetchall()
                if not rows or rows[0][0] != after + 1:
                    raise purged(after)
                for row in rows:
                    decoder = self._decoders.get(row[1])
                    if decoder is not None:
                        ordinal = row[0] - first - bisect(self._marks, row[0])
                        yield decoder.change(row, ordinal, self._told)
                after = rows[-1][0]

    @overload
    def __getitem__(self, index: int) -> Change: ...
    @overload
    def __getitem__(self, index: slice) -> list[Change]: ...
    def __getitem__(self, index: int | slice) -> Change | list[Change]:
        if isinstance(index, slice):
            return [self[n] for n in range(*index.indices(self._total))]
        place = index + self._total if index < 0 else index
        if not 0 <= place < self._total:
            raise IndexError(index)
        return next(islice(self, place, None))


def _places(columns: Sequence[str], first: int) -> dict[str, int]:
    return {name: first + n for n, name in enumerate(columns)}


def _intent(row: Row) -> Intent:
    data = row[5]
    return Intent(str(row[4]), data if isinstance(data, bytes) else str(data or "").encode())


@lru_cache(maxsize=16)  # the changes of one statement have the same time
def _time(julian_day: float) -> datetime:
    return _EPOCH + timedelta(milliseconds=round((julian_day - _EPOCH_DAY) * 86_400_000))
