"""The SQL that keeps a table in step: several rows in one statement, for each dialect.

Owns the text of the statements and what a value has to be for a driver.  The invariants: names are
quoted by the dialect's own rules and values are always parameters; a row whose values are not all
known only changes those that are.  Connections and transactions belong to ``sql``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from itertools import groupby
from typing import Any, NamedTuple
from uuid import UUID

import msgspec

from duly.errors import SinkRefusedError
from duly.kernel.upserts import Clear, Operation, Put, Remove

__all__ = ["MARK", "Call", "Copy", "as_json", "value_for"]

MARK = "duly_mark"
VALUES_MAX = 10_000  # SQLite takes 32,766 in a statement, PostgreSQL 65,535
REMOVED_MAX = 200


class Call(NamedTuple):
    """A statement with ``?`` for each value. rows: how many it must find; None: any number."""

    sql: str
    values: list[Any]
    rows: int | None = None


class Copy:
    """The statements for one table. dialect: ``sqlite``, ``postgresql``, ``mysql`` or ``mariadb``;
    quote: how it writes a name; key: the target's key columns; ordered: they stand in the order of
    the source's, which may have other names; adapt: a value of a column as the driver takes it.
    """

    def __init__(
        self,
        table: str,
        *,
        dialect: str,
        key: Sequence[str],
        ordered: bool,
        quote: Callable[[str], str],
        adapt: Callable[[str, Any], Any],
    ) -> None:
        self._mysql = dialect in ("mysql", "mariadb")
        self._table, self._quote, self._adapt = table, quote, adapt
        self._key, self._names, self._ordered = tuple(key), set(key), ordered or len(key) == 1

    def calls(self, operations: Sequence[Operation], mark: int) -> Iterator[Call]:
        """The statements for operations that were made one for each key. mark: of the epoch."""
        for (kind, columns), run in groupby(operations, _kind):
            if kind is Clear:
                yield Call(f"DELETE FROM {self._table}", [])
            elif kind is Remove:
                yield from self._removes([one.key for one in run if isinstance(one, Remove)])
            else:
                puts = [one for one in run if isinstance(one, Put)]
                yield from self._puts(puts, columns, mark)

    def sweep(self, mark: int) -> Call:
        """The statement that removes what is of an earlier epoch."""
        name = self._quote(MARK)
        return Call(f"DELETE FROM {self._table} WHERE {name} IS NULL OR {name} < ?", [mark])

    def _puts(self, puts: Sequence[Put], columns: tuple[str, ...], mark: int) -> Iterator[Call]:
        values = [name for name in columns if name not in self._key and name != MARK]
        if not puts[0].whole:
            yield from (self._update(put, values, mark) for put in puts)
            return
        names = [*self._key, *values, MARK]
        step = max(1, VALUES_MAX // len(names))
        for start in range(0, len(puts), step):
            rows = [self._row(put, values, mark) for put in puts[start : start + step]]
            flat = [value for row in rows for value in row]
            yield Call(self._upsert(names, len(rows)), flat)

    def _row(self, put: Put, values: Sequence[str], mark: int) -> list[Any]:
        row = put.row
        plain = [self._adapt(name, row[name]) for name in values]
        return [*self._keyed(put.key), *plain, mark]

    def _upsert(self, names: Sequence[str], rows: int) -> str:
        quoted = [self._quote(name) for name in names]
        marks = ", ".join([f"({', '.join('?' * len(names))})"] * rows)
        text = f"INSERT INTO {self._table} ({', '.join(quoted)}) VALUES {marks}"
        others = quoted[len(self._key) :]
        if self._mysql:  # MariaDB has no other way to name the new row
            assigned = ", ".join(f"{name} = VALUES({name})" for name in others)
            return f"{text} ON DUPLICATE KEY UPDATE {assigned}"
        assigned = ", ".join(f"{name} = excluded.{name}" for name in others)
        key = ", ".join(quoted[: len(self._key)])
        return f"{text} ON CONFLICT ({key}) DO UPDATE SET {assigned}"

    def _update(self, put: Put, values: Sequence[str], mark: int) -> Call:
        known = put.known
        names = [name for name in values if name in known]
        assigned = ", ".join(f"{self._quote(name)} = ?" for name in [*names, MARK])
        plain = [self._adapt(name, known[name]) for name in names]
        text = f"UPDATE {self._table} SET {assigned} WHERE {self._is_key()}"
        return Call(text, [*plain, mark, *self._keyed(put.key)], rows=1)

    def _removes(self, keys: Sequence[Mapping[str, Any]]) -> Iterator[Call]:
        for start in range(0, len(keys), REMOVED_MAX):
            some = keys[start : start + REMOVED_MAX]
            condition = " OR ".join([f"({self._is_key()})"] * len(some))
            values = [value for key in some for value in self._keyed(key)]
            yield Call(f"DELETE FROM {self._table} WHERE {condition}", values)

    def _is_key(self) -> str:
        return " AND ".join(f"{self._quote(name)} = ?" for name in self._key)

    def _keyed(self, key: Mapping[str, Any]) -> list[Any]:
        if key.keys() == self._names:
            return [self._adapt(name, key[name]) for name in self._key]
        if len(key) != len(self._key) or not self._ordered:
            text = f"rows are named by {', '.join(key)} and found by {', '.join(self._key)}"
            raise SinkRefusedError(f"{text}; say key=", code="SINK_KEY")
        return [self._adapt(n, v) for n, v in zip(self._key, key.values(), strict=True)]


def _kind(operation: Operation) -> tuple[type, tuple[str, ...]]:
    """What goes into one statement: rows of one layout, all of them whole or none."""
    if not isinstance(operation, Put):
        return type(operation), ()
    names = tuple(operation.row)
    return Put, names if operation.whole else (*names, "")


# --- values ---------------------------------------------------------------------------------------
def value_for(dialect: str) -> Callable[[Any], Any]:
    """What makes a value of a change one that the driver of a dialect takes."""
    if dialect == "sqlite":
        return _for_sqlite
    return _for_mysql if dialect in ("mysql", "mariadb") else _for_postgres


def _for_postgres(value: Any) -> Any:
    return as_json(value) if isinstance(value, dict) else value


def _for_sqlite(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat(" ")
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, Decimal | UUID | timedelta):
        return str(value)
    return as_json(value) if isinstance(value, dict | list) else value


def _for_mysql(value: Any) -> Any:
    if isinstance(value, datetime) and value.tzinfo is not None:
        return value.astimezone(UTC).replace(tzinfo=None)
    if isinstance(value, UUID):
        return str(value)
    return as_json(value) if isinstance(value, dict | list) else value


def as_json(value: Any) -> str:
    """A value as JSON text. Raises SinkRefusedError for one that has none."""
    try:
        return msgspec.json.encode(value).decode()
    except (TypeError, ValueError) as error:  # its text may quote the row
        text = f"a value of {type(value).__name__} has no form in JSON"
        raise SinkRefusedError(text) from error
