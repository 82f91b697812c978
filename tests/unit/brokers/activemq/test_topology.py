from __future__ import annotations

from itertools import product

from duly.brokers.activemq.topology import address_of, queue_name, sources_of
from duly.ports import SubscriptionSpec, TopicSpec

WORDS = ("a", "a.b", "b.c", "b", "c", "group.a", "event.a")


def test_no_two_topics_or_groups_share_a_name() -> None:
    topics = [TopicSpec(word, kind) for word, kind in product(WORDS, ("event", "command"))]
    assert len({address_of("p", topic) for topic in topics}) == len(topics)
    events = [topic for topic in topics if topic.kind == "event"]
    queues = {queue_name("p", group, topic) for group, topic in product(WORDS, events)}
    assert len(queues) == len(WORDS) * len(events)


def test_a_command_has_one_queue_whatever_the_group() -> None:
    queue = TopicSpec("billing", "command")
    assert queue_name("p", "a", queue) == queue_name("p", "b", queue) == "p.command.billing"


def test_a_subscription_reads_each_topic_once() -> None:
    topic = TopicSpec("orders", "event")
    assert sources_of("p", SubscriptionSpec("g", (topic, topic))) == [
        (topic, "p.event.orders", "p.group.g~orders")
    ]
