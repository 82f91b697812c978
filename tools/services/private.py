"""A server of one test's own, to be killed, stopped and restarted without hurting the others."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from tools.services import (
    activemq,
    docker,
    folders,
    install,
    kafka,
    mariadb,
    nats,
    postgres,
    rabbitmq,
    redis,
    sshd,
)
from tools.services.activemq import ActiveMQ
from tools.services.catalogue import Server
from tools.services.kafka import Kafka
from tools.services.mariadb import MariaDB
from tools.services.nats import NATS
from tools.services.postgres import Postgres
from tools.services.rabbitmq import RabbitMQ
from tools.services.redis import Redis
from tools.services.sshd import Sshd

__all__ = [
    "PrivateServer",
    "ServerMissingError",
    "start_private_activemq",
    "start_private_kafka",
    "start_private_mariadb",
    "start_private_nats",
    "start_private_postgres",
    "start_private_rabbitmq",
    "start_private_redis",
    "start_private_sshd",
]


class ServerMissingError(RuntimeError):
    """The server's programs are not on this machine; run `make services`, or install it."""


class PrivateServer:
    """A running server; ``url`` and the data stay the same over ``kill``, ``stop`` and ``start``.

    Use it in a ``with`` block, or call ``close`` at the end: it ends the server and deletes its
    data.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self.url = server.url
        self.environment = server.environment
        try:
            server.start()
        except BaseException:
            server.remove()
            raise

    def start(self) -> None:
        """Start it again and wait until it answers."""
        self._server.start()

    def stop(self) -> None:
        """Stop it as an operator would."""
        self._server.stop()

    def kill(self) -> None:
        """SIGKILL it with all its children; returns when they are gone."""
        self._server.kill()

    def close(self) -> None:
        """End it and delete its data. Safe to call again."""
        self._server.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def start_private_postgres(*, newest: bool = False) -> PrivateServer:
    """Start a PostgreSQL of the caller's own. newest: the one of a pinned wheel, whatever is
    installed here. Raises ServerMissingError, ServerFailedError.
    """
    if newest:
        return PrivateServer(
            Postgres.create(folders.private_home("postgres"), install.wheel_postgres())
        )
    programs = postgres.find() or install.unpacked_postgres()
    if programs is None:
        return PrivateServer(_container("postgres"))
    return PrivateServer(Postgres.create(folders.private_home("postgres"), programs))


def start_private_rabbitmq() -> PrivateServer:
    """Start a RabbitMQ of the caller's own. Raises ServerMissingError, ServerFailedError."""
    programs = rabbitmq.find()
    if programs is None:
        return PrivateServer(_container("rabbitmq"))
    return PrivateServer(RabbitMQ.create(folders.private_home("rabbitmq"), programs))


def start_private_activemq(*, synced: bool = True) -> PrivateServer:
    """Start an ActiveMQ of the caller's own. synced: whether it waits for its disk. Raises
    ServerMissingError, ServerFailedError.
    """
    programs = activemq.find()
    if programs is None:
        raise ServerMissingError("activemq is not on this machine; run: make services")
    return PrivateServer(ActiveMQ.create(folders.private_home("activemq"), programs, synced=synced))


def start_private_kafka() -> PrivateServer:
    """Start a Kafka of the caller's own. Raises ServerMissingError, ServerFailedError."""
    programs = kafka.find()
    if programs is None:
        raise ServerMissingError("kafka is not on this machine; run: make services")
    return PrivateServer(Kafka.create(folders.private_home("kafka"), programs))


def start_private_mariadb() -> PrivateServer:
    """Start a MariaDB of the caller's own. Raises ServerMissingError, ServerFailedError."""
    programs = mariadb.find()
    if programs is None:
        return PrivateServer(_container("mariadb"))
    return PrivateServer(MariaDB.create(folders.private_home("mariadb"), programs))


def start_private_nats(more: str = "") -> PrivateServer:
    """Start a NATS of the caller's own. more: further settings in its own syntax. Raises
    ServerMissingError, ServerFailedError.
    """
    programs = nats.find()
    if programs is None:
        raise ServerMissingError("nats is not on this machine; run: make services")
    return PrivateServer(NATS.create(folders.private_home("nats"), programs, more=more))


def start_private_redis(more: str = "") -> PrivateServer:
    """Start a Redis of the caller's own. more: further lines of its settings, which win. Raises
    ServerMissingError, ServerFailedError.
    """
    programs = redis.find()
    if programs is None:
        raise ServerMissingError("redis is not on this machine; run: make services")
    return PrivateServer(Redis.create(folders.private_home("redis"), programs, more=more))


def start_private_sshd() -> PrivateServer:
    """Start an SSH server of the caller's own. Raises ServerMissingError, ServerFailedError."""
    programs = sshd.find()
    if programs is None:
        raise ServerMissingError("sshd is not on this machine; run: make services")
    return PrivateServer(Sshd.create(folders.private_home("sshd"), programs))


def _container(name: str) -> Server:
    if not docker.engine_runs():
        raise ServerMissingError(f"{name} is not on this machine; run: make services")
    return docker.container_for(name)
