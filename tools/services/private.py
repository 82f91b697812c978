"""A server of one test's own, to be killed, stopped and restarted without hurting the others."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from tools.services import docker, folders, install, postgres, rabbitmq
from tools.services.catalogue import Server
from tools.services.postgres import Postgres
from tools.services.rabbitmq import RabbitMQ

__all__ = [
    "PrivateServer",
    "ServerMissingError",
    "start_private_postgres",
    "start_private_rabbitmq",
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


def start_private_postgres() -> PrivateServer:
    """Start a PostgreSQL of the caller's own. Raises ServerMissingError, ServerFailedError."""
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


def _container(name: str) -> Server:
    if not docker.engine_runs():
        raise ServerMissingError(f"{name} is not on this machine; run: make services")
    return docker.container_for(name)
