from __future__ import annotations

from collections.abc import Iterator

from duly import Change, ChangeTx, Intent, Transaction
from duly.cdc.explain import explain
from duly.cdc.registry import RuleRegistry
from duly.message import Registry
from duly.testing.changes import created, deleted, transaction_of, updated
from tests.unit.cdc.world import Paid

BEFORE, AFTER = {"id": 1, "status": "placed"}, {"id": 1, "status": "paid"}


def made() -> RuleRegistry:
    registry = RuleRegistry("shop")

    @registry.rule(table="orders")
    def paid(change: Change) -> Iterator[Paid]:
        if change.became("status", "paid") and change.intent("Checkout"):
            yield Paid(order_id=1)

    @registry.rule(table="orders")
    def other(change: Change) -> Iterator[object]:
        if change.created or change.deleted or not change.changed("status"):
            return
        if change.moved("status", "placed", "paid"):
            yield {"no": "event"}
            raise ZeroDivisionError

    @registry.rule(table="orders", transaction=True)
    def whole(transaction: Transaction) -> None:
        return None

    return registry


def test_every_rule_says_what_it_asked_and_what_it_would_make() -> None:
    checkout = (Intent("Checkout"),)
    transaction = transaction_of([updated("orders", BEFORE, AFTER)], intents=checkout)
    paid, other, whole = explain(made().stream(), [transaction], Registry())
    assert paid.asked == ("became('status', 'paid') = True", "intent('Checkout') = True")
    event_id = transaction.changes[0].event_id("paid")
    assert (paid.emitted, paid.error) == ((("order.paid", event_id),), "")
    assert other.asked[:3] == (
        "created = False",
        "deleted = False",
        "changed('status') = True",
    )
    assert other.asked[3] == "moved('status', 'placed', 'paid') = True"
    assert other.emitted[0][0] == "dict (no event or command)"
    assert other.error == "ZeroDivisionError"
    assert (whole.rule, whole.ordinal, whole.emitted) == ("whole", -1, ())


def test_a_rule_that_writes_is_not_run() -> None:
    registry = RuleRegistry("shop")

    @registry.rule(table="orders")
    def mirror(change: Change, tx: ChangeTx) -> None:
        raise AssertionError(change, tx)

    changes = [created("lines", BEFORE), created("orders", BEFORE)]
    (line,) = explain(registry.stream(), [transaction_of(changes)], Registry())
    assert (line.rule, line.ordinal, line.asked, line.error) == (
        "mirror",
        1,
        ("it writes (tx)",),
        "",
    )
    assert not line.ran


def test_why_not() -> None:
    changes = [created("lines", BEFORE), created("orders", BEFORE), deleted("orders", BEFORE)]
    lines = list(explain(made().stream(), [transaction_of(changes)], Registry()))
    told = [(line.rule, line.ordinal, line.asked, line.emitted, line.error) for line in lines]
    assert told == [
        ("paid", 1, ("became('status', 'paid') = False",), (), ""),
        ("paid", 2, ("became('status', 'paid') = False",), (), ""),
        ("other", 1, ("created = True",), (), ""),
        ("other", 2, ("created = False", "deleted = True"), (), ""),
        ("whole", -1, (), (), ""),
    ]
