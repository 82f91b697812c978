from __future__ import annotations

from duly.brokers.kafka.topology import group_id, groups_of, topic_name
from duly.ports import SubscriptionSpec, TopicSpec

ORDERS, BILLING = TopicSpec("orders", "event"), TopicSpec("billing", "command")


def test_an_event_topic_and_a_queue_of_one_name_are_apart() -> None:
    assert topic_name("event", "orders") == "orders"
    assert topic_name("command", "orders") == "_command.orders"
    assert topic_name("event", "orders", "test.") == "test.orders"
    assert topic_name("command", "orders", "test.") == "_command.test.orders"


def test_a_queue_has_one_group_whoever_reads_it() -> None:
    assert group_id("here", BILLING) == group_id("there", BILLING) == "_command.billing"
    assert group_id("here", ORDERS) == "here"
    assert group_id("here", ORDERS, "test.") == "test.here"


def test_a_subscription_reads_its_queues_in_groups_of_their_own() -> None:
    spec = SubscriptionSpec("sales", (ORDERS, BILLING, TopicSpec("returns", "event")))
    groups = groups_of(spec)
    assert {group: list(read) for group, read in groups.items()} == {
        "sales": ["orders", "returns"],
        "_command.billing": ["_command.billing"],
    }
