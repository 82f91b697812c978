"""PostgreSQL and ActiveMQ Artemis: the relay.

Every message is durable and in a transaction whose COMMIT the server has answered, on both sides.
Each measurement has an address and a queue of its own, with one reader, who reads nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from bench.load import GROUP, TOPIC, fill_postgres, fill_queue, prepare_postgres
from bench.measure import Row, Sample, Scale, Sides
from bench.places import activemq_prefix, database
from bench.process import run_side
from duly.brokers.activemq import ActiveMQBroker
from duly.brokers.activemq.topology import address_of
from duly.ports import Finding, SubscriptionSpec, TopicSpec

__all__ = ["ROWS"]

BACKLOG = 100_000
RAW_PART = 4  # the raw client shows its speed on a quarter
WHERE = TopicSpec(TOPIC, "event")


class _Ground:
    """A database. backlog: how many messages wait for a side."""

    def __init__(self, url: str, backlog: int) -> None:
        self._url, self._backlog = url, backlog
        prepare_postgres(url)

    def relay(self, module: str, *, ours: bool, **arguments: Any) -> Sample:
        """Drain the outbox of a side; all of it must be in the queue then."""
        raw = max(1000, self._backlog // RAW_PART // 1000 * 1000)
        count = raw if arguments.get("raw") else self._backlog
        fill_postgres(self._url, 0 if arguments.get("raw") else count, ours=ours)
        with activemq_prefix() as broker:
            fill_queue(broker, 0)
            if not ours:
                arguments["address"] = address_of(urlsplit(broker).path[1:], WHERE)
            sample = run_side(module, database=self._url, broker=broker, count=count, **arguments)
            there, durability = asyncio.run(_look(broker))
        if there != count:
            raise RuntimeError(f"{there} messages are in the queue, not {count}")
        return Sample(sample.figure, {**sample.facts, **durability.facts})


async def _look(url: str) -> tuple[int, Finding]:
    """How many messages the queue holds, and how the server keeps them."""
    broker = ActiveMQBroker(url)
    await broker.start()
    try:
        await broker.declare([], [SubscriptionSpec(GROUP, (WHERE,))])
        [topic] = await broker.topics()
        findings = {finding.code: finding for finding in await broker.inspect()}
        return topic.depth, findings["ACTIVEMQ_DURABILITY"]
    finally:
        await broker.close()


@contextmanager
def _relay(scale: Scale) -> Iterator[Sides]:
    backlog = scale.of(BACKLOG, least=1000) // 1000 * 1000
    by_hand = "reference.activemq_relay"
    with database() as url:
        ground = _Ground(url, backlog)
        yield Sides(
            ours=partial(ground.relay, "ours.relay", ours=True),
            reference=partial(ground.relay, by_hand, ours=False, raw=False),
            raw=partial(ground.relay, by_hand, ours=False, raw=True),
            share_least=0.3,
        )


ROWS = (
    Row(
        "postgres relay activemq",
        "messages/s",
        "hand-written loop: select 1000, one STOMP transaction with a receipt per 500, delete",
        _relay,
    ),
)
