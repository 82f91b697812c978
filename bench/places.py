"""Where a row is measured: a fresh database, virtual host or folder, gone when its block ends.

Invariant: nothing is left on the servers, whatever ends a row.  The servers are those of ``make
services``, by their environment variables.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit
from uuid import uuid4

import psycopg
import pymysql

__all__ = [
    "activemq_prefix",
    "connect_mariadb",
    "database",
    "folder",
    "kafka_prefix",
    "mariadb",
    "nats_prefix",
    "queue_facts",
    "redis_prefix",
    "server",
    "virtual_host",
]

API_SECONDS = 15.0


def server(variable: str) -> str:
    """The URL of a server. Raises RuntimeError where there is none."""
    url = os.environ.get(variable)
    if not url:
        raise RuntimeError(f"{variable} is not set; run: make services")
    return url


@contextmanager
def database() -> Iterator[str]:
    """A fresh PostgreSQL database."""
    url = server("DULY_TEST_POSTGRES")
    name = f"duly_bench_{uuid4().hex[:12]}"
    with psycopg.connect(url, autocommit=True, connect_timeout=10) as admin:
        admin.execute(f"CREATE DATABASE {name}")
        try:
            yield urlsplit(url)._replace(path=f"/{name}").geturl()
        finally:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


def connect_mariadb(url: str) -> pymysql.Connection[Any]:
    """A plain connection to the database of a URL, autocommit."""
    at = urlsplit(url)
    return pymysql.connect(
        host=at.hostname or "localhost",
        port=at.port or 3306,
        user=unquote(at.username or "root"),
        password=unquote(at.password or ""),
        database=at.path[1:] or None,
        autocommit=True,
    )


@contextmanager
def mariadb() -> Iterator[str]:
    """A fresh database on MariaDB."""
    url = server("DULY_TEST_MARIADB")
    name = f"duly_bench_{uuid4().hex[:12]}"
    with closing(connect_mariadb(url)) as admin:
        admin.cursor().execute(f"CREATE DATABASE {name}")
        try:
            yield urlsplit(url)._replace(path=f"/{name}").geturl()
        finally:
            admin.cursor().execute(f"DROP DATABASE {name}")


@contextmanager
def virtual_host() -> Iterator[str]:
    """A fresh virtual host of RabbitMQ."""
    url = server("DULY_TEST_RABBITMQ")
    name = f"duly-bench-{uuid4().hex[:12]}"
    _api("PUT", f"/api/vhosts/{name}")
    try:
        user = unquote(urlsplit(url).username or "guest")
        rights = {"configure": ".*", "write": ".*", "read": ".*"}
        _api("PUT", f"/api/permissions/{name}/{user}", rights)
        yield urlsplit(url)._replace(path=f"/{name}").geturl()
    finally:
        _api("DELETE", f"/api/vhosts/{name}")


@contextmanager
def activemq_prefix() -> Iterator[str]:
    """A fresh prefix of addresses on ActiveMQ."""
    from duly.brokers.activemq.control import delete_topics

    url = urlsplit(server("DULY_TEST_ACTIVEMQ"))
    broker = url._replace(path=f"/bench{uuid4().hex[:12]}").geturl()
    try:
        yield broker
    finally:
        delete_topics(broker)


@contextmanager
def kafka_prefix() -> Iterator[str]:
    """A fresh prefix of topics and groups on Kafka."""
    from confluent_kafka.admin import AdminClient

    url = server("DULY_TEST_KAFKA")
    prefix = f"duly-bench-{uuid4().hex[:12]}"
    try:
        yield urlsplit(url)._replace(path=f"/{prefix}").geturl()
    finally:
        with AdminClient({"bootstrap.servers": urlsplit(url).netloc}) as client:
            topics = [
                n for n in client.list_topics(timeout=30).topics if n.startswith(f"{prefix}.")
            ]
            if topics:
                for future in client.delete_topics(topics).values():
                    future.result(30)


@contextmanager
def redis_prefix() -> Iterator[str]:
    """A fresh prefix of keys on Redis."""
    import redis

    url = server("DULY_TEST_REDIS")
    prefix = f"duly-bench-{uuid4().hex[:12]}:"
    try:
        yield f"{url}?prefix={prefix}"
    finally:
        with redis.Redis.from_url(url, socket_timeout=60) as client:
            for key in client.scan_iter(match=f"{prefix}*", count=1000):
                client.delete(key)


@contextmanager
def nats_prefix() -> Iterator[str]:
    """A fresh prefix on NATS; its streams are deleted."""
    url = server("DULY_TEST_NATS")
    prefix = f"bench{uuid4().hex[:12]}"
    try:
        yield urlsplit(url)._replace(path=f"/{prefix}").geturl()
    finally:
        asyncio.run(_delete_streams(url, prefix))


async def _delete_streams(url: str, prefix: str) -> None:
    import nats

    client = await nats.connect(url)
    try:
        streams = client.jetstream(timeout=60)
        for stream in await streams.streams_info():
            if str(stream.config.name).startswith(f"{prefix}-"):
                await streams.delete_stream(str(stream.config.name))
    finally:
        await client.close()


@contextmanager
def folder() -> Iterator[Path]:
    """A fresh folder on the disk of the checkout."""
    with tempfile.TemporaryDirectory(prefix="duly-bench-", dir=os.environ.get("TMPDIR")) as made:
        yield Path(made)


def queue_facts(broker: str, queue: str) -> dict[str, Any]:
    """What RabbitMQ says of a queue: its type, and whether it is durable."""
    host = quote(urlsplit(broker).path[1:], safe="")
    said = _api("GET", f"/api/queues/{host}/{quote(queue, safe='')}")
    return {"queue_type": said["arguments"].get("x-queue-type"), "durable": said["durable"]}


def _api(method: str, path: str, body: Any = None) -> Any:
    """Ask the management interface, at DULY_TEST_RABBITMQ_API or its usual port."""
    at = urlsplit(server("DULY_TEST_RABBITMQ"))
    usual = f"http://{at.username}:{at.password}@{at.hostname}:{(at.port or 5672) + 10_000}"
    api = urlsplit(os.environ.get("DULY_TEST_RABBITMQ_API", usual))
    login = f"{unquote(api.username or 'guest')}:{unquote(api.password or 'guest')}".encode()
    request = urllib.request.Request(
        f"{api.scheme}://{api.hostname}:{api.port}{path}",
        data=None if body is None else json.dumps(body).encode(),
        method=method,
        headers={
            "Authorization": f"Basic {b64encode(login).decode()}",
            "Content-Type": "application/json",
        },
    )
    with urllib.request.urlopen(request, timeout=API_SECONDS) as answer:
        text = answer.read()
    return json.loads(text) if text else None
