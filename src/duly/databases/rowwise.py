"""Rows of a query in the order of their key, one by one: for drivers that give Python's values.

Owns the text of the statements and the watch over the key while rows go by - it must rise, in the
order of Python's values, which is the order of bytes for text.  Invariant: a key that is NULL, the
same as the one before, or out of order ends the reading before anything behind it is given; so a
database whose order of text is another one is found out, and no row can be lost at a cut.  What a
dialect does differently it says in ``Dialect``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from duly.errors import ConfigurationError, PermanentError
from duly.kernel.names import check_sql_name
from duly.rows import Block, Key, KeyColumn, Reading, RowColumn, RowQuery
from duly.wire.sqltext import Term, behind, marked, up_to

__all__ = ["Dialect", "Rows", "RowwiseReader", "quoted", "too_large"]

FETCH_ROWS = 500
FETCH_ROWS_LEAST = 8
_VALUE_BYTES = 8


class Rows(NamedTuple):
    """A result that is being read. columns: as the driver names them, with their kind."""

    columns: Sequence[RowColumn]
    fetch: Callable[[int], Sequence[Sequence[Any]]]
    close: Callable[[], None]


@dataclass(frozen=True)
class Dialect:
    """What differs.

    execute: runs a query, row by row. command: runs a statement to its end. map_error: as of the
    database. quote: an identifier. mark: what stands for a value that is called so. literal:
    applied to the rest of the user's text; backslash: whether one escapes in quotes. pin: the order
    of a key as bytes. sized: the SQL of a column's size in bytes, None where a row cannot be large.
    """

    execute: Callable[[str, Mapping[str, Any]], Rows]
    command: Callable[[str, Mapping[str, Any]], None]
    map_error: Callable[[Exception], Exception]
    quote: Callable[[str], str]
    mark: Callable[[str], str]
    literal: Callable[[str], str] = str
    backslash: bool = False
    pin: Callable[[str, RowColumn], str] = lambda name, column: name
    pin_value: Callable[[str, RowColumn], str] = lambda mark, column: mark
    sized: Callable[[str, RowColumn], str | None] = lambda name, column: None


class RowwiseReader:
    """As ``RowReader``, of a dialect. end: closes the connection. writes: whether tables may be
    made.
    """

    def __init__(self, dialect: Dialect, end: Callable[[], None], *, writes: bool = False) -> None:
        self._dialect = dialect
        self._end = end
        self._writes = writes
        self._known: dict[int, tuple[RowQuery, Sequence[RowColumn]]] = {}

    def columns(self, query: RowQuery) -> Sequence[RowColumn]:
        """As ``RowReader``."""
        found = self._known.get(id(query))
        if found is None:
            found = self._known[id(query)] = (query, self._asked_columns(query))
        names = [column.name for column in found[1]]
        for column in query.key:
            if names.count(column.name) != 1:
                what = "no" if column.name not in names else "more than one"
                raise ConfigurationError(
                    f"the key {column.name!r} is {what} column of the query",
                    code="BATCH_KEY_UNKNOWN",
                )
        return found[1]

    def _asked_columns(self, query: RowQuery) -> Sequence[RowColumn]:
        text = f"SELECT q.* FROM ({self._text(query)}\n) q WHERE 1 = 0"
        try:
            with self._running(text, query.params) as rows:
                return tuple(rows.columns)
        except PermanentError as error:  # no row was asked for: it is the text
            raise ConfigurationError(error.detail, code="BATCH_QUERY") from error

    def check(self, query: RowQuery) -> str:
        """As ``RowReader``: while the rows go by."""
        self.columns(query)
        return "watched"

    def highest(self, query: RowQuery) -> Key | None:
        """As ``RowReader``."""
        turned = tuple(KeyColumn(c.name, not c.descending) for c in query.key)
        keys = ", ".join(f"q.{self._dialect.quote(column.name)}" for column in query.key)
        text = f"SELECT {keys} FROM ({self._text(query)}\n) q {self._order(query, turned)} LIMIT 1"
        with self._running(text, query.params) as rows:
            found = [tuple(row) for row in rows.fetch(1)]
        return found[0] if found else None

    def splits(self, query: RowQuery, parts: int, *, until: Key | None) -> list[Key]:
        """As ``RowReader``."""
        if parts < 2:
            return []
        keys = ", ".join(self._dialect.quote(column.name) for column in query.key)
        where, values = self._where(query, Reading(until=until))
        numbered = (
            f"SELECT q.*, row_number() OVER ({self._order(query)}) AS duly_n, "
            f"count(*) OVER () AS duly_all FROM ({self._text(query)}\n) q{where}"
        )
        cuts = " OR ".join(
            f"duly_n * {parts} BETWEEN duly_all * {n} AND duly_all * {n} + {parts - 1}"
            for n in range(1, parts)
        )
        text = f"SELECT {keys} FROM ({numbered}) q WHERE {cuts} ORDER BY duly_n"
        with self._running(text, {**query.params, **values}) as rows:
            return [tuple(row) for row in rows.fetch(parts)]

    def stage(self, query: RowQuery, name: str) -> None:
        """As ``RowReader``."""
        self.unstage(name)
        self._command(f"CREATE TABLE {name} AS {self._text(query)}", query.params)

    def staged(self, query: RowQuery, name: str) -> RowQuery | None:
        """As ``RowReader``."""
        check_sql_name(name, "stage")
        found = RowQuery(f"SELECT * FROM {name}", query.key, {}, query.row_bytes_max)
        try:
            self.columns(found)
        except ConfigurationError:
            return None
        return found

    def unstage(self, name: str) -> None:
        """As ``RowReader``."""
        check_sql_name(name, "stage")
        self._command(f"DROP TABLE IF EXISTS {name}", {})

    def export(self) -> str:
        """As ``RowReader``: not here."""
        raise ConfigurationError("no moment can be shared", code="BATCH_MODE")

    def read(self, query: RowQuery, reading: Reading) -> Iterator[Block]:
        """As ``RowReader``."""
        columns = self.columns(query)
        names = [column.name for column in columns]
        places = [names.index(column.name) for column in query.key]
        where, values = self._where(query, reading)
        chosen, guarded = self._chosen(query, columns)
        text = f"SELECT {chosen} FROM ({self._text(query)}\n) q{where} {self._order(query)}"
        watch = _Watch(query, places)
        with self._running(text, {**query.params, **values}) as rows:
            block: list[tuple[Any, ...]] = []
            size, wanted = 0, FETCH_ROWS_LEAST
            while found := rows.fetch(wanted):
                before = size
                for read in found:
                    if guarded and read[-1]:
                        raise too_large(query)
                    row = tuple(read[:-1]) if guarded else tuple(read)
                    key = watch.passed(row)
                    block.append(row)
                    size += _bytes_of(row)
                    if size >= reading.block_bytes:
                        yield Block(len(block), key, values=block)
                        block, size, before = [], 0, 0
                wanted = _next_fetch(len(found), size - before, reading.block_bytes)
            if block:
                yield Block(len(block), watch.last or (), values=block)

    def close(self) -> None:
        """As ``RowReader``."""
        with suppress(Exception):  # a connection that cannot be closed is already gone
            self._end()

    # --- text -------------------------------------------------------------------------------------
    def _text(self, query: RowQuery) -> str:
        text, names = marked(
            query.text,
            self._dialect.mark,
            literal=self._dialect.literal,
            backslash=self._dialect.backslash,
        )
        if missing := [name for name in names if name not in query.params]:
            raise ConfigurationError(f"the query names :{missing[0]}", code="BATCH_PARAMETER")
        return text

    def _where(self, query: RowQuery, reading: Reading) -> tuple[str, dict[str, Any]]:
        parts: list[str] = []
        values: dict[str, Any] = {}
        known = {column.name: column for column in self.columns(query)}
        bounds = (("after", reading.after, behind), ("until", reading.until, up_to))
        for word, key, condition in bounds:
            if key is None:
                continue
            terms = []
            for n, (column, value) in enumerate(zip(query.key, key, strict=True)):
                values[f"duly_{word}_{n}"] = value
                mark = self._dialect.pin_value(
                    self._dialect.mark(f"duly_{word}_{n}"), known[column.name]
                )
                terms.append(Term(self._pinned(query, column.name), mark, column.descending))
            parts.append(condition(terms))
        return (f" WHERE {' AND '.join(parts)}" if parts else ""), values

    def _pinned(self, query: RowQuery, name: str) -> str:
        known = {column.name: column for column in self.columns(query)}
        return self._dialect.pin(f"q.{self._dialect.quote(name)}", known[name])

    def _order(self, query: RowQuery, keys: Sequence[KeyColumn] = ()) -> str:
        return "ORDER BY " + ", ".join(
            self._pinned(query, column.name) + (" DESC" if column.descending else "")
            for column in keys or query.key
        )

    def _chosen(self, query: RowQuery, columns: Sequence[RowColumn]) -> tuple[str, bool]:
        """What is selected: with a mark at the end, which says that the row is too large and was
        not sent.
        """
        names = [f"q.{self._dialect.quote(column.name)}" for column in columns]
        sizes = [self._dialect.sized(n, c) for n, c in zip(names, columns, strict=True)]
        if not any(sizes):
            return "q.*", False
        whole = " + ".join(f"coalesce({size}, 0)" for size in sizes if size)
        large = f"({whole}) > {query.row_bytes_max}"
        parts = [
            f"CASE WHEN {large} THEN NULL ELSE {name} END" if size else name
            for name, size in zip(names, sizes, strict=True)
        ]
        return f"{', '.join(parts)}, {large}", True

    # --- running ----------------------------------------------------------------------------------
    def _running(self, text: str, values: Mapping[str, Any]) -> _Running:
        return _Running(self._dialect, text, values)

    def _command(self, text: str, values: Mapping[str, Any]) -> None:
        if not self._writes:
            raise ConfigurationError("this source makes no tables", code="BATCH_MODE")
        try:
            self._dialect.command(text, values)
        except Exception as error:
            raise _mapped(error, self._dialect.map_error) from error


class _Running:
    """A query that runs, with the driver's errors as ours and its end in any case."""

    def __init__(self, dialect: Dialect, text: str, values: Mapping[str, Any]) -> None:
        self._dialect = dialect
        self._asked = (text, values)
        self._rows: Rows | None = None

    def __enter__(self) -> Rows:
        try:
            self._rows = self._dialect.execute(*self._asked)
        except Exception as error:
            raise _mapped(error, self._dialect.map_error) from error
        return self._rows

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._rows is not None:
            with suppress(Exception):  # the rest of a result that nobody wants
                self._rows.close()
        if isinstance(error, Exception):
            mapped = _mapped(error, self._dialect.map_error)
            if mapped is not error:
                raise mapped from error


class _Watch:
    """Sees that the key rises."""

    def __init__(self, query: RowQuery, places: Sequence[int]) -> None:
        self._query = query
        self._places = places
        self._turned = [column.descending for column in query.key]
        self.last: Key | None = None

    def passed(self, row: Sequence[Any]) -> Key:
        """The key of the next row. Raises PermanentError (BATCH_KEY_NULL, BATCH_KEY_DUPLICATE,
        BATCH_KEY_ORDER).
        """
        key = tuple([row[place] for place in self._places])
        if None in key:
            raise self._wrong("NULL", "is NULL in a row")
        if self.last is not None:
            self._compare(self.last, key)
        self.last = key
        return key

    def _compare(self, last: Key, key: Key) -> None:
        if last == key:
            raise self._wrong("DUPLICATE", "is the same in two rows")
        for old, new, turned in zip(last, key, self._turned, strict=True):
            if old == new:
                continue
            try:
                rises = old > new if turned else old < new
            except TypeError:  # SQLite puts numbers before text, and knows what it does
                return
            if not rises:
                raise self._wrong("ORDER", "does not come in the order of its bytes")
            return

    def _wrong(self, what: str, text: str) -> PermanentError:
        names = ", ".join(column.name for column in self._query.key)
        return PermanentError(f"the key ({names}) {text}", code=f"BATCH_KEY_{what}")


def too_large(query: RowQuery) -> PermanentError:
    """The refusal of a row."""
    text = f"a row is larger than row_bytes_max, {query.row_bytes_max} bytes"
    return PermanentError(text, code="BATCH_ROW_TOO_LARGE")


def quoted(mark: str) -> Callable[[str], str]:
    """Quotes identifiers with a mark, which is doubled inside."""
    return lambda name: f"{mark}{name.replace(mark, 2 * mark)}{mark}"


def _bytes_of(row: Sequence[Any]) -> int:
    return sum(len(value) if isinstance(value, str | bytes) else _VALUE_BYTES for value in row)


def _next_fetch(rows: int, size: int, block_bytes: int) -> int:
    """Few large rows, or many small ones: a fetch holds no more than a part of a block."""
    each = max(1, size // max(1, rows))
    return max(FETCH_ROWS_LEAST, min(FETCH_ROWS, block_bytes // (4 * each)))


def _mapped(error: Exception, map_error: Callable[[Exception], Exception]) -> Exception:
    mapped = map_error(error)
    if mapped is not error and getattr(mapped, "code", "") == "SCHEMA":
        return ConfigurationError(getattr(mapped, "detail", ""), code="BATCH_QUERY")
    return mapped
