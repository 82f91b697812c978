"""Rows of a PostgreSQL query in the order of their key: one ordered COPY, cut at any row.

Owns the settings that make the text of a value the same on every server and day, the collation of
text keys, and the limit of a row, which the server keeps so that a row too large is never sent.
Invariant: everything a session needs is set inside its one transaction, so that a pooler in
transaction mode is as good as a connection of our own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from typing import Any, NamedTuple

from duly.databases.postgres.copy_out import Copying, copy_out
from duly.databases.postgres.database import PostgresDatabase
from duly.errors import ConfigurationError, PermanentError
from duly.kernel.names import check_sql_name
from duly.rows import Block, Key, Reading, RowColumn, RowFeatures, RowQuery
from duly.wire.pgcopy import CopyBlock, csv_fields, text_fields
from duly.wire.pgvalues import reader_of
from duly.wire.sqltext import Term, behind, marked, up_to

__all__ = ["PostgresRows"]

_SETTINGS = {
    "statement_timeout": "0",  # the first: the role's own runs on until it is said
    "client_encoding": "'UTF8'",
    "DateStyle": "'ISO, YMD'",
    "IntervalStyle": "'postgres'",
    "TimeZone": "'UTC'",
    "extra_float_digits": "3",
    "bytea_output": "'hex'",
    "xmlbinary": "'base64'",
    "lc_monetary": "'C'",
    "lc_numeric": "'C'",
    "lc_time": "'C'",
    "standard_conforming_strings": "on",
    "idle_in_transaction_session_timeout": "0",
    "jit": "off",  # compiling a COPY takes longer than it saves
}
_TOO_LARGE = "duly: a row of"
_ONE_TABLE = {
    "Bitmap Heap Scan",
    "Bitmap Index Scan",
    "BitmapAnd",
    "BitmapOr",
    "Gather",
    "Gather Merge",
    "Incremental Sort",
    "Index Only Scan",
    "Index Scan",
    "Seq Scan",
    "Sort",
}
_UNIQUE = """
SELECT 1 FROM pg_index i
WHERE i.indrelid = %s AND i.indisunique AND i.indisvalid AND i.indimmediate
  AND i.indpred IS NULL AND i.indexprs IS NULL
  AND (i.indkey::int2[])[0:i.indnkeyatts - 1] <@ %s::int2[]
  AND NOT EXISTS (SELECT 1 FROM pg_attribute a WHERE a.attrelid = i.indrelid
    AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1]) AND NOT a.attnotnull)
"""
_TYPES = """
SELECT t.oid, format_type(t.oid, NULL), t.typcollation <> 0 AND NOT coalesce(
    c.collname IN ('C', 'POSIX', 'ucs_basic')
    OR (c.collname = 'default' AND d.datcollate IN ('C', 'POSIX')), false)
FROM unnest(%s::oid[], %s::oid[], %s::int2[]) AS k (type, relation, number)
JOIN pg_type t ON t.oid = k.type
LEFT JOIN pg_attribute a ON a.attrelid = k.relation AND a.attnum = k.number
LEFT JOIN pg_collation c ON c.oid = a.attcollation
JOIN pg_database d ON d.datname = current_database()
"""
_KINDS = {
    **dict.fromkeys((20, 21, 23, 26), "integer"),
    **dict.fromkeys((700, 701), "float"),
    16: "boolean",
    17: "bytes",
    1082: "date",
    1114: "timestamp",
    1184: "timestamptz",
    1700: "decimal",
    **dict.fromkeys((114, 3802), "json"),
}
_BYTES_OF = {17: "octet_length({0})", 25: "octet_length({0})", 1043: "octet_length({0})"}
_SMALL_TEXT = 4096


class PostgresRows:
    """A PostgreSQL database as a source of rows. url: as of ``PostgresDatabase``."""

    dialect = "postgres"
    features = RowFeatures(csv=True, stages=True, shares_snapshot=True)

    def __init__(self, url: str) -> None:
        self._database = PostgresDatabase(url)

    def open(self, *, moment: str = "") -> PostgresReader:
        """As ``RowSource``."""
        import psycopg

        try:
            raw = psycopg.connect(
                self._database.url,
                autocommit=True,
                application_name="duly batch",
                connect_timeout=5,
                gssencmode="disable",
                keepalives_idle=10,
                keepalives_interval=3,
                keepalives_count=3,
                prepare_threshold=None,
            )
        except psycopg.Error as error:
            raise self._database.map_error(error) from error
        return PostgresReader(raw, self._database.map_error, moment)


class _Shape(NamedTuple):
    """What the server says of a query. types: SQL name of each key's; pinned: its order needs a
    collation.
    """

    columns: tuple[RowColumn, ...]
    oids: tuple[int, ...]
    origins: tuple[tuple[int, int], ...]  # table and column number, of each column of the key
    places: tuple[int, ...]
    types: tuple[str, ...]
    pinned: tuple[bool, ...]
    guard: str


class PostgresReader:
    """As ``RowReader``."""

    def __init__(self, raw: Any, map_error: Callable[[Exception], Exception], moment: str) -> None:
        self._raw = raw
        self._map_error = map_error
        self._moment = moment
        self._kept = False
        self._shapes: dict[int, tuple[RowQuery, _Shape]] = {}

    def columns(self, query: RowQuery) -> Sequence[RowColumn]:
        """As ``RowReader``."""
        with self._transaction():
            return self._shape(query).columns

    def check(self, query: RowQuery) -> str:
        """As ``RowReader``: from the catalogue where the query reads one table, else counted."""
        with self._transaction():
            shape = self._shape(query)
            if self._proved(query, shape):
                return "proved"
            names = self._keys(query, shape)
            nulls = " OR ".join(f"{name} IS NULL" for name in names)
            if self._ask(f"SELECT 1 FROM ({self._text(query)}\n) q WHERE {nulls} LIMIT 1"):
                raise _bad_key(query, "NULL")
            again = f"GROUP BY {', '.join(names)} HAVING count(*) > 1 LIMIT 1"
            if self._ask(f"SELECT 1 FROM ({self._text(query)}\n) q {again}"):
                raise _bad_key(query, "DUPLICATE")
        return "counted"

    def highest(self, query: RowQuery) -> Key | None:
        """As ``RowReader``."""
        with self._transaction():
            shape = self._shape(query)
            texts = ", ".join(f"{name}::text" for name in _names(query))
            order = self._order(query, shape, turned=True)
            rows = self._ask(f"SELECT {texts} FROM ({self._text(query)}\n) q {order} LIMIT 1")
        return tuple(rows[0]) if rows else None

    def splits(self, query: RowQuery, parts: int, *, until: Key | None) -> list[Key]:
        """As ``RowReader``."""
        with self._transaction():
            shape = self._shape(query)
            texts = ", ".join(f"{name}::text" for name in _names(query))
            where = self._where(query, shape, Reading(until=until), guarded=False)
            numbered = (
                f"SELECT *, row_number() OVER ({self._order(query, shape)}) AS duly_n, "
                f"count(*) OVER () AS duly_all FROM ({self._text(query)}\n) q{where}"
            )
            cuts = f"SELECT duly_all * g / {parts} FROM generate_series(1, {parts - 1}) g"
            rows = self._ask(
                f"SELECT {texts} FROM ({numbered}) q WHERE duly_n IN ({cuts}) ORDER BY duly_n"
            )
        return [tuple(row) for row in rows]

    def stage(self, query: RowQuery, name: str) -> None:
        """As ``RowReader``. The key becomes the table's primary key, which refuses what is none."""
        check_sql_name(name, "stage")
        keys = ", ".join(name.removeprefix("q.") for name in _names(query))
        try:
            with self._transaction(writes=True):
                self._ask(f"DROP TABLE IF EXISTS {name}")
                self._ask(f"CREATE TABLE {name} AS {self._text(query)}")
                self._ask(f"ALTER TABLE {name} ADD PRIMARY KEY ({keys})")
        except PermanentError as error:
            state = getattr(error.__cause__, "sqlstate", "")
            if state in ("23502", "23505"):
                raise _bad_key(query, "NULL" if state == "23502" else "DUPLICATE") from error
            raise
        with self._mapped():
            self._raw.execute(f"ANALYZE {name}")

    def staged(self, query: RowQuery, name: str) -> RowQuery | None:
        """As ``RowReader``."""
        check_sql_name(name, "stage")
        with self._transaction():
            if self._ask(f"SELECT to_regclass('{name}')") == [(None,)]:
                return None
        return RowQuery(f"SELECT * FROM {name}", query.key, {}, query.row_bytes_max)

    def unstage(self, name: str) -> None:
        """As ``RowReader``."""
        check_sql_name(name, "stage")
        with self._mapped():
            self._raw.execute(f"DROP TABLE IF EXISTS {name}")

    def export(self) -> str:
        """As ``RowReader``."""
        self._begin(writes=False)
        self._kept = True
        return str(self._ask("SELECT pg_export_snapshot()")[0][0])

    def read(self, query: RowQuery, reading: Reading) -> Iterator[Block]:
        """As ``RowReader``. Two blocks whose ends have one key are a duplicate that must not be cut
        apart, so a block is given when the row behind it is known.
        """
        with self._transaction():
            shape = self._shape(query)
            held: Block | None = None
            answer = copy_out(
                self._raw, self._statement(query, shape, reading), self._copying(reading)
            )
            with closing(answer) as blocks:
                for copied in blocks:
                    first, block = self._block(query, shape, copied, reading=reading)
                    if held is not None:
                        if held.last == first:
                            raise _bad_key(query, "DUPLICATE")
                        yield held
                    held = block
            if held is not None:
                yield held

    def close(self) -> None:
        """As ``RowReader``."""
        with suppress(Exception):  # a connection that cannot be closed is already gone
            self._raw.close()

    # --- text -------------------------------------------------------------------------------------
    def _text(self, query: RowQuery) -> str:
        from psycopg import ClientCursor

        text, names = marked(
            query.text, lambda name: f"%({name})s", literal=lambda part: part.replace("%", "%%")
        )
        if missing := [name for name in names if name not in query.params]:
            raise ConfigurationError(f"the query names :{missing[0]}", code="BATCH_PARAMETER")
        with self._mapped():
            return ClientCursor(self._raw).mogrify(text.encode(), dict(query.params))

    def _statement(self, query: RowQuery, shape: _Shape, reading: Reading) -> str:
        where = self._where(query, shape, reading, guarded=True)
        rows = f"SELECT * FROM ({self._text(query)}\n) q{where} {self._order(query, shape)}"
        if reading.form != "csv":
            return f"COPY ({rows}) TO STDOUT"
        force = ", FORCE_QUOTE *" if reading.csv.quote_all else ""
        mark = "E'\\t'" if reading.csv.delimiter == "\t" else self._literal(reading.csv.delimiter)
        return f"COPY ({rows}) TO STDOUT (FORMAT csv, DELIMITER {mark}{force})"

    def _where(self, query: RowQuery, shape: _Shape, reading: Reading, *, guarded: bool) -> str:
        parts = []
        if guarded and shape.guard:
            number = query.row_bytes_max
            said = f"('{_TOO_LARGE} ' || ({shape.guard})::text || ' bytes')::int IS NULL"
            parts.append(f"CASE WHEN {shape.guard} > {number} THEN {said} ELSE true END")
        if reading.after is not None:
            parts.append(behind(self._terms(query, shape, reading.after)))
        if reading.until is not None:
            parts.append(up_to(self._terms(query, shape, reading.until)))
        return f" WHERE {' AND '.join(parts)}" if parts else ""

    def _terms(self, query: RowQuery, shape: _Shape, key: Key) -> list[Term]:
        names = self._keys(query, shape)
        values = [
            f"{self._literal(text)}::{kind}" for text, kind in zip(key, shape.types, strict=True)
        ]
        turned = [column.descending for column in query.key]
        return [Term(*term) for term in zip(names, values, turned, strict=True)]

    def _literal(self, value: str) -> str:
        from psycopg.sql import Literal

        return Literal(value).as_string(self._raw)

    @staticmethod
    def _keys(query: RowQuery, shape: _Shape) -> list[str]:
        pins = (' COLLATE "C"' if pinned else "" for pinned in shape.pinned)
        return [f"{name}{pin}" for name, pin in zip(_names(query), pins, strict=True)]

    def _order(self, query: RowQuery, shape: _Shape, *, turned: bool = False) -> str:
        keys = zip(self._keys(query, shape), query.key, strict=True)
        return "ORDER BY " + ", ".join(
            f"{name} DESC" if column.descending != turned else name for name, column in keys
        )

    # --- what the server knows --------------------------------------------------------------------
    def _shape(self, query: RowQuery) -> _Shape:
        found = self._shapes.get(id(query))
        if found is None:
            found = self._shapes[id(query)] = (query, self._asked_shape(query))
        return found[1]

    def _asked_shape(self, query: RowQuery) -> _Shape:
        with self._mapped():
            result = self._raw.execute(
                f"SELECT * FROM ({self._text(query)}\n) q LIMIT 0".encode()
            ).pgresult
            names = [result.fname(n).decode() for n in range(result.nfields)]
        oids = tuple(result.ftype(n) for n in range(result.nfields))
        mods = [result.fmod(n) for n in range(result.nfields)]
        columns = tuple(_column(*one) for one in zip(names, oids, mods, strict=True))
        places = tuple(_place_of(names, column.name) for column in query.key)
        origins = self._origins(query, places)
        keys = [oids[place] for place in places]
        found = [
            self._ask(_TYPES, [[oid], [table], [number]])[0]
            for oid, (table, number) in zip(keys, origins, strict=True)
        ]
        return _Shape(
            columns,
            oids,
            origins,
            places,
            tuple(str(row[1]) for row in found),
            tuple(bool(row[2]) for row in found),
            _guard(names, oids, mods),
        )

    def _origins(self, query: RowQuery, places: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """Where the columns of the key come from: of the query itself, since what is around it
        would hide that.
        """
        from psycopg.pq import ExecStatus

        with self._mapped():
            connection = self._raw.pgconn
            name = b"duly_shape"
            prepared = connection.prepare(name, self._text(query).encode())
            if prepared.status != ExecStatus.COMMAND_OK:
                return tuple((0, 0) for _ in places)
            result = connection.describe_prepared(name)
            self._raw.execute("DEALLOCATE duly_shape")
        return tuple((result.ftable(place), result.ftablecol(place)) for place in places)

    def _proved(self, query: RowQuery, shape: _Shape) -> bool:
        tables = {table for table, _ in shape.origins}
        if len(tables) != 1 or 0 in tables:
            return False
        if not self._ask(_UNIQUE, [tables.pop(), [number for _, number in shape.origins]]):
            return False
        plan = self._ask(f"EXPLAIN (FORMAT JSON) {self._text(query)}")[0][0][0]["Plan"]
        nodes = list(_nodes(plan))
        one = sum("Relation Name" in node for node in nodes) == 1
        return one and all(node["Node Type"] in _ONE_TABLE for node in nodes)

    def _ask(self, text: str, values: Sequence[Any] | None = None) -> list[Any]:
        with self._mapped():
            cursor = self._raw.execute(text.encode(), values)
            return cursor.fetchall() if cursor.description is not None else []

    # --- transactions and errors ------------------------------------------------------------------
    def _begin(self, *, writes: bool) -> None:
        settings = "; ".join(f"SET LOCAL {name} = {value}" for name, value in _SETTINGS.items())
        mode = "READ WRITE" if writes else "READ ONLY"
        with self._mapped():
            self._raw.execute(f"BEGIN ISOLATION LEVEL REPEATABLE READ, {mode}")
            if self._moment:
                self._raw.execute(f"SET TRANSACTION SNAPSHOT {self._literal(self._moment)}")
            self._raw.execute(settings)

    def _transaction(self, *, writes: bool = False) -> _Transaction:
        return _Transaction(self, writes)

    def _mapped(self) -> _Mapped:
        return _Mapped(self._map_error)

    # --- rows -------------------------------------------------------------------------------------
    def _copying(self, reading: Reading) -> Copying:
        def mapped(error: Exception) -> Exception:
            return _mapped(error, self._map_error)

        return Copying(reading.block_bytes, reading.form == "csv", mapped, self.close)

    def _rollback(self) -> None:
        with suppress(Exception):  # a lost connection has rolled back by itself
            self._raw.execute("ROLLBACK")

    def _block(
        self, query: RowQuery, shape: _Shape, copied: CopyBlock, *, reading: Reading
    ) -> tuple[Key, Block]:
        """The key of the first row, and the block."""
        ends = (copied.first, copied.last)
        if reading.form == "csv":
            mark = reading.csv.delimiter.encode()
            first, last = (_key_of(csv_fields(row, mark), query, shape) for row in ends)
            return first, Block(copied.rows, last, copied.pieces)
        first, last = (_key_of(text_fields(row), query, shape) for row in ends)
        reads: list[Callable[[bytes], Any]] = [
            reader_of(oid) if reading.form == "values" else bytes.decode for oid in shape.oids
        ]
        values = [
            tuple(
                None if field is None else read(field)
                for read, field in zip(reads, text_fields(row), strict=True)
            )
            for row in copied.pieces
        ]
        return first, Block(copied.rows, last, values=values)


class _Mapped:
    """Raises a driver's error as one of ours."""

    def __init__(self, map_error: Callable[[Exception], Exception]) -> None:
        self._map_error = map_error

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception):
            mapped = _mapped(error, self._map_error)
            if mapped is not error:
                raise mapped from error


class _Transaction:
    """One transaction of a reader; the one that an export keeps is not ended."""

    def __init__(self, reader: PostgresReader, writes: bool) -> None:
        self._reader = reader
        self._writes = writes

    def __enter__(self) -> None:
        if not self._reader._kept:
            self._reader._begin(writes=self._writes)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        reader = self._reader
        if reader._kept or reader._raw.closed:
            return
        if error is not None:
            reader._rollback()
            return
        with reader._mapped():
            reader._raw.execute("COMMIT")


def _names(query: RowQuery) -> list[str]:
    return ['q."{}"'.format(column.name.replace('"', '""')) for column in query.key]


def _place_of(names: Sequence[str], name: str) -> int:
    if names.count(name) != 1:
        text = f"the key {name!r} is {'no' if name not in names else 'more than one'} column"
        raise ConfigurationError(f"{text} of the query", code="BATCH_KEY_UNKNOWN")
    return names.index(name)


def _column(name: str, oid: int, mod: int) -> RowColumn:
    if oid == 1700 and mod > 4:
        return RowColumn(name, "decimal", (mod - 4) >> 16, (mod - 4) & 0x7FF)
    return RowColumn(name, _KINDS.get(oid, "text"))


def _guard(names: Sequence[str], oids: Sequence[int], mods: Sequence[int]) -> str:
    """The bytes of a row's long values, as the server reckons without reading them."""
    parts = []
    for name, oid, mod in zip(names, oids, mods, strict=True):
        if oid not in _BYTES_OF and oid not in (114, 142, 3802):
            continue
        if oid == 1043 and 4 < mod <= _SMALL_TEXT:
            continue
        quoted = 'q."{}"'.format(name.replace('"', '""'))
        text = _BYTES_OF.get(oid, "octet_length({0}::text)").format(quoted)
        parts.append(f"coalesce({text}, 0)::int8")
    return " + ".join(parts)


def _key_of(fields: Sequence[bytes | None], query: RowQuery, shape: _Shape) -> Key:
    if len(fields) != len(shape.oids):
        raise PermanentError("a row has other columns than the query", code="BATCH_ROW_SHAPE")
    found = [fields[place] for place in shape.places]
    if None in found:
        raise _bad_key(query, "NULL")
    return tuple(field.decode() for field in found if field is not None)


def _bad_key(query: RowQuery, what: str) -> PermanentError:
    names = ", ".join(column.name for column in query.key)
    text = "is NULL in a row" if what == "NULL" else "is the same in two rows"
    return PermanentError(f"the key ({names}) {text}", code=f"BATCH_KEY_{what}")


def _mapped(error: Exception, map_error: Callable[[Exception], Exception]) -> Exception:
    """An error of ours; what the server does not understand is in the job's own text."""
    mapped = _too_large(error) or map_error(error)
    state = getattr(error, "sqlstate", "") or ""
    if mapped is not error and state.startswith("42") and state != "42501":
        return ConfigurationError(str(error).splitlines()[0][:300], code="BATCH_QUERY")
    return mapped


def _too_large(error: Exception) -> PermanentError | None:
    if getattr(error, "sqlstate", "") == "22P02" and _TOO_LARGE in str(error):
        size = str(error).partition(_TOO_LARGE)[2].split()[0]
        text = f"a row of {size} bytes is larger than row_bytes_max"
        return PermanentError(text, code="BATCH_ROW_TOO_LARGE")
    return None


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for part in plan.get("Plans", ()):
        yield from _nodes(part)
