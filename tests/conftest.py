"""A fresh database or virtual host for each test, from the servers of `make services`.

Invariant: a missing server skips its tests with one line on a laptop and fails them where
``CI=true``.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import unquote, urlsplit
from uuid import uuid4

import pytest

from duly.brokers.activemq.control import delete_topics as delete_topics_of_activemq
from duly.testing.fault_proxy import FaultProxy
from tests.fresh_postgres import FreshPostgres
from tests.servers.opensearch import OpenSearch
from tools.services import (
    PrivateServer,
    ServerMissingError,
    load_environment,
    start_private_activemq,
    start_private_kafka,
    start_private_mariadb,
    start_private_nats,
    start_private_postgres,
    start_private_rabbitmq,
    start_private_redis,
    start_private_sshd,
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


@pytest.fixture(scope="session")
def fresh_postgres() -> Iterator[FreshPostgres]:
    """Databases for as many tests as want one."""
    with FreshPostgres(server_url("DULY_TEST_POSTGRES")) as databases:
        yield databases


@pytest.fixture
def postgres_url(fresh_postgres: FreshPostgres) -> Iterator[str]:
    """A fresh PostgreSQL database; after the test all that is connected to it is ended."""
    url = fresh_postgres.take()
    yield url
    fresh_postgres.give_back(url)


@pytest.fixture
def mariadb_url() -> Iterator[str]:
    """A fresh MariaDB database, dropped after the test with all that is connected to it."""
    server = server_url("DULY_TEST_MARIADB")
    name = f"duly_{uuid4().hex}"
    url = urlsplit(server)._replace(path=f"/{name}").geturl()
    with closing(mariadb(server)) as admin, admin.cursor() as ask:
        ask.execute(f"CREATE DATABASE {name}")
        try:
            yield url
        finally:
            ask.execute("SELECT id FROM information_schema.processlist WHERE db = %s", (name,))
            for (connection,) in ask.fetchall():
                with suppress(Exception):  # it may have ended since
                    ask.execute(f"KILL {connection}")
            ask.execute(f"DROP DATABASE {name}")


def mariadb(url: str) -> Any:
    """A PyMySQL connection to the database of a URL, in autocommit."""
    import pymysql

    parts = urlsplit(url)
    return pymysql.connect(
        host=parts.hostname,
        port=parts.port or 3306,
        user=unquote(parts.username or "root"),
        password=unquote(parts.password or ""),
        database=parts.path.strip("/") or None,
        autocommit=True,
        connect_timeout=10,
    )


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


@pytest.fixture
def redis_url() -> Iterator[str]:
    """A prefix of Redis of this test's own; its keys are deleted after the test."""
    import redis

    server = server_url("DULY_TEST_REDIS")
    prefix = f"duly-{uuid4().hex}:"
    try:
        yield f"{server}?prefix={prefix}"
    finally:
        with redis.Redis.from_url(server, socket_timeout=10) as client:
            for key in client.scan_iter(match=f"{prefix}*", count=1000):
                client.delete(key)


@pytest.fixture
def opensearch() -> Iterator[OpenSearch]:
    """An index of this test's own on OpenSearch, dropped after the test."""
    with closing(OpenSearch(server_url("DULY_TEST_SEARCH"))) as server:
        try:
            yield server
        finally:
            server.clear()


@pytest.fixture
def sftp_url() -> Iterator[str]:
    """A fresh folder of an OpenSSH server of this machine, emptied and removed after the test."""
    server = server_url("DULY_TEST_SFTP")
    folder = Path(urlsplit(server).path) / f"t{uuid4().hex[:16]}"
    folder.mkdir()
    folder.chmod(0o777)  # the server runs as another user
    try:
        yield urlsplit(server)._replace(path=str(folder)).geturl()
    finally:
        shutil.rmtree(folder)


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


@pytest.fixture
def kafka_url() -> Iterator[str]:
    """A fresh prefix on a Kafka server, whose topics and groups are deleted after the test."""
    server, prefix = server_url("DULY_TEST_KAFKA"), f"t{uuid4().hex[:16]}"
    try:
        yield urlsplit(server)._replace(path=f"/{prefix}").geturl()
    finally:
        delete_topics(urlsplit(server).netloc, prefix)


def delete_topics(servers: str, prefix: str) -> None:
    """Delete every topic and group of a prefix, with a plain client."""
    from confluent_kafka.admin import AdminClient

    with AdminClient({"bootstrap.servers": servers, "log_level": 0}) as client:
        topics = [n for n in client.list_topics(timeout=15).topics if f"{prefix}." in n]
        found = client.list_consumer_groups(request_timeout=15).result(20).valid
        groups = [one.group_id for one in found if f"{prefix}." in one.group_id]
        futures = list(client.delete_topics(topics).values()) if topics else []
        futures += client.delete_consumer_groups(groups).values() if groups else []
        for future in futures:
            future.exception(20)  # a group whose members are just leaving stays, and harms nobody


@pytest.fixture
def kafka_proxy() -> FaultProxy:
    """A proxy, not started, at the place where Kafka says that it is to those who come by it."""
    through, behind = map(int, server_url("DULY_TEST_KAFKA_PROXY").split(":"))
    proxy = FaultProxy("127.0.0.1", behind)
    proxy.port = through
    return proxy


@pytest.fixture
def nats_url() -> Iterator[str]:
    """A fresh prefix on a NATS server, whose streams are deleted after the test."""
    server, prefix = server_url("DULY_TEST_NATS"), f"t{uuid4().hex[:16]}"
    try:
        yield urlsplit(server)._replace(path=f"/{prefix}").geturl()
    finally:
        asyncio.run(delete_streams(server, prefix))


async def delete_streams(server: str, prefix: str) -> None:
    """Delete every stream of a prefix."""
    import nats

    client = await nats.connect(server)
    js = client.jetstream()
    for stream in await js.streams_info():
        if str(stream.config.name).startswith(f"{prefix}-"):
            await js.delete_stream(str(stream.config.name))
    await client.close()


@pytest.fixture
def activemq_url() -> Iterator[str]:
    """A fresh prefix on an ActiveMQ server, whose queues are deleted after the test."""
    server, prefix = server_url("DULY_TEST_ACTIVEMQ"), f"t{uuid4().hex[:16]}"
    try:
        yield urlsplit(server)._replace(path=f"/{prefix}").geturl()
    finally:
        delete_topics_of_activemq(urlsplit(server)._replace(path=f"/{prefix}").geturl())


@pytest.fixture(scope="module")
def private_activemq() -> Iterator[PrivateServer]:
    """An ActiveMQ of this module's own, to be killed and restarted."""
    try:
        server = start_private_activemq()
    except ServerMissingError as error:
        unavailable(str(error))
    with server:
        yield server


@pytest.fixture(scope="module")
def private_kafka() -> Iterator[PrivateServer]:
    """A Kafka of this module's own, to be killed and restarted."""
    try:
        server = start_private_kafka()
    except ServerMissingError as error:
        unavailable(str(error))
    with server:
        yield server


@pytest.fixture(scope="module")
def private_nats() -> Iterator[PrivateServer]:
    """A NATS of this module's own, to be killed and restarted."""
    try:
        server = start_private_nats()
    except ServerMissingError as error:
        unavailable(str(error))
    with server:
        yield server


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


@pytest.fixture(scope="module")
def private_redis() -> Iterator[PrivateServer]:
    """A Redis of this module's own, to be killed and restarted."""
    try:
        server = start_private_redis()
    except ServerMissingError as error:
        unavailable(str(error))
    with server:
        yield server


@pytest.fixture(scope="module")
def private_mariadb() -> Iterator[PrivateServer]:
    """A MariaDB of this module's own, to be killed and restarted."""
    try:
        server = start_private_mariadb()
    except ServerMissingError as error:
        unavailable(str(error))
    with server:
        yield server


@pytest.fixture(scope="module")
def private_sshd() -> Iterator[PrivateServer]:
    """An SSH server of this module's own, to be killed and restarted."""
    try:
        server = start_private_sshd()
    except ServerMissingError as error:
        unavailable(str(error))
    with server:
        yield server
