from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from pika.exceptions import ChannelClosedByBroker, ConnectionWrongStateError

from duly.brokers.rabbitmq.settings import parse
from duly.brokers.rabbitmq.topology import (
    count_steps,
    declare_steps,
    drive,
    exchange_name,
    queue_name,
    refusal,
    route,
)
from duly.errors import BrokerUnavailableError, ConfigurationError
from duly.ports import SubscriptionSpec, TopicSpec

SETTINGS = parse("amqp://localhost/")
ORDERS, WORK = TopicSpec("orders", "event"), TopicSpec("work", "command")


class Channel:
    """Notes what is asked of it and answers at once."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        def call(*args: Any, callback: Callable[[Any], None], **options: Any) -> None:
            self.calls.append((name, args, options))
            callback(f"reply to {name}")

        return call


def declared(*specs: SubscriptionSpec, topics: tuple[TopicSpec, ...] = ()) -> list[Any]:
    channel, done = Channel(), []
    drive(
        channel,
        declare_steps(channel, SETTINGS, topics=topics, subscriptions=specs),
        lambda: done.append(1),
    )
    assert done == [1]
    return channel.calls


def test_two_groups_and_topics_never_share_a_queue() -> None:
    words = ["a", "b", "a.b", "b.c", "a.b.c", "amq", "amq.a", "c"]
    pairs = itertools.product(words, [TopicSpec(w, "event") for w in words])
    commands = {queue_name("any", TopicSpec(w, "command")) for w in words}
    events = [queue_name(group, topic) for group, topic in pairs]
    assert len(set(events)) == len(events)
    assert not commands & set(events)
    assert not [name for name in commands | set(events) if name.startswith("amq.")]


def test_a_command_queue_is_the_same_for_every_group() -> None:
    assert queue_name("a", WORK) == queue_name("b", WORK) == "work"


def test_routes() -> None:
    assert route("event", "orders", "order.placed") == ("orders", "order.placed")
    assert route("event", "amq.x", "t") == ("~amq.x", "t") == (exchange_name("amq.x"), "t")
    assert route("command", "work", "t") == ("", "work")
    assert route("command", "amq.work", "t")[1] == queue_name("", TopicSpec("amq.work", "command"))


def test_an_event_group_is_an_exchange_a_queue_and_a_binding() -> None:
    quorum = {"durable": True, "arguments": {"x-queue-type": "quorum"}}
    assert declared(SubscriptionSpec("g", (ORDERS,))) == [
        ("exchange_declare", ("orders",), {"exchange_type": "topic", "durable": True}),
        ("queue_declare", ("g:orders",), quorum),
        ("queue_bind", ("g:orders", "orders"), {"routing_key": "#"}),
    ]


def test_ordered_means_one_active_consumer() -> None:
    (call,) = declared(SubscriptionSpec("g", (WORK,), ordered=True))
    assert call[2]["arguments"] == {"x-queue-type": "quorum", "x-single-active-consumer": True}


def test_who_only_sends_makes_no_queue() -> None:
    assert declared(topics=(WORK,)) == []
    assert [name for name, _, _ in declared(topics=(ORDERS, ORDERS))] == ["exchange_declare"]


def test_counting_asks_each_queue_once_and_makes_none() -> None:
    channel = Channel()
    counts: dict[str, tuple[int, int]] = {}
    steps = count_steps(channel, ["a", "b", "a"], counts)
    reply: Any = None
    for queue in ("a", "b"):
        step: Any = steps.send(reply)
        assert step.args == (queue,)
        assert step.keywords == {"passive": True}
        reply = type("Reply", (), {})()
        reply.method = type("Ok", (), {"message_count": 3, "consumer_count": 1})()
    with pytest.raises(StopIteration):
        steps.send(reply)
    assert counts == {"a": (3, 1), "b": (3, 1)}


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (403, ConfigurationError),
        (405, ConfigurationError),
        (406, ConfigurationError),
        (404, BrokerUnavailableError),
        (541, BrokerUnavailableError),
    ],
)
def test_what_the_server_says_is_kept(code: int, kind: type[Exception]) -> None:
    error = refusal(ChannelClosedByBroker(code, "inequivalent arg 'x-a' for queue 'q'"))
    assert type(error) is kind
    assert "queue 'q'" in error.detail


def test_a_lost_connection_has_no_code() -> None:
    assert isinstance(refusal(ConnectionWrongStateError("gone")), BrokerUnavailableError)
