"""Kafka behind a network that fails: outcomes never say more than is known, and it recovers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest

from duly.brokers.kafka import KafkaBroker
from duly.errors import BrokerUnavailableError
from duly.message import Message
from duly.ports import Outcome, OutcomeKind, SubscriptionSpec, TopicSpec
from duly.testing.broker_target import Receiver, event, message
from duly.testing.fault_proxy import DROP_REPLIES, PASS, REFUSE, SILENT, Fault, FaultProxy

CONFIRMED, UNKNOWN, UNAVAILABLE = (
    OutcomeKind.CONFIRMED,
    OutcomeKind.UNKNOWN,
    OutcomeKind.UNAVAILABLE,
)

DEADLINE_SECONDS = 1.2  # of the class of one second: its own producer


@asynccontextmanager
async def started(url: str) -> AsyncIterator[KafkaBroker]:
    broker = KafkaBroker(url)
    await broker.start()
    try:
        yield broker
    finally:
        began = time.monotonic()
        await broker.close()
        assert time.monotonic() - began < 8.0, "close hung"


@asynccontextmanager
async def behind(
    proxy: FaultProxy, url: str, *, start: Fault = PASS
) -> AsyncIterator[tuple[KafkaBroker, FaultProxy]]:
    async with proxy:
        await proxy.aset(start)
        place = urlsplit(url)._replace(netloc=f"{proxy.host}:{proxy.port}").geturl()
        async with started(place) as broker:
            yield broker, proxy


async def stored(url: str, topic: TopicSpec) -> list[str]:
    """The ids in a topic, read around the proxy."""
    async with started(url) as broker:
        return [one.message.id for one in await broker.peek(topic.name, after="", limit=20_000)]


async def publish_until_confirmed(
    broker: KafkaBroker, messages: Sequence[Message], deadline_seconds: float = DEADLINE_SECONDS
) -> None:
    left, end = list(messages), time.monotonic() + 40
    while left:
        assert time.monotonic() < end
        outcomes = await broker.publish(left, deadline_seconds=deadline_seconds)
        left = [m for m, o in zip(left, outcomes, strict=True) if o.kind is not CONFIRMED]


def honest(messages: Sequence[Message], outcomes: Sequence[Outcome], ids: Sequence[str]) -> None:
    """Confirmed ones are there, unsent ones are not; of the others nothing is known."""
    pairs = list(zip(messages, outcomes, strict=True))
    assert {m.id for m, o in pairs if o.kind is CONFIRMED} <= set(ids)
    assert not {m.id for m, o in pairs if o.kind is UNAVAILABLE} & set(ids)
    assert all(o.error for _, o in pairs if o.kind is not CONFIRMED)


async def test_replies_lost_are_unknown_though_the_messages_are_there(
    kafka_url: str, kafka_proxy: FaultProxy
) -> None:
    topic = event()
    async with behind(kafka_proxy, kafka_url) as (broker, proxy):
        await broker.declare([topic], [])
        await publish_until_confirmed(broker, [message(topic)])
        sent = [message(topic, n) for n in range(100)]
        await proxy.aset(DROP_REPLIES)
        began = time.monotonic()
        outcomes = await broker.publish(sent, deadline_seconds=DEADLINE_SECONDS)
        assert 0.9 < time.monotonic() - began < 4.0
        assert {o.kind for o in outcomes} == {UNKNOWN}
        assert {m.id for m in sent} & set(await stored(kafka_url, topic))
        await proxy.aset(PASS)
        await publish_until_confirmed(broker, sent, 10.0)


async def test_a_cut_in_the_middle_of_a_publish(kafka_url: str, kafka_proxy: FaultProxy) -> None:
    topic = event()
    sent = [message(topic, n, key="k", payload=b"%d" % n + b" " * 1000) for n in range(1000)]
    async with behind(kafka_proxy, kafka_url) as (broker, proxy):
        await broker.declare([topic], [])
        await publish_until_confirmed(broker, [message(topic)])
        await proxy.aset(Fault(cut_after_bytes=300_000))
        outcomes = await broker.publish(sent, deadline_seconds=DEADLINE_SECONDS)
        honest(sent, outcomes, await stored(kafka_url, topic))
        await proxy.aset(PASS)
        await publish_until_confirmed(broker, sent, 10.0)
        assert {m.id for m in sent} <= set(await stored(kafka_url, topic))


async def test_no_server_is_said_at_once_and_found_when_it_comes(
    kafka_url: str, kafka_proxy: FaultProxy
) -> None:
    topic = event()
    async with behind(kafka_proxy, kafka_url, start=REFUSE) as (broker, proxy):
        with pytest.raises(BrokerUnavailableError):
            await broker.declare([topic], [])
        outcomes = await broker.publish([message(topic)], deadline_seconds=2.0)
        assert [o.kind for o in outcomes] == [UNAVAILABLE]
        await proxy.aset(PASS)
        await broker.declare([topic], [])
        await publish_until_confirmed(broker, [message(topic)])


async def test_receiving_survives_cuts(kafka_url: str, kafka_proxy: FaultProxy) -> None:
    topic = event()
    sent = [message(topic, n, key=f"k{n}", payload=b"z" * 500) for n in range(2000)]
    spec = SubscriptionSpec("readers", (topic,), prefetch=100)
    async with behind(kafka_proxy, kafka_url) as (broker, proxy), started(kafka_url) as other:
        await other.declare([topic], [spec])
        await publish_until_confirmed(other, sent, 10.0)
        receiver = Receiver(await broker.subscribe(spec))
        wanted = {m.id for m in sent}
        for _ in range(3):
            seen = len(receiver.ids)
            # All of them may be here already.
            await receiver.until(
                lambda seen=seen: len(receiver.ids) > seen or wanted <= set(receiver.ids)  # type: ignore[misc]
            )
            await asyncio.to_thread(proxy.cut)
        await receiver.until(lambda: wanted <= set(receiver.ids), 40.0)
        await receiver.close()
        # The last commit may have gone down with its connection: then those come once more.
        heir = Receiver(await other.subscribe(spec))
        while (await other.topics())[0].groups[0].lag:
            await asyncio.sleep(0.2)
        await heir.close()
    assert set(heir.ids) <= wanted


async def test_close_is_quick_when_the_peer_is_silent(
    kafka_url: str, kafka_proxy: FaultProxy
) -> None:
    topic = event()
    async with behind(kafka_proxy, kafka_url) as (broker, proxy):
        receiver = Receiver(await broker.subscribe(SubscriptionSpec("readers", (topic,))))
        await publish_until_confirmed(broker, [message(topic)])
        await receiver.receive(1)
        await proxy.aset(SILENT)
        began = time.monotonic()
        await broker.close()
        assert time.monotonic() - began < 6.0
