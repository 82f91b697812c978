from __future__ import annotations

from collections.abc import Iterator

import pytest

from duly.databases.sqlite.database import SqliteDatabase
from duly.errors import ConfigurationError, InvalidNameError
from duly.outbox.operator import By, Operator
from duly.outbox.reconcile import Verdict, reconcile
from duly.outbox.schema import Schema
from tests.unit.outbox.rows import Rows

GROUPS = {"billing": ["order.placed"]}


@pytest.fixture
def database(sqlite_url: str) -> Iterator[SqliteDatabase]:
    database = SqliteDatabase(sqlite_url)
    Schema(database, "shop").start()
    yield database
    database.close()


@pytest.fixture
def rows(database: SqliteDatabase) -> Rows:
    return Rows(database)


def sent(rows: Rows, *ids: str) -> None:
    for name in ids:
        rows.outbox(message_id=name, status="sent")


def test_history_adds_up(database: SqliteDatabase, rows: Rows) -> None:
    sent(rows, "a", "b")
    rows.outbox(message_id="c", status="failed")
    rows.outbox(message_id="d", status="sent", message_type="order.other")  # not for this group
    rows.inbox(message_id="a", status="done")
    rows.inbox(message_id="b", status="failed")
    rows.inbox(message_id="x", status="done", topic="elsewhere")  # of another App
    found = reconcile(database, history=True, groups=GROUPS)
    assert found.verdict is Verdict.ADDS_UP
    assert [(t.stored, t.by_status) for t in found.topics] == [(4, {"failed": 1, "sent": 3})]
    assert [(g.sent, g.found, g.missing) for g in found.groups] == [(2, 2, 0)]


def test_a_message_that_no_group_has_is_missing(database: SqliteDatabase, rows: Rows) -> None:
    sent(rows, "a", "b")
    rows.inbox(message_id="a", status="done")
    rows.inbox(message_id="b", status="done", group_name="mail", handler="mail/x")
    found = reconcile(database, history=True, groups=GROUPS)
    assert found.verdict is Verdict.DIFFERS
    assert found.reason == "group billing: 1 of 2 sent are missing"


def test_handled_twice_does_not_hide_one_that_is_missing(
    database: SqliteDatabase, rows: Rows
) -> None:
    sent(rows, "a", "b")
    rows.inbox(message_id="a", status="done")
    rows.inbox(message_id="a", status="done", dedupe_key="business/7")
    assert reconcile(database, history=True, groups=GROUPS).groups[0].missing == 1


def test_a_message_edited_in_the_inbox_is_not_missing(database: SqliteDatabase, rows: Rows) -> None:
    sent(rows, "a")
    row = rows.inbox(message_id="a", status="failed")
    Operator(database.connect).edit("inbox", row, b"{}", by=By("anna"))
    assert reconcile(database, history=True, groups=GROUPS).verdict is Verdict.ADDS_UP


def test_a_status_that_nobody_knows(database: SqliteDatabase, rows: Rows) -> None:
    rows.outbox(message_id="a", status="lost")
    rows.inbox(message_id="b", status="lost")
    found = reconcile(database, history=True, groups=GROUPS)
    assert found.verdict is Verdict.DIFFERS
    assert found.topics[0].unknown == 1
    assert "group billing: 1 rows in no known status" in found.reason


def test_without_history_or_source_it_is_not_provable(database: SqliteDatabase) -> None:
    found = reconcile(database, history=False, groups=GROUPS)
    assert found.verdict is Verdict.NOT_PROVABLE
    assert "keep_sent" in found.reason


@pytest.mark.parametrize(
    ("orders", "verdict", "reason"),
    [
        (3, Verdict.ADDS_UP, ""),
        (4, Verdict.DIFFERS, "topic orders: 1 missing"),
        (2, Verdict.DIFFERS, "topic orders: 1 too many"),
    ],
)
def test_against_a_source(
    database: SqliteDatabase, rows: Rows, orders: int, verdict: Verdict, reason: str
) -> None:
    rows.outbox(message_id="a", status="ready")
    rows.outbox(message_id="b", status="sent")
    rows.inbox(message_id="b", status="done")
    rows.inbox(message_id="c", status="done")
    query = f"SELECT {orders}"
    found = reconcile(database, history=False, source=(query, "orders", "billing"))
    assert (found.verdict, found.reason) == (verdict, reason)


@pytest.mark.parametrize(
    "query", ["SELECT 'x'", "SELECT 1, 2", "SELECT 1 UNION SELECT 2", "SELECT", "SELECT 1 WHERE 0"]
)
def test_a_source_must_give_one_number(database: SqliteDatabase, query: str) -> None:
    with pytest.raises(ConfigurationError):
        reconcile(database, history=False, source=(query, "orders", ""))


def test_the_topic_of_a_source_is_a_name(database: SqliteDatabase) -> None:
    with pytest.raises(InvalidNameError):
        reconcile(database, history=False, source=("SELECT 1", "a b", ""))
