"""Rows of a MySQL or MariaDB query in the order of their key, from a cursor on the server.

Owns the session - strict, in UTC, patient with a reader that is slow - the order of text keys by
their bytes, and values that are too large, which the server keeps to itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from duly.databases.mysql.connection import keep_alive
from duly.databases.mysql.database import MysqlDatabase
from duly.databases.rowwise import Dialect, Rows, RowwiseReader, quoted
from duly.errors import ConfigurationError
from duly.rows import RowColumn, RowFeatures

__all__ = ["MysqlRows"]

_SESSION = (
    "SET SESSION sql_mode = 'STRICT_TRANS_TABLES,ERROR_FOR_DIVISION_BY_ZERO,"
    "NO_ENGINE_SUBSTITUTION', time_zone = '+00:00', lc_time_names = 'en_US', "
    "net_write_timeout = 3600, net_read_timeout = 3600, wait_timeout = 86400"
)
_PATIENCE = {"connect_timeout": 5, "read_timeout": 3600, "write_timeout": 3600}
_SMALL_BYTES = 16_384
_NOT_IN_KEYS = ("float",)


class MysqlRows:
    """A MySQL or MariaDB database as a source of rows. url: as of ``MysqlDatabase``, its options
    (TLS, timeouts) among it.
    """

    dialect = "mysql"
    features = RowFeatures(stages=True)

    def __init__(self, url: str) -> None:
        self._database = MysqlDatabase(url)

    def open(self, *, moment: str = "") -> RowwiseReader:
        """As ``RowSource``."""
        raw = _connected(self._database)
        return RowwiseReader(_dialect(raw, self._database.map_error), raw.close, writes=True)


def _connected(database: MysqlDatabase) -> Any:
    import pymysql
    from pymysql.constants import FIELD_TYPE
    from pymysql.converters import conversions

    moments = (FIELD_TYPE.DATE, FIELD_TYPE.DATETIME, FIELD_TYPE.TIMESTAMP, FIELD_TYPE.TIME)
    text = dict.fromkeys(moments, str)
    try:
        raw = pymysql.connect(
            **{**_PATIENCE, **database.arguments()},
            autocommit=True,
            conv={**conversions, **text},
            cursorclass=pymysql.cursors.SSCursor,
        )
        keep_alive(raw)
        with raw.cursor() as cursor:
            cursor.execute(_SESSION)
    except pymysql.Error as error:
        raise database.map_error(error) from error
    except TypeError as error:  # it names the option, and no value
        what = f"an option of the URL is none of PyMySQL's: {error}"
        raise ConfigurationError(what, code="DATABASE_URL") from error
    return raw


def _dialect(raw: Any, map_error: Callable[[Exception], Exception]) -> Dialect:
    def execute(text: str, values: Mapping[str, Any]) -> Rows:
        cursor = raw.cursor()
        cursor.execute(text, dict(values))
        columns = [_column(one) for one in cursor._result.fields]
        return Rows(columns, cursor.fetchmany, cursor.close)

    def command(text: str, values: Mapping[str, Any]) -> None:
        with raw.cursor() as cursor:
            cursor.execute(text, dict(values))

    return Dialect(
        execute,
        command,
        map_error,
        quote=quoted("`"),
        mark=lambda name: f"%({name})s",
        literal=lambda part: part.replace("%", "%%"),
        backslash=True,
        pin=_pinned,
        pin_value=lambda mark, column: f"CAST({mark} AS BINARY)" if _is_text(column) else mark,
        sized=lambda name, column: f"OCTET_LENGTH({name})" if _may_be_large(column) else None,
    )


def _pinned(name: str, column: RowColumn) -> str:
    """By its bytes in UTF-8: another collation has letters, and spaces at the end, that are the
    same for it.
    """
    if column.kind in _NOT_IN_KEYS:
        text = f"{column.name} is a float, which is not told with all its digits"
        raise ConfigurationError(text, code="BATCH_KEY_TYPE")
    return f"CAST(CONVERT({name} USING utf8mb4) AS BINARY)" if _is_text(column) else name


def _is_text(column: RowColumn) -> bool:
    return column.kind in ("text", "json")


def _may_be_large(column: RowColumn) -> bool:
    return column.kind in ("text", "json", "bytes") and column.precision > _SMALL_BYTES


def _column(field: Any) -> RowColumn:
    """A column, of the server's description; precision of text and bytes: the most it can hold."""
    from pymysql.constants import FIELD_TYPE as KIND

    code, binary = field.type_code, field.charsetnr == 63
    if code in (KIND.TINY, KIND.SHORT, KIND.LONG, KIND.LONGLONG, KIND.INT24, KIND.YEAR):
        return RowColumn(field.name, "integer")
    if code in (KIND.DECIMAL, KIND.NEWDECIMAL):
        signs = 1 + (field.scale > 0)
        return RowColumn(field.name, "decimal", max(1, field.length - signs), field.scale)
    if code in (KIND.FLOAT, KIND.DOUBLE):
        return RowColumn(field.name, "float")
    if code == KIND.JSON:
        return RowColumn(field.name, "json", field.length)
    if code == KIND.BIT or (
        binary and code not in (KIND.DATE, KIND.DATETIME, KIND.TIMESTAMP, KIND.TIME)
    ):
        return RowColumn(field.name, "bytes", field.length)
    if code in (KIND.DATE, KIND.DATETIME, KIND.TIMESTAMP, KIND.TIME):
        return RowColumn(field.name, "moment")
    return RowColumn(field.name, "text", field.length)
