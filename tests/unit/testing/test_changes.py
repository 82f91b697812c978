from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from duly import App, Change, ChangeTx, Event, Intent, Message, Transaction
from duly.kernel.rules import RuleFailedError
from duly.testing.app_test import AppTest
from duly.testing.changes import created, deleted, emptied, snapshot_row, updated


class Paid(Event, name="order.paid", topic="orders"):
    order_id: int


class Leaked(Event, name="user.leaked", topic="users"):
    secret: str


class Gone(Event, name="order.gone", topic="orders", tombstone=True):
    pass


def test_changes_look_like_those_of_a_source() -> None:
    change = updated("orders", {"id": 1, "a": 1, "b": 2}, {"a": 5})
    assert (change.op, change.key) == ("update", {"id": 1})
    assert change.after == {"id": 1, "a": 5, "b": 2}
    assert (created("t", {"x": 1}, key="x").key, deleted("t", {"id": 2}).after) == ({"x": 1}, None)
    assert (emptied("t").op, emptied("t").key) == ("truncate", {})
    assert snapshot_row("t", {"id": 1}).op == "read"


@pytest.fixture
def app() -> App:
    made = App("shop")

    @made.cdc(table="orders")
    def paid(change: Change) -> Iterator[Paid]:
        if change.became("status", "paid"):
            yield Paid(order_id=change.key["id"])

    @made.cdc(tables=["orders"], transaction=True)
    def checkout(transaction: Transaction) -> Iterator[Paid]:
        if (said := transaction.intent("Checkout")) is not None:
            yield Paid(order_id=said.json()["order"])

    return made


def test_changes_are_fed_and_their_events_go_on_to_handlers(app: App, tmp_path: Path) -> None:
    handled = []

    @app.on(Paid, group="billing")
    def bill(event: Paid) -> None:
        handled.append(event.order_id)

    order = {"id": 1, "status": "placed"}
    with AppTest(app, tmp_path) as app_test:
        assert app_test.feed(created("orders", order)) == []
        assert app_test.feed(updated("orders", order, {"status": "paid"})) == [Paid(order_id=1)]
        checkout = Intent("Checkout", b'{"order": 9}')
        made = app_test.feed(updated("orders", order, {"status": "x"}), intents=[checkout])
        assert made == [Paid(order_id=9)]
        app_test.drain()
        app_test.assert_published(Paid, order_id=9)
    assert sorted(handled) == [1, 9]


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"mask": ["secret"]}, "NOT_SERIALIZABLE"),
        ({"exclude": ["secret"]}, "KeyError"),
        ({"include": ["id"]}, "KeyError"),
    ],
)
def test_what_a_rule_may_not_see_gets_into_no_message(
    tmp_path: Path, options: Any, code: str
) -> None:
    app = App("shop")

    @app.cdc(table="users", **options)
    def leak(change: Change) -> Leaked:
        assert change.after is not None
        return Leaked(secret=change.after["secret"])

    with AppTest(app, tmp_path) as app_test:
        with pytest.raises(RuleFailedError, match=code) as caught:
            app_test.feed(created("users", {"id": 1, "secret": "pa55word"}))
        app_test.assert_nothing_published()
    assert "pa55word" not in str(caught.value)


def test_a_rule_writes_and_a_delete_becomes_a_tombstone(app: App, tmp_path: Path) -> None:
    @app.cdc(table="orders")
    def mirror(change: Change, tx: ChangeTx) -> Gone | None:
        if not change.deleted:
            row = (change.key["id"], change.after["status"] if change.after else "")
            tx.connection.execute("INSERT OR REPLACE INTO mirror VALUES (?, ?)", row)
            return None
        tx.connection.execute("DELETE FROM mirror WHERE id = ?", (change.key["id"],))
        return Gone()

    handled = []

    @app.on(Gone, group="cache")
    def forget(event: Gone, msg: Message) -> None:
        handled.append((msg.key, msg.payload))

    orders = [{"id": n, "status": "placed"} for n in (1, 2)]
    with AppTest(app, tmp_path) as app_test:
        with app_test.engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE mirror (id INTEGER PRIMARY KEY, status TEXT)")
        assert app_test.feed(*(created("orders", order) for order in orders)) == []
        assert app_test.feed(deleted("orders", orders[0])) == [Gone()]
        app_test.drain()
        with app_test.engine.connect() as connection:
            assert connection.exec_driver_sql("SELECT * FROM mirror").all() == [(2, "placed")]
    assert handled == [("1", b"")]


def test_a_rule_that_raises_fails_the_test_and_stores_nothing(app: App, tmp_path: Path) -> None:
    with AppTest(app, tmp_path) as app_test:
        unnamed = created("orders", {"id": 1})  # a row without a status
        with pytest.raises(RuleFailedError, match="ABSENT_VALUE"):
            app_test.feed(unnamed)
        app_test.assert_nothing_published()
