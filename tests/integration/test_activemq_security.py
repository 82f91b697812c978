"""Logins, rights, TLS and settings of ActiveMQ: one clear error each, and no secret in it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

import pytest

from duly.brokers.activemq import ActiveMQBroker
from duly.errors import BrokerUnavailableError, ConfigurationError, DulyError
from duly.ports import OutcomeKind, Severity, SubscriptionSpec, TopicSpec
from duly.testing.broker_target import command, event, join, message, send
from tests.conftest import server_url, unavailable
from tools.services import ServerMissingError, start_private_activemq

SECRET = "artemis-t3sts"


@pytest.fixture
def tls_url(activemq_url: str) -> str:
    """The acceptor with TLS, at the prefix of this test."""
    path = urlsplit(activemq_url).path
    return urlsplit(server_url("DULY_TEST_ACTIVEMQ_TLS"))._replace(path=path).geturl()


@asynccontextmanager
async def started(url: str) -> AsyncIterator[ActiveMQBroker]:
    broker = ActiveMQBroker(url)
    await broker.start()
    try:
        yield broker
    finally:
        await broker.close()


def reading(topic: TopicSpec) -> SubscriptionSpec:
    return SubscriptionSpec("readers", (topic,))


async def refusal(url: str) -> DulyError:
    """What a declare and a check on this URL say."""
    topic = event()
    async with started(url) as broker:
        with pytest.raises(DulyError) as caught:
            await broker.declare([topic], [reading(topic)])
        outcomes = await broker.publish([message(topic)], deadline_seconds=1.0)
        assert outcomes[0].kind in (OutcomeKind.UNAVAILABLE, OutcomeKind.UNKNOWN)
        findings = [f for f in await broker.inspect() if f.severity is Severity.RED]
        assert findings
        assert findings[0].fix
    return caught.value


async def test_everything_works_over_tls(tls_url: str) -> None:
    topic = event()
    unverified = f"{tls_url.partition('?')[0]}?verify=verify_none"
    for url, severity in ((tls_url, Severity.GREEN), (unverified, Severity.RED)):
        async with started(url) as broker:
            receiver = await join(broker, f"group-{severity.value}", topic)
            sent = [message(topic, n, payload=bytes(2000)) for n in range(300)]
            await send(broker, sent)
            await receiver.receive(300)
            found = {f.code: f.severity for f in await broker.inspect()}
            assert found["ACTIVEMQ_TLS"] is severity
            assert found["ACTIVEMQ_DURABILITY"] is Severity.GREEN
            await receiver.close()


@pytest.mark.parametrize(
    ("what", "code"),
    [
        ("password", "ACTIVEMQ_LOGIN_REFUSED"),
        ("no login", "ACTIVEMQ_LOGIN_REFUSED"),
        ("nobody vouches", "ACTIVEMQ_TLS_REFUSED"),
        ("tls to a plain port", "ACTIVEMQ_TLS_REFUSED"),
        ("not manage", "ACTIVEMQ_RIGHTS"),
    ],
)
async def test_what_the_server_refuses_is_one_clear_error(
    activemq_url: str, tls_url: str, what: str, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    over_tls = activemq_url.replace("stomp:", "stomp+tls:")
    url = {
        "password": activemq_url.replace(SECRET, f"wrong-{SECRET}"),
        "no login": activemq_url.replace(f"duly:{SECRET}@", ""),
        "nobody vouches": tls_url.partition("?")[0],
        "tls to a plain port": f"{over_tls}?connection_timeout=1",
        "not manage": activemq_url.replace("duly:", "writer:"),
    }[what]
    error = await refusal(url)
    assert isinstance(error, ConfigurationError)
    assert error.code == code
    assert str(urlsplit(url).hostname) in error.detail
    assert SECRET not in str(error) + caplog.text


async def test_a_plain_connection_to_a_tls_port_is_an_error(tls_url: str) -> None:
    error = await refusal(tls_url.partition("?")[0].replace("stomp+tls:", "stomp:"))
    assert isinstance(error, ConfigurationError | BrokerUnavailableError)


async def test_a_right_that_is_missing_refuses_its_destination_and_no_other(
    activemq_url: str,
) -> None:
    """``reader`` may ask and read, and send nothing but questions."""
    topic = event()
    async with started(activemq_url) as broker:
        receiver = await join(broker, "readers", topic)
        async with started(activemq_url.replace("duly:", "reader:")) as reader:
            kinds = []
            for _ in range(40):
                outcomes = await reader.publish([message(topic)], deadline_seconds=2.0)
                kinds.append(outcomes[0].kind)
                if kinds[-1] is OutcomeKind.REFUSED:
                    break
                await asyncio.sleep(0.1)
            assert kinds[-1] is OutcomeKind.REFUSED, kinds
            assert topic.name in outcomes[0].error
            assert OutcomeKind.CONFIRMED not in kinds
        assert receiver.ids == []
        await receiver.close()


async def test_a_queue_that_was_made_otherwise_is_refused(activemq_url: str) -> None:
    topic = event()
    async with started(activemq_url) as broker:
        await broker.declare([topic], [reading(topic)])
        with pytest.raises(ConfigurationError) as caught:
            await broker.declare([], [SubscriptionSpec("readers", (topic,), ordered=True)])
    assert caught.value.code == "ACTIVEMQ_TOPOLOGY"
    assert "exclusive" in caught.value.detail


async def test_topics_are_shown_with_their_groups(activemq_url: str) -> None:
    topic, queue = event(), command()
    async with started(activemq_url) as broker:
        await broker.declare([topic, queue], [reading(topic), SubscriptionSpec("w", (queue,))])
        await send(broker, [message(topic, n) for n in range(3)] + [message(queue)])
        receiver = await join(broker, "readers", topic, acking=False)
        await receiver.receive(3)
        found = {status.name: status for status in await broker.topics()}
        codes = {finding.code for finding in await broker.inspect()}
        await receiver.close()
    assert "ACTIVEMQ_STRANDED" not in codes, "a living receiver has them"
    assert (found[topic.name].depth, found[queue.name].depth) == (3, 1)
    group = found[topic.name].groups[0]
    assert (group.group, group.lag, group.members) == ("readers", 3, 1)


async def test_a_server_that_does_not_wait_for_its_disk_is_weak(activemq_url: str) -> None:
    try:
        server = start_private_activemq(synced=False)
    except ServerMissingError as error:
        unavailable(str(error))
    with server:
        async with started(server.url) as broker:
            found = {f.code: f for f in await broker.inspect()}
    assert found["ACTIVEMQ_DURABILITY"].severity is Severity.WEAK
    assert "journalSyncTransactional" in found["ACTIVEMQ_DURABILITY"].message


async def test_another_server_is_said_to_be_one() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionResetError):
            await reader.read(1000)
            writer.write(answer)
            await writer.drain()
            await reader.read(1000)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    answers = (
        (b"CONNECTED\nversion:1.2\nserver:ActiveMQ/6.1.7\n\n\0", "Classic"),
        (b"CONNECTED\nversion:1.0\n\n\0", "does not speak STOMP 1.2"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "no STOMP"),
    )
    for answer, words in answers:  # noqa: B007  # what ``serve`` says
        error = await refusal(f"stomp://u:{SECRET}@127.0.0.1:{port}")
        assert words in error.detail
        assert SECRET not in error.detail
    server.close()
