"""One connection, kept: opened when it is needed, dropped after any exchange that was interrupted.

Owns redis-py's connection, the pauses between attempts, and what errors of the server and the
network mean. Invariants: a reply is only ever read by who asked for it (a connection with an open
exchange is closed, never used again); closing discards what the kernel has not sent yet; no text
shows the password.  Used by one thread at a time; only ``interrupt`` may come from another.
"""

from __future__ import annotations

import logging
import random
import socket
import struct
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn

from redis import exceptions
from redis.connection import Connection, SSLConnection

from duly.brokers.redis.entries import Part, command
from duly.brokers.redis.settings import Settings
from duly.errors import BrokerUnavailableError, ConfigurationError, DulyError, OutcomeUnknownError
from duly.kernel.backoff import ATTEMPTS_MAX, Retry

__all__ = ["CALL_SECONDS", "Link", "boot_seconds", "client_arguments", "is_later", "raised"]

CALL_SECONDS = 5.0
RECEIVE_BYTES = 262_144
_BACKOFF = Retry(attempts=ATTEMPTS_MAX, base=0.1, max=3.0)
_LINGER_RESET = struct.pack("ii", 1, 0)
# Replies that close the exchange in redis-py although the server did nothing.
_NOT_DONE = (
    exceptions.BusyLoadingError,
    exceptions.AuthenticationError,
    exceptions.AuthorizationError,
    exceptions.MaxConnectionsError,
)
# The server, or its role in a failover, is the matter and not what was asked.
_LATER = (
    exceptions.OutOfMemoryError,
    exceptions.ReadOnlyError,
    exceptions.ClusterDownError,  # and MASTERDOWN
    exceptions.TryAgainError,
    exceptions.AskError,  # and MOVED
    exceptions.ClusterCrossSlotError,
)
_LATER_WORDS = ("MISCONF", "NOREPLICAS", "LOADING", "BUSY ", "UNBLOCKED")

_log = logging.getLogger("duly.brokers.redis")


def boot_seconds() -> float:
    """Seconds that go on while the machine sleeps, as the server's own do."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)


def client_arguments(settings: Settings) -> dict[str, Any]:
    """What redis-py is told of the server."""
    seconds = settings.connection_timeout_seconds
    given: dict[str, Any] = {
        "host": settings.host,
        "port": settings.port,
        "db": settings.db,
        "username": settings.user,
        "password": settings.password,
        "socket_timeout": seconds,
        "socket_connect_timeout": seconds,
        "protocol": 2,
        "ssl": settings.tls,
    }
    if settings.tls:
        given |= {
            "ssl_cert_reqs": "required" if settings.verified else "none",
            "ssl_check_hostname": settings.verified,
            "ssl_ca_certs": settings.cacertfile,
            "ssl_certfile": settings.certfile,
            "ssl_keyfile": settings.keyfile,
        }
    return given


class Link:
    """A connection for one purpose."""

    def __init__(self, settings: Settings, *, purpose: str) -> None:
        self._settings = settings
        self._purpose = purpose
        self._connection: Any = None
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()
        self._interrupted = False
        self._attempt = 0
        self._not_before = 0.0
        self.generation = 0  # counts the connections there were
        self._reason: DulyError = BrokerUnavailableError(f"{settings.shown}: not connected yet")

    # --- opening and closing ----------------------------------------------------------------------
    def open(self, timeout_seconds: float = CALL_SECONDS) -> None:
        """Be connected. Raises BrokerUnavailableError, or ConfigurationError for a refused login;
        at once while a pause after a failed attempt lasts.
        """
        if self._connection is not None and self._is_fresh():
            return
        if time.monotonic() < self._not_before:
            raise _again(self._reason)
        connection = self._made(min(timeout_seconds, self._settings.connection_timeout_seconds))
        try:
            connection.connect()
        except (exceptions.RedisError, OSError) as error:
            self._failed(error)
        self._adopt(connection)

    def _made(self, timeout_seconds: float) -> Any:
        given = client_arguments(self._settings)
        tls = given.pop("ssl")
        given |= {"socket_timeout": timeout_seconds, "socket_connect_timeout": timeout_seconds}
        if not tls:
            return Connection(  # type: ignore[no-untyped-call]
                **given, socket_read_size=RECEIVE_BYTES
            )
        return SSLConnection(**given, socket_read_size=RECEIVE_BYTES)

    def _adopt(self, connection: Any) -> None:
        sock: socket.socket = connection._sock
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
        with self._lock:
            self._connection, self._socket = connection, sock
            if self._interrupted:
                self._shut()
        self.generation += 1
        if self._attempt != 1:
            _log.info("connected to %s for %s", self._settings.shown, self._purpose)
        self._attempt = 0

    def _failed(self, error: Exception) -> NoReturn:
        reason = self.mapped(error)
        if self._attempt == 0 or type(reason) is not type(self._reason):
            _log.warning("no connection for %s: %s", self._purpose, reason.detail)
        self._attempt += 1
        self._not_before = time.monotonic() + _BACKOFF.delay(self._attempt, random.random())
        self._reason = reason
        raise reason from error

    def _is_fresh(self) -> bool:
        """Whether nothing has come unasked: a server that went away has closed its end."""
        try:
            if not self._connection.can_read(0):
                return True
        except (exceptions.RedisError, OSError):
            pass
        self.drop()
        return False

    def drop(self) -> None:
        """Close, discarding what is unsent; the next ``open`` connects anew."""
        with self._lock:
            connection, self._connection, self._socket = self._connection, None, None
        if connection is not None:
            with suppress(exceptions.RedisError, OSError):
                connection.disconnect()

    def interrupt(self) -> None:
        """End the exchange under way and every later one; from any thread."""
        with self._lock:
            self._interrupted = True
            self._shut()

    def _shut(self) -> None:
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    # --- asking -----------------------------------------------------------------------------------
    def ask(self, *parts: Part, timeout_seconds: float = CALL_SECONDS) -> Any:
        """One command and its answer. Raises what the answer is mapped to."""
        return raised(self, self.exchange(command(*parts), 1, timeout_seconds=timeout_seconds)[0])

    def ask_all(self, commands: Sequence[Sequence[Part]], *, timeout_seconds: float) -> list[Any]:
        """Several commands in one go; a server's error is in the place of its answer."""
        data = b"".join([command(*parts) for parts in commands])
        return self.exchange(data, len(commands), timeout_seconds=timeout_seconds)

    def exchange(self, data: bytes, replies: int, *, timeout_seconds: float) -> list[Any]:
        """Send bytes and read as many replies. Raises as ``send`` and ``receive``."""
        until = time.monotonic() + timeout_seconds
        self.send(data, timeout_seconds=timeout_seconds)
        return self.receive(replies, until=until)

    def send(self, data: bytes, *, timeout_seconds: float) -> None:
        """Send bytes. Raises BrokerUnavailableError when the server has not got all of them; the
        connection is gone then.
        """
        connection = self._connection
        if connection is None:
            raise _again(self._reason)
        try:
            connection._sock.settimeout(max(0.001, timeout_seconds))
            connection.send_packed_command([data], check_health=False)
        except (exceptions.RedisError, OSError) as error:
            self._lost(BrokerUnavailableError(self._detail(error)), error)

    def receive(self, replies: int, *, until: float) -> list[Any]:
        """Read as many replies; a server's error is in the place of its answer. until: by
        time.monotonic.

        Raises BrokerUnavailableError when the server says that it did nothing, OutcomeUnknownError
        when it may have done what was sent; the connection is gone then.
        """
        connection = self._connection
        try:
            return [self._answer(connection, until) for _ in range(replies)]
        except _NOT_DONE as error:
            self._lost(self.mapped(error), error)
        except (exceptions.RedisError, OSError) as error:
            self._lost(OutcomeUnknownError(self._detail(error)), error)
        except BaseException:
            self.drop()
            raise

    def _answer(self, connection: Any, until: float) -> Any:
        try:
            return connection.read_response(disable_decoding=True)
        except exceptions.ResponseError as error:
            return error
        finally:
            left = until - time.monotonic()
            if left < 0 and connection._sock is not None:
                connection._sock.settimeout(0.001)  # a server that drips past the deadline

    def _lost(self, reason: DulyError, error: Exception) -> NoReturn:
        self.drop()
        self._reason = reason
        self._attempt = max(1, self._attempt)  # the next "connected" is news
        raise reason from error

    # --- errors -----------------------------------------------------------------------------------
    def _detail(self, error: BaseException) -> str:
        text = f"{type(error).__name__} {error}".strip()
        return f"{self._settings.shown}: {self._settings.censor(text)[:400]}"

    def mapped(self, error: Exception) -> DulyError:
        """An error of the server or the network as one of ours."""
        detail = self._detail(error)
        if isinstance(error, exceptions.AuthenticationError | exceptions.AuthorizationError):
            return ConfigurationError(detail, code="REDIS_LOGIN_REFUSED")
        if isinstance(error, exceptions.MovedError):
            text = f"{self._settings.shown}: a Redis Cluster; name a server that is no part of one"
            return ConfigurationError(text, code="REDIS_CLUSTER")
        if isinstance(error, exceptions.NoPermissionError):
            return ConfigurationError(detail, code="REDIS_RIGHTS")
        if not isinstance(error, exceptions.ResponseError) or is_later(error):
            return BrokerUnavailableError(detail)
        if "WRONGTYPE" in str(error):
            text = f"{detail}; delete the key, or choose another prefix= in the URL"
            return ConfigurationError(text, code="REDIS_KEY_TAKEN")
        return ConfigurationError(detail)


def is_later(error: Exception) -> bool:
    """Whether the server may do the same thing later."""
    return isinstance(error, _LATER) or str(error).startswith(_LATER_WORDS)


def raised(link: Link, answer: Any) -> Any:
    """``answer``, raised as one of ours when it is an error."""
    if isinstance(answer, exceptions.ReadOnlyError):
        link.drop()  # the name may lead to the new primary
    if isinstance(answer, Exception):
        raise link.mapped(answer) from answer
    return answer


def _again(reason: DulyError) -> DulyError:
    return type(reason)(reason.detail, code=reason.code)
