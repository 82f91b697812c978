"""NATS behind a network that fails, and killed: outcomes never say more than is known."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest

from duly.brokers.nats import NatsBroker, consumer, topology
from duly.errors import BrokerUnavailableError
from duly.message import Message
from duly.ports import Outcome, OutcomeKind, SubscriptionSpec, TopicSpec
from duly.testing.broker_target import Receiver, event, join, message, out_of_order, send, twice
from duly.testing.fault_proxy import DROP_REPLIES, PASS, SILENT, Fault, FaultProxy
from tools.services import PrivateServer

CONFIRMED, UNKNOWN, UNAVAILABLE = (
    OutcomeKind.CONFIRMED,
    OutcomeKind.UNKNOWN,
    OutcomeKind.UNAVAILABLE,
)


@asynccontextmanager
async def direct(url: str) -> AsyncIterator[NatsBroker]:
    broker = NatsBroker(url)
    await broker.start()
    try:
        yield broker
    finally:
        began = time.monotonic()
        await broker.close()
        assert time.monotonic() - began < 8.0, "close hung"


@asynccontextmanager
async def behind_proxy(url: str, query: str = "") -> AsyncIterator[tuple[NatsBroker, FaultProxy]]:
    parts = urlsplit(url)
    async with FaultProxy(parts.hostname or "", parts.port or 4222) as proxy:
        place = parts._replace(netloc=f"{proxy.host}:{proxy.port}", query=query)
        async with direct(place.geturl()) as broker:
            yield broker, proxy


async def declared(broker: NatsBroker, topic: TopicSpec) -> None:
    await broker.declare([topic], [SubscriptionSpec("readers", (topic,))])
    await send(broker, [message(topic, -1)])  # the publishing connection is open too


async def stored(url: str, topic: TopicSpec) -> list[str]:
    """The ids in a topic's stream, read around the proxy; without the first."""
    async with direct(url) as broker:
        return [p.message.id for p in await broker.peek(topic.name, limit=5000)][1:]


def honest(outcomes: Sequence[tuple[Message, Outcome]], ids: Sequence[str]) -> None:
    """Confirmed ones are there once, unsent ones are not; of the others nothing is known."""
    assert not twice(ids)
    assert {m.id for m, o in outcomes if o.kind is CONFIRMED} <= set(ids)
    assert not {m.id for m, o in outcomes if o.kind is UNAVAILABLE} & set(ids)


@pytest.mark.parametrize("cut_after", [700, 300_000])
async def test_a_cut_in_the_middle_of_a_publish(nats_url: str, cut_after: int) -> None:
    topic = event()
    sent = [message(topic, n, payload=b"x" * 1000) for n in range(500)]
    async with behind_proxy(nats_url) as (broker, proxy):
        await declared(broker, topic)
        await proxy.aset(Fault(cut_after_bytes=cut_after))
        outcomes = await broker.publish(sent, deadline_seconds=5.0)
        first = list(zip(sent, outcomes, strict=True))
        assert {o.kind for _, o in first} & {UNKNOWN, UNAVAILABLE}
        assert all(o.error for _, o in first if o.kind is not CONFIRMED)
        honest(first, await stored(nats_url, topic))
        await proxy.aset(PASS)
        await send(broker, [m for m, o in first if o.kind is not CONFIRMED])
    assert sorted(await stored(nats_url, topic)) == sorted(m.id for m in sent), "once, by the id"


async def test_replies_lost_are_unknown_and_a_repetition_is_stored_once(nats_url: str) -> None:
    topic = event()
    sent = [message(topic, n) for n in range(100)]
    async with behind_proxy(nats_url) as (broker, proxy):
        await declared(broker, topic)
        await proxy.aset(DROP_REPLIES)
        began = time.monotonic()
        outcomes = await broker.publish(sent, deadline_seconds=1.0)
        assert 0.9 < time.monotonic() - began < 3.0
        assert {o.kind for o in outcomes} == {UNKNOWN}
        await proxy.aset(PASS)
        await send(broker, sent)
    assert await stored(nats_url, topic) == [m.id for m in sent]


async def test_a_half_open_link_is_found_and_replaced(nats_url: str) -> None:
    topic = event()
    async with behind_proxy(nats_url, "heartbeat=2") as (broker, proxy):
        await declared(broker, topic)
        receiver = Receiver(await broker.subscribe(SubscriptionSpec("readers", (topic,))))
        await receiver.receive(1)
        await proxy.aset(SILENT)
        end = time.monotonic() + 15
        while proxy.connections:  # both are dropped by us: nothing else would tell
            assert time.monotonic() < end
            await asyncio.sleep(0.2)
            if proxy.accepted > 2:
                break
        await proxy.aset(PASS)
        await send(broker, [message(topic, 1)])
        await receiver.receive(2)
        await receiver.close()


async def test_a_server_that_is_killed_is_away_and_never_without_readers(
    private_nats: PrivateServer,
) -> None:
    """ "No responders" also comes from a server that has not found its streams yet: an event must
    not be settled as unrouted then."""
    topic = event()
    kinds = set()
    async with direct(f"{private_nats.url}/killed") as broker:
        await declared(broker, topic)
        receiver = Receiver(await broker.subscribe(SubscriptionSpec("readers", (topic,))))
        sent = [message(topic, n) for n in range(400)]
        restart = asyncio.create_task(asyncio.to_thread(_restart, private_nats))
        left, end = sent, time.monotonic() + 30
        while left or not restart.done():
            assert time.monotonic() < end
            outcomes = await broker.publish(left[:50] or sent[:1], deadline_seconds=1.0)
            kinds |= {o.kind for o in outcomes}
            done = {m.id for m, o in zip(left[:50], outcomes, strict=False) if o.kind is CONFIRMED}
            left = [m for m in left if m.id not in done]
            await asyncio.sleep(0.01)
        await restart
        await receiver.until(lambda: {m.id for m in sent} <= set(receiver.ids), 30.0)
        await receiver.close()
    assert kinds <= {CONFIRMED, UNKNOWN, UNAVAILABLE}
    assert kinds & {UNKNOWN, UNAVAILABLE}


def _restart(server: PrivateServer) -> None:
    server.kill()
    server.start()


async def test_a_server_that_is_away_is_said_at_once(private_nats: PrivateServer) -> None:
    topic = event()
    async with direct(f"{private_nats.url}/away") as broker:
        await declared(broker, topic)
        await asyncio.to_thread(private_nats.kill)
        try:
            await asyncio.sleep(0.5)
            began = time.monotonic()
            outcomes = await broker.publish([message(topic)], deadline_seconds=10.0)
            assert {o.kind for o in outcomes} == {UNAVAILABLE}
            with pytest.raises(BrokerUnavailableError):
                await broker.declare([], [SubscriptionSpec("readers", (topic,))])
            assert [f.code for f in await broker.inspect()] == ["NATS_REACHABLE"]
            assert time.monotonic() - began < 9.0
        finally:
            await asyncio.to_thread(private_nats.start)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> float:
    """How long the server waits for a word, less than as installed."""
    monkeypatch.setattr(topology, "ACK_WAIT_SECONDS", 2.0)
    monkeypatch.setattr(consumer, "BEAT_SECONDS", 0.5)
    return 2.0


async def test_a_blocked_event_loop_keeps_its_messages(nats_url: str, impatient: float) -> None:
    topic = event()
    async with direct(nats_url) as one, direct(nats_url) as two:
        busy = await join(one, "readers", topic, acking=False, prefetch=5)
        await send(one, [message(topic, n) for n in range(5)])
        await busy.receive(5)
        idle = await join(two, "readers", topic)
        time.sleep(impatient + 1.0)  # a handler that nothing can interrupt
        await busy.ack_all()
        await send(one, [message(topic, 9)])
        await idle.until(lambda: len(idle.ids) + len(busy.ids) >= 6)
        assert len(idle.ids) + len(busy.ids) == 6, "a message that was in progress came again"
        await busy.close()
        await idle.close()


async def test_what_a_dead_receiver_had_comes_first_to_its_heir(
    nats_url: str, impatient: float
) -> None:
    """One key, an ordered group: nothing overtakes the message that the dead one never acked."""
    topic = event()
    sent = [message(topic, n, key="one key") for n in range(30)]
    async with direct(nats_url) as two, behind_proxy(nats_url) as (one, proxy):
        dead = await join(one, "readers", topic, ordered=True, acking=False)
        await send(two, sent)
        await dead.receive(1)
        heir = await join(two, "readers", topic, ordered=True)
        await proxy.aset(SILENT)
        began = time.monotonic()
        await heir.until(lambda: len(set(heir.ids)) >= 30, 30.0)
        assert heir.ids[0] == sent[0].id
        assert heir.deliveries[0].redelivered
        assert time.monotonic() - began < impatient + 10.0
        assert out_of_order(heir.messages) == []
        assert [m.id for m in dead.messages] == [sent[0].id]
        await heir.close()
        await dead.close()


async def test_an_ordered_group_keeps_order_over_a_release(nats_url: str) -> None:
    topic = event()
    async with direct(nats_url) as broker:
        receiver = await join(broker, "readers", topic, ordered=True, acking=False, prefetch=64)
        await send(broker, [message(topic, n, key="one key") for n in range(20)])
        await receiver.receive(1)
        await receiver.subscription.release([receiver.deliveries[0].token])
        await receiver.receive(2)
        for seen in range(2, 21):
            await receiver.subscription.ack([d.token for d in receiver.deliveries])
            await receiver.receive(seen + (seen < 21))
        numbers = [int(m.payload) for m in receiver.messages]
        assert numbers == [0, *range(20)]
        await receiver.close()
