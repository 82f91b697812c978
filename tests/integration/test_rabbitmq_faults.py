"""RabbitMQ behind a network that fails: outcomes never say more than is known, and it recovers."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import pytest

from duly.brokers.rabbitmq import RabbitMQBroker
from duly.errors import BrokerUnavailableError
from duly.message import Message
from duly.ports import Outcome, OutcomeKind, Severity, SubscriptionSpec, TopicSpec
from duly.testing.broker_target import Receiver, event, message
from duly.testing.fault_proxy import DROP_REPLIES, PASS, REFUSE, RESET, SILENT, Fault, FaultProxy
from tools.services import PrivateServer

CONFIRMED, UNKNOWN, UNAVAILABLE = (
    OutcomeKind.CONFIRMED,
    OutcomeKind.UNKNOWN,
    OutcomeKind.UNAVAILABLE,
)


def through(proxy: FaultProxy, url: str, query: str = "") -> str:
    parts = urlsplit(url)
    place = f"{parts.username}:{parts.password}@{proxy.host}:{proxy.port}"
    return parts._replace(netloc=place, query=query).geturl()


@asynccontextmanager
async def behind_proxy(
    url: str, query: str = "", *, start: Fault = PASS
) -> AsyncIterator[tuple[RabbitMQBroker, FaultProxy]]:
    parts = urlsplit(url)
    async with FaultProxy(parts.hostname or "", parts.port or 5672) as proxy:
        await proxy.aset(start)
        broker = RabbitMQBroker(through(proxy, url, query))
        await broker.start()
        try:
            yield broker, proxy
        finally:
            began = time.monotonic()
            await broker.close()
            assert time.monotonic() - began < 8.0, "close hung"


@asynccontextmanager
async def direct(url: str) -> AsyncIterator[RabbitMQBroker]:
    broker = RabbitMQBroker(url)
    await broker.start()
    try:
        yield broker
    finally:
        await broker.close()


async def stored(url: str, topic: TopicSpec, group: str = "readers") -> list[str]:
    """The ids in a group's queue, read back around the proxy."""
    async with direct(url) as broker:
        receiver = Receiver(await broker.subscribe(SubscriptionSpec(group, (topic,))))
        last = -1
        while len(receiver.ids) != last:
            last = len(receiver.ids)
            await asyncio.sleep(0.7)
        await receiver.close()
        return receiver.ids


async def declared(broker: RabbitMQBroker, topic: TopicSpec) -> None:
    end = time.monotonic() + 20
    while True:
        try:
            return await broker.declare([topic], [SubscriptionSpec("readers", (topic,))])
        except BrokerUnavailableError:
            assert time.monotonic() < end
            await asyncio.sleep(0.1)


async def publish_until_confirmed(
    broker: RabbitMQBroker, messages: Sequence[Message]
) -> list[list[tuple[Message, Outcome]]]:
    """Every attempt's outcomes, the last one all confirmed."""
    attempts: list[list[tuple[Message, Outcome]]] = []
    left = list(messages)
    end = time.monotonic() + 30
    while left:
        assert time.monotonic() < end, attempts[-1][0]
        outcomes = await broker.publish(left, deadline_seconds=3.0)
        attempts.append(list(zip(left, outcomes, strict=True)))
        left = [m for m, o in attempts[-1] if o.kind is not CONFIRMED]
        if left:
            await asyncio.sleep(0.1)
    return attempts


def honest(outcomes: Sequence[tuple[Message, Outcome]], ids: Sequence[str]) -> None:
    """Confirmed ones are there, unsent ones are not; of the others nothing is known."""
    there = set(ids)
    assert {m.id for m, o in outcomes if o.kind is CONFIRMED} <= there
    assert not {m.id for m, o in outcomes if o.kind is UNAVAILABLE} & there


@pytest.mark.parametrize("cut_after", [1, 700, 5_000, 90_000, 400_000, 1_300_000])
async def test_a_cut_in_the_middle_of_a_publish(rabbitmq_url: str, cut_after: int) -> None:
    topic = event()
    sent = [message(topic, n, payload=b"x" * 1000) for n in range(1000)]
    async with behind_proxy(rabbitmq_url) as (broker, proxy):
        await declared(broker, topic)
        await proxy.aset(Fault(cut_after_bytes=cut_after))
        outcomes = await broker.publish(sent, deadline_seconds=5.0)
        first = list(zip(sent, outcomes, strict=True))
        assert {o.kind for _, o in first} & {UNKNOWN, UNAVAILABLE}
        assert all(o.error for _, o in first if o.kind is not CONFIRMED)
        honest(first, await stored(rabbitmq_url, topic))
        await proxy.aset(PASS)
        left = [m for m, o in first if o.kind is not CONFIRMED]
        await publish_until_confirmed(broker, left)
        assert set(await stored(rabbitmq_url, topic)) == {m.id for m in left}


async def test_replies_lost_are_unknown_though_the_messages_are_there(rabbitmq_url: str) -> None:
    topic = event()
    sent = [message(topic, n) for n in range(100)]
    async with behind_proxy(rabbitmq_url) as (broker, proxy):
        await declared(broker, topic)
        await proxy.aset(DROP_REPLIES)
        began = time.monotonic()
        outcomes = await broker.publish(sent, deadline_seconds=1.0)
        assert 0.9 < time.monotonic() - began < 2.5
        assert {o.kind for o in outcomes} == {UNKNOWN}
        assert sorted(await stored(rabbitmq_url, topic)) == sorted(m.id for m in sent)
        await proxy.aset(PASS)
        attempts = await publish_until_confirmed(broker, sent)
        assert {o.kind for _, o in attempts[-1]} == {CONFIRMED}


async def test_a_half_open_link_is_found_and_replaced(rabbitmq_url: str) -> None:
    topic = event()
    async with behind_proxy(rabbitmq_url, "heartbeat=2") as (broker, proxy):
        await declared(broker, topic)
        receiver = Receiver(await broker.subscribe(SubscriptionSpec("readers", (topic,))))
        await publish_until_confirmed(broker, [message(topic, 0)])
        await receiver.receive(1)
        await proxy.aset(SILENT)
        lost = [message(topic, n) for n in range(1, 50)]
        outcomes = await broker.publish(lost, deadline_seconds=1.0)
        assert {o.kind for o in outcomes} <= {UNKNOWN, UNAVAILABLE}
        accepted = proxy.accepted
        for _ in range(100):  # heartbeats find it, for the receiving link too
            if proxy.accepted >= accepted + 2:
                break
            await asyncio.sleep(0.1)
        assert proxy.accepted >= accepted + 2
        await proxy.aset(PASS)
        await publish_until_confirmed(broker, lost)
        await receiver.until(lambda: {m.id for m in lost} <= set(receiver.ids), 20.0)


async def test_what_missed_its_deadline_on_a_slow_link_is_never_sent(rabbitmq_url: str) -> None:
    topic = event()
    sent = [message(topic, n, payload=b"y" * 20_000) for n in range(1000)]
    async with behind_proxy(rabbitmq_url) as (broker, proxy):
        await declared(broker, topic)
        await proxy.aset(Fault(bytes_per_second=300_000))
        outcomes = await broker.publish(sent, deadline_seconds=1.0)
        first = list(zip(sent, outcomes, strict=True))
        assert {o.kind for _, o in first} >= {UNAVAILABLE}
        await proxy.aset(PASS)
        await asyncio.sleep(1.0)
        honest(first, await stored(rabbitmq_url, topic))


@pytest.mark.parametrize("fault", [REFUSE, RESET])
async def test_no_server_is_said_at_once_and_found_when_it_comes(
    rabbitmq_url: str, fault: Fault
) -> None:
    topic = event()
    async with behind_proxy(rabbitmq_url, start=fault) as (broker, proxy):
        with pytest.raises(BrokerUnavailableError) as caught:
            await broker.declare([topic], [])
        assert "guest:" not in str(caught.value)
        outcomes = await broker.publish([message(topic)], deadline_seconds=2.0)
        assert [o.kind for o in outcomes] == [UNAVAILABLE]
        await proxy.aset(PASS)
        await declared(broker, topic)
        await publish_until_confirmed(broker, [message(topic)])


@pytest.mark.parametrize("slice_bytes", [1, 7, 8, 4096])
async def test_frames_in_pieces(rabbitmq_url: str, slice_bytes: int) -> None:
    topic = event()
    sent = [message(topic, n, key=f"k{n}", payload=bytes([n]) * 90 * n) for n in range(40)]
    async with behind_proxy(rabbitmq_url, start=Fault(slice_bytes=slice_bytes)) as (broker, _):
        await declared(broker, topic)
        receiver = Receiver(await broker.subscribe(SubscriptionSpec("readers", (topic,))))
        await publish_until_confirmed(broker, sent)
        await receiver.receive(40)
        assert {m.id: m for m in receiver.messages} == {m.id: m for m in sent}
        await receiver.close()


def has_some_of(receiver: Receiver, ids: set[str]) -> bool:
    return not ids.isdisjoint(receiver.ids)


async def test_receiving_survives_cuts(rabbitmq_url: str) -> None:
    topic = event()
    sent: list[Message] = []
    spec = SubscriptionSpec("readers", (topic,), prefetch=100)
    async with behind_proxy(rabbitmq_url) as (broker, proxy), direct(rabbitmq_url) as other:
        await declared(broker, topic)
        receiver = Receiver(await broker.subscribe(spec), acking=True)
        for cut in range(4):  # each has messages of its own, which come while it happens
            some = [message(topic, 500 * cut + n, payload=b"z" * 500) for n in range(500)]
            publishing = asyncio.create_task(publish_until_confirmed(other, some))
            await receiver.until(partial(has_some_of, receiver, {m.id for m in some}))
            await asyncio.to_thread(proxy.cut)
            await publishing
            sent += some
        wanted = {m.id for m in sent}
        await receiver.until(lambda: wanted <= set(receiver.ids), 30.0)
        await receiver.close()
        assert len(receiver.ids) - len(wanted) <= 4 * 200, "more came again than was under way"
        assert set(receiver.ids) == wanted
    assert await stored(rabbitmq_url, topic) == []


async def test_a_blocked_event_loop_costs_no_connection(rabbitmq_url: str) -> None:
    topic = event()
    async with behind_proxy(rabbitmq_url, "heartbeat=1") as (broker, proxy):
        await declared(broker, topic)
        receiver = Receiver(await broker.subscribe(SubscriptionSpec("readers", (topic,))))
        await publish_until_confirmed(broker, [message(topic, 0)])
        await receiver.receive(1)
        accepted = proxy.accepted
        time.sleep(5.0)  # a handler that blocks the event loop is what is tested
        await publish_until_confirmed(broker, [message(topic, 1)])
        await receiver.receive(2)
        assert proxy.accepted == accepted
        await receiver.close()


async def test_the_deadline_is_kept_without_the_event_loop(rabbitmq_url: str) -> None:
    topic = event()
    async with behind_proxy(rabbitmq_url) as (broker, proxy):
        await declared(broker, topic)
        await publish_until_confirmed(broker, [message(topic)])  # so the link is there
        await proxy.aset(SILENT)
        task = asyncio.create_task(publish_late(broker, [message(topic)]))
        await asyncio.sleep(0.1)
        time.sleep(1.5)  # the event loop is blocked over the deadline
        outcomes = await asyncio.wait_for(task, 1.0)
        assert [o.kind for o in outcomes] == [UNKNOWN]


async def publish_late(broker: RabbitMQBroker, messages: list[Message]) -> Sequence[Outcome]:
    return await broker.publish(messages, deadline_seconds=1.0)


async def test_an_escaped_exception_costs_the_connection_and_nothing_else(
    rabbitmq_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    topic = event()
    async with behind_proxy(rabbitmq_url) as (broker, proxy):
        await declared(broker, topic)
        accepted = proxy.accepted
        with caplog.at_level(logging.ERROR):
            broker._io.post(lambda: 1 // 0)
            for _ in range(50):
                if proxy.accepted > accepted:
                    break
                await asyncio.sleep(0.1)
        assert "ZeroDivisionError" in caplog.text
        await publish_until_confirmed(broker, [message(topic)])


async def test_close_is_quick_when_the_peer_is_silent(rabbitmq_url: str) -> None:
    topic = event()
    async with behind_proxy(rabbitmq_url) as (broker, proxy):
        await declared(broker, topic)
        receiver = Receiver(await broker.subscribe(SubscriptionSpec("readers", (topic,))))
        await asyncio.sleep(0.2)
        await proxy.aset(SILENT)
        began = time.monotonic()
        await broker.close()
        assert time.monotonic() - began < 6.0
        with suppress(TimeoutError):
            await receiver.close()


async def test_closing_while_connecting_to_a_silent_peer(rabbitmq_url: str) -> None:
    async with behind_proxy(rabbitmq_url, start=SILENT) as (broker, _):
        outcomes = await broker.publish([message(event())], deadline_seconds=0.5)
        assert [o.kind for o in outcomes] == [UNAVAILABLE]
        began = time.monotonic()
        await broker.close()
        assert time.monotonic() - began < 3.0


async def test_an_alarm_stops_publishing_and_not_receiving(private_rabbitmq: PrivateServer) -> None:
    topic = event()
    old = [message(topic, n) for n in range(300)]
    async with direct(private_rabbitmq.url) as broker:
        await declared(broker, topic)
        await publish_until_confirmed(broker, old)
        await control(private_rabbitmq, "set_vm_memory_high_watermark", "absolute", "1")
        spec = SubscriptionSpec("readers", (topic,), prefetch=10)
        during = [message(topic, n) for n in range(50)]
        outcomes = await broker.publish(during, deadline_seconds=1.5)
        assert {o.kind for o in outcomes} <= {UNKNOWN, UNAVAILABLE}
        later = await broker.publish(during, deadline_seconds=0.5)
        assert {o.kind for o in later} == {UNAVAILABLE}
        assert "takes no messages" in later[0].error
        alarm = {f.code: f.severity for f in await broker.inspect()}["RABBITMQ_ALARM"]
        assert alarm is Severity.RED
        receiver = Receiver(await broker.subscribe(spec))
        await receiver.until(lambda: {m.id for m in old} <= set(receiver.ids))
        await control(private_rabbitmq, "set_vm_memory_high_watermark", "0.4")
        await publish_until_confirmed(broker, during)
        wanted = {m.id for m in during}
        await receiver.until(lambda: wanted <= set(receiver.ids))
        await receiver.close()


async def control(server: PrivateServer, *words: str) -> None:
    """Run rabbitmqctl against a private server."""
    node: Any = server._server
    command = [str(node.programs / "rabbitmqctl"), *words]
    done = await asyncio.to_thread(
        subprocess.run, command, env=node._environment(), capture_output=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
