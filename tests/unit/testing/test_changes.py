from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from duly import App, Change, Event, Intent, Transaction
from duly.kernel.rules import RuleFailedError
from duly.testing.app_test import AppTest
from duly.testing.changes import created, deleted, emptied, snapshot_row, updated


class Paid(Event, name="order.paid", topic="orders"):
    order_id: int


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


def test_a_rule_that_raises_fails_the_test_and_stores_nothing(app: App, tmp_path: Path) -> None:
    with AppTest(app, tmp_path) as app_test:
        unnamed = created("orders", {"id": 1})  # a row without a status
        with pytest.raises(RuleFailedError, match="ABSENT_VALUE"):
            app_test.feed(unnamed)
        app_test.assert_nothing_published()
