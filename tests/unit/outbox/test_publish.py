"""From a message object to a checked, frozen, placed row."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from duly.errors import (
    ConfigurationError,
    DulyError,
    InvalidHeaderError,
    NotSerializableError,
    PayloadTooLargeError,
    PermanentError,
    UnknownTypeError,
)
from duly.kernel import failpoints
from duly.kernel.names import place
from duly.message import Command, Event, Registry
from duly.observe.facts import Fact, Published
from duly.observe.hooks import Hooks
from duly.outbox.publish import UNKEYED, MessageOutlet, PendingMessage
from duly.ports import Result, Statement


class Placed(Event, name="order.placed", topic="orders"):
    order_id: int


class Charge(Command, name="billing.charge", queue="billing", version=3):
    order_id: int


class NoStore:
    def prepare(self, statement: Statement) -> Any:
        raise AssertionError(statement)

    def map_error(self, error: Exception) -> Exception:
        return error

    def create(self) -> Any:
        yield from ()

    def admits(self, connection: Any, *, managed: bool) -> Any:
        raise AssertionError(connection)


@pytest.fixture
def outlet() -> MessageOutlet:
    return MessageOutlet(
        "shop",
        Registry(payload_bytes_max=1000),
        NoStore(),
        ambient=lambda topic: {"traceparent": f"00-{topic}"},
    )


def event(outlet: MessageOutlet, value: Any, **more: Any) -> PendingMessage:
    return PendingMessage(outlet, value, kind="event", **more)


def rows(outlet: MessageOutlet, *entries: PendingMessage) -> list[dict[str, Any]]:
    """Drive ``write`` and give back the rows of its one statement."""
    steps = outlet.write(entries)
    statement = next(steps)
    assert statement.name == "outbox.insert"
    with pytest.raises(StopIteration):
        steps.send(Result([], len(entries)))
    return [dict(row) for row in statement.many or []]


def test_row_of_a_keyed_message(outlet: MessageOutlet) -> None:
    entry = event(outlet, Placed(order_id=7), key="k", headers={"tenant": "a"})
    [row] = rows(outlet, entry)
    headers = json.loads(row.pop("headers"))
    stripe, lane = place("orders", "k")
    assert row == {
        "message_id": entry.id,
        "message_type": "order.placed",
        "kind": "event",
        "topic": "orders",
        "key": "k",
        "lane": lane,
        "stripe": stripe,
        "payload": b'{"order_id":7}',
    }
    said = headers.pop("time")
    moment = datetime.fromisoformat(said)
    assert said == moment.isoformat(timespec="microseconds")
    assert abs(moment - datetime.now(UTC)) < timedelta(minutes=1)
    assert headers == {"tenant": "a", "source": "shop", "traceparent": "00-orders"}
    assert entry.frozen


def test_a_trace_context_of_the_users_own_stays_and_a_late_message_has_no_topic_yet(
    outlet: MessageOutlet,
) -> None:
    asked: list[str] = []
    outlet.ambient = lambda topic: asked.append(topic) or {"traceparent": "ours"}
    own = event(outlet, Placed(order_id=1), headers={"traceparent": "mine"})
    late = event(outlet, lambda: Placed(order_id=2))
    late.resolve()
    assert own.message.headers["traceparent"] == "mine"
    assert late.message.headers["traceparent"] == "ours"
    assert asked == [""]


def test_what_was_committed_is_told_by_topic() -> None:
    hooks = Hooks()
    outlet = MessageOutlet("shop", Registry(), NoStore(), hooks=hooks)
    events = [event(outlet, Placed(order_id=n)) for n in range(3)]
    command = PendingMessage(outlet, Charge(order_id=1), kind="command")
    outlet.committed(events)  # nobody hears
    told: list[Fact] = []
    hooks.add(told.append)
    outlet.committed([*events, command])
    assert told == [
        Published(topic=events[0].message.topic, count=3),
        Published(topic=command.message.topic, count=1),
    ]


def test_command_with_version(outlet: MessageOutlet) -> None:
    [row] = rows(outlet, PendingMessage(outlet, Charge(order_id=1), kind="command"))
    assert (row["kind"], row["topic"], json.loads(row["headers"])["dulyversion"]) == (
        "command",
        "billing",
        "3",
    )


def test_keyless_messages_are_spread_over_all_lanes(outlet: MessageOutlet) -> None:
    found = rows(outlet, *(event(outlet, Placed(order_id=n)) for n in range(128)))
    assert {row["stripe"] for row in found} == {None}
    lanes = [row["lane"] for row in found]
    assert sorted(lanes) == sorted([*range(64), *range(64)])


def test_nothing_to_write_is_no_statement(outlet: MessageOutlet) -> None:
    with pytest.raises(StopIteration):
        next(outlet.write([]))


def test_failpoints_stand_before_and_after_the_statement(outlet: MessageOutlet) -> None:
    seen: list[str] = []
    failpoints.arm(seen.append)
    try:
        steps = outlet.write([event(outlet, Placed(order_id=1))])
        next(steps)
        assert seen == ["outbox.before_flush"]
        with pytest.raises(StopIteration):
            steps.send(Result([], 1))
    finally:
        failpoints.arm(None)
    assert seen == ["outbox.before_flush", "outbox.flushed"]


def test_late_values_are_called_once(outlet: MessageOutlet) -> None:
    calls: list[str] = []

    def value() -> Placed:
        calls.append("value")
        return Placed(order_id=1)

    def key() -> int:
        calls.append("key")
        return 5

    entry = event(outlet, value, key=key)
    assert (calls, entry.frozen, len(entry.id)) == ([], False, 32)
    entry.resolve()
    entry.resolve()
    assert (calls, entry.message.key, entry.frozen) == (["value", "key"], "5", True)


def test_object_with_a_late_key_is_encoded_at_once(outlet: MessageOutlet) -> None:
    with pytest.raises(NotSerializableError):
        event(outlet, Odd(bad=object()), key=lambda: "k")
    entry = event(outlet, Placed(order_id=1), key=lambda: "k")
    assert not entry.frozen
    entry.resolve()
    assert entry.message.payload == b'{"order_id":1}'


class Odd(Event, name="odd", topic="t"):
    bad: Any


class HasCall(Event, name="callable", topic="t"):
    n: int

    def __call__(self) -> None:
        raise AssertionError


def test_message_that_happens_to_be_callable_is_a_message(outlet: MessageOutlet) -> None:
    assert event(outlet, HasCall(n=1)).frozen


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("a", "a"),
        (7, "7"),
        (-7, "-7"),
        (UUID(int=1), str(UUID(int=1))),
        (UNKEYED, None),
        ("é" * 512, "é" * 512),
    ],
)
def test_keys(outlet: MessageOutlet, key: Any, text: str | None) -> None:
    late = event(outlet, lambda: Placed(order_id=1), key=lambda: key)
    late.resolve()
    assert event(outlet, Placed(order_id=1), key=key).message.key == late.message.key == text


def test_a_tombstone_has_a_key_and_no_payload(outlet: MessageOutlet) -> None:
    class Gone(Event, name="order.gone", topic="orders", tombstone=True):
        pass

    assert event(outlet, Gone(), key=7).message.payload == b""
    assert event(outlet, Gone(), key=7).message.key == "7"
    with pytest.raises(PermanentError) as error:
        event(outlet, Gone())
    assert error.value.code == "TOMBSTONE_WITHOUT_KEY"


@pytest.mark.parametrize(
    ("key", "code"),
    [(None, "KEY_IS_NONE")]
    + [(k, "KEY_INVALID") for k in ("", "a\0", "é" * 513, "\ud800", 1.5, True, b"k", ())],
)
def test_refused_keys(outlet: MessageOutlet, key: Any, code: str) -> None:
    with pytest.raises(PermanentError) as now:
        event(outlet, Placed(order_id=1), key=key)
    late = event(outlet, Placed(order_id=1), key=lambda: key)
    with pytest.raises(PermanentError) as then:
        late.resolve()
    assert now.value.code == then.value.code == code
    assert not late.frozen


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (Placed, UnknownTypeError),
        (Odd(bad=float("nan")), NotSerializableError),
        (Odd(bad="x" * 2000), PayloadTooLargeError),
        (Odd(bad={1, object()}), NotSerializableError),
        (Charge(order_id=1), ConfigurationError),
        (42, UnknownTypeError),
        (None, UnknownTypeError),
    ],
)
def test_refused_messages(outlet: MessageOutlet, value: Any, error: type[DulyError]) -> None:
    if value is not None and not isinstance(value, int):
        late = event(outlet, lambda: value)
        with pytest.raises(error):
            late.resolve()
        assert not late.frozen
    if not isinstance(value, type) or value is Placed:
        with pytest.raises(error):
            late = event(outlet, value)
            late.resolve()


def test_wrong_verb_names_the_right_one(outlet: MessageOutlet) -> None:
    with pytest.raises(ConfigurationError, match="use send") as caught:
        event(outlet, Charge(order_id=1))
    assert caught.value.code == "WRONG_VERB"
    with pytest.raises(ConfigurationError, match="use publish"):
        PendingMessage(outlet, Placed(order_id=1), kind="command")


@pytest.mark.parametrize("headers", [{"source": "x"}, {"a": "b\n"}, {"a b": "c"}, {"a": 1}])
def test_refused_headers(outlet: MessageOutlet, headers: Any) -> None:
    with pytest.raises(InvalidHeaderError):
        event(outlet, Placed(order_id=1), headers=headers)


def test_commit_wakes_the_relay() -> None:
    woken: list[int] = []
    outlet = MessageOutlet("shop", Registry(), NoStore(), wake=lambda: woken.append(1))
    outlet.committed([event(outlet, Placed(order_id=1))])
    assert woken == [1]


def test_an_id_can_be_given_where_the_same_cause_must_give_the_same(
    outlet: MessageOutlet,
) -> None:
    given = PendingMessage(outlet, Placed(order_id=1), kind="event", id="of-the-cause")
    assert given.id == given.message.id == "of-the-cause"
