"""A clean start on a database server and a broker server: what an earlier demo left there goes.

Owns nothing but the demo's own names, which all begin with ``duly_demo_`` or ``duly-demo``.  The
invariant: tables under that prefix which are not marked as the demo's are refused, not dropped.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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
from duly.wire.urls import redact

__all__ = ["clean_broker", "clean_database", "plain_engine"]

_TIMEOUT_SECONDS = 10


def plain_engine(url: str) -> Engine:
    """An engine with nothing of duly in it, for looking from outside.

    Raises ConfigurationError for a URL that is neither SQLite's nor PostgreSQL's.
    """
    try:
        target = make_url(url)
    except ArgumentError:
        raise ConfigurationError("--database is not a URL") from None
    if target.get_backend_name() == "sqlite":
        return create_engine(target, connect_args={"timeout": _TIMEOUT_SECONDS})
    if target.drivername.partition("+")[0] not in ("postgres", "postgresql"):
        raise ConfigurationError(f"the demo knows SQLite and PostgreSQL, not {target.drivername}")
    try:
        return create_engine(
            target.set(drivername="postgresql+psycopg"),
            connect_args={"connect_timeout": _TIMEOUT_SECONDS, "options": "-c lock_timeout=10s"},
        )
    except ModuleNotFoundError as error:
        raise MissingExtraError("psycopg", "postgres") from error


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
    """Delete the demo's queues and exchange from RabbitMQ; the embedded broker is a new file.

    Raises BrokerUnavailableError, MissingExtraError.
    """
    if not url.startswith("amqp"):
        return
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
