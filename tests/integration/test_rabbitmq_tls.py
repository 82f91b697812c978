"""amqps:// to a real RabbitMQ, through a TLS end of the test's own."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from duly.brokers.rabbitmq import RabbitMQBroker
from duly.errors import BrokerUnavailableError
from duly.ports import OutcomeKind, Severity, SubscriptionSpec
from duly.testing.broker_target import Receiver, event, message


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    key, cert = folder / "key.pem", folder / "cert.pem"
    words = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext"
    command = [*words.split(), "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    command += ["-keyout", str(key), "-out", str(cert)]
    subprocess.run(command, check=True, capture_output=True, timeout=30)
    return key, cert


@pytest.fixture
async def tls_url(certificate: tuple[Path, Path], rabbitmq_url: str) -> AsyncIterator[str]:
    parts = urlsplit(rabbitmq_url)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate[1], certificate[0])
    tasks: set[asyncio.Task[None]] = set()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass  # the other end is closed below
        finally:
            writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far = await asyncio.open_connection(parts.hostname, parts.port)
        tasks.add(asyncio.create_task(carry(far[0], writer)))
        await carry(reader, far[1])

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    place = f"{parts.username}:{parts.password}@127.0.0.1:{port}"
    yield parts._replace(scheme="amqps", netloc=place).geturl()
    server.close()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_server_that_nobody_vouches_for_is_not_talked_to(tls_url: str) -> None:
    broker = RabbitMQBroker(tls_url)
    await broker.start()
    with pytest.raises(BrokerUnavailableError, match="CERTIFICATE_VERIFY_FAILED"):
        await broker.declare([event()], [])
    outcomes = await broker.publish([message(event())], deadline_seconds=1.0)
    assert outcomes[0].kind is OutcomeKind.UNAVAILABLE
    await broker.close()


@pytest.mark.parametrize("verified", [True, False])
async def test_everything_works_over_tls(
    tls_url: str, certificate: tuple[Path, Path], *, verified: bool
) -> None:
    query = f"cacertfile={certificate[1]}" if verified else "verify=verify_none"
    broker = RabbitMQBroker(f"{tls_url}?{query}")
    await broker.start()
    topic = event()
    receiver = Receiver(await broker.subscribe(SubscriptionSpec("readers", (topic,))))
    sent = [message(topic, n, payload=bytes(2000)) for n in range(500)]
    outcomes = await broker.publish(sent, deadline_seconds=10.0)
    assert {o.kind for o in outcomes} == {OutcomeKind.CONFIRMED}
    await receiver.receive(500)
    found = {f.code: f.severity for f in await broker.inspect()}
    assert found["RABBITMQ_TLS"] is (Severity.GREEN if verified else Severity.RED)
    await receiver.close()
    await broker.close()
