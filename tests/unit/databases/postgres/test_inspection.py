"""Every finding of a PostgreSQL server, provoked once - by the answers that a server would give."""

from __future__ import annotations

from typing import Any

import pytest

from duly.databases.postgres.inspection import inspect_server
from duly.ports import Severity

GOOD: dict[str, Any] = {
    "server_version_num": "150020",
    "SHOW server_version": "15.20",
    "pg_is_in_recovery": False,
    "transaction_read_only": "off",
    "default_transaction_isolation": "read committed",
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "seqcache": 1,
    "xact_start": 3.0,
    "max_connections": 90,
}


class Answers:
    """A connection that answers each question by the word in it."""

    def __init__(self, **changed: Any) -> None:
        self._answers = {**GOOD, **changed}

    def execute(self, sql: str, values: tuple[Any, ...] = ()) -> Answers:
        asked = f"{sql} {values[0] if values else ''}"
        self._row = next(answer for word, answer in self._answers.items() if word in asked)
        return self

    def fetchone(self) -> tuple[Any]:
        return (self._row,)


def found(**changed: Any) -> dict[str, Severity]:
    findings = inspect_server(Answers(**changed), "duly_")
    assert all(finding.message for finding in findings)
    return {finding.code: finding.severity for finding in findings}


def test_a_good_server() -> None:
    assert found() == {"POSTGRES_VERSION": Severity.GREEN}


@pytest.mark.parametrize(
    ("name", "value", "code", "severity"),
    [
        ("server_version_num", "120022", "POSTGRES_VERSION", Severity.RED),
        ("pg_is_in_recovery", True, "DATABASE_READ_ONLY", Severity.RED),
        ("transaction_read_only", "on", "DATABASE_READ_ONLY", Severity.RED),
        ("default_transaction_isolation", "serializable", "ISOLATION", Severity.WEAK),
        ("fsync", "off", "NOT_DURABLE", Severity.RED),
        ("full_page_writes", "off", "NOT_DURABLE", Severity.RED),
        ("synchronous_commit", "off", "NOT_DURABLE", Severity.WEAK),
        ("seqcache", 20, "SEQUENCE_CACHE", Severity.RED),
        ("xact_start", 601.0, "LONG_TRANSACTION", Severity.WEAK),
        ("max_connections", 3, "FEW_CONNECTIONS", Severity.WEAK),
    ],
)
def test_each_finding(name: str, value: Any, code: str, severity: Severity) -> None:
    assert found(**{name: value})[code] is severity


def test_before_the_tables_are_made_nothing_is_said_of_the_sequence() -> None:
    assert "SEQUENCE_CACHE" not in found(seqcache=None)
