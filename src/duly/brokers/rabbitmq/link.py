"""One connection, kept: opened, watched, opened again with growing pauses.

``Link`` owns the state (down, connecting, up) and tells its users of every change.
``FastConnection`` is pika's connection with the frames of the hot path read in place and handed to
the channel's own reader. Invariant: a connection whose send queue may hold bytes that must not be
sent any more is aborted with a reset, which discards them in the kernel too. Runs in the I/O thread
only.
"""

from __future__ import annotations

import fcntl
import logging
import random
import socket
import struct
import termios
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

import pika
from pika import exceptions, frame

from duly.brokers.rabbitmq.frames import FRAME_END, HEAD
from duly.brokers.rabbitmq.settings import Settings
from duly.brokers.rabbitmq.thread import IoThread
from duly.errors import BrokerUnavailableError, ConfigurationError, DulyError
from duly.kernel.backoff import ATTEMPTS_MAX, Retry

__all__ = ["FastConnection", "Lane", "Link", "User"]

CLOSE_SECONDS = 2.0
RECEIVE_BYTES = 262_144
_BACKOFF = Retry(attempts=ATTEMPTS_MAX, base=0.2, max=5.0)
_LINGER_RESET = struct.pack("ii", 1, 0)

_log = logging.getLogger("duly.brokers.rabbitmq")


class Lane(Protocol):
    """The reader of one channel's hot frames."""

    def frame(self, kind: int, buffer: bytes, span: tuple[int, int]) -> bool:
        """Take a frame's payload, ``buffer[span[0]:span[1]]``; False leaves it to pika."""
        ...


class User(Protocol):
    """Who wants to know when a link comes and goes."""

    def up(self, connection: FastConnection) -> None:
        """The connection is open."""
        ...

    def down(self, reason: DulyError) -> None:
        """The connection is gone, or could not be made."""
        ...


class FastConnection(pika.SelectConnection):  # type: ignore[misc]  # pika ships no types
    """pika's connection with a fast lane for the channels in ``lanes``."""

    lanes: dict[int, Lane]
    _frame_buffer: bytes

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.lanes = {}
        super().__init__(*args, **kwargs)

    def _on_data_available(self, data_in: bytes) -> None:
        if not self.is_open or not self.lanes:
            super()._on_data_available(data_in)
            return
        buffer = bytes(self._frame_buffer) + data_in if self._frame_buffer else data_in
        self._frame_buffer = b""
        at, end = 0, len(buffer)
        lanes = self.lanes
        unpack = HEAD.unpack_from
        while end - at >= 8:
            kind, channel, size = unpack(buffer, at)
            stop = at + 8 + size
            if stop > end:
                break
            lane = lanes.get(channel)
            whole = buffer[stop - 1] == FRAME_END
            if lane is None or not whole or not lane.frame(kind, buffer, (at + 7, stop - 1)):
                _, value = frame.decode_frame(buffer[at:stop])
                self._process_frame(value)
            at = stop
        self.bytes_received += at  # what the heartbeat checker looks at
        self._frame_buffer = buffer[at:] + self._frame_buffer

    def emit(self, data: bytes) -> None:
        """Send frames that are already encoded."""
        self._output_marshaled_frames([data])

    def read_large(self) -> None:
        """Read as much at once as the socket has: pika's 4 KB cost a system call and a fight for
        the
        interpreter lock each."""
        self._transport._MAX_RECV_BYTES = RECEIVE_BYTES
        self._transport._MAX_CONSUME_BYTES = RECEIVE_BYTES

    @property
    def unsent_bytes(self) -> int:
        """What the peer's kernel has not taken yet: pika's buffer and the socket's send queue."""
        transport = self._transport
        if transport is None:
            return 0
        return int(transport.get_write_buffer_size()) + _send_queue(transport._sock)

    def reset(self, reason: str) -> None:
        """Drop the connection and everything in its buffers at once."""
        transport = self._transport
        if transport is not None:
            with suppress(OSError):  # closed by the peer already
                transport._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
        if not self.is_closed:
            self._terminate_stream(exceptions.StreamLostError(reason))


def _send_queue(sock: socket.socket) -> int:
    """Bytes that the peer has not acknowledged, where the system can say so; else 0."""
    try:
        answer = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0\0\0\0")
    except (OSError, AttributeError):
        return 0
    return int(struct.unpack("i", answer)[0])


class Link:
    """A connection for one purpose. users: told of each change, in order."""

    def __init__(self, io: IoThread, settings: Settings, *, purpose: str) -> None:
        self.io = io
        self.settings = settings
        self._purpose = purpose
        self._attempt = 0
        self._wanted = False
        self._cancel_retry: Callable[[], None] | None = None
        self._on_gone: Callable[[], None] = lambda: None
        self._waiters: list[Callable[[DulyError | None], None]] = []
        self.users: list[User] = []
        self.connection: FastConnection | None = None
        self.is_up = False
        self.blocked: str | None = None
        self.reason: DulyError = BrokerUnavailableError(f"{settings.shown}: not connected yet")

    @property
    def connecting(self) -> bool:
        """Whether the first attempt, or one after a loss, is under way."""
        return not self.is_up and self.connection is not None

    def when_up(self, done: Callable[[DulyError | None], None]) -> None:
        """Call ``done`` when the attempt under way has ended: with None, or with why it failed."""
        if self.is_up:
            done(None)
        elif self.connecting:
            self._waiters.append(done)
        else:
            done(self.reason)

    def _tell_waiters(self, reason: DulyError | None) -> None:
        waiters, self._waiters = self._waiters, []
        for done in waiters:
            done(reason)

    def open(self) -> None:
        """Connect and stay connected. Idempotent."""
        if not self._wanted:
            self._wanted = True
            self._connect()

    def close(self, done: Callable[[], None]) -> None:
        """Close and stay closed, then call ``done``; forced when the server does not answer."""
        self._wanted = False
        if self._cancel_retry is not None:
            self._cancel_retry()
        connection = self.connection
        if connection is None:
            done()
            return
        self._on_gone = done
        if self.is_up and connection.is_open:
            connection.close()
            self.io.later(CLOSE_SECONDS, lambda: connection.reset("no answer to close"))
        else:
            connection.reset("closed while connecting")

    def abort(self, why: str) -> None:
        """Drop the connection with all that is unsent; it is made anew."""
        if self.connection is not None:
            self.connection.reset(why)

    def _connect(self) -> None:
        self._cancel_retry = None
        try:
            self.connection = FastConnection(
                _parameters(self.settings, self._purpose),
                on_open_callback=self._opened,
                on_open_error_callback=self._failed,
                on_close_callback=self._closed,
                custom_ioloop=self.io.loop,
            )
        except ConfigurationError as error:  # TLS files
            self._lost(error)

    def _opened(self, connection: FastConnection) -> None:
        self._attempt = 0
        self.is_up = True
        self.blocked = None
        connection.read_large()
        connection.add_on_connection_blocked_callback(self._on_blocked)
        connection.add_on_connection_unblocked_callback(self._on_unblocked)
        _log.info("connected to %s for %s", self.settings.shown, self._purpose)
        self._tell_waiters(None)
        for user in list(self.users):
            user.up(connection)

    def _on_blocked(self, _connection: FastConnection, method: Any) -> None:
        self.blocked = str(method.method.reason)
        _log.warning("%s takes no messages: %s", self.settings.shown, self.blocked)

    def _on_unblocked(self, _connection: FastConnection, _method: Any) -> None:
        self.blocked = None
        for user in list(self.users):
            if hasattr(user, "unblocked"):
                user.unblocked()

    def _failed(self, _connection: FastConnection, error: Any) -> None:
        self._lost(self._mapped(error))

    def _closed(self, _connection: FastConnection, error: Exception) -> None:
        self._lost(self._mapped(error))

    def _lost(self, reason: DulyError) -> None:
        was_up, self.is_up, self.connection = self.is_up, False, None
        if self._wanted and (was_up or self._attempt == 0 or type(reason) is not type(self.reason)):
            _log.warning("no connection for %s: %s", self._purpose, reason.detail)
        self.reason = reason
        self._tell_waiters(reason)
        for user in list(self.users):
            user.down(reason)
        self._on_gone()
        if self._wanted:
            self._attempt += 1
            delay = _BACKOFF.delay(self._attempt, random.random())
            self._cancel_retry = self.io.later(delay, self._connect)

    def _mapped(self, error: Any) -> DulyError:
        detail = f"{self.settings.shown}: {self.settings.censor(_why(error))}"
        if isinstance(_cause(error), _REFUSED) or " 403" in detail or "ACCESS_REFUSED" in detail:
            return ConfigurationError(detail)
        return BrokerUnavailableError(detail)


_REFUSED = (
    exceptions.ProbableAuthenticationError,
    exceptions.ProbableAccessDeniedError,
    exceptions.AuthenticationError,
)


def _cause(error: Any) -> Any:
    """The innermost exception of a failed connection workflow."""
    for _ in range(8):
        inner = (
            getattr(error, "exceptions", None)
            or ([error.exception] if hasattr(error, "exception") else None)
            or [one for one in getattr(error, "args", ()) if isinstance(one, BaseException)]
        )
        if not inner:
            return error
        error = inner[-1]
    return error


def _why(error: Any) -> str:
    cause = _cause(error)
    return f"{type(cause).__name__} {cause}".strip()[:500]


def _parameters(settings: Settings, purpose: str) -> pika.ConnectionParameters:
    return pika.ConnectionParameters(
        host=settings.host,
        port=settings.port,
        virtual_host=settings.vhost,
        credentials=pika.PlainCredentials(settings.user, settings.password, erase_on_connect=False),
        heartbeat=settings.heartbeat_seconds,
        socket_timeout=settings.connection_timeout_seconds,
        stack_timeout=settings.connection_timeout_seconds,
        connection_attempts=1,
        ssl_options=(
            pika.SSLOptions(settings.tls_context(), settings.host) if settings.tls else None
        ),
        client_properties={"connection_name": f"duly {purpose}", "product": "duly"},
        tcp_options={"TCP_USER_TIMEOUT": 20_000} if hasattr(socket, "TCP_USER_TIMEOUT") else None,
    )
