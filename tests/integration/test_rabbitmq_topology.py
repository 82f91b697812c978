"""What RabbitMQ refuses, loses or has already: errors that name it, outcomes that fit it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote, urlsplit

import pika
import pytest

from duly.brokers.rabbitmq import RabbitMQBroker, queue_name
from duly.errors import BrokerUnavailableError, ConfigurationError, OperatorError
from duly.ports import OutcomeKind, Severity, SubscriptionSpec, TopicSpec
from duly.testing.broker_target import Receiver, event, message
from tests.conftest import rabbitmq_api


@asynccontextmanager
async def started(url: str) -> AsyncIterator[RabbitMQBroker]:
    broker = RabbitMQBroker(url)
    await broker.start()
    try:
        yield broker
    finally:
        await broker.close()


async def with_channel(url: str, work: Callable[[Any], Any]) -> Any:
    def run() -> Any:
        with pika.BlockingConnection(pika.URLParameters(url)) as connection:
            return work(connection.channel())

    return await asyncio.to_thread(run)


async def test_an_existing_queue_with_other_arguments_is_named(rabbitmq_url: str) -> None:
    topic = event()
    name = queue_name("readers", topic)
    await with_channel(rabbitmq_url, lambda c: c.queue_declare(name, durable=True))
    async with started(rabbitmq_url) as broker:
        with pytest.raises(ConfigurationError) as caught:
            await broker.declare([topic], [SubscriptionSpec("readers", (topic,))])
        assert name in caught.value.detail
        assert "x-queue-type" in caught.value.detail
        with pytest.raises(ConfigurationError):
            await broker.subscribe(SubscriptionSpec("readers", (topic,)))
        await broker.declare([event()], [])  # the connection goes on


async def test_a_changed_order_mode_is_named(rabbitmq_url: str) -> None:
    topic = event()
    async with started(rabbitmq_url) as broker:
        await broker.declare([], [SubscriptionSpec("readers", (topic,))])
        with pytest.raises(ConfigurationError, match="x-single-active-consumer"):
            await broker.declare([], [SubscriptionSpec("readers", (topic,), ordered=True)])


async def test_classic_queues_are_used_when_asked_for_and_said_to_be_weak(
    rabbitmq_url: str,
) -> None:
    topic = event()
    async with started(rabbitmq_url + "?queue_type=classic") as broker:
        receiver = Receiver(await broker.subscribe(SubscriptionSpec("readers", (topic,))))
        outcomes = await broker.publish([message(topic)], deadline_seconds=5.0)
        assert outcomes[0].kind is OutcomeKind.CONFIRMED
        await receiver.receive(1)
        found = {f.code: f.severity for f in await broker.inspect()}
        await receiver.close()
    assert found["RABBITMQ_QUEUE_TYPE"] is Severity.WEAK


async def test_inspect_reads_the_server(rabbitmq_url: str) -> None:
    async with started(rabbitmq_url) as broker:
        found = {f.code: f for f in await broker.inspect()}
    assert {f.severity for f in found.values()} == {Severity.GREEN}
    assert found["RABBITMQ_SERVER"].facts["version"][0].isdigit()
    assert {"RABBITMQ_CONFIRMS", "RABBITMQ_ALARM", "RABBITMQ_TLS"} <= set(found)


async def test_a_wrong_password_is_a_configuration_error_without_the_password(
    rabbitmq_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    parts = urlsplit(rabbitmq_url)
    secret = "s3cret/p@ss"
    place = f"guest:{quote(secret, safe='')}@{parts.hostname}:{parts.port}"
    with caplog.at_level(logging.DEBUG):
        async with started(parts._replace(netloc=place).geturl()) as broker:
            with pytest.raises(ConfigurationError) as caught:
                await broker.declare([event()], [])
            outcomes = await broker.publish([message(event())], deadline_seconds=2.0)
            findings = await broker.inspect()
    assert outcomes[0].kind is OutcomeKind.UNAVAILABLE
    refused = [f.severity for f in findings if f.code == "RABBITMQ_REFUSED"]
    assert refused == [Severity.RED], "away is another finding"
    shown = f"{caught.value} {outcomes} {findings} {caplog.text} {broker.__dict__!r}"
    assert secret not in shown
    assert quote(secret, safe="") not in shown


async def test_a_server_that_is_away_is_told_with_its_reason() -> None:
    async with started("amqp://127.0.0.1:1/") as broker:
        found = {f.code: f for f in await broker.inspect()}
    assert found["RABBITMQ_REACHABLE"].severity is Severity.RED
    assert "refused" in found["RABBITMQ_REACHABLE"].message.lower(), "by the system, not by a login"
    assert "RABBITMQ_REFUSED" not in found


async def test_a_full_queue_refuses(rabbitmq_url: str) -> None:
    topic = event()
    vhost = quote(urlsplit(rabbitmq_url).path[1:], safe="")
    rabbitmq_api(
        "PUT",
        f"/api/policies/{vhost}/full",
        b'{"pattern":".*","definition":{"max-length":10,"overflow":"reject-publish"}}',
    )
    async with started(rabbitmq_url) as broker:
        await broker.declare([topic], [SubscriptionSpec("readers", (topic,))])
        kinds = []
        for number in range(10):
            batch = [message(topic, number) for _ in range(20)]
            kinds += [o.kind for o in await broker.publish(batch, deadline_seconds=5.0)]
        assert set(kinds) == {OutcomeKind.CONFIRMED, OutcomeKind.REFUSED}
        receiver = Receiver(await broker.subscribe(SubscriptionSpec("readers", (topic,))))
        await receiver.receive(kinds.count(OutcomeKind.CONFIRMED))
        await asyncio.sleep(0.3)
        assert len(receiver.ids) == kinds.count(OutcomeKind.CONFIRMED)
        await receiver.close()


async def test_a_deleted_exchange_is_unrouted_and_the_others_go_on(rabbitmq_url: str) -> None:
    gone, kept = event("gone"), event("kept")
    async with started(rabbitmq_url) as broker:
        specs = [SubscriptionSpec("readers", (gone,)), SubscriptionSpec("readers", (kept,))]
        await broker.declare([], specs)
        await with_channel(rabbitmq_url, lambda c: c.exchange_delete(gone.name))
        stray, good = message(gone), message(kept)
        outcomes = await broker.publish([stray, good], deadline_seconds=5.0)
        assert outcomes[0].kind is OutcomeKind.UNROUTED
        assert gone.name in outcomes[0].error
        for _ in range(5):
            if outcomes[1].kind is OutcomeKind.CONFIRMED:
                break
            outcomes = await broker.publish([stray, good], deadline_seconds=5.0)
            assert outcomes[0].kind is OutcomeKind.UNROUTED
        assert outcomes[1].kind is OutcomeKind.CONFIRMED


async def test_a_deleted_queue_is_made_again_under_its_reader(rabbitmq_url: str) -> None:
    topic = event()
    spec = SubscriptionSpec("readers", (topic,))
    async with started(rabbitmq_url) as broker:
        receiver = Receiver(await broker.subscribe(spec))
        await broker.publish([message(topic)], deadline_seconds=5.0)
        await receiver.receive(1)
        await with_channel(rabbitmq_url, lambda c: c.queue_delete(queue_name("readers", topic)))

        async def until_it_arrives() -> None:
            while len(receiver.ids) < 2:
                await broker.publish([message(topic)], deadline_seconds=5.0)
                await asyncio.sleep(0.2)

        await asyncio.wait_for(until_it_arrives(), 10.0)
        assert len(set(receiver.ids)) >= 2
        await receiver.close()


async def test_a_duplicate_id_in_a_batch_is_returned_twice(rabbitmq_url: str) -> None:
    unread, read = event("unread"), event("read")
    one = message(unread)
    async with started(rabbitmq_url) as broker:
        await broker.declare([unread], [SubscriptionSpec("readers", (read,))])
        batch = [one, message(read), one, message(read), one]
        outcomes = await broker.publish(batch, deadline_seconds=5.0)
    unrouted, confirmed = OutcomeKind.UNROUTED, OutcomeKind.CONFIRMED
    assert [o.kind for o in outcomes] == [unrouted, confirmed, unrouted, confirmed, unrouted]


async def test_headers_that_fit_no_frame_are_impossible(rabbitmq_url: str) -> None:
    topic = event()
    big = message(topic)
    big = type(big)(
        big.id, big.type, big.kind, big.topic, None, b"", {f"h{n}": "x" * 5000 for n in range(40)}
    )
    async with started(rabbitmq_url) as broker:
        await broker.declare([topic], [SubscriptionSpec("readers", (topic,))])
        outcomes = await broker.publish([big, message(topic)], deadline_seconds=5.0)
    assert [o.kind for o in outcomes] == [OutcomeKind.IMPOSSIBLE, OutcomeKind.CONFIRMED]


async def test_foreign_messages_are_read_as_they_are(rabbitmq_url: str) -> None:
    queue = TopicSpec("work", "command")
    bodies = {
        b"no headers": pika.BasicProperties(),
        b"own id": pika.BasicProperties(message_id="theirs", headers={"n": 7, "deep": {"a": [1]}}),
        b'{"specversion":"1.0","id":"s1","type":"t.x","source":"/a","data":{"a":1}}': (
            pika.BasicProperties(content_type="application/cloudevents+json", priority=3)
        ),
    }

    def foreign(channel: Any) -> None:
        for body, properties in bodies.items():
            channel.basic_publish("", "work", body, properties)

    async with started(rabbitmq_url) as broker:
        receiver = Receiver(await broker.subscribe(SubscriptionSpec("any", (queue,))))
        await with_channel(rabbitmq_url, foreign)
        plain, own, structured = await receiver.receive(3)
        await receiver.close()
    assert plain.payload == b"no headers"
    assert (plain.id, plain.type) == ("", "")
    assert own.id == "theirs"
    assert own.headers == {"n": "7"}
    assert (structured.id, structured.type, structured.payload) == ("s1", "t.x", b'{"a":1}')


async def test_without_an_id_nothing_of_a_delivery_is_taken_for_its_place(
    rabbitmq_url: str,
) -> None:
    """A delivery tag counts deliveries, not messages: taken for a place it would make one message
    two, and two messages one."""
    spec = SubscriptionSpec("any", (TopicSpec("work", "command"),))
    async with started(rabbitmq_url) as broker:
        first = Receiver(await broker.subscribe(spec), acking=False)
        await with_channel(rabbitmq_url, lambda c: c.basic_publish("", "work", b"nameless"))
        await first.receive(1)
        await first.close()
        again = Receiver(await broker.subscribe(spec))
        await again.receive(1)
        await again.close()
    one, two = first.deliveries[0], again.deliveries[0]
    assert [(d.position, d.message.id, d.redelivered) for d in (one, two)] == [
        ("", "", False),
        ("", "", True),
    ]
    assert one.message == two.message, "so that its content names it"


async def test_topics_counts_and_peek_says_why_not(rabbitmq_url: str) -> None:
    topic = event()
    async with started(rabbitmq_url) as broker:
        await broker.declare([topic], [SubscriptionSpec("readers", (topic,))])
        await broker.publish([message(topic, n) for n in range(7)], deadline_seconds=5.0)
        status = (await broker.topics())[0]
        with pytest.raises(OperatorError, match="PEEK_UNSUPPORTED"):
            await broker.peek(topic.name)
    assert (status.name, status.kind, status.depth) == (topic.name, "event", 7)
    assert [(g.group, g.read, g.lag, g.members) for g in status.groups] == [("readers", None, 7, 0)]


async def test_a_broker_that_was_not_started_says_so() -> None:
    broker = RabbitMQBroker("amqp://127.0.0.1:1/")
    with pytest.raises(BrokerUnavailableError):
        await broker.declare([], [])
    outcomes = await broker.publish([message(event())], deadline_seconds=1.0)
    assert [o.kind for o in outcomes] == [OutcomeKind.UNAVAILABLE]
    await broker.close()


async def test_what_an_ordered_receiver_gives_back_comes_first_to_its_heir(
    rabbitmq_url: str,
) -> None:
    topic = event()
    spec = SubscriptionSpec("readers", (topic,), ordered=True, prefetch=20)
    async with started(rabbitmq_url) as one, started(rabbitmq_url) as two:
        first = Receiver(await one.subscribe(spec), acking=False)
        sent = [message(topic, n, key="k") for n in range(60)]
        await one.declare([topic], [spec])
        await one.publish(sent, deadline_seconds=10.0)
        await first.receive(20)
        heir = Receiver(await two.subscribe(spec))
        await asyncio.sleep(0.5)  # until it stands by, which nobody tells
        await first.subscription.release([d.token for d in first.deliveries])
        await heir.until(lambda: {m.id for m in sent} <= set(heir.ids + first.ids[20:]))
        assert heir.ids == [m.id for m in sent][-len(heir.ids) :]
        await first.close()
        await heir.close()
