"""rediss:// to a real Redis with TLS of its own."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from duly.brokers.redis import RedisBroker
from duly.errors import BrokerUnavailableError
from duly.ports import OutcomeKind, Severity
from duly.testing.broker_target import event, join, message, send
from tests.conftest import unavailable
from tools.services import ServerMissingError, start_private_redis
from tools.services.processes import free_ports


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
def tls_url(certificate: tuple[Path, Path]) -> Iterator[str]:
    key, cert = certificate
    port = free_ports(1)[0]
    settings = (
        f"tls-port {port}\ntls-cert-file {cert}\ntls-key-file {key}\ntls-ca-cert-file {cert}\n"
        "tls-auth-clients no\n"
    )
    try:
        with start_private_redis(settings):
            yield f"rediss://127.0.0.1:{port}/0"
    except ServerMissingError as error:
        unavailable(str(error))


async def test_a_server_that_nobody_vouches_for_is_not_talked_to(tls_url: str) -> None:
    broker = RedisBroker(tls_url)
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
    broker = RedisBroker(f"{tls_url}?{query}")
    await broker.start()
    topic = event()
    receiver = await join(broker, "readers", topic)
    await send(broker, [message(topic, n, payload=bytes(2000)) for n in range(500)])
    await receiver.receive(500)
    found = {f.code: f.severity for f in await broker.inspect()}
    assert found["REDIS_TLS"] is (Severity.GREEN if verified else Severity.RED)
    await broker.close()
