"""ActiveMQ behind a network that fails, and killed: outcomes never say more than is known."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest

from duly.brokers.activemq import ActiveMQBroker
from duly.errors import BrokerUnavailableError
from duly.message import Message
from duly.ports import Outcome, OutcomeKind, SubscriptionSpec, TopicSpec
from duly.testing.broker_target import Receiver, event, join, message, out_of_order, send
from duly.testing.fault_proxy import DROP_REPLIES, PASS, SILENT, Fault, FaultProxy
from tools.services import PrivateServer

CONFIRMED, UNKNOWN, UNAVAILABLE = (
    OutcomeKind.CONFIRMED,
    OutcomeKind.UNKNOWN,
    OutcomeKind.UNAVAILABLE,
)


@asynccontextmanager
async def direct(url: str) -> AsyncIterator[ActiveMQBroker]:
    broker = ActiveMQBroker(url)
    await broker.start()
    try:
        yield broker
    finally:
        began = time.monotonic()
        await broker.close()
        assert time.monotonic() - began < 10.0, "close hung"


@asynccontextmanager
async def behind_proxy(
    url: str, query: str = ""
) -> AsyncIterator[tuple[ActiveMQBroker, FaultProxy]]:
    parts = urlsplit(url)
    async with FaultProxy(parts.hostname or "", parts.port or 61613) as proxy:
        place = f"{parts.username}:{parts.password}@{proxy.host}:{proxy.port}"
        async with direct(parts._replace(netloc=place, query=query).geturl()) as broker:
            yield broker, proxy


async def declared(broker: ActiveMQBroker, topic: TopicSpec) -> None:
    await broker.declare([topic], [SubscriptionSpec("readers", (topic,))])
    await send(broker, [message(topic, -1)])  # the publishing connection is open too


async def stored(url: str, topic: TopicSpec) -> list[str]:
    """The ids in the group's queue, read around the proxy; without the first."""
    async with direct(url) as broker:
        receiver = await join(broker, "readers", topic, acking=False, prefetch=5000)
        status = (await broker.topics())[0]
        await receiver.until(lambda: len(receiver.ids) >= status.depth)
        await receiver.close()
        return receiver.ids[1:]


def honest(outcomes: Sequence[tuple[Message, Outcome]], ids: Sequence[str]) -> None:
    """Confirmed ones are there, unsent ones are not; of the others nothing is known."""
    assert {m.id for m, o in outcomes if o.kind is CONFIRMED} <= set(ids)
    assert not {m.id for m, o in outcomes if o.kind is UNAVAILABLE} & set(ids)


@pytest.mark.parametrize("cut_after", [700, 300_000])
async def test_a_cut_in_the_middle_of_a_publish(activemq_url: str, cut_after: int) -> None:
    topic = event()
    sent = [message(topic, n, payload=b"x" * 1000) for n in range(900)]
    async with behind_proxy(activemq_url) as (broker, proxy):
        await declared(broker, topic)
        await proxy.aset(Fault(cut_after_bytes=cut_after))
        outcomes = await broker.publish(sent, deadline_seconds=5.0)
        first = list(zip(sent, outcomes, strict=True))
        assert {o.kind for _, o in first} & {UNKNOWN, UNAVAILABLE}
        assert all(o.error for _, o in first if o.kind is not CONFIRMED)
        honest(first, await stored(activemq_url, topic))
        await proxy.aset(PASS)
        await send(broker, [m for m, o in first if o.kind is not CONFIRMED])
    assert {m.id for m in sent} <= set(await stored(activemq_url, topic))


async def test_receipts_lost_are_unknown(activemq_url: str) -> None:
    topic = event()
    sent = [message(topic, n) for n in range(100)]
    async with behind_proxy(activemq_url) as (broker, proxy):
        await declared(broker, topic)
        await proxy.aset(DROP_REPLIES)
        began = time.monotonic()
        outcomes = await broker.publish(sent, deadline_seconds=0.8)
        assert time.monotonic() - began < 3.0
        assert {o.kind for o in outcomes} == {UNKNOWN}
        await proxy.aset(PASS)
        await send(broker, sent)
    assert {m.id for m in sent} <= set(await stored(activemq_url, topic))


async def test_what_a_half_open_receiver_had_comes_first_to_its_heir(activemq_url: str) -> None:
    """One key, an ordered group: the dead one is found by its silence, nothing overtakes."""
    topic = event()
    sent = [message(topic, n, key="one key") for n in range(30)]
    async with (
        direct(activemq_url) as two,
        behind_proxy(activemq_url, "heartbeat=1") as (
            one,
            proxy,
        ),
    ):
        dead = await join(one, "readers", topic, ordered=True, acking=False)
        await send(two, sent)
        await dead.receive(30)
        heir = await join(two, "readers", topic, ordered=True)
        await proxy.aset(SILENT)
        await heir.until(lambda: len(set(heir.ids)) >= 30, 30.0)
        assert heir.ids[0] == sent[0].id
        assert heir.deliveries[0].redelivered
        assert out_of_order(heir.messages) == []
        await heir.close()
        await dead.close()


async def test_more_crashes_than_the_server_allows_lose_nothing(activemq_url: str) -> None:
    """As installed, the server puts a message aside after ten deliveries."""
    topic = event()
    async with behind_proxy(activemq_url) as (broker, proxy):
        await declared(broker, topic)
        receiver = await join(broker, "readers", topic, acking=False)
        for crashes in range(1, 13):
            await receiver.receive(crashes, 30.0)
            await asyncio.to_thread(proxy.cut)
        await receiver.receive(13, 30.0)
        assert len(set(receiver.ids)) == 1
        assert all(d.redelivered for d in receiver.deliveries[1:])
        assert len({d.position for d in receiver.deliveries}) == 1
        await receiver.close()


async def test_a_server_that_is_killed_is_away_and_never_without_readers(
    private_activemq: PrivateServer,
) -> None:
    topic = event()
    kinds = set()
    async with direct(f"{private_activemq.url}/killed") as broker:
        await declared(broker, topic)
        receiver = Receiver(await broker.subscribe(SubscriptionSpec("readers", (topic,))))
        await receiver.receive(1)
        await asyncio.to_thread(private_activemq.kill)
        await asyncio.sleep(0.3)
        began = time.monotonic()
        with pytest.raises(BrokerUnavailableError):
            await broker.declare([], [SubscriptionSpec("readers", (topic,))])
        assert [f.code for f in await broker.inspect()] == ["ACTIVEMQ_REACHABLE"]
        assert time.monotonic() - began < 9.0
        sent = [message(topic, n) for n in range(400)]
        restart = asyncio.create_task(asyncio.to_thread(private_activemq.start))
        left, end = sent, time.monotonic() + 60
        while left or not restart.done():
            assert time.monotonic() < end
            outcomes = await broker.publish(left[:50] or sent[:1], deadline_seconds=1.0)
            kinds |= {o.kind for o in outcomes}
            done = {m.id for m, o in zip(left[:50], outcomes, strict=False) if o.kind is CONFIRMED}
            left = [m for m in left if m.id not in done]
            await asyncio.sleep(0.02)
        await restart
        await receiver.until(lambda: {m.id for m in sent} <= set(receiver.ids), 30.0)
        await receiver.close()
    assert kinds <= {CONFIRMED, UNKNOWN, UNAVAILABLE}
    assert kinds & {UNKNOWN, UNAVAILABLE}


async def test_what_is_in_hand_may_be_acked_before_the_rest_is_given_back(
    activemq_url: str,
) -> None:
    topic = event()
    async with direct(activemq_url) as one:
        receiver = await join(one, "readers", topic, acking=False, prefetch=10)
        await send(one, [message(topic, n) for n in range(10)])
        await receiver.receive(10)
        first = [d.token for d in receiver.deliveries]
        await receiver.subscription.release(first[5:])
        await asyncio.sleep(0.3)
        assert len(receiver.ids) == 10
        await receiver.subscription.ack(first[:5])
        await receiver.receive(15)
        assert sorted(receiver.ids[10:]) == sorted(receiver.ids[5:10])
        await receiver.close()
