"""A clean start on a database server and a broker server: what an earlier demo left there goes.

Owns nothing but the demo's own names, which all begin with ``duly_demo_`` or ``duly-demo``.  The
invariant: tables under that prefix which are not marked as the demo's are refused, not dropped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from sqlalchemy import Connection, create_engine, inspect, text
from sqlalchemy.engine import Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from duly.admin.demo.handlers import CARRIERS, DELAYS, DESTINATIONS
from duly.admin.demo.model import APP, PREFIX, QUEUE, TOPIC, Tables
from duly.app import App
from duly.errors import (
    BrokerUnavailableError,
    ConfigurationError,
    DatabaseUnavailableError,
    MissingExtraError,
)
from duly.outbox.schema import Schema
from duly.ports import TopicSpec
from duly.wire.urls import redact

__all__ = ["BROKERS", "DATABASES", "clean_broker", "clean_database", "plain_engine", "scheme_of"]

BROKERS = {
    "amqp": "RabbitMQ",
    "amqps": "RabbitMQ",
    "embedded+mariadb": "embedded broker on MariaDB",
    "embedded+mysql": "embedded broker on MySQL",
    "embedded+postgres": "embedded broker on PostgreSQL",
    "embedded+postgresql": "embedded broker on PostgreSQL",
    "kafka": "Kafka",
    "kafkas": "Kafka",
    "nats": "NATS",
    "redis": "Redis",
    "rediss": "Redis",
    "stomp": "ActiveMQ",
}
DATABASES = {
    "mariadb": "MariaDB",
    "mysql": "MySQL",
    "postgres": "PostgreSQL",
    "postgresql": "PostgreSQL",
}
_TIMEOUT_SECONDS = 10
_MYSQL = ("mysql+pymysql", "mysql", {"init_command": "SET SESSION innodb_lock_wait_timeout = 10"})
_DRIVERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "MariaDB": _MYSQL,
    "MySQL": _MYSQL,
    "PostgreSQL": ("postgresql+psycopg", "postgres", {"options": "-c lock_timeout=10s"}),
}


def plain_engine(url: str) -> Engine:
    """An engine with nothing of duly in it, for looking from outside.

    Raises ConfigurationError for a URL that is neither SQLite's nor one of ``DATABASES``.
    """
    try:
        target = make_url(url)
    except ArgumentError:
        raise ConfigurationError("--database is not a URL") from None
    if target.get_backend_name() == "sqlite":
        return create_engine(target, connect_args={"timeout": _TIMEOUT_SECONDS})
    name = DATABASES.get(scheme_of(url))
    if name is None:
        raise ConfigurationError(
            f"the demo knows SQLite, PostgreSQL, MySQL and MariaDB, not {target.drivername}"
        )
    driver, extra, limit = _DRIVERS[name]
    try:
        return create_engine(
            target.set(drivername=driver),
            connect_args={"connect_timeout": _TIMEOUT_SECONDS, **limit},
        )
    except ModuleNotFoundError as error:
        raise MissingExtraError(driver.partition("+")[2], extra) from error


def clean_database(url: str, *, broker: str) -> None:
    """Drop what an earlier demo left, then make all tables anew.

    Raises ConfigurationError for foreign tables, DatabaseUnavailableError.
    """
    engine = plain_engine(url)
    app = App(APP, database=url, broker=broker, table_prefix=PREFIX)
    try:
        with engine.begin() as connection:
            _drop(connection)
        Schema(app.database, APP).upgrade()
        Tables.metadata.create_all(engine)
    except DBAPIError as error:
        reason = str(error.orig).strip().partition("\n")[0][:200]
        raise DatabaseUnavailableError(f"{redact(url)}: {reason}") from error
    finally:
        app.database.close()
        engine.dispose()


def _drop(connection: Connection) -> None:
    names = [name for name in inspect(connection).get_table_names() if name.startswith(PREFIX)]
    if not names:
        return
    if f"{PREFIX}meta" not in names:
        raise ConfigurationError(
            f"there are tables named {PREFIX}... that the demo did not make", code="DEMO_TABLES"
        )
    asked = text(f"SELECT value FROM {PREFIX}meta WHERE name = 'app'")  # noqa: S608  # a constant
    owner = connection.execute(asked).scalar()
    if owner not in (None, APP):  # none: it was stopped before it could put its name there
        raise ConfigurationError(
            f"the tables named {PREFIX}... belong to {owner!r}", code="DEMO_TABLES"
        )
    for name in names:
        quoted = connection.dialect.identifier_preparer.quote(name)
        connection.execute(text(f"DROP TABLE {quoted}"))


def clean_broker(url: str) -> None:
    """Delete what the demo has made on a server; the file of the embedded broker is new.

    Raises BrokerUnavailableError, MissingExtraError.
    """
    if scheme_of(url).startswith("embedded+"):
        _clean_tables(url)
        return
    cleaners = {
        "ActiveMQ": _clean_activemq,
        "RabbitMQ": _clean_rabbitmq,
        "Kafka": _clean_kafka,
        "NATS": _clean_nats,
        "Redis": _clean_redis,
    }
    clean = cleaners.get(BROKERS.get(scheme_of(url), ""))
    if clean is not None:
        clean(url)


def scheme_of(url: str) -> str:
    """The part of a URL that names the kind of server."""
    scheme = url.partition(":")[0].lower()
    return scheme if scheme.startswith("embedded+") else scheme.partition("+")[0]


def _clean_tables(url: str) -> None:
    """Drop the tables of an embedded broker on a database server."""
    target = urlsplit(url.partition("+")[2])
    ours = ("lease", "retention")
    query = urlencode([(name, v) for name, v in parse_qsl(target.query) if name not in ours])
    engine = plain_engine(target._replace(query=query).geturl())
    try:
        with engine.begin() as connection:
            for name in inspect(connection).get_table_names():
                if name.startswith(f"{PREFIX}broker_"):
                    connection.execute(text(f"DROP TABLE {name}"))
    except DBAPIError as error:
        reason = str(error.orig).strip().partition("\n")[0][:200]
        raise BrokerUnavailableError(f"{redact(url)}: {reason}") from error
    finally:
        engine.dispose()


def _clean_activemq(url: str) -> None:
    from duly.brokers.activemq.control import delete_topics

    delete_topics(url, [TopicSpec(QUEUE, "command"), TopicSpec(TOPIC, "event")])


def _clean_kafka(url: str) -> None:
    try:
        from confluent_kafka import KafkaError, KafkaException
        from confluent_kafka.admin import AdminClient
    except ImportError as error:
        raise MissingExtraError("confluent_kafka", "kafka") from error
    prefix = f"{name}." if (name := urlsplit(url).path[1:]) else ""
    queue = f"_command.{prefix}{QUEUE}"
    groups = [queue, *(f"{prefix}{group}" for group in (DESTINATIONS, CARRIERS, DELAYS))]
    absent = (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.GROUP_ID_NOT_FOUND)
    try:
        with AdminClient(_plain_kafka(url)) as client:
            client.list_topics(timeout=_TIMEOUT_SECONDS)
            gone = list(client.delete_topics([f"{prefix}{TOPIC}", queue]).values())
            gone += client.delete_consumer_groups(groups).values()
            for future in gone:
                trouble = future.exception(_TIMEOUT_SECONDS)
                if trouble is not None and trouble.args[0].code() not in absent:
                    raise trouble
    except KafkaException as error:
        raise BrokerUnavailableError(f"{redact(url)}: {error.args[0].name()}") from error


def _plain_kafka(url: str) -> dict[str, Any]:
    """What a plain client is told of the server that a URL names."""
    target = urlsplit(url)
    login, _, servers = target.netloc.rpartition("@")
    user, _, password = map(unquote, login.partition(":"))
    given = dict(parse_qsl(target.query))
    protocol = ("SASL_" if user else "") + ("SSL" if target.scheme == "kafkas" else "PLAINTEXT")
    told = {"bootstrap.servers": servers, "security.protocol": protocol, "log_level": 0}
    if user:
        mechanism = given.get("mechanism", "PLAIN")
        told |= {"sasl.mechanism": mechanism, "sasl.username": user, "sasl.password": password}
    return told | ({"ssl.ca.location": given["cacertfile"]} if "cacertfile" in given else {})


def _clean_nats(url: str) -> None:
    try:
        import nats
        from nats.js.errors import NotFoundError
    except ImportError as error:
        raise MissingExtraError("nats", "nats") from error
    target = urlsplit(url)
    prefix = target.path[1:] or "duly"

    async def clean() -> None:
        client = await nats.connect(
            target._replace(scheme="tls" if "+tls" in target.scheme else "nats", path="").geturl(),
            connect_timeout=_TIMEOUT_SECONDS,
            allow_reconnect=False,
            max_reconnect_attempts=1,
        )
        try:
            for name in (f"{prefix}-command-{QUEUE}", f"{prefix}-event-{TOPIC}"):
                with suppress(NotFoundError):
                    await client.jetstream().delete_stream(name.replace(".", "~"))
        finally:
            await client.close()

    try:
        asyncio.run(clean())
    except (nats.errors.Error, OSError) as error:
        raise BrokerUnavailableError(f"{redact(url)}: {type(error).__name__}") from error


def _clean_redis(url: str) -> None:
    try:
        import redis
    except ImportError as error:
        raise MissingExtraError("redis", "redis") from error
    place, _, query = url.partition("?")
    given = dict(parse_qsl(query))
    prefix = given.get("prefix", "duly:")
    own_ca = {"ssl_ca_certs": given["cacertfile"]} if "cacertfile" in given else {}
    try:
        with redis.Redis.from_url(place, socket_timeout=_TIMEOUT_SECONDS, **own_ca) as client:
            streams = (f"{prefix}command:{QUEUE}", f"{prefix}event:{TOPIC}")
            client.delete(*streams)
            client.srem(f"{prefix}streams", *streams)
    except (redis.RedisError, OSError) as error:
        raise BrokerUnavailableError(f"{redact(url)}: {type(error).__name__}") from error


def _clean_rabbitmq(url: str) -> None:
    groups = (DESTINATIONS, CARRIERS, DELAYS)
    with _channel(url) as channel:
        for queue in [QUEUE, *(f"{group}:{TOPIC}" for group in groups)]:
            channel.queue_delete(queue)
        channel.exchange_delete(TOPIC)


@contextmanager
def _channel(url: str) -> Iterator[Any]:
    try:
        import pika
    except ImportError as error:
        raise MissingExtraError("pika", "rabbitmq") from error
    try:
        target = pika.URLParameters(url)
        target.socket_timeout = target.stack_timeout = _TIMEOUT_SECONDS
        target.blocked_connection_timeout = _TIMEOUT_SECONDS
        connection = pika.BlockingConnection(target)
        try:
            yield connection.channel()
        finally:
            connection.close()
    except (pika.exceptions.AMQPError, OSError) as error:
        raise BrokerUnavailableError(f"{redact(url)}: {type(error).__name__}") from error
