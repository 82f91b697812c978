"""Logins, rights and TLS of NATS: one clear error each, and no secret in it or in the log."""

from __future__ import annotations

import asyncio
import logging
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from duly.brokers.nats import NatsBroker
from duly.errors import BrokerUnavailableError, ConfigurationError, DulyError
from duly.ports import OutcomeKind, Severity, SubscriptionSpec, TopicSpec
from duly.testing.broker_target import Receiver, event, join, message, send
from tests.conftest import unavailable
from tools.services import PrivateServer, ServerMissingError, start_private_nats

SECRET = "pw-7f3a9c"
SETTINGS = """
tls {{ cert_file: "{cert}", key_file: "{key}", timeout: 5 }}
authorization {{ users: [
  {{ user: admin, password: "{secret}" }}
  {{ user: reader, password: "{secret}", permissions: {{
      publish: ["$JS.API.>", "$JS.ACK.>"], subscribe: ["_INBOX.>"] }} }}
  {{ user: writer, password: "{secret}", permissions: {{
      publish: ["shop.event.>"], subscribe: ["_INBOX.>"] }} }}
  {{ user: deaf, password: "{secret}", permissions: {{ publish: [">"], subscribe: ["none"] }} }}
] }}
"""


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    key, cert = folder / "key.pem", folder / "cert.pem"
    words = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext"
    command = [*words.split(), "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    command += ["-keyout", str(key), "-out", str(cert)]
    subprocess.run(command, check=True, capture_output=True, timeout=30)
    return key, cert


@pytest.fixture(scope="module")
def guarded(certificate: tuple[Path, Path]) -> Iterator[PrivateServer]:
    """A server that wants TLS and a login."""
    key, cert = certificate
    try:
        server = start_private_nats(SETTINGS.format(cert=cert, key=key, secret=SECRET))
    except ServerMissingError as error:
        unavailable(str(error))
    with server:
        yield server


@pytest.fixture
def place(guarded: PrivateServer, certificate: tuple[Path, Path]) -> str:
    """The URL after the login."""
    return f"{urlsplit(guarded.url).netloc}/shop?cacertfile={certificate[1]}"


@asynccontextmanager
async def started(url: str) -> AsyncIterator[NatsBroker]:
    broker = NatsBroker(url)
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


async def test_everything_works_over_tls(place: str, certificate: tuple[Path, Path]) -> None:
    topic = event()
    unverified = place.replace(f"cacertfile={certificate[1]}", "verify=verify_none")
    for url, severity in ((place, Severity.GREEN), (unverified, Severity.RED)):
        async with started(f"nats+tls://admin:{SECRET}@{url}") as broker:
            receiver = await join(broker, f"group-{severity.value}", topic)
            sent = [message(topic, n, payload=bytes(2000)) for n in range(500)]
            await send(broker, sent)
            await receiver.receive(500)
            found = {f.code: f.severity for f in await broker.inspect()}
            assert found["NATS_TLS"] is severity
            await receiver.close()


@pytest.mark.parametrize(
    ("what", "code"),
    [
        ("password", "NATS_LOGIN_REFUSED"),
        ("no login", "NATS_LOGIN_REFUSED"),
        ("no tls", "NATS_TLS_REFUSED"),
        ("nobody vouches", "NATS_TLS_REFUSED"),
    ],
)
async def test_what_the_server_refuses_is_one_clear_error(
    place: str, what: str, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    url = {
        "password": f"nats+tls://admin:wrong-{SECRET}@{place}",
        "no login": f"nats+tls://{place}",
        "no tls": f"nats://admin:{SECRET}@{place.partition('?')[0]}",
        "nobody vouches": f"nats+tls://admin:{SECRET}@{place.partition('?')[0]}",
    }[what]
    error = await refusal(url)
    assert isinstance(error, ConfigurationError)
    assert error.code == code
    assert "127.0.0.1" in error.detail
    assert SECRET not in str(error) + caplog.text
    warnings = [r for r in caplog.records if r.name == "duly.brokers.nats"]
    assert 1 <= len(warnings) <= 6, "each connection says it once"


async def test_a_login_is_never_sent_in_clear(nats_url: str) -> None:
    """A server, or somebody in between, that offers no TLS gets nothing."""
    heard: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"version":"2.15.0","max_payload":1048576,"headers":true}\r\n')
        with suppress(ConnectionResetError):
            heard.append(await reader.read(10_000))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    error = await refusal(f"nats+tls://admin:{SECRET}@127.0.0.1:{port}")
    server.close()
    assert isinstance(error, ConfigurationError)
    assert "offers no TLS" in error.detail
    assert not b"".join(heard)
    assert isinstance(await refusal(nats_url.replace("nats://", "nats+tls://")), ConfigurationError)


async def test_a_missing_right_to_publish_refuses_that_and_nothing_else(place: str) -> None:
    topic = event()
    async with started(f"nats+tls://reader:{SECRET}@{place}") as broker:
        receiver = Receiver(await broker.subscribe(reading(topic)))
        sent = [message(topic, n) for n in range(40)]
        outcomes = await broker.publish(sent, deadline_seconds=5.0)
        assert {o.kind for o in outcomes} == {OutcomeKind.REFUSED}
        assert all("permission" in o.error and topic.name in o.error for o in outcomes)
        async with started(f"nats+tls://admin:{SECRET}@{place}") as admin:
            await send(admin, sent)
        await receiver.receive(40)
        await receiver.close()


@pytest.mark.parametrize(("user", "word"), [("writer", "publish"), ("deaf", "subscription")])
async def test_a_missing_right_to_ask_is_a_configuration_error(
    place: str, user: str, word: str
) -> None:
    topic = event()
    async with started(f"nats+tls://{user}:{SECRET}@{place}") as broker:
        with pytest.raises(ConfigurationError, match=f"no permission for {word}"):
            await broker.declare([topic], [reading(topic)])
        assert [f.code for f in await broker.inspect()] == ["NATS_RIGHTS"]
        began = asyncio.get_running_loop().time()
        outcomes = await broker.publish([message(topic)], deadline_seconds=1.0)
        assert asyncio.get_running_loop().time() - began < 3.0
        assert outcomes[0].kind in (OutcomeKind.UNKNOWN, OutcomeKind.UNAVAILABLE)


async def test_a_server_without_jetstream_says_so() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"version":"2.15.0","max_payload":1048576,"headers":true}\r\n')
        while line := await reader.readline():
            words = line.split()
            if words[0] == b"PING":
                writer.write(b"PONG\r\n")
            elif words[0] == b"SUB":
                last = words
            elif words[0] == b"PUB" and len(words) == 4:
                block = b"NATS/1.0 503\r\n\r\n"
                writer.write(
                    b"HMSG %s %s %d %d\r\n%s\r\n"
                    % (words[2], last[-1], len(block), len(block), block)
                )
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    topic = event()
    async with started(f"nats://127.0.0.1:{port}") as broker:
        with pytest.raises(BrokerUnavailableError, match="JetStream is not enabled") as caught:
            await broker.declare([topic], [reading(topic)])
        assert caught.value.code == "NATS_NO_JETSTREAM"
    server.close()
