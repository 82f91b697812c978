"""Rows of one table, read in the order of its primary key, a chunk at a time.

Owns the connection that they are read over, the statement and the values, which are those that the
binary log gives.  Invariants: a chunk sees every transaction that it says it sees; keys are
compared in SQL only, one column after the other, as indexes can follow it.  On MariaDB nothing is
locked: a consistent snapshot there knows its place in the log.  MySQL's does not, so a chunk's rows
are read with shared locks for a moment, which waits for commits that are under way.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final, NamedTuple

from duly.databases.mysql.changes_catalog import (
    Column,
    Server,
    Table,
    find_log,
    quoted,
    rows_of,
)
from duly.databases.mysql.changes_link import connect
from duly.databases.mysql.changes_place import file_number
from duly.databases.mysql.database import MysqlDatabase
from duly.databases.overlay import Row, Values, kept
from duly.errors import ConfigurationError
from duly.wire.binlog_values import date_of, datetime_of, shortest, time_of, timestamp_of
from duly.wire.pgvalues import reader_of

__all__ = ["Chunk", "TableChunks"]

_ROW_BYTES: Final = 200
_DEFINITION_CHANGED: Final = 1412
_BEGIN: Final = "START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY"
_PLACE: Final = "SHOW STATUS LIKE 'binlog_snapshot_%'"
Order = tuple[int, int]
_Read = Callable[[Any], Any]


class Chunk(NamedTuple):
    """Rows as they were read. seen: the place in the log that they go with, None where locks made
    sure; end: behind everything that can be in them; last: the key behind which to go on.
    """

    rows: list[Row]
    seen: Order | None
    end: Order
    last: list[str]
    size: int
    done: bool


class TableChunks:
    """Reads one table; used by one thread at a time. Raises ConfigurationError without a primary
    key.
    """

    def __init__(self, database: MysqlDatabase, table: Table, server: Server) -> None:
        if not table.primary_key:
            text = f"a snapshot of {table.spec.name} needs a primary key"
            raise ConfigurationError(text, code="CDC_NO_PRIMARY_KEY")
        self.table = table
        self._database, self._server = database, server
        self._raw: Any = None

    def open(self) -> None:
        """Connect. Raises PyMySQL's errors."""
        from pymysql.converters import conversions

        # The server's own text: what it becomes is decided here, not by the driver.
        plain = {kind: to for kind, to in conversions.items() if not isinstance(kind, int)}
        self._raw = connect(self._database, conv=plain)
        with self._raw.cursor() as cursor:
            cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")

    def close(self) -> None:
        """Leave the server at once; also while another thread reads."""
        if self._raw is not None:
            self._raw._force_close()

    def read(self, last: Sequence[str], limit: int, decided: Collection[bytes]) -> Chunk | None:
        """The rows behind a key; None when it must be tried again: an XA transaction that the log
        says is committed is not yet, or the table's definition changed. Raises PyMySQL's errors.
        """
        ask = rows_of(self._raw)
        if decided and any(_bytes(row[3]) in decided for row in ask("XA RECOVER")):
            return None
        try:
            seen, answer = self._answer(last, limit)
        except self._database.driver.Error as error:
            if error.args[:1] == (_DEFINITION_CHANGED,):
                return None
            raise
        log = find_log(ask, self._server)
        rows, size = self._values(answer)
        behind = [_text(value) for value in answer[-1][: len(self._key)]] if answer else []
        return Chunk(rows, seen, (log.file, log.offset), behind, size, len(answer) < limit)

    def _answer(
        self, last: Sequence[str], limit: int
    ) -> tuple[Order | None, Sequence[tuple[Any, ...]]]:
        ask = rows_of(self._raw)
        pairs = zip(last, self._key, strict=bool(last))
        values = _doubled([_literal(text, column) for text, column in pairs])
        if not self._server.mariadb:
            return None, ask(f"{self._select(limit, bool(last))} LOCK IN SHARE MODE", *values)
        ask(_BEGIN)
        try:
            place = {str(name).lower(): value for name, value in ask(_PLACE)}
            seen = (
                file_number(place["binlog_snapshot_file"]),
                int(place["binlog_snapshot_position"]),
            )
            return seen, ask(self._select(limit, bool(last)), *values)
        finally:
            ask("ROLLBACK")

    # --- the statement ----------------------------------------------------------------------------
    @property
    def _columns(self) -> Sequence[Column]:
        return [column for column in self.table.columns if not column.generated]

    @property
    def _key(self) -> list[Column]:
        by_name = {column.name: column for column in self.table.columns}
        return [by_name[name] for name in self.table.primary_key]

    def _select(self, limit: int, behind: bool) -> str:
        """First the key as it is compared, then all columns."""
        key = [_compared(column) for column in self._key]
        wanted = ", ".join([*key, *(_wanted(column) for column in self._columns)])
        where = f" WHERE {_behind(key)}" if behind else ""
        order = ", ".join(key)
        return f"SELECT {wanted} FROM {self.table.quoted}{where} ORDER BY {order} LIMIT {limit}"

    # --- values -----------------------------------------------------------------------------------
    def _values(self, answer: Sequence[tuple[Any, ...]]) -> tuple[list[Row], int]:
        spec, first = self.table.spec, len(self._key)
        columns = [(column.name, _reader(column)) for column in self._columns]
        names = kept(spec, [name for name, _ in columns])
        named_by = spec.key or self.table.primary_key
        found: list[Row] = []
        size = len(answer) * _ROW_BYTES
        for line in answer:
            row: Values = {}
            for (name, read), value in zip(columns, line[first:], strict=True):
                row[name] = None if value is None else read(value)
                size += len(value or "")
            found.append(({name: row[name] for name in named_by}, {n: row[n] for n in names}))
        return found, size


def _behind(key: Sequence[str]) -> str:
    """Keys above the values that follow; said so that an index can be used."""
    if len(key) == 1:
        return f"{key[0]} > %s"
    rest = _behind(key[1:])
    return f"{key[0]} >= %s AND ({key[0]} > %s OR ({rest}))"


def _compared(column: Column) -> str:
    """A column of the key, as what a literal can be compared with in the column's own order."""
    name = quoted(column.name)
    if column.kind in _BY_NUMBER:
        return f"{name} + 0"
    return f"CAST({name} AS DOUBLE)" if column.kind == "float" else name


def _wanted(column: Column) -> str:
    name = quoted(column.name)
    return f"CAST({name} AS DOUBLE)" if column.kind == "float" else name  # else it has 6 digits


def _text(value: Any) -> str:
    """A value of a key, for the cursor."""
    return value.hex() if isinstance(value, bytes) else str(value)


def _literal(text: str, column: Column) -> Any:
    """The same for a statement."""
    if column.kind in _INTEGERS or column.kind in _BY_NUMBER:
        return int(text)
    if column.kind in _BYTES:
        return bytes.fromhex(text)
    number = {"decimal": Decimal, "float": float, "double": float}.get(column.kind)
    return text if number is None else number(text)


def _doubled(values: Sequence[Any]) -> list[Any]:
    """As ``_behind`` asks for them: all but the last one twice."""
    return [value for one in values[:-1] for value in (one, one)] + list(values[-1:])


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


def _reader(column: Column) -> _Read:
    """What makes the binary log's value of the server's text."""
    if column.kind in _INTEGERS:
        return int
    if column.kind in _BYTES or column.kind in _TEXTS:
        return _same
    try:
        return _READERS[column.kind]
    except KeyError:
        text = f"column {column.name} is {column.type}, which a snapshot cannot read; exclude it"
        raise ConfigurationError(text, code="CDC_COLUMN_TYPE") from None


def _same(value: Any) -> Any:
    return value


def _float(text: str) -> float:
    return shortest(float(text))


def _json(text: str) -> Any:
    return reader_of(_JSON_OID)(text.encode())


_JSON_OID: Final = 114
_INTEGERS: Final = frozenset(("tinyint", "smallint", "mediumint", "int", "bigint", "year"))
_BY_NUMBER: Final = frozenset(("enum", "set", "bit"))
_TEXTS: Final = frozenset((
    "char", "varchar", "tinytext", "text", "mediumtext", "longtext", "enum", "set", "uuid",
    "inet4", "inet6",
))  # fmt: skip
_BYTES: Final = frozenset((
    "binary", "varbinary", "tinyblob", "blob", "mediumblob", "longblob", "bit", "vector",
    "geometry", "point", "linestring", "polygon", "multipoint", "multilinestring",
    "multipolygon", "geometrycollection", "geomcollection",
))  # fmt: skip
_READERS: Final[Mapping[str, _Read]] = {
    "decimal": Decimal,
    "float": _float,
    "double": float,
    "date": date_of,
    "datetime": datetime_of,
    "timestamp": timestamp_of,
    "time": time_of,
    "json": _json,
}
