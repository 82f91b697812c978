"""Every decision about a received message, without a database."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from duly.inbox.context import ConsumeContext
from duly.inbox.ending import End
from duly.inbox.handlers import HandlerRegistry
from duly.inbox.intake import NO_HANDLER, Intake, seconds_since, sort
from duly.kernel.backoff import Retry
from duly.message import HEADER_TIME, HEADER_UNDECODABLE, Command, Event, Message, Registry
from duly.observe.hooks import Hooks
from duly.ports import Delivery

WINDOW = timedelta(days=7)


class Placed(Event, name="order.placed", topic="orders", version=2):
    order_id: int


class Charge(Command, name="billing.charge", queue="billing"):
    order_id: int


class Desk:
    """What ``sort`` needs of a context."""

    def __init__(self) -> None:
        self.registry = Registry()
        self.handlers = HandlerRegistry(self.registry)
        self.handlers.on(Placed, group="sales")(lambda event: None)
        self.context = ConsumeContext(
            database=None,  # type: ignore[arg-type]  # nothing here may wait for one
            registry=self.registry,
            handlers=self.handlers,
            outlet=None,  # type: ignore[arg-type]
            hooks=Hooks(),
            deadlines=None,  # type: ignore[arg-type]
            dedupe_window_seconds=WINDOW.total_seconds(),
        )

    def sort(self, *deliveries: Delivery, group: str = "sales") -> Intake:
        return sort(self.context, group, deliveries)


@pytest.fixture
def desk() -> Desk:
    return Desk()


def delivered(
    *,
    redelivered: bool = False,
    position: str = "7",
    headers: dict[str, str] | None = None,
    **m: Any,
) -> Delivery:
    fields = {
        "id": "m1",
        "type": "order.placed",
        "kind": "event",
        "topic": "orders",
        "key": None,
        "payload": b'{"order_id":1}',
        "headers": ({} if "type" in m else {"dulyversion": "2"}) | (headers or {}),
    }
    return Delivery(Message(**(fields | m)), object(), "orders/0", position, redelivered)


def held(intake: Intake) -> list[str]:
    assert intake.entries == intake.doubtful == []
    assert not intake.skipped
    return [
        f"{one.unhandled.ending.end.value} {one.unhandled.ending.error.partition(':')[0]}"
        for one in intake.stored
    ]


# --- what is it -----------------------------------------------------------------------------------
def test_a_handled_message_is_an_entry_by_its_id_and_source(desk: Desk) -> None:
    one, other = delivered(), delivered(headers={"source": "west"})
    intake = desk.sort(one, other)
    assert intake.order == [one, other]
    assert [entry.identity.dedupe_key for entry in intake.entries] == ["m1\x1f", "m1\x1fwest"]
    assert {entry.handler.name for entry in intake.entries} == {"sales.order.placed"}
    assert intake.stored == intake.doubtful == []


@pytest.mark.parametrize(
    ("delivery", "expected"),
    [
        (delivered(headers={"dulyversion": "3"}), "held NEWER_VERSION"),
        (delivered(headers={"dulyversion": "1"}), "held UNKNOWN_VERSION"),
        (delivered(type="billing.other", kind="command"), "held UNKNOWN_TYPE"),
        (delivered(type="", headers={HEADER_UNDECODABLE: "illegal id"}), "held UNDECODABLE"),
        (delivered(headers={HEADER_UNDECODABLE: "header 'a' ..."}), "held UNDECODABLE"),
        (delivered(headers={HEADER_TIME: "2020-01-01T00:00:00Z"}), "held DEDUPE_WINDOW_PASSED"),
    ],
)
def test_what_waits_for_a_person(desk: Desk, delivery: Delivery, expected: str) -> None:
    desk.registry.declare(type("Old", (), {}), "order.placed", kind="event", topic="orders")
    assert held(desk.sort(delivery)) == [expected]


def test_the_reason_of_a_broken_envelope_is_kept(desk: Desk) -> None:
    reasons = ["illegal id", "header 'a' with CR, LF or NUL"]
    intake = desk.sort(*(delivered(headers={HEADER_UNDECODABLE: r}) for r in reasons))
    errors = [one.unhandled.ending.error for one in intake.stored]
    assert errors == [f"UNDECODABLE: {reason}" for reason in reasons]


def test_an_event_of_another_type_is_counted_and_let_go(desk: Desk) -> None:
    intake = desk.sort(delivered(type="order.paid"), delivered(type="order.paid"))
    assert intake.skipped == {"order.paid": 2}
    assert intake.entries == intake.stored == []


def test_the_window_is_counted_from_when_it_was_first_sent(desk: Desk) -> None:
    now = datetime.now(UTC)
    inside, outside = (now - WINDOW + timedelta(minutes=m) for m in (1, -1))
    good = [
        delivered(headers={HEADER_TIME: text})
        for text in (inside.isoformat(), inside.replace(tzinfo=None).isoformat(), "", "no time")
    ]
    assert len(desk.sort(*good).entries) == 4
    assert held(desk.sort(delivered(headers={HEADER_TIME: outside.isoformat()}))) == [
        "held DEDUPE_WINDOW_PASSED"
    ]


def test_how_long_ago_is_never_negative_nor_guessed() -> None:
    past = (datetime.now(UTC) - timedelta(seconds=90)).isoformat()
    future = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    ages = [
        seconds_since(delivered(headers={HEADER_TIME: text}).message)
        for text in (past, future, "no time")
    ]
    assert 90 <= ages[0] < 100
    assert ages[1:] == [0.0, 0.0]


# --- business keys --------------------------------------------------------------------------------
def test_a_business_key_is_the_identity_and_the_value_is_not_decoded_again(desk: Desk) -> None:
    desk.handlers.handle(Charge, dedupe=lambda c: c.order_id)(lambda command: None)
    charge = {"type": "billing.charge", "kind": "command", "topic": "billing"}
    intake = desk.sort(delivered(**charge), group="billing")
    (entry,) = intake.entries
    assert (entry.identity.dedupe_key, entry.decoded, entry.value) == (
        "1",
        True,
        Charge(order_id=1),
    )


@pytest.mark.parametrize(
    ("dedupe", "retry", "expected"),
    [
        (lambda c: None, Retry(), "failed DEDUPE_KEY_INVALID"),
        (lambda c: 1 // 0, Retry(), "retry ZeroDivisionError"),
    ],
)
def test_a_key_that_cannot_be_computed(
    desk: Desk, dedupe: Any, retry: Retry, expected: str
) -> None:
    desk.handlers.handle(Charge, dedupe=dedupe, retry=retry)(lambda command: None)
    charge = {"type": "billing.charge", "kind": "command", "topic": "billing"}
    intake = desk.sort(delivered(**charge), group="billing")
    assert held(intake) == [expected]
    ending = intake.stored[0].unhandled.ending
    assert (ending.due_in_seconds > 0) == (ending.end is End.RETRY), "the retry is dated"


# --- without an id --------------------------------------------------------------------------------
def test_without_an_id_the_place_is_the_identity(desk: Desk) -> None:
    one, again, next_one = (
        desk.sort(delivered(id="", position=p, redelivered=r)).entries[0].identity.dedupe_key
        for p, r in (("7", False), ("7", True), ("8", False))
    )
    assert one == again == "orders/0/7\x1f"
    assert next_one != one


def test_without_a_place_equal_messages_that_come_first_are_both_new(desk: Desk) -> None:
    intake = desk.sort(delivered(id="", position=""), delivered(id="", position=""))
    ids = {entry.delivery.message.id for entry in intake.entries}
    keys = {entry.identity.dedupe_key for entry in intake.entries}
    assert (len(ids), len(keys), intake.doubtful) == (1, 2, [])
    (content,) = ids
    assert content.startswith("content-")
    assert all(key.startswith(f"{content}\x1f") for key in keys), "found by their id"
    assert [delivery.message.id for delivery in intake.order] == [content] * 2


def test_what_comes_again_is_handled_unless_its_content_was_received_before(desk: Desk) -> None:
    again = delivered(id="", position="", redelivered=True)
    other = delivered(id="", position="", redelivered=True, payload=b'{"order_id":2}')
    intake = desk.sort(again, other)
    assert intake.entries == intake.stored == []
    known = intake.doubtful[0].delivery.message.id
    assert known == desk.sort(delivered(id="", position="")).entries[0].delivery.message.id
    intake.decide({known})
    assert [one.unhandled.ending.error.partition(":")[0] for one in intake.stored] == [
        "NO_MESSAGE_ID"
    ]
    assert [entry.delivery.message.payload for entry in intake.entries] == [b'{"order_id":2}']
    assert intake.doubtful == []


def test_a_business_key_leaves_no_doubt(desk: Desk) -> None:
    desk.handlers.handle(Charge, dedupe=lambda c: c.order_id)(lambda command: None)
    charge = {"type": "billing.charge", "kind": "command", "topic": "billing"}
    again = delivered(id="", position="", redelivered=True, **charge)
    intake = desk.sort(again, group="billing")
    assert [entry.identity.dedupe_key for entry in intake.entries] == ["1"]
    assert intake.doubtful == []


def test_two_equal_ones_that_are_stored_are_two_rows(desk: Desk) -> None:
    command = {"type": "billing.other", "kind": "command"}
    intake = desk.sort(*(delivered(id="", position="", **command) for _ in range(2)))
    identities = {one.unhandled.identity for one in intake.stored}
    assert len(identities) == 2
    assert {identity.handler for identity in identities} == {NO_HANDLER}
