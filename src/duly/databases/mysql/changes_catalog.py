"""What a MySQL or MariaDB server says about capturing: log settings, rights, tables.

Owns the questions and the statements that mend what is missing; each error carries the statement.
Invariant: a table is captured only when the log tells of every change of its rows - whole rows, by
name, in row format, and none that the engine makes behind the log's back, as foreign keys that
cascade do.  What a session hides (``sql_log_bin = 0``) nobody sees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from duly.databases.mysql.changes_place import file_number
from duly.databases.mysql.changes_zstd import can_unzstd
from duly.errors import ConfigurationError
from duly.ports import Finding, Severity
from duly.sources import TableSpec

__all__ = [
    "INTENT_TABLE",
    "Ask",
    "Column",
    "Log",
    "Server",
    "Table",
    "find_log",
    "find_server",
    "find_tables",
    "inspect_capture",
    "quoted",
    "refuse_server",
    "refuse_tables",
    "rows_of",
]

INTENT_TABLE: Final = "duly_intent"
_RETENTION_SECONDS = 24 * 3600
_ENOUGH = {"binlog_format": "ROW", "binlog_row_image": "FULL", "binlog_row_metadata": "FULL"}
_CODES = {
    "binlog_format": "BINLOG_FORMAT",
    "binlog_row_image": "CDC_ROW_IMAGE",
    "binlog_row_metadata": "CDC_ROW_METADATA",
}
_ASKED = (
    *_ENOUGH,
    "binlog_expire_logs_seconds",
    "binlog_row_value_options",
    "binlog_transaction_compression",
    "expire_logs_days",
    "log_bin",
    "server_id",
    "server_uuid",
    "version",
)
_SETTINGS = f"SHOW GLOBAL VARIABLES WHERE Variable_name IN {_ASKED!r}"
_CASCADES = "('CASCADE', 'SET NULL', 'SET DEFAULT')"
_TABLE = f"""
SELECT t.table_schema, t.table_name, t.table_type, t.engine, (
  SELECT GROUP_CONCAT(r.constraint_name) FROM information_schema.referential_constraints r
  WHERE r.constraint_schema = t.table_schema AND r.table_name = t.table_name
    AND (r.delete_rule IN {_CASCADES} OR r.update_rule IN {_CASCADES}))
FROM information_schema.tables t WHERE t.table_schema = %s AND t.table_name = %s
"""
_COLUMNS = """
SELECT column_name, data_type, column_type, extra FROM information_schema.columns
WHERE table_schema = %s AND table_name = %s ORDER BY ordinal_position
"""
_KEY = """
SELECT column_name FROM information_schema.statistics
WHERE table_schema = %s AND table_name = %s AND index_name = 'PRIMARY' ORDER BY seq_in_index
"""
Ask = Callable[..., Sequence[tuple[Any, ...]]]


class Column(NamedTuple):
    """A column as the catalog has it. kind: ``varchar``; type: ``varchar(40)``."""

    name: str
    kind: str
    type: str
    generated: bool


class Table(NamedTuple):
    """A table as the catalog has it. cascades: foreign keys of it by which the engine changes its
    rows.
    """

    spec: TableSpec
    schema: str
    name: str
    base: bool
    engine: str
    cascades: str
    columns: tuple[Column, ...]
    primary_key: tuple[str, ...]

    @property
    def quoted(self) -> str:
        """Its name in SQL."""
        return f"{quoted(self.schema)}.{quoted(self.name)}"


class Server(NamedTuple):
    """What kind of server it is, and how it logs. mariadb: else MySQL; version: two numbers."""

    mariadb: bool
    version: tuple[int, ...]
    settings: dict[str, str]

    @property
    def name(self) -> str:
        """Which one of all: there may be copies of it."""
        who = self.settings.get("server_uuid") or self.settings["server_id"]
        return f"{'mariadb' if self.mariadb else 'mysql'}:{who}"


class Log(NamedTuple):
    """Where the log ends. only, never: databases that it is limited to, or that are left out."""

    base: str
    file: int
    offset: int
    only: tuple[str, ...]
    never: tuple[str, ...]


def rows_of(raw: Any) -> Ask:
    """What asks on a driver's connection."""

    def ask(sql: str, *values: Any) -> Sequence[tuple[Any, ...]]:
        with raw.cursor() as cursor:
            cursor.execute(sql, values or None)
            found: Sequence[tuple[Any, ...]] = cursor.fetchall() if cursor.description else ()
            return found

    return ask


def quoted(name: str) -> str:
    """A name in SQL."""
    return "`" + name.replace("`", "``") + "`"


def find_server(ask: Ask) -> Server:
    """The server and its settings."""
    settings = {str(name): str(value) for name, value in ask(_SETTINGS)}
    numbers = settings["version"].partition("-")[0].split(".")[:2]
    version = tuple(int(number) for number in numbers)
    return Server("MariaDB" in settings["version"], version, settings)


def find_log(ask: Ask, server: Server) -> Log:
    """Where the log ends now. Raises ConfigurationError (code CDC_NO_LOG) without one."""
    newer = not server.mariadb and server.version >= (8, 2)
    found = ask("SHOW BINARY LOG STATUS" if newer else "SHOW MASTER STATUS")
    if not found:
        text = "the server writes no binary log; start it with log_bin"
        raise ConfigurationError(text, code="CDC_NO_LOG")
    name, offset, only, never = found[0][:4]
    try:
        number = file_number(name)
    except ValueError:
        text = f"the binary log {name!r:.80} is not kept in numbered files"
        raise ConfigurationError(text, code="CDC_NO_LOG") from None
    base = name.rpartition(".")[0]
    return Log(base, number, int(offset), _listed(only), _listed(never))


def _listed(text: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


def find_tables(ask: Ask, specs: Sequence[TableSpec], *, schema: str) -> list[Table]:
    """The tables of the specs; those that do not exist are left out. schema: of names without."""
    found: list[Table] = []
    for spec in specs:
        for where, name in _readings(spec.name, schema):
            rows = ask(_TABLE, where, name)
            if rows:
                found.append(_table(ask, spec, rows[0]))
                break
    return found


def _readings(name: str, schema: str) -> Iterator[tuple[str, str]]:
    """A dot may be part of a name."""
    yield schema, name
    head, dot, tail = name.partition(".")
    if dot:
        yield head, tail


def _table(ask: Ask, spec: TableSpec, row: tuple[Any, ...]) -> Table:
    schema, name, kind, engine, cascades = row
    columns = tuple(
        Column(column, str(data_type).lower(), str(column_type), "GENERATED" in str(extra).upper())
        for column, data_type, column_type, extra in ask(_COLUMNS, schema, name)
    )
    key = tuple(column for (column,) in ask(_KEY, schema, name))
    base = kind == "BASE TABLE"
    return Table(spec, schema, name, base, engine or "", cascades or "", columns, key)


# --- what is wrong --------------------------------------------------------------------------------
def refuse_server(server: Server) -> None:
    """Raise ConfigurationError for a server whose log does not say enough."""
    _refuse(_of_server(server))


def refuse_tables(specs: Sequence[TableSpec], tables: Sequence[Table], log: Log) -> None:
    """Raise ConfigurationError for the first table that cannot be captured as it is asked for."""
    _refuse(_of_tables(specs, tables, log))


def _refuse(findings: Iterator[Finding]) -> None:
    for finding in findings:
        if finding.severity is Severity.RED:
            raise ConfigurationError(f"{finding.message}; {finding.fix}", code=finding.code)


def inspect_capture(ask: Ask, specs: Sequence[TableSpec], *, schema: str) -> list[Finding]:
    """Findings on log, retention and tables."""
    server = find_server(ask)
    found = [*_of_server(server), *_of_retention(server)]
    if any(finding.code == "CDC_NO_LOG" for finding in found):
        return found
    try:
        log = find_log(ask, server)
    except ConfigurationError as error:
        return [*found, Finding(error.code, Severity.RED, error.detail, "")]
    return [*found, *_of_tables(specs, find_tables(ask, specs, schema=schema), log)]


def _of_server(server: Server) -> Iterator[Finding]:
    settings = server.settings
    if settings.get("log_bin") != "ON":
        text = "the server writes no binary log"
        yield Finding("CDC_NO_LOG", Severity.RED, text, "start it with log_bin")
        return
    good = True
    for name, enough in _ENOUGH.items():
        value = settings.get(name, "")
        if value.upper() != enough:
            good = False
            text = f"{name} is {value or 'unknown here: the server is too old'}"
            fix = f"SET GLOBAL {name} = '{enough}', and in the server's option file"
            yield Finding(_CODES[name], Severity.RED, text, fix)
    if settings.get("binlog_row_value_options"):
        text = "binlog_row_value_options leaves parts of JSON values out"
        fix = "SET GLOBAL binlog_row_value_options = ''"
        yield Finding("CDC_ROW_IMAGE", Severity.RED, text, fix)
    if settings.get("binlog_transaction_compression") == "ON" and not can_unzstd():
        text = "transactions are compressed, and zstandard is not installed"
        yield Finding("BINLOG_ZSTD", Severity.RED, text, "pip install 'duly[mysql,zstd]'")
    if settings.get("server_id", "0") == "0":
        fix = "SET GLOBAL server_id = 1, and in the server's option file"
        yield Finding("CDC_SERVER_ID", Severity.RED, "server_id is 0: nobody may read the log", fix)
    if good:
        text = f"{settings['version']} logs whole rows with their names"
        yield Finding("CDC_BINLOG", Severity.GREEN, text)


def _of_retention(server: Server) -> Iterator[Finding]:
    settings = server.settings
    days = float(settings.get("expire_logs_days") or 0)
    seconds = float(settings.get("binlog_expire_logs_seconds") or 0) or days * 86_400
    if 0 < seconds < _RETENTION_SECONDS:
        text = f"the server drops its log after {seconds:.0f} s, read or not"
        fix = "SET GLOBAL binlog_expire_logs_seconds = 604800"
        yield Finding("CDC_LOG_RETENTION", Severity.WEAK, text, fix)


def _of_tables(specs: Sequence[TableSpec], tables: Sequence[Table], log: Log) -> Iterator[Finding]:
    names = {table.spec.name for table in tables}
    for spec in specs:
        if spec.name not in names:
            text = f"there is no table {spec.name}"
            yield Finding("CDC_TABLE_MISSING", Severity.RED, text, "create it, or name its schema")
    for table in tables:
        yield from _of_table(table)
        if table.schema in log.never or (log.only and table.schema not in log.only):
            text = f"the log leaves {table.schema} out (binlog_do_db, binlog_ignore_db)"
            yield Finding("CDC_LOG_FILTERED", Severity.RED, text, "take the filter away")


def _of_table(table: Table) -> Iterator[Finding]:
    spec, name = table.spec, table.spec.name
    logged = {column.name for column in table.columns if not column.generated}
    unknown = {*spec.include, *spec.exclude, *spec.key} - logged
    if not table.base:
        text = f"{name} is a view, which writes no log"
        yield Finding("CDC_TABLE_MISSING", Severity.RED, text, "name the tables behind it")
    elif unknown:
        text = f"{name} has no column {min(unknown)!r} that is stored by itself"
        yield Finding("CDC_COLUMN_MISSING", Severity.RED, text, "correct the rule")
    elif table.engine.casefold() != "innodb":
        text = f"{name} is {table.engine}, which knows no transactions"
        fix = f"ALTER TABLE {table.quoted} ENGINE = InnoDB"
        yield Finding("NOT_INNODB", Severity.RED, text, fix)
    elif table.cascades:
        text = f"{name} is changed by its foreign keys ({table.cascades}), which the log omits"
        fix = "make them RESTRICT, and delete and update those rows yourself"
        yield Finding("CDC_CASCADES", Severity.RED, text, fix)
    elif not table.primary_key and not spec.key:
        text = f"{name} has no primary key: nothing names its rows"
        yield Finding("CDC_NO_PRIMARY_KEY", Severity.RED, text, "add one, or give the rule a key")
