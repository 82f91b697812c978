"""PostgreSQL and RabbitMQ: the relay, and the consumer in batches and one by one.

Quorum queues, persistent messages, every publish confirmed and every delivery acknowledged, on both
sides.  Between measurements the queue that is published to is emptied, the one that is read filled.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pika

from bench.load import QUEUE, check_effects, fill_postgres, fill_queue, prepare_postgres
from bench.measure import Row, Sample, Scale, Sides
from bench.places import database, queue_facts, virtual_host
from bench.process import run_side

__all__ = ["ROWS"]

BACKLOG = 100_000
SINGLE = 6_000
RAW_PART = 4  # the raw client shows its speed on a quarter
CONNECTIONS = 4  # of the handlers, as installed
ARRIVES_SECONDS = 10.0


class _Ground:
    """A database and a queue. backlog: how many messages wait for a side."""

    def __init__(self, url: str, broker: str, backlog: int) -> None:
        self._url, self._broker, self._backlog = url, broker, backlog
        self._orders = 0
        prepare_postgres(url)
        fill_queue(broker, 0)

    def relay(self, module: str, *, ours: bool, **arguments: Any) -> Sample:
        """Drain the outbox of a side; all of it must be in the queue then."""
        count = self._backlog // RAW_PART if arguments.get("raw") else self._backlog
        fill_postgres(self._url, 0 if arguments.get("raw") else count, ours=ours)
        with self._channel() as channel:
            channel.queue_purge(QUEUE)
        sample = self._run(module, count=count, **arguments)
        self._check_queue(count)
        return sample

    def consume(self, module: str, *, count: int, **arguments: Any) -> Sample:
        """Handle messages of the backlog; each must have its one effect then."""
        fill_postgres(self._url, 0, ours=True)
        self._fill_up()
        sample = self._run(module, count=count, queue=QUEUE, **arguments)
        if not arguments.get("raw"):
            check_effects(self._url, count)
        return sample

    def _run(self, module: str, **arguments: Any) -> Sample:
        sample = run_side(module, database=self._url, broker=self._broker, **arguments)
        return Sample(sample.figure, {**sample.facts, **queue_facts(self._broker, QUEUE)})

    def _fill_up(self) -> None:
        """Until the backlog is whole again; every order is in it once."""
        with self._channel() as channel:
            there = channel.queue_declare(QUEUE, passive=True).method.message_count
        missing = max(0, self._backlog - there)
        fill_queue(self._broker, missing, first=self._orders)
        self._orders += missing

    @contextmanager
    def _channel(self) -> Iterator[Any]:
        with pika.BlockingConnection(pika.URLParameters(self._broker)) as connection:
            yield connection.channel()

    def _check_queue(self, wanted: int) -> None:
        until = time.monotonic() + ARRIVES_SECONDS
        with self._channel() as channel:
            while (
                there := channel.queue_declare(QUEUE, passive=True).method.message_count
            ) != wanted:
                if time.monotonic() > until:
                    raise RuntimeError(f"{there} messages are in the queue, not {wanted}")
                time.sleep(0.05)


@contextmanager
def _relay(scale: Scale) -> Iterator[Sides]:
    backlog = scale.of(BACKLOG, least=1000) // 1000 * 1000
    with database() as url, virtual_host() as broker:
        ground = _Ground(url, broker, backlog)
        yield Sides(
            ours=partial(ground.relay, "ours.relay", ours=True),
            reference=partial(ground.relay, "reference.rabbitmq_relay", ours=False, raw=False),
            raw=partial(ground.relay, "reference.rabbitmq_relay", ours=False, raw=True),
            share_least=0.5,
        )


@contextmanager
def _consume(scale: Scale, *, batch: bool) -> Iterator[Sides]:
    backlog = scale.of(BACKLOG, least=1000) // 1000 * 1000
    count = backlog if batch else min(backlog, scale.of(SINGLE, least=200))
    connections = 1 if batch else CONNECTIONS
    given = {"batch": batch, "connections": connections}
    with database() as url, virtual_host() as broker:
        ground = _Ground(url, broker, backlog)
        yield Sides(
            ours=partial(ground.consume, "ours.consume", count=count, **given),
            reference=partial(
                ground.consume, "reference.rabbitmq_consume", count=count, raw=False, **given
            ),
            raw=partial(
                ground.consume,
                "reference.rabbitmq_consume",
                count=backlog // RAW_PART,
                raw=True,
                **given,
            ),
            share_least=0.25 if batch else 0.05,
        )


ROWS = (
    Row(
        "postgres relay rabbitmq",
        "messages/s",
        "hand-written loop: select 1000, pipelined confirmed publish (pika SelectConnection, "
        "quorum), delete",
        _relay,
    ),
    Row(
        "postgres consume batch rabbitmq",
        "messages/s",
        "hand-written: receive 1000, dedupe insert, one effect row each, commit, ack",
        partial(_consume, batch=True),
    ),
    Row(
        "postgres consume single rabbitmq",
        "messages/s",
        "the same by hand, one message per transaction, same number of connections",
        partial(_consume, batch=False),
    ),
)
