"""The rows of a table read in chunks, each with its place in the stream.

Owns the reading of one chunk in the caller's read transaction, which also tells the number of the
last change it sees: the rows are those of that very place, so with the changes before and behind
they give the table, and nothing is read for long.  What orders the rows is what names them for
SQLite itself: the rowid, or the key of a table WITHOUT ROWID.  A rowid that VACUUM may give anew
lasts only as long as the schema: the snapshot of such a table begins again when that has changed.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Any, NamedTuple

from duly.databases.sqlite.changelog import BYTES_MAX, ROWS_MAX, Wanted, position_of
from duly.databases.sqlite.table import Table, quoted
from duly.errors import ConfigurationError
from duly.kernel.changes import Change, SnapshotChunk

__all__ = ["Place", "Snapshot"]


class Place(NamedTuple):
    """Where a chunk is read. source: the identity of the database; end: the last change's number;
    schema: the number of the schema.
    """

    source: str
    end: int
    schema: int


class Snapshot:
    """One table on its way. cursor: of the chunk to go on behind, "" for the first row."""

    def __init__(self, wanted: Wanted, cursor: str = "") -> None:
        self._wanted = wanted
        self._schema, self._last = _decoded(cursor) if cursor else (0, ())

    @property
    def wanted(self) -> Wanted:
        """Whose rows are read."""
        return self._wanted

    def read(self, db: sqlite3.Connection, table: Table, place: Place) -> SnapshotChunk:
        """The next chunk, in a read transaction of the caller."""
        schema = 0 if table.lasting else place.schema
        if schema != self._schema or (self._last and len(self._last) != len(_order(table))):
            self._schema, self._last = schema, ()
        cursor = self._cursor()
        rows = self._rows(db, table)
        width = len(_order(table))
        if rows:
            self._last = rows[-1][:width]
        position = position_of(place.end)
        # A change may stand at this position too, and another chunk: the rows' ids must differ.
        which = sha256(f"{self._wanted.spec.name}\0{cursor}".encode()).hexdigest()[:8]
        rows_at = f"{position}.{which}"
        return SnapshotChunk(
            table=self._wanted.spec.name,
            position=position,
            rows=[
                self._change(table, row[width:], told=(place.source, rows_at, ordinal))
                for ordinal, row in enumerate(rows)
            ],
            cursor=self._cursor(),
            done=len(rows) < ROWS_MAX and not self._full,
        )

    def _cursor(self) -> str:
        return _encoded(self._schema, self._last) if self._last else ""

    def _rows(self, db: sqlite3.Connection, table: Table) -> list[tuple[Any, ...]]:
        order = ", ".join(_order(table))
        marks = ", ".join("?" for _ in self._last)
        behind = f"WHERE ({order}) > ({marks}) " if self._last else ""
        columns = ", ".join(quoted(name) for name in table.columns)
        cursor = db.execute(
            f"SELECT {order}, {columns} FROM {quoted(table.name)} {behind}"
            f"ORDER BY {order} LIMIT {ROWS_MAX}",
            self._last,
        )
        rows: list[tuple[Any, ...]] = []
        size = 0
        for row in cursor:
            rows.append(row)
            size += sum([len(v) for v in row if v.__class__ is str or v.__class__ is bytes])
            if size >= BYTES_MAX:
                break
        self._full = size >= BYTES_MAX
        return rows

    def _change(self, table: Table, values: Sequence[Any], *, told: tuple[str, str, int]) -> Change:
        row = dict(zip(table.columns, values, strict=True))
        return Change(
            source=told[0],
            table=self._wanted.spec.name,
            op="read",
            key={name: row[name] for name in self._wanted.key},
            before=None,
            after={name: value for name, value in row.items() if self._wanted.carries(name)},
            position=told[1],
            ordinal=told[2],
        )


def _order(table: Table) -> list[str]:
    if table.rowid:
        return [quoted(table.rowid)]
    return [f"{quoted(column.name)} COLLATE {quoted(column.collation)}" for column in table.key]


# --- cursors --------------------------------------------------------------------------------------
def _encoded(schema: int, values: Sequence[Any]) -> str:
    return json.dumps([schema, [_tagged(value) for value in values]])


def _tagged(value: Any) -> list[str]:
    if isinstance(value, bytes):
        return ["b", value.hex()]
    if isinstance(value, float):
        return ["f", value.hex()]
    return ["i", str(value)] if isinstance(value, int) else ["s", value]


def _decoded(cursor: str) -> tuple[int, tuple[Any, ...]]:
    readers: dict[str, Callable[[str], Any]] = {
        "b": bytes.fromhex,
        "f": float.fromhex,
        "i": int,
        "s": str,
    }
    try:
        schema, values = json.loads(cursor)
        return int(schema), tuple(readers[tag](text) for tag, text in values)
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigurationError(
            f"{ascii(cursor)[:60]} is no cursor of a SQLite snapshot", code="CDC_CURSOR"
        ) from error
