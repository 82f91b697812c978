"""Rows of a SQLite query in the order of their key.

Owns the connection: read-only unless a stage is made, and told to refuse values beyond the limit of
a row before it builds them.  A reading is one read transaction: it sees one moment, and the file's
log cannot be folded back meanwhile.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

from duly.databases.rowwise import Dialect, Rows, RowwiseReader, quoted, too_large
from duly.databases.sqlite.database import SqliteDatabase
from duly.rows import RowColumn, RowFeatures, RowQuery

__all__ = ["SqliteRows"]

BUSY_SECONDS = 5.0


class SqliteRows:
    """A SQLite file as a source of rows. url: as of ``SqliteDatabase``."""

    dialect = "sqlite"
    features = RowFeatures(stages=True)

    def __init__(self, url: str) -> None:
        self._database = SqliteDatabase(url)

    def open(self, *, moment: str = "") -> RowwiseReader:
        """As ``RowSource``. Raises DatabaseUnavailableError for a file that is not there."""
        try:
            raw = sqlite3.connect(
                f"file:{quote(self._database.path)}?mode=rw",
                uri=True,
                timeout=BUSY_SECONDS,
                isolation_level=None,
                check_same_thread=False,  # one thread at a time, but not always the same
            )
        except sqlite3.Error as error:
            raise self._database.map_error(error) from error
        return _Reader(_dialect(raw, self._database.map_error), raw.close, writes=True, raw=raw)


class _Reader(RowwiseReader):
    """As ``RowReader``."""

    def __init__(
        self,
        dialect: Dialect,
        end: Callable[[], None],
        *,
        writes: bool,
        raw: sqlite3.Connection,
    ) -> None:
        super().__init__(dialect, end, writes=writes)
        self._raw = raw

    def columns(self, query: RowQuery) -> Any:
        """As ``RowReader``; the limit of a value is the connection's."""
        self._raw.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, query.row_bytes_max)
        return super().columns(query)


def _dialect(raw: sqlite3.Connection, map_error: Callable[[Exception], Exception]) -> Dialect:
    def execute(text: str, values: Mapping[str, Any]) -> Rows:
        cursor = raw.execute(text, _plain(values))
        columns = _columns([one[0] for one in cursor.description])
        return Rows(columns, cursor.fetchmany, cursor.close)

    def command(text: str, values: Mapping[str, Any]) -> None:
        raw.execute(text, _plain(values)).close()

    def mapped(error: Exception) -> Exception:
        if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_TOOBIG or (
            isinstance(error, sqlite3.DataError) and "too big" in str(error)
        ):
            limit = raw.getlimit(sqlite3.SQLITE_LIMIT_LENGTH)
            return too_large(RowQuery("", (), {}, limit))
        return map_error(error)

    return Dialect(
        execute,
        command,
        mapped,
        quote=quoted('"'),
        mark=lambda name: f":{name}",
        pin=lambda name, column: f"{name} COLLATE BINARY",
    )


def _columns(names: list[str]) -> list[RowColumn]:
    """SQLite calls the second ``id`` of a subquery ``id:1``; here it is called what it was."""
    found = []
    for name in names:
        first, colon, number = name.rpartition(":")
        again = bool(colon) and number.isdecimal() and first in names
        found.append(RowColumn(first if again else name))
    return found


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values that SQLite has no type for, as text."""
    plain = (str, bytes, int, float, type(None))
    return {name: v if isinstance(v, plain) else _text(v) for name, v in values.items()}


def _text(value: Any) -> str:
    return str(value.isoformat(sep=" ")) if hasattr(value, "hour") else str(value)
