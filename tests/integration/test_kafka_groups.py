"""Kafka's groups: rebalances, slow handlers, shortened logs. Nothing undone is ever committed."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient

from duly.brokers.kafka import KafkaBroker, consumer
from duly.brokers.kafka.control import Control
from duly.brokers.kafka.progress import LEFT
from duly.brokers.kafka.settings import parse
from duly.ports import Delivery, SubscriptionSpec, TopicSpec
from duly.testing.broker_target import Receiver, event, join, message, quiet, send


@pytest.fixture
async def pair(kafka_url: str) -> AsyncIterator[tuple[KafkaBroker, KafkaBroker]]:
    brokers = KafkaBroker(kafka_url), KafkaBroker(kafka_url)
    for broker in brokers:
        await broker.start()
    yield brokers
    for broker in brokers:
        await broker.close()


async def committed(url: str, group: str) -> dict[tuple[str, int], int]:
    settings = parse(url)

    def ask() -> dict[tuple[str, int], int]:
        with Control(settings) as control:
            known, _ = control.partitions()
            own = {name: n for name, n in known.items() if name.startswith(settings.prefix)}
            places = [(name, number) for name, n in own.items() for number in range(n)]
            return control.committed(settings.prefix + group, places)

    return await asyncio.to_thread(ask)


def place(delivery: Delivery) -> tuple[str, int]:
    topic, _, partition = delivery.source.rpartition("/")
    return topic, int(partition)


async def test_a_rebalance_while_handling_commits_nothing_that_is_not_done(
    kafka_url: str, pair: tuple[KafkaBroker, KafkaBroker]
) -> None:
    one, two = pair
    topic = event()
    first = await join(one, "readers", topic, acking=False)
    await send(one, [message(topic, n, key=f"k{n}") for n in range(80)])
    await first.receive(80)
    done = [d for d in first.deliveries if int(d.position) % 3]
    undone = [d for d in first.deliveries if not int(d.position) % 3]
    await first.subscription.ack([d.token for d in done])
    second = await join(two, "readers", topic, acking=False)
    await second.until(lambda: bool(second.ids), 30.0, "what had moved")
    moved = {place(d) for d in second.deliveries}
    assert moved < {place(d) for d in first.deliveries}, "it moved partition by partition"
    await first.subscription.ack([d.token for d in first.deliveries])  # too late for what moved
    await first.close()
    wanted = {d.message.id for d in undone if place(d) in moved}
    await second.until(lambda: wanted <= set(second.ids), 30.0, "what was not done")
    await second.close()
    offsets = await committed(kafka_url, "readers")
    for where in moved:
        assert offsets[where] <= min(int(d.position) for d in undone if place(d) == where)


async def test_a_slow_handler_keeps_its_partitions(
    kafka_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = consumer._configuration

    def hasty(*given: Any) -> dict[str, Any]:
        return usual(*given) | {"max.poll.interval.ms": 1500}

    monkeypatch.setattr(consumer, "_configuration", hasty)
    broker = KafkaBroker(f"{kafka_url}?partitions=1&session_timeout=1")
    await broker.start()
    topic = event()
    spec = SubscriptionSpec("readers", (topic,), prefetch=5)
    receiver = Receiver(await broker.subscribe(spec), acking=False)
    await send(broker, [message(topic, n) for n in range(8)])
    await receiver.receive(5)
    await asyncio.sleep(3.0)  # twice as long as the group lets a member be silent
    await quiet(receiver, 5)
    await receiver.ack_all()
    await receiver.receive(8)
    await receiver.ack_all()
    assert [d.position for d in receiver.deliveries] == [str(n) for n in range(8)]
    await broker.close()
    assert list((await committed(kafka_url, "readers")).values()) == [8]


async def test_what_is_written_after_the_assignment_is_new(kafka_url: str) -> None:
    broker = KafkaBroker(f"{kafka_url}?partitions=1")
    await broker.start()
    topic = event()
    spec = SubscriptionSpec("readers", (topic,))
    await broker.declare([topic], [spec])
    await send(broker, [message(topic, n) for n in range(3)])
    await say_nothing_of_good_order(kafka_url, topic)
    receiver = Receiver(await broker.subscribe(spec))
    await receiver.receive(3)
    await send(broker, [message(topic, n) for n in range(3, 6)])
    await receiver.receive(6)
    assert [d.redelivered for d in receiver.deliveries] == [True] * 3 + [False] * 3
    await broker.close()


@asynccontextmanager
async def beside(kafka_url: str, topic: TopicSpec) -> AsyncIterator[tuple[Consumer, str]]:
    """A client of the group that reads nothing, and Kafka's name of the topic."""
    parts = urlsplit(kafka_url)
    name = parts.path[1:]
    other = Consumer({"bootstrap.servers": parts.netloc, "group.id": f"{name}.readers"})
    yield other, f"{name}.{topic.name}"
    other.close()


async def say_nothing_of_good_order(kafka_url: str, topic: TopicSpec) -> None:
    """Commit as somebody does who goes on: the offset alone."""
    async with beside(kafka_url, topic) as (other, name):
        place = TopicPartition(name, 0, 0)
        await asyncio.to_thread(other.commit, offsets=[place], asynchronous=False)


async def said(kafka_url: str, topic: TopicSpec) -> tuple[int, str]:
    """What was committed last: the offset and its metadata."""
    async with beside(kafka_url, topic) as (other, name):
        (found,) = await asyncio.to_thread(other.committed, [TopicPartition(name, 0)], timeout=10)
        return found.offset, found.metadata or ""


async def test_only_what_may_have_ended_a_process_is_doubtful(kafka_url: str) -> None:
    broker = KafkaBroker(f"{kafka_url}?partitions=1&session_timeout=1")
    await broker.start()
    topic = event()
    spec = SubscriptionSpec("readers", (topic,), prefetch=4)
    await broker.declare([topic], [spec])
    await send(broker, [message(topic, n) for n in range(20)])
    first = Receiver(await broker.subscribe(spec), acking=False)
    await first.receive(4)
    await first.subscription.ack([d.token for d in first.deliveries[:2]])
    await first.subscription.release([d.token for d in first.deliveries[2:4]])
    await first.close()
    second = Receiver(await broker.subscribe(spec), acking=False)
    await second.receive(4)
    assert [d.position for d in second.deliveries[:4]] == ["2", "3", "4", "5"]
    await second.close()  # with all of them: as if it had died
    third = Receiver(await broker.subscribe(spec))
    await third.receive(18)
    seen = [d.redelivered for one in (first, second, third) for d in one.deliveries]
    assert not any(seen[:8]), "the group is new, and the first receiver had left in good order"
    assert all(seen[8:])
    await broker.close()


async def test_who_dies_of_its_first_record_leaves_a_doubt(kafka_url: str) -> None:
    broker = KafkaBroker(f"{kafka_url}?partitions=1&session_timeout=1")
    await broker.start()
    topic = event()
    spec = SubscriptionSpec("readers", (topic,))
    await broker.declare([topic], [spec])
    assert await said(kafka_url, topic) == (0, LEFT)
    await send(broker, [message(topic, 0)])
    receiver = Receiver(await broker.subscribe(spec), acking=False)
    await receiver.receive(1)
    assert not receiver.deliveries[0].redelivered
    assert await said(kafka_url, topic) == (0, ""), "said before it was handed out"
    await receiver.ack_all()
    await receiver.close()
    assert await said(kafka_url, topic) == (1, LEFT)
    await broker.close()


async def test_a_log_that_was_shortened_is_said_and_read_on(
    kafka_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    broker = KafkaBroker(f"{kafka_url}?partitions=1")
    await broker.start()
    topic = event()
    spec = SubscriptionSpec("readers", (topic,))
    await broker.declare([topic], [spec])
    sent = [message(topic, n) for n in range(10)]
    await send(broker, sent)
    parts = urlsplit(kafka_url)
    gone = [TopicPartition(f"{parts.path[1:]}.{topic.name}", 0, 6)]
    with AdminClient({"bootstrap.servers": parts.netloc}) as client:
        for future in client.delete_records(gone).values():
            await asyncio.to_thread(future.result, 20)
    with caplog.at_level(logging.ERROR):
        receiver = Receiver(await broker.subscribe(spec))
        await receiver.receive(4)
    assert receiver.ids == [m.id for m in sent[6:]]
    assert [r.code for r in caplog.records if hasattr(r, "code")] == ["GROUP_HISTORY_LOST"]
    await broker.close()


async def test_what_is_given_back_comes_again_in_order(kafka_url: str) -> None:
    broker = KafkaBroker(f"{kafka_url}?partitions=1")
    await broker.start()
    topic = event()
    receiver = await join(broker, "readers", topic, acking=False, ordered=True, prefetch=30)
    sent = [message(topic, n) for n in range(60)]
    await send(broker, sent)
    await receiver.receive(30)
    began = time.monotonic()
    await receiver.subscription.ack([d.token for d in receiver.deliveries[:10]])
    await receiver.subscription.release([d.token for d in receiver.deliveries[10:30]])
    await receiver.until(lambda: len(receiver.ids) >= 50)
    assert time.monotonic() - began > 0.5, "others had a moment to take it"
    again = receiver.deliveries[30:]
    order = [int(d.message.payload) for d in again if int(d.message.payload) >= 10]
    assert order[-20:] == sorted(order[-20:])
    while len(set(receiver.ids)) < 60:
        had = len(receiver.ids)
        await receiver.ack_all()
        await receiver.until(lambda had=had: len(receiver.ids) > had)  # type: ignore[misc]
    await receiver.ack_all()
    await broker.close()
    assert list((await committed(kafka_url, "readers")).values()) == [60]
