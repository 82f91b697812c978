from __future__ import annotations

import json
from itertools import product
from typing import Any

from duly.brokers.activemq import topology
from duly.brokers.activemq.topology import address_of, queue_name, sources_of, stranded
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


class Management:
    """Answers like the server's: page by page. taken: by receivers of queues."""

    def __init__(self, taken: list[tuple[str, int]], under_way: dict[str, int]) -> None:
        self._answers: dict[str, list[dict[str, Any]]] = {
            "listConsumers": [{"queue": q, "messagesInTransit": str(n)} for q, n in taken],
            "listQueues": [{"name": q, "deliveringCount": str(n)} for q, n in under_way.items()],
        }

    async def call(self, operation: str, _wanted: str, page: int, size: int) -> str:
        rows = self._answers[operation][(page - 1) * size : page * size]
        return json.dumps({"data": rows})


async def test_what_no_receiver_has_is_stranded(monkeypatch: Any) -> None:
    monkeypatch.setattr(topology, "PAGE", 2)  # several pages
    under_way = {"p.group.a~t": 5, "p.group.b~t": 2, "xp.group.a~t": 9, "p.command.q": 1}
    taken = [("p.group.a~t", 1), ("p.group.a~t", 3), ("p.group.b~t", 2)]
    found = await stranded(Management(taken, under_way), "p")  # type: ignore[arg-type]
    assert found == {"p.group.a~t": 1, "p.command.q": 1}
