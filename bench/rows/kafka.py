"""Kafka: the relay from PostgreSQL and from MariaDB, and the consumer in batches.

Every record is confirmed by all in-sync replicas and every offset committed after the effects, on
both sides. Both read a topic of the same partitions from its start, each in a group of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from bench.load import (
    GROUP,
    TOPIC,
    check_effects,
    fill_mariadb,
    fill_postgres,
    fill_queue,
    prepare_mariadb,
    prepare_postgres,
)
from bench.measure import Row, Sample, Scale, Sides
from bench.places import database, kafka_prefix, mariadb
from bench.process import run_side
from duly.brokers.kafka.topology import topic_name

__all__ = ["ROWS"]

BACKLOG = 100_000
RAW_PART = 4  # the raw client shows its speed on a quarter


class _Ground:
    """A database and topics. backlog: how many messages wait for a side; fill: puts them there.

    Each measurement of the relay has a topic of its own: a log is not emptied, it is left behind.
    """

    def __init__(self, url: str, broker: str, backlog: int, *, fill: Callable[..., None]) -> None:
        self._url, self._broker, self._backlog, self._fill = url, broker, backlog, fill
        self._servers = urlsplit(broker).netloc
        self._client = AdminClient({"bootstrap.servers": self._servers})
        self._rounds = 0

    def relay(self, module: str, *, ours: bool, **arguments: Any) -> Sample:
        """Drain the outbox of a side; all of it must be in the topic then."""
        raw = max(1000, self._backlog // RAW_PART // 1000 * 1000)
        count = raw if arguments.get("raw") else self._backlog
        self._fill(self._url, 0 if arguments.get("raw") else count, ours=ours)
        broker = self._fresh()
        fill_queue(broker, 0)
        sample = self._run(module, broker, count=count, **arguments)
        if (there := self._depth(broker)) != count:
            raise RuntimeError(f"{there} messages are in the topic, not {count}")
        return sample

    def consume(self, module: str, *, count: int, **arguments: Any) -> Sample:
        """Handle the backlog; each message must have its one effect then."""
        self._fill(self._url, 0, ours=True)
        broker = self._fresh()
        fill_queue(broker, count)
        sample = self._run(module, broker, count=count, **arguments)
        if not arguments.get("raw"):
            check_effects(self._url, count)
        return sample

    def _fresh(self) -> str:
        self._rounds += 1
        parts = urlsplit(self._broker)
        return parts._replace(path=f"{parts.path}-{self._rounds}").geturl()

    def _run(self, module: str, broker: str, **arguments: Any) -> Sample:
        topic = topic_name("event", TOPIC, f"{urlsplit(broker).path[1:]}.")
        given = {"topic": topic, "servers": self._servers, "group": f"{GROUP}-{uuid4().hex}"}
        if not module.startswith("ours"):
            arguments |= given
        sample = run_side(module, database=self._url, broker=broker, **arguments)
        server = os.environ.get("DULY_TEST_KAFKA_SERVER", "a Kafka given by DULY_TEST_KAFKA")
        return Sample(sample.figure, {**sample.facts, "server": server, "acks": "all"})

    def _depth(self, broker: str) -> int:
        topic = topic_name("event", TOPIC, f"{urlsplit(broker).path[1:]}.")
        partitions = self._client.list_topics(topic, timeout=30).topics[topic].partitions
        asked = {TopicPartition(topic, number): OffsetSpec.latest() for number in partitions}
        return sum(one.result(30).offset for one in self._client.list_offsets(asked).values())


@contextmanager
def _relay(scale: Scale) -> Iterator[Sides]:
    with database() as url, kafka_prefix() as broker:
        prepare_postgres(url)
        ground = _Ground(url, broker, _backlog(scale), fill=fill_postgres)
        yield _relays(ground, "reference.kafka_relay", share_least=0.3)


@contextmanager
def _relay_mariadb(scale: Scale) -> Iterator[Sides]:
    with mariadb() as url, kafka_prefix() as broker:
        prepare_mariadb(url)
        ground = _Ground(url, broker, _backlog(scale), fill=fill_mariadb)
        yield _relays(ground, "reference.mariadb_kafka_relay", share_least=0.1)


def _backlog(scale: Scale) -> int:
    return scale.of(BACKLOG, least=1000) // 1000 * 1000


def _relays(ground: _Ground, by_hand: str, *, share_least: float) -> Sides:
    return Sides(
        ours=partial(ground.relay, "ours.relay", ours=True),
        reference=partial(ground.relay, by_hand, ours=False, raw=False),
        raw=partial(ground.relay, by_hand, ours=False, raw=True),
        share_least=share_least,
    )


@contextmanager
def _consume(scale: Scale) -> Iterator[Sides]:
    backlog = _backlog(scale)
    by_hand = "reference.kafka_consume"
    with database() as url, kafka_prefix() as broker:
        prepare_postgres(url)
        ground = _Ground(url, broker, backlog, fill=fill_postgres)
        ours = partial(ground.consume, "ours.consume", count=backlog, batch=True, connections=1)
        part = max(1000, backlog // RAW_PART)
        yield Sides(
            ours=ours,
            reference=partial(ground.consume, by_hand, count=backlog, raw=False),
            raw=partial(ground.consume, by_hand, count=part, raw=True),
            share_least=0.05,
        )


ROWS = (
    Row(
        "postgres relay kafka",
        "messages/s",
        "hand-written loop: select 1000, produce with acks=all and idempotence, every delivery "
        "report (confluent-kafka), delete",
        _relay,
    ),
    Row(
        "mariadb relay kafka",
        "messages/s",
        "hand-written loop on MariaDB (PyMySQL): select 1000, produce with acks=all and "
        "idempotence, every delivery report (confluent-kafka), delete",
        _relay_mariadb,
    ),
    Row(
        "postgres consume batch kafka",
        "messages/s",
        "hand-written: consume 1000, dedupe insert, one effect row each, commit, commit offsets",
        _consume,
    ),
)
