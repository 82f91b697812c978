"""Logins, rights and TLS of Kafka: one clear error each, and no secret in it or in the log."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest

from duly.brokers.kafka import KafkaBroker
from duly.errors import BrokerUnavailableError, ConfigurationError
from duly.message import Message
from duly.ports import OutcomeKind, Severity, SubscriptionSpec, TopicSpec
from duly.testing.broker_target import Receiver, event, message, send
from tests.conftest import server_url

SECRET = "pw-7f3a9c"


@asynccontextmanager
async def started(url: str) -> AsyncIterator[KafkaBroker]:
    broker = KafkaBroker(url)
    await broker.start()
    try:
        yield broker
    finally:
        await broker.close()


def placed(variable: str, url: str) -> str:
    """The server of a variable with the prefix of ``url``."""
    return urlsplit(server_url(variable))._replace(path=urlsplit(url).path).geturl()


async def test_a_wrong_password_is_said_and_not_shown(
    kafka_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    parts = urlsplit(placed("DULY_TEST_KAFKA_LOGIN", kafka_url))
    wrong = parts._replace(netloc=f"duly:{SECRET}@{parts.hostname}:{parts.port}").geturl()
    topic = event()
    with caplog.at_level(logging.DEBUG):
        async with started(wrong) as broker:
            with pytest.raises(ConfigurationError) as caught:
                await broker.declare([topic], [])
            (outcome,) = await broker.publish([message(topic)], deadline_seconds=3.0)
            found = {f.code: f for f in await broker.inspect()}
    assert caught.value.code == "BROKER_LOGIN_REFUSED"
    assert outcome.kind is OutcomeKind.UNAVAILABLE
    assert found["KAFKA_REACHABLE"].severity is Severity.RED
    assert "BROKER_LOGIN_REFUSED" in found["KAFKA_REACHABLE"].message
    assert SECRET not in caplog.text + str(caught.value) + outcome.error + str(found)


async def test_missing_rights_are_said(kafka_url: str) -> None:
    topic = event()
    async with started(kafka_url) as owner:
        await owner.declare([topic], [])
    async with started(placed("DULY_TEST_KAFKA_READER", kafka_url)) as broker:
        with pytest.raises(ConfigurationError) as caught:
            await broker.declare([event()], [])
        assert caught.value.code == "BROKER_RIGHTS_MISSING"
        (outcome,) = await broker.publish([message(topic)], deadline_seconds=3.0)
        assert outcome.kind is not OutcomeKind.CONFIRMED
        assert "uthoriz" in outcome.error


async def test_everything_works_with_a_login_over_tls(kafka_url: str) -> None:
    async with started(placed("DULY_TEST_KAFKA_TLS", kafka_url)) as broker:
        topic = event()
        receiver = Receiver(await broker.subscribe(SubscriptionSpec("readers", (topic,))))
        await send(broker, [message(topic, n, payload=bytes(2000)) for n in range(100)])
        await receiver.receive(100)
        found = {f.code: f.severity for f in await broker.inspect()}
        assert found["KAFKA_TLS"] is Severity.GREEN
        assert found["KAFKA_COPIES"] is Severity.WEAK, "one broker, one copy"


async def test_a_server_that_nobody_vouches_for_is_not_talked_to(kafka_url: str) -> None:
    url = urlsplit(placed("DULY_TEST_KAFKA_TLS", kafka_url))._replace(query="").geturl()
    async with started(url) as broker:
        with pytest.raises(BrokerUnavailableError) as caught:
            await broker.declare([event()], [])
        assert caught.value.code == "BROKER_TLS_REFUSED"
        (outcome,) = await broker.publish([message(event())], deadline_seconds=3.0)
        assert outcome.kind is OutcomeKind.UNAVAILABLE
    async with started(f"{url}?verify=verify_none") as broker:
        await broker.declare([event()], [])
        found = {f.code: f.severity for f in await broker.inspect()}
        assert found["KAFKA_TLS"] is Severity.RED


async def test_a_topic_that_cannot_be_made_as_asked(kafka_url: str) -> None:
    async with started(f"{kafka_url}?replication=3") as broker:
        with pytest.raises(ConfigurationError, match=r"(?i)replication"):
            await broker.declare([event()], [])
    async with started(kafka_url) as broker:
        one = event()
        await broker.declare([one], [])
        with pytest.raises(ConfigurationError, match="collides"):
            await broker.declare([TopicSpec(one.name.replace("-", ".") + ".x", "event")], [])
            await broker.declare([TopicSpec(one.name.replace("-", ".") + "_x", "event")], [])


async def test_an_unknown_topic_and_a_size_refused(kafka_url: str) -> None:
    async with started(kafka_url) as broker:
        known = event()
        await broker.declare([known], [])
        large = Message("id", "t", "event", known.name, None, b"x" * 1_000_000, {"h": "y" * 60_000})
        batch = [message(event("unknown")), large, message(known)]
        unknown, size, fine = await broker.publish(batch, deadline_seconds=5.0)
        assert (unknown.kind, unknown.error) == (
            OutcomeKind.UNROUTED,
            f"there is no topic {batch[0].topic}",
        )
        assert size.kind is OutcomeKind.IMPOSSIBLE
        assert fine.kind is OutcomeKind.CONFIRMED
