"""MariaDB for the harness: PyMySQL's own connection with the shape of the other drivers'.

Owns the few words in which the harness's SQL differs there.  Nothing here imports duly.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

from pymysql import Error
from pymysql.connections import Connection
from pymysql.constants import FIELD_TYPE
from pymysql.converters import conversions

NEXT = "UPDATE crash_key SET n = LAST_INSERT_ID(n + 1) WHERE key = ?"  # then the cursor's lastrowid
_KEY = re.compile(r"(?<![\w.`:])key(?!\w)")
_MODES = "PIPES_AS_CONCAT,STRICT_TRANS_TABLES"


class PlainConnection(Connection):  # type: ignore[misc]
    """A connection that runs a statement by itself; ``?`` marks a value."""

    def execute(self, sql: str, values: Sequence[Any] | None = None) -> Any:
        cursor = self.cursor()
        cursor.execute(in_mysql(sql).replace("?", "%s"), tuple(values) if values else None)
        return cursor


def in_mysql(sql: str) -> str:
    """The same with what is a word of the language there as a name, or under its other name."""
    return _KEY.sub("`key`", sql).replace("AS varchar(40))", "AS char(40))")


def connect(url: str, *, autocommit: bool) -> PlainConnection:
    """Connect to the database of a URL."""
    parts = urlsplit(url)
    return PlainConnection(
        host=parts.hostname,
        port=parts.port or 3306,
        user=unquote(parts.username or "root"),
        password=unquote(parts.password or ""),
        database=parts.path[1:] or None,
        autocommit=autocommit,
        connect_timeout=10,
        init_command=f"SET SESSION sql_mode = '{_MODES}'",
        conv={**conversions, FIELD_TYPE.VAR_STRING: _text},
    )


def _text(value: Any) -> Any:
    """Keys are stored as bytes."""
    return value.decode() if isinstance(value, bytes) else value


__all__ = ["NEXT", "Error", "PlainConnection", "connect", "in_mysql"]
