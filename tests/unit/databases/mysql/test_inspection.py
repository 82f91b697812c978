"""Every finding of a MySQL or MariaDB server, provoked once by the answers that one would give."""

from __future__ import annotations

from typing import Any, Self

import pytest

from duly.databases.mysql.inspection import inspect_server
from duly.ports import Severity

GOOD = {
    "version": "10.11.19-MariaDB-log",
    "read_only": "OFF",
    "innodb_flush_log_at_trx_commit": "1",
    "sync_binlog": "1",
    "innodb_doublewrite": "ON",
    "log_bin": "ON",
    "binlog_format": "ROW",
    "max_allowed_packet": "16777216",
    "default_storage_engine": "InnoDB",
    "max_connections": "151",
}


class Answers:
    """A connection, and its cursor, that answers each question by the word in it."""

    def __init__(self, **changed: Any) -> None:
        self._asked = {
            "ours": None,
            "theirs": None,
            "PROCESS": 1,
            "innodb_trx": 3,
            "processlist": 5,
        }
        self._settings = dict(GOOD)
        for name, value in changed.items():
            (self._asked if name in self._asked else self._settings)[name] = value
        self._row: Any = None

    def cursor(self) -> Self:
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def execute(self, sql: str, values: Any = None) -> None:
        if "LEFT(table_name" in sql:
            self._row = self._asked["ours" if values[-1] else "theirs"]
        else:
            self._row = next((a for word, a in self._asked.items() if word in sql), None)

    def fetchone(self) -> tuple[Any]:
        return (self._row,)

    def fetchall(self) -> list[tuple[str, str]]:
        return list(self._settings.items())


def found(**changed: Any) -> dict[str, Severity]:
    findings = inspect_server(Answers(**changed), "duly_")
    assert all(finding.message for finding in findings)
    return {finding.code: finding.severity for finding in findings}


@pytest.mark.parametrize("version", ["10.6.0-MariaDB", "11.4.2-MariaDB", "8.0.13", "8.4.3"])
def test_a_good_server(version: str) -> None:
    assert found(version=version) == {"MYSQL_VERSION": Severity.GREEN}


@pytest.mark.parametrize(
    ("changed", "code", "severity"),
    [
        ({"version": "10.5.29-MariaDB"}, "MYSQL_VERSION", Severity.RED),
        ({"version": "8.0.12"}, "MYSQL_VERSION", Severity.RED),
        ({"version": "5.7.44"}, "MYSQL_VERSION", Severity.RED),
        ({"read_only": "ON"}, "DATABASE_READ_ONLY", Severity.RED),
        ({"binlog_format": "STATEMENT"}, "BINLOG_FORMAT", Severity.RED),
        ({"ours": "duly_outbox"}, "NOT_INNODB", Severity.RED),
        ({"theirs": "orders"}, "TABLES_NOT_INNODB", Severity.WEAK),
        ({"default_storage_engine": "MyISAM"}, "DEFAULT_ENGINE", Severity.WEAK),
        ({"innodb_flush_log_at_trx_commit": "2"}, "NOT_DURABLE", Severity.WEAK),
        ({"sync_binlog": "0"}, "NOT_DURABLE", Severity.WEAK),
        ({"innodb_doublewrite": "OFF"}, "NOT_DURABLE", Severity.WEAK),
        ({"wsrep_on": "ON"}, "GALERA", Severity.WEAK),
        ({"max_allowed_packet": "1048576"}, "SMALL_PACKETS", Severity.WEAK),
        ({"innodb_trx": 900}, "LONG_TRANSACTION", Severity.WEAK),
        ({"processlist": 145}, "FEW_CONNECTIONS", Severity.WEAK),
    ],
)
def test_what_is_red_and_weak(changed: dict[str, Any], code: str, severity: Severity) -> None:
    assert found(**changed)[code] is severity


def test_a_log_that_is_off_need_not_be_synced() -> None:
    assert "NOT_DURABLE" not in found(log_bin="OFF", sync_binlog="0", binlog_format="STATEMENT")


def test_without_the_right_to_look_nothing_is_said_of_transactions() -> None:
    assert "LONG_TRANSACTION" not in found(PROCESS=0, innodb_trx=900)
