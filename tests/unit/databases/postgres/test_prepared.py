"""What PostgreSQL is told of prepared transactions, and what its errors mean."""

from __future__ import annotations

from typing import Any

import pytest

from duly.branches import Finished, PreparesTransactions
from duly.databases.postgres import prepared
from duly.databases.postgres.database import PostgresDatabase
from duly.errors import PermanentError
from duly.kernel.twophase import BranchName, branch_name
from duly.message import new_id
from duly.ports import Result, Severity, Statement

NAME = branch_name(BranchName("0123456789ab", new_id(), 0))


class Answers:
    """A connection that gives one answer, or raises with a cause of that SQLSTATE."""

    def __init__(self, rows: list[Any] | None = None, *, state: str = "") -> None:
        self._rows, self._state = rows or [], state

    def ask(self, statement: Statement) -> Result:
        if self._state:
            cause = Exception()
            cause.sqlstate = self._state  # type: ignore[attr-defined]
            raise PermanentError("as the database said") from cause
        return Result(self._rows, len(self._rows))


@pytest.mark.parametrize(
    ("state", "found"), [("", Finished.DONE), ("42704", Finished.GONE), ("55000", Finished.BUSY)]
)
def test_ending_a_branch(state: str, found: Finished) -> None:
    assert prepared.finish(Answers(state=state), NAME, commit=True) is found  # type: ignore[arg-type]


def test_any_other_error_is_told() -> None:
    with pytest.raises(PermanentError):
        prepared.finish(Answers(state="42501"), NAME, commit=False)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("said", "found"),
    [("committed", True), ("aborted", False), ("in progress", None), (None, None)],
)
def test_the_fate_of_a_mark(said: str | None, found: bool | None) -> None:
    assert prepared.fate(Answers([(said,)]), "4711") is found  # type: ignore[arg-type]


def test_only_our_branches_are_listed() -> None:
    rows = [(NAME,), ("_sa_0123",), ("duly-but-not-so",)]
    assert prepared.prepared(Answers(rows)) == [NAME]  # type: ignore[arg-type]


@pytest.mark.parametrize("verb", ["begin", "prepare", "commit", "rollback", "abandon"])
def test_nothing_but_a_branch_stands_in_sql(verb: Any) -> None:
    assert prepared.words(verb, NAME)
    with pytest.raises(AssertionError):
        prepared.words(verb, "x'; DROP TABLE orders; --")
    with pytest.raises(AssertionError):
        prepared.mark("x'; DROP TABLE orders; --")


@pytest.mark.parametrize("key", [None, "k"])
@pytest.mark.parametrize("rows", [1, 2])
def test_an_insert_that_is_to_be_prepared_notifies_nobody(key: str | None, rows: int) -> None:
    database = PostgresDatabase("postgresql://localhost/none")
    assert isinstance(database, PreparesTransactions)
    row = dict.fromkeys(
        ("message_id", "message_type", "kind", "topic", "lane", "payload", "headers"), "x"
    ) | {"key": key, "stripe": 3 if key else None}
    loud, quiet = (
        database.prepare(Statement("outbox.insert", params, [row] * rows))
        for params in ({"last": True}, {"last": True, "prepared": True})
    )
    assert "pg_notify" in loud[-1][0]
    assert not any("pg_notify" in text for text, _, _ in quiet)
    assert [values for _, values, _ in quiet] == [values for _, values, _ in loud]


@pytest.mark.parametrize(
    ("room", "commits", "used", "code", "severity"),
    [
        (0, "on", 0, "MAX_PREPARED_TRANSACTIONS", Severity.RED),
        (10, "off", 0, "GLOBAL_TX_NOT_DURABLE", Severity.RED),
        (10, "on", 6, "PREPARED_TRANSACTIONS_MANY", Severity.WEAK),
        (10, "on", 5, "PREPARED_TRANSACTIONS", Severity.GREEN),
    ],
)
def test_what_is_said_of_a_server(
    room: int, commits: str, used: int, code: str, severity: Severity
) -> None:
    class Server:
        def execute(self, sql: str) -> Any:
            self._sql = sql
            return self

        def fetchone(self) -> tuple[Any]:
            known = {"SHOW max_prepared": room, "SHOW synchronous": commits, "SELECT count": used}
            return (next((v for k, v in known.items() if self._sql.startswith(k)), 100),)

    (found,) = prepared.inspect(Server())
    assert (found.code, found.severity) == (code, severity)
