"""A fresh database or virtual host for each test, from the servers of `make services`.

Invariant: a missing server skips its tests with one line on a laptop and fails them where
``CI=true``.
"""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn
from urllib.parse import unquote, urlsplit
from uuid import uuid4

import pytest

from tools.services import (
    PrivateServer,
    ServerMissingError,
    load_environment,
    start_private_postgres,
    start_private_rabbitmq,
)

load_environment()
HTTP_TIMEOUT_SECONDS = 15


def unavailable(reason: str) -> NoReturn:
    """Skip on a laptop, fail in CI."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def server_url(variable: str) -> str:
    """The URL of a server, by the name of its environment variable."""
    return os.environ.get(variable) or unavailable(f"{variable} is not set; run: make services")


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """The URL of a SQLite file that does not exist yet."""
    return f"sqlite:///{tmp_path / 'duly.db'}"


@pytest.fixture
def postgres_url() -> Iterator[str]:
    """A fresh PostgreSQL database, dropped after the test with all that is connected to it."""
    import psycopg

    server = server_url("DULY_TEST_POSTGRES")
    name = f"duly_{uuid4().hex}"
    with psycopg.connect(server, autocommit=True, connect_timeout=10) as admin:
        admin.execute(f"CREATE DATABASE {name}")
        try:
            yield urlsplit(server)._replace(path=f"/{name}").geturl()
        finally:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def pgbouncer_url(postgres_url: str) -> str:
    """The database of ``postgres_url`` through PgBouncer in transaction mode."""
    pooler = server_url("DULY_TEST_PGBOUNCER")
    return urlsplit(pooler)._replace(path=urlsplit(postgres_url).path).geturl()


@pytest.fixture
def rabbitmq_url() -> Iterator[str]:
    """A fresh virtual host of RabbitMQ, deleted after the test with its queues and connections."""
    server = server_url("DULY_TEST_RABBITMQ")
    name = f"duly-{uuid4().hex}"
    user = unquote(urlsplit(server).username or "guest")
    rabbitmq_api("PUT", f"/api/vhosts/{name}")
    try:
        rabbitmq_api(
            "PUT", f"/api/permissions/{name}/{user}", b'{"configure":".*","write":".*","read":".*"}'
        )
        yield urlsplit(server)._replace(path=f"/{name}").geturl()
    finally:
        rabbitmq_api("DELETE", f"/api/vhosts/{name}")


def rabbitmq_api(method: str, path: str, body: bytes | None = None) -> bytes:
    """Ask RabbitMQ's management interface, at DULY_TEST_RABBITMQ_API or its usual port."""
    server = urlsplit(server_url("DULY_TEST_RABBITMQ"))
    port = (server.port or 5672) + 10_000
    usual = f"http://{server.username}:{server.password}@{server.hostname}:{port}"
    api = urlsplit(os.environ.get("DULY_TEST_RABBITMQ_API", usual))
    login = f"{unquote(api.username or 'guest')}:{unquote(api.password or 'guest')}".encode()
    request = urllib.request.Request(
        f"{api.scheme}://{api.hostname}:{api.port}{path}",
        data=body,
        method=method,
        headers={
            "Authorization": f"Basic {b64encode(login).decode()}",
            "Content-Type": "application/json",
        },
    )
    try:
        with urllib.request.urlopen(request, timeout=HTTP_TIMEOUT_SECONDS) as answer:
            return bytes(answer.read())
    except urllib.error.HTTPError:
        raise
    except OSError as error:
        return unavailable(
            f"RabbitMQ's management interface does not answer at port {api.port} ({error}); "
            "set DULY_TEST_RABBITMQ_API"
        )


@pytest.fixture(scope="module")
def private_postgres() -> Iterator[PrivateServer]:
    """A PostgreSQL of this module's own, to be killed and restarted."""
    try:
        server = start_private_postgres()
    except ServerMissingError as error:
        unavailable(str(error))
    with server:
        yield server


@pytest.fixture(scope="module")
def private_rabbitmq() -> Iterator[PrivateServer]:
    """A RabbitMQ of this module's own, to be killed and restarted."""
    try:
        server = start_private_rabbitmq()
    except ServerMissingError as error:
        unavailable(str(error))
    with server:
        yield server
