"""What MySQL and MariaDB are told of XA transactions, and what their errors mean."""

from __future__ import annotations

from typing import Any, Self

import pytest

from duly.branches import Finished, PreparesTransactions
from duly.databases.mysql import prepared
from duly.databases.mysql.database import MysqlDatabase
from duly.errors import PermanentError
from duly.kernel.twophase import BranchName, branch_name
from duly.message import new_id
from duly.ports import Result, Statement

NAME = branch_name(BranchName("0123456789ab", new_id(), 0))


class Answers:
    """A connection that lists these branches, and refuses to end one with a number."""

    def __init__(self, *names: str, number: int = 0) -> None:
        self._rows, self._number = [(1, len(n), 0, n.encode()) for n in names], number

    def ask(self, statement: Statement) -> Result:
        if statement.name == "branch.list":
            return Result(self._rows, len(self._rows))
        if self._number:
            raise PermanentError("as the database said") from Exception(self._number, "no")
        return Result([], 0)


@pytest.mark.parametrize(
    ("connection", "found"),
    [
        (Answers(), Finished.DONE),
        (Answers(number=1397), Finished.GONE),
        (Answers(NAME, number=1397), Finished.BUSY),  # it is there, and another connection's
    ],
)
def test_ending_a_branch(connection: Any, found: Finished) -> None:
    assert prepared.finish(connection, NAME, commit=True) is found


def test_any_other_error_is_told() -> None:
    with pytest.raises(PermanentError):
        prepared.finish(Answers(number=1399), NAME, commit=False)  # type: ignore[arg-type]


def test_only_our_branches_are_listed() -> None:
    assert prepared.prepared(Answers(NAME, "other")) == [NAME]  # type: ignore[arg-type]


@pytest.mark.parametrize("verb", ["begin", "prepare", "commit", "rollback", "abandon"])
def test_nothing_but_a_branch_stands_in_sql(verb: Any) -> None:
    assert all(NAME in text for text in prepared.words(verb, NAME))
    with pytest.raises(AssertionError):
        prepared.words(verb, "x'; DROP TABLE orders; --")


def test_the_database_prepares() -> None:
    database = MysqlDatabase("mysql://root@localhost/none")
    assert isinstance(database, PreparesTransactions)
    assert database.prepare(Statement("branch.list")) == [("XA RECOVER", None, False)]
    assert database.branch_mark(NAME) == ""


@pytest.mark.parametrize(
    ("settings", "codes"),
    [
        ({"innodb_flush_log_at_trx_commit": "1", "log_bin": "OFF", "sync_binlog": "0"}, ["XA"]),
        ({"innodb_flush_log_at_trx_commit": "2"}, ["GLOBAL_TX_NOT_DURABLE"]),
        ({"log_bin": "ON", "sync_binlog": "0"}, ["GLOBAL_TX_NOT_DURABLE"]),
        (None, ["XA_RECOVER_DENIED"]),
    ],
)
def test_what_is_said_of_a_server(settings: dict[str, str] | None, codes: list[str]) -> None:
    class Server:
        def cursor(self) -> Server:
            return self

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def execute(self, sql: str) -> None:
            if settings is None and sql == "XA RECOVER":
                raise PermissionError(1227, "XA_RECOVER_ADMIN is needed")

        def fetchall(self) -> list[tuple[str, str]]:
            return list((settings or {}).items())

    assert [found.code for found in prepared.inspect(Server())] == codes
