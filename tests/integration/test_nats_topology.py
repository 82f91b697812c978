"""What NATS refuses, loses or has already, what ``check`` reads there, and how others see us."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import nats
import pytest
from nats.js.api import ConsumerConfig, StreamConfig
from nats.js.client import JetStreamContext

from duly.brokers.nats import NatsBroker, consumer_name, stream_name, subject_of
from duly.errors import ConfigurationError
from duly.message import HEADER_SOURCE, HEADER_UNDECODABLE, Message, new_id
from duly.ports import OutcomeKind, Severity, SubscriptionSpec, TopicSpec
from duly.testing.broker_target import Receiver, command, event, join, message, send
from tools.services import PrivateServer


@asynccontextmanager
async def started(url: str) -> AsyncIterator[NatsBroker]:
    broker = NatsBroker(url)
    await broker.start()
    try:
        yield broker
    finally:
        await broker.close()


@asynccontextmanager
async def plain(url: str) -> AsyncIterator[JetStreamContext]:
    """A client that is not ours."""
    client = await nats.connect(urlsplit(url)._replace(path="", query="").geturl())
    try:
        yield client.jetstream()
    finally:
        await client.close()


def prefix_of(url: str) -> str:
    return urlsplit(url).path[1:]


def reading(topic: TopicSpec, *, ordered: bool = False) -> SubscriptionSpec:
    return SubscriptionSpec("readers", (topic,), ordered=ordered)


# --- declaring ------------------------------------------------------------------------------------
@pytest.mark.parametrize("wrong", ["retention", "overlap", "no_ack"])
async def test_a_stream_that_is_not_as_it_should_be_is_named(nats_url: str, wrong: str) -> None:
    topic, prefix = event(), prefix_of(nats_url)
    name, subject = stream_name(prefix, topic), subject_of(prefix, topic, "*")
    config = StreamConfig(name=name, subjects=[subject], retention="interest", no_ack=True)
    if wrong == "retention":
        config = StreamConfig(name=name, subjects=[subject])
    elif wrong == "overlap":
        config = StreamConfig(name=f"{prefix}-mine", subjects=[f"{prefix}.>"])
    async with plain(nats_url) as js, started(nats_url) as broker:
        await js.add_stream(config)
        with pytest.raises(ConfigurationError) as caught:
            await broker.declare([topic], [reading(topic)])
        assert caught.value.code == "NATS_TOPOLOGY"
        assert (subject if wrong == "overlap" else name) in caught.value.detail
        assert {"retention": "limits", "overlap": "narrow", "no_ack": "no_ack"}[
            wrong
        ] in caught.value.detail
        outcomes = await broker.publish([message(topic)], deadline_seconds=0.7)
        if wrong == "no_ack":
            assert outcomes[0].kind is OutcomeKind.UNKNOWN
        if wrong == "overlap":  # it is stored, but not where anybody of ours would find it
            assert outcomes[0].kind is OutcomeKind.REFUSED
            assert f"{prefix}-mine" in outcomes[0].error


async def test_a_changed_order_mode_is_named_both_ways(nats_url: str) -> None:
    one, two = event(), event()
    async with started(nats_url) as broker:
        await broker.declare([], [reading(one), reading(two, ordered=True)])
        with pytest.raises(ConfigurationError, match="without order before"):
            await broker.declare([], [reading(one, ordered=True)])
        with pytest.raises(ConfigurationError, match="in order before"):
            await broker.declare([], [reading(two)])


async def test_a_consumer_that_would_lose_messages_is_named(nats_url: str) -> None:
    topic, prefix = event(), prefix_of(nats_url)
    name, subject = stream_name(prefix, topic), subject_of(prefix, topic, "*")
    async with plain(nats_url) as js, started(nats_url) as broker:
        await broker.declare([], [reading(topic)])
        config = ConsumerConfig(
            durable_name="few", ack_policy="explicit", max_deliver=3, filter_subject=subject
        )
        await js.add_consumer(name, config)
        with pytest.raises(ConfigurationError, match=r"few has max_deliver 3, not -1"):
            await broker.declare([], [SubscriptionSpec("few", (topic,))])


async def test_what_is_deleted_is_made_again_and_goes_on(nats_url: str) -> None:
    topic, prefix = event(), prefix_of(nats_url)
    async with plain(nats_url) as js, started(nats_url) as broker:
        receiver = await join(broker, "readers", topic)
        await send(broker, [message(topic, 1)])
        await receiver.receive(1)
        name = stream_name(prefix, topic)
        await js.delete_consumer(name, consumer_name("readers", topic))
        end = asyncio.get_running_loop().time() + 15
        while not await js.consumers_info(name):
            assert asyncio.get_running_loop().time() < end
            await asyncio.sleep(0.1)
        await send(broker, [message(topic, 2)])
        await receiver.receive(2)
        await js.delete_stream(name)
        outcomes = await broker.publish([message(topic, 3)], deadline_seconds=5.0)
        assert outcomes[0].kind is not OutcomeKind.UNROUTED, "its group is here"
        await send(broker, [message(topic, 4)])
        await receiver.until(lambda: any(m.payload == b"4" for m in receiver.messages))
        await receiver.close()


# --- outcomes -------------------------------------------------------------------------------------
async def test_what_cannot_travel_is_impossible_and_the_rest_goes(nats_url: str) -> None:
    topic = event()

    def bad(**headers: str) -> Message:
        return Message(new_id(), "a.b", "event", topic.name, None, b"{}", dict(headers))

    refused = [
        bad(**{"X-Evil": "a\r\nNats-Expected-Stream: b"}),
        bad(**{"X-Evil": "a\nb"}),
        bad(**{"X-Evil\r\nb": "a"}),
        bad(**{"Nats-Rollup": "all"}),
        bad(**{"nats-msg-id": "other"}),
        bad(**{"a:b": "c"}),
        message(topic, payload=bytes(1_048_576)),  # with its headers above the server's limit
        message(topic, payload=bytes(1_048_577)),
    ]
    async with started(nats_url) as broker:
        receiver = await join(broker, "readers", topic)
        good = [message(topic, 1), message(topic, 2)]
        outcomes = await broker.publish([good[0], *refused, good[1]], deadline_seconds=10.0)
        kinds = [o.kind for o in outcomes]
        assert kinds == [
            OutcomeKind.CONFIRMED,
            *[OutcomeKind.IMPOSSIBLE] * len(refused),
            OutcomeKind.CONFIRMED,
        ]
        assert await receiver.receive(2) == good
        await receiver.close()


async def test_a_full_stream_refuses_and_then_takes(nats_url: str) -> None:
    topic, prefix = event(), prefix_of(nats_url)
    name, subject = stream_name(prefix, topic), subject_of(prefix, topic, "*")
    async with plain(nats_url) as js, started(nats_url) as broker:
        config = StreamConfig(
            name=name, subjects=[subject], retention="interest", discard="new", max_msgs=3
        )
        await js.add_stream(config)
        receiver = await join(broker, "readers", topic, acking=False)
        sent = [message(topic, n) for n in range(6)]
        outcomes = await broker.publish(sent, deadline_seconds=5.0)
        assert [o.kind for o in outcomes] == [OutcomeKind.CONFIRMED] * 3 + [OutcomeKind.REFUSED] * 3
        assert "maximum messages" in outcomes[-1].error
        await receiver.receive(3)
        await receiver.ack_all()
        await send(broker, sent[3:])
        await receiver.receive(6)
        await receiver.close()


# --- looking --------------------------------------------------------------------------------------
async def test_check_reads_what_the_server_does_to_messages(nats_url: str) -> None:
    kept, dropped, prefix = event(), event(), prefix_of(nats_url)
    async with plain(nats_url) as js, started(nats_url) as broker:
        await broker.declare([], [reading(kept)])
        found = {f.code: f for f in await broker.inspect()}
        assert found["NATS_SERVER"].severity is Severity.GREEN
        assert found["NATS_TLS"].severity is Severity.GREEN
        assert found["NATS_DURABILITY"].severity is Severity.WEAK
        assert "not read" in found["NATS_DURABILITY"].message
        await js.add_stream(
            StreamConfig(
                name=stream_name(prefix, dropped),
                subjects=[subject_of(prefix, dropped, "*")],
                retention="interest",
                storage="memory",
                max_age=3600,
            )
        )
        found = {f.code: f for f in await broker.inspect()}
        assert found["NATS_STREAM_MEMORY"].severity is Severity.RED
        assert found["NATS_STREAM_DROPS"].severity is Severity.RED
        assert "max_age" in found["NATS_STREAM_DROPS"].message


async def test_topics_and_peek_show_what_waits(nats_url: str) -> None:
    topic, queue = event(), command()
    async with started(nats_url) as broker:
        specs = [reading(topic, ordered=True), reading(queue)]
        await broker.declare([topic, queue], specs)
        sent = [message(topic, n, key=f"k{n % 3}") for n in range(9)]
        await send(broker, [*sent, message(queue, 1)])
        status = {t.name: t for t in await broker.topics()}
        assert (status[topic.name].depth, status[topic.name].groups[0].lag) == (9, 9)
        assert (status[queue.name].depth, status[queue.name].groups[0].lag) == (1, 1)
        first = await broker.peek(topic.name, limit=4)
        rest = await broker.peek(topic.name, after=first[-1].cursor, limit=100)
        assert [p.message for p in [*first, *rest]] == sent
        assert [p.message.kind for p in await broker.peek(queue.name)] == ["command"]
        assert await broker.peek("nothing") == []


# --- others ---------------------------------------------------------------------------------------
async def test_a_plain_client_reads_what_we_write(nats_url: str) -> None:
    topic, prefix = event("orders.v1"), prefix_of(nats_url)
    async with plain(nats_url) as js, started(nats_url) as broker:
        await broker.declare([], [reading(topic)])
        reader = await js.pull_subscribe(
            subject_of(prefix, topic, "*"), durable="others", stream=stream_name(prefix, topic)
        )
        ours = Message(
            new_id(), "order.placed", "event", topic.name, "Müller 50%", b'{"n":1}', {"x": "ü"}
        )
        await send(broker, [ours])
        (got,) = await reader.fetch(1, timeout=5)
        await got.ack()
    headers = got.headers or {}
    assert got.data == b'{"n":1}'
    assert headers["Nats-Msg-Id"] == headers["ce-id"] == ours.id
    assert headers["ce-specversion"] == "1.0"
    assert headers["ce-type"] == "order.placed"
    assert headers["ce-partitionkey"] == "M%C3%BCller%2050%25"
    assert headers["ce-source"] == "/duly/"
    assert headers["ce-datacontenttype"] == "application/json"
    assert "content-type" not in {name.lower() for name in headers}


async def test_we_read_what_a_plain_client_writes(nats_url: str) -> None:
    topic, prefix = event(), prefix_of(nats_url)
    subject = subject_of(prefix, topic, 3)
    body = {"specversion": "1.0", "id": "s-1", "type": "a.b", "source": "/x", "data": {"n": 2}}
    async with plain(nats_url) as js, started(nats_url) as broker:
        receiver = Receiver(await broker.subscribe(reading(topic)), acking=True)
        binary = {
            "ce-specversion": "1.0",
            "ce-id": "b-1",
            "ce-type": "a.b",
            "ce-source": "/elsewhere",
            "ce-partitionkey": "M%C3%BCller%20",
            "traceparent": "00-1-2-01",
        }
        await js.publish(subject, b'{"n":1}', headers=binary)
        structured = {"Content-Type": "application/cloudevents+json; charset=UTF-8"}
        await js.publish(subject, json.dumps(body).encode(), headers=structured)
        await js.publish(subject, b"bare")
        await js.publish(subject, b"own id", headers={"Nats-Msg-Id": "mine-7"})
        await js.publish(subject, b"", headers={"ce-id": "x%0D%0Ay", "ce-type": "a.b"})
        got = await receiver.receive(5)
        await receiver.close()
    first, second, bare, own, broken = got
    assert (first.id, first.type, first.key) == ("b-1", "a.b", "Müller ")
    assert first.headers[HEADER_SOURCE] == "/elsewhere"
    assert first.headers["traceparent"] == "00-1-2-01"
    assert (second.id, json.loads(second.payload)) == ("s-1", {"n": 2})
    assert (bare.id, bare.type) == (f"{stream_name(prefix, topic)}/3", "")
    assert own.id == "mine-7"
    assert HEADER_UNDECODABLE in broken.headers


async def test_a_message_without_an_id_keeps_its_name_when_it_comes_again(nats_url: str) -> None:
    topic = event()
    async with plain(nats_url) as js, started(nats_url) as broker:
        receiver = await join(broker, "readers", topic, acking=False)
        await js.publish(subject_of(prefix_of(nats_url), topic, 0), b"bare")
        await receiver.receive(1)
        await receiver.subscription.release([receiver.deliveries[0].token])
        await receiver.receive(2)
        assert receiver.ids[0] == receiver.ids[1]
        assert [d.redelivered for d in receiver.deliveries] == [False, True]
        await receiver.close()


async def test_the_sync_interval_is_read_where_the_url_names_the_monitor(
    private_nats: PrivateServer,
) -> None:
    port = private_nats.environment["DULY_TEST_NATS_MONITOR"]
    async with started(f"{private_nats.url}/x?monitor={port}") as broker:
        found: dict[str, Any] = {f.code: f for f in await broker.inspect()}
    assert found["NATS_DURABILITY"].severity is Severity.WEAK
    assert "syncs every 120 s" in found["NATS_DURABILITY"].message
