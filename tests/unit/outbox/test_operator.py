"""What the operator's service refuses before it touches anything; the verbs themselves are shown on
real databases in integration/test_operator_verbs.
"""

from __future__ import annotations

from typing import NoReturn

import pytest

from duly.databases.sqlite.database import SqliteDatabase
from duly.errors import (
    InvalidNameError,
    OperatorError,
    PayloadTooLargeError,
    TransactionConflictError,
    UndecodableError,
)
from duly.kernel.lifecycle import VERBS
from duly.outbox import operator as room
from duly.outbox.operator import By, Operator, Scope
from duly.outbox.schema import Schema
from duly.ports import Connection, Statement, Steps
from tests.unit.outbox.rows import Rows

ANNA = By("anna")


def no_connection() -> NoReturn:
    raise AssertionError("nothing may be asked of the database")


@pytest.fixture
def blind() -> Operator:
    return Operator(no_connection, payload_bytes_max=100)


@pytest.mark.parametrize(
    ("verb", "box"),
    [("reprocess", "outbox"), ("resend", "inbox"), ("publish", "outbox"), ("retry", "attic")],
)
def test_verbs_and_boxes_that_do_not_exist(blind: Operator, verb: str, box: str) -> None:
    with pytest.raises(OperatorError):
        blind.act(verb, box, 1, by=ANNA)
    with pytest.raises(OperatorError):
        blind.act_on_all(verb, box, Scope(), by=ANNA, expected=0)


def test_an_edit_is_not_a_plain_verb(blind: Operator) -> None:
    for box in VERBS:
        with pytest.raises(OperatorError):
            blind.act("edit", box, 1, by=ANNA)
        with pytest.raises(OperatorError):
            blind.act_on_all("edit", box, Scope(), by=ANNA, expected=1)


@pytest.mark.parametrize(
    "by",
    [By(""), By("a" * 201), By("a\nb"), By("a\x1b[2J"), By("anna", "r" * 1001), By("anna", "\0")],
)
def test_who_and_why_must_be_fit_for_the_audit(blind: Operator, by: By) -> None:
    with pytest.raises(OperatorError):
        blind.act("drop", "outbox", 1, by=by)
    with pytest.raises(OperatorError):
        blind.pause("outbox", "orders", by=by)


@pytest.mark.parametrize("payload", [b"", b"{", b"NaN", b'{"a":Infinity}', b"\xff", b"[" * 99])
def test_a_payload_must_be_json(blind: Operator, payload: bytes) -> None:
    with pytest.raises(UndecodableError):
        blind.edit("outbox", 1, payload, by=ANNA)


def test_a_payload_has_a_cap(blind: Operator) -> None:
    with pytest.raises(PayloadTooLargeError):
        blind.edit("outbox", 1, b'"' + b"a" * 100 + b'"', by=ANNA)


@pytest.mark.parametrize("name", ["", "a b", "a\n", "../x", "%s", "a/b"])
def test_what_is_paused_has_a_name(blind: Operator, name: str) -> None:
    with pytest.raises(InvalidNameError):
        blind.pause("inbox", name, by=ANNA)


def test_a_scope_is_checked(blind: Operator) -> None:
    for box, scope in (
        ("outbox", Scope(statuses=("done",))),
        ("inbox", Scope(statuses=("sent",))),
        ("outbox", Scope(group="billing")),
        ("attic", Scope()),
    ):
        with pytest.raises(OperatorError):
            blind.find(box, scope)
        with pytest.raises(OperatorError):
            blind.count(box, scope)


def test_too_many_rows_for_one_verb(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "BULK_MAX", 2)
    monkeypatch.setattr(room, "LIST_MAX", 2)
    database = SqliteDatabase(sqlite_url)
    Schema(database, "shop").start()
    rows = Rows(database)
    for n in range(3):
        rows.outbox(message_id=f"m{n}")
    with pytest.raises(OperatorError) as error:
        Operator(database.connect).act_on_all("retry", "outbox", Scope(), by=ANNA, expected=3)
    assert error.value.code == "SCOPE_TOO_WIDE"
    assert rows.due("outbox") == []
    database.close()


class Busy:
    """A connection that meets a deadlock a number of times before it works."""

    def __init__(self, connection: Connection, times: list[int]) -> None:
        self._connection, self._times = connection, times

    def run(self, steps: Steps[object]) -> object:
        if self._times[0] > 0:
            self._times[0] -= 1
            steps.close()
            raise TransactionConflictError("deadlock")
        return self._connection.run(steps)

    def ask(self, statement: Statement) -> object:
        return self._connection.ask(statement)

    def close(self) -> None:
        self._connection.close()


@pytest.mark.parametrize(("conflicts", "works"), [(0, True), (4, True), (5, False)])
def test_a_conflict_is_tried_again_a_few_times(
    sqlite_url: str, conflicts: int, works: bool
) -> None:
    database = SqliteDatabase(sqlite_url)
    Schema(database, "shop").start()
    rows = Rows(database)
    row, times = rows.outbox(), [conflicts]
    operator = Operator(lambda: Busy(database.connect(), times))  # type: ignore[arg-type,return-value]
    if works:
        assert operator.act("drop", "outbox", row, by=ANNA).changed
    else:
        with pytest.raises(TransactionConflictError):
            operator.act("drop", "outbox", row, by=ANNA)
        assert rows.audits() == []
    database.close()
