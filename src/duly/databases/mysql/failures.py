"""The errors of PyMySQL and asyncmy as ours, told apart by their number, here and nowhere else.

A deadlock (1213) has rolled the whole transaction back, a lock timeout (1205) only the statement:
both are conflicts, and whoever gets one rolls back and runs the transaction again.
"""

from __future__ import annotations

import re
from typing import Any

from duly.errors import (
    ConfigurationError,
    DatabaseUnavailableError,
    PermanentError,
    SchemaError,
    TransactionConflictError,
)

__all__ = ["mapped", "number_of"]

# Where PyMySQL stands in for MySQLdb, parts of it are imported a second time under that name.
_DRIVERS = ("pymysql", "asyncmy", "MySQLdb")
# 1020 changed since last read, 1205 lock timeout, 1213 deadlock, 1317 and 1969 statement ended,
# 1614 XA deadlock, 3024 statement took too long, 3101 refused by the group, 3572 not at once
_CONFLICTS = {1020, 1205, 1213, 1317, 1614, 1969, 3024, 3101, 3572}
_REFUSED = {1044, 1045, 1049, 1130, 1142, 1143, 1227, 1370, 1396, 1698, 2026, 2054, 2059, 4151}
_READ_ONLY = {1290, 1792, 1836}
_SCHEMA = {1054, 1146, 1305}
# 0 closed, 1021 and 1114 disk full, 1040 and 1203 and 1226 too many, 1053 shutdown, 1927 killed,
# 2xxx the client's: no server, server gone, lost
_UNAVAILABLE = {0, 1021, 1037, 1040, 1041, 1047, 1053, 1077, 1079, 1114, 1158, 1159, 1160, 1161}
_UNAVAILABLE |= {1203, 1226, 1927, 2002, 2003, 2005, 2006, 2013, 2014, 2027, 2055, 3169, 4031}
_OWN_INDEX = re.compile(r"for key '(?:\w+\.)?\w*_(?:inbox_once|lease\.PRIMARY)'")
_STATEMENT_LOG = 1665


def number_of(error: BaseException) -> int | None:
    """The server's or client's error number; None for what is no error of these drivers."""
    package = type(error).__module__.partition(".")[0]
    if package not in _DRIVERS:
        return None
    number: Any = error.args[0] if error.args else 0
    return number if isinstance(number, int) else 0


def mapped(error: Exception) -> Exception:
    """An error of ours for a driver's; other exceptions unchanged."""
    number = number_of(error)
    if number is None:
        return error
    text = f"{error.args[-1] if error.args else type(error).__name__}"[:300] or "connection closed"
    text = f"{text} ({number})"
    if number in _CONFLICTS or (number == 1062 and _OWN_INDEX.search(text)):
        return TransactionConflictError(text)
    if number in _REFUSED:
        return ConfigurationError(text, code="DATABASE_REFUSED")
    if number in _READ_ONLY:
        return ConfigurationError(text, code="DATABASE_READ_ONLY")
    if number == _STATEMENT_LOG:
        hint = "set binlog_format = ROW on the server"
        return ConfigurationError(f"{text}; {hint}", code="BINLOG_FORMAT")
    if number in _SCHEMA and "SAVEPOINT" not in text:
        return SchemaError(text)
    if number in _UNAVAILABLE:
        return DatabaseUnavailableError(text)
    return PermanentError(text, code="DATABASE_ERROR")
