"""One connection, kept: opened, watched, opened again with growing pauses.

nats-py makes the connection - TLS, login, keep-alive - and its own reconnecting is off: it would
send again what it still holds, past every deadline. ``Connection`` reads messages in place and
writes bytes that are encoded already. ``Link`` tells its users of every change. Invariant: a
connection whose send queue may hold bytes that must not be sent any more is aborted with a reset,
which discards them in the kernel too. Runs in the I/O thread only.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import random
import socket
import struct
import termios
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

from nats import errors as nats_errors
from nats.aio.client import Client
from nats.protocol.parser import Parser

from duly.brokers.nats.frames import Frame, frame_sizes, read_frame
from duly.brokers.nats.settings import Settings
from duly.errors import BrokerUnavailableError, ConfigurationError, DulyError
from duly.kernel.backoff import ATTEMPTS_MAX, Retry
from duly.message import new_id

__all__ = ["RIGHTS", "Connection", "Lane", "Link", "User"]

CLOSE_SECONDS = 2.0
_BACKOFF = Retry(attempts=ATTEMPTS_MAX, base=0.2, max=5.0)
_LINGER_RESET = struct.pack("ii", 1, 0)
LOGIN_REFUSED, TLS_REFUSED, RIGHTS = "NATS_LOGIN_REFUSED", "NATS_TLS_REFUSED", "NATS_RIGHTS"
_LOGIN_WORDS = ("authorization", "authentication", "credentials", "nkey", "jwt")
_DENIED = "permissions violation for "

_log = logging.getLogger("duly.brokers.nats")

Lane = Callable[[Frame], None]


class User(Protocol):
    """Who wants to know when a link comes and goes."""

    def up(self, connection: Connection) -> None:
        """The connection is open."""
        ...

    def down(self, reason: DulyError) -> None:
        """The connection is gone, or could not be made."""
        ...

    def denied(self, action: str, subject: str) -> None:
        """The server refused a ``publish``; the subject in lower case."""
        ...


class _Reader(Parser):
    """nats-py's parser for what is rare, and messages handed on in place: its own way costs several
    times as much for each. deliver: gets the number of a subscription and a message."""

    def __init__(self, client: Client, deliver: Callable[[int, Frame], None]) -> None:
        super().__init__(client)
        self._deliver = deliver
        self._parts: list[bytes] = []  # of a piece that is not whole yet
        self._missing = 0

    async def parse(self, data: bytes = b"") -> None:
        """Take what was read. Raises ProtocolError."""
        self._parts.append(data)
        self._missing -= len(data)
        if self._missing > 0:
            return
        buffer = b"".join(self._parts) if len(self._parts) > 1 else data
        at, end, self._missing = 0, len(buffer), 0
        while at < end and (stop := buffer.find(b"\r\n", at)) >= 0:
            if not buffer.startswith((b"MSG ", b"HMSG "), at):
                await super().parse(buffer[at : stop + 2])
                at = stop + 2
                continue
            try:
                words, size = frame_sizes(buffer[at:stop])
                after = stop + 2 + size
                if after > end:
                    self._missing = after - end
                    break
                sid, frame = read_frame(words, buffer[stop + 2 : after - 2])
            except ValueError as error:
                raise nats_errors.ProtocolError from error
            self._deliver(sid, frame)
            at = after
        self._parts = [buffer[at:]] if at < end else []


class Connection(Client):
    """One connection of nats-py, used once. denied: called for what the server does not allow."""

    def __init__(self, settings: Settings, denied: Callable[[str, str], None]) -> None:
        super().__init__()
        self._ps = _Reader(self, self._deliver)
        self._settings = settings
        self._denied = denied
        self._lanes: dict[int, Lane] = {}
        self._next_sid = 1
        self.gone: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.problem = ""  # the last thing that the client or the server complained of

    # --- life ---------------------------------------------------------------------------------
    async def open(self, host: str, port: int, *, purpose: str) -> None:
        """Connect to one server. Raises whatever the client raises, TimeoutError among it."""
        settings = self._settings
        limit = settings.connection_timeout_seconds
        login: dict[str, Any] = {}
        if settings.password:
            login = {"user": settings.user, "password": settings.password}
        elif settings.user:
            login = {"token": settings.user}
        place = f"[{host}]" if ":" in host else host
        connecting = self.connect(
            f"{'tls' if settings.tls else 'nats'}://{place}:{port}",
            name=f"duly {purpose}",
            allow_reconnect=False,
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            connect_timeout=limit,
            ping_interval=max(1, settings.heartbeat_seconds // 2),
            max_outstanding_pings=1,
            error_cb=self._on_error,
            closed_cb=self._on_closed,
            tls=settings.tls_context() if settings.tls else None,
            **login,
        )
        try:
            await asyncio.wait_for(connecting, 2.0 * limit)
        except BaseException:
            self.reset("not connected")
            raise
        sock = self._socket()
        if sock is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 20_000)

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        if initial_connection:  # before the login is sent
            offered = bool(info.get("tls_required") or info.get("tls_available"))
            if self._settings.tls and not offered:
                detail = f"{self._settings.shown}: the server offers no TLS"
                raise ConfigurationError(detail, code=TLS_REFUSED)
            if not self._settings.tls and info.get("tls_required"):
                detail = f"{self._settings.shown}: the server wants TLS; write nats+tls://"
                raise ConfigurationError(detail, code=TLS_REFUSED)
            info["tls_required"] = self._settings.tls
            info["connect_urls"] = []  # the URL says which servers there are
        await super()._process_info(info, initial_connection)

    async def _on_error(self, error: Exception) -> None:
        self.problem = f"{type(error).__name__} {error}".strip()
        _, found, rest = str(error).partition(_DENIED)
        if found:  # "publish to "a.b"", "subscription to "a.b""
            action, _, subject = rest.partition(" to ")
            self._denied(action, subject.partition('"')[2].partition('"')[0])

    async def _on_closed(self) -> None:
        last = self.last_error
        self._end(f"{type(last).__name__} {last}" if last else self.problem or "closed")

    def _end(self, why: str) -> None:
        self._lanes.clear()
        if not self.gone.done():
            self.gone.set_result(why)

    async def finish(self) -> None:
        """Close after everything that was written has been taken, or after a while."""
        with suppress(TimeoutError, nats_errors.Error, OSError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await self.flush(timeout=CLOSE_SECONDS)  # type: ignore[arg-type]  # it takes float
                await self.close()
        self.reset("closed")

    def reset(self, why: str) -> None:
        """Drop the connection and everything in its buffers at once. Idempotent."""
        sock, transport = self._socket(), self._wire()
        if sock is not None:
            with suppress(OSError):  # closed by the peer already
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
        if transport is not None:
            transport.abort()
        self._status = self.CLOSED
        for task in (self._reading_task, self._ping_interval_task, self._flusher_task):
            if task is not None:
                task.cancel()
        self._end(why)

    # --- bytes --------------------------------------------------------------------------------
    def _wire(self) -> asyncio.WriteTransport | None:
        writer = getattr(self._transport, "_io_writer", None)
        return None if writer is None else writer.transport

    def _socket(self) -> Any:
        wire = self._wire()
        return None if wire is None else wire.get_extra_info("socket")

    @property
    def usable(self) -> bool:
        """Whether what is written may still arrive."""
        return self.is_connected and not self.gone.done()

    @property
    def unsent_bytes(self) -> int:
        """What the peer's kernel has not taken: asyncio's buffer and the socket's send queue."""
        wire, sock = self._wire(), self._socket()
        if wire is None or sock is None:
            return 0
        return int(wire.get_write_buffer_size()) + _send_queue(sock)

    def emit(self, data: bytes) -> None:
        """Send commands that are already encoded; dropped when the connection is gone."""
        wire = self._wire()
        if wire is not None and self.usable:
            wire.write(data)

    def listen(self, subject: str, lane: Lane) -> int:
        """Subscribe; ``lane`` gets every message. Returns what ``unlisten`` needs."""
        sid, self._next_sid = self._next_sid, self._next_sid + 1
        self._lanes[sid] = lane
        self.emit(f"SUB {subject} {sid}\r\n".encode())
        return sid

    def unlisten(self, sid: int) -> None:
        """End a subscription."""
        if self._lanes.pop(sid, None) is not None:
            self.emit(b"UNSUB %d\r\n" % sid)

    def _deliver(self, sid: int, frame: Frame) -> None:
        lane = self._lanes.get(sid)
        if lane is not None:
            try:
                lane(frame)
            except Exception:  # noqa: BLE001  # its state is unknown: made anew
                _log.exception("a callback failed; the connection is made anew")
                self.reset("an exception escaped in the I/O thread")


def _send_queue(sock: Any) -> int:
    """Bytes that the peer has not acknowledged, where the system can say so; else 0."""
    try:
        answer = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0\0\0\0")
    except (OSError, AttributeError):
        return 0
    return int(struct.unpack("i", answer)[0])


class Link:
    """A connection for one purpose. users: told of each change, in order."""

    def __init__(self, settings: Settings, *, purpose: str) -> None:
        self.settings = settings
        self._purpose = purpose
        self._task: asyncio.Task[None] | None = None
        self._attempt_over = asyncio.Event()
        self._deaf = ""  # the inbox that this login may not listen on
        self._turn = random.randrange(len(settings.hosts))
        self.users: list[User] = []
        self.connection: Connection | None = None
        self.inbox = f"_INBOX.{new_id()}"
        self.reason: DulyError = BrokerUnavailableError(f"{settings.shown}: not connected yet")

    @property
    def connecting(self) -> bool:
        """Whether the first attempt, or one after a loss, is under way."""
        return self._task is not None and not self._attempt_over.is_set()

    def open(self) -> None:
        """Connect and stay connected. Idempotent."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._keep())

    async def settled(self) -> Connection:
        """The connection, when the attempt under way ends well; else raises why it did not."""
        if self.connecting:
            await self._attempt_over.wait()
        if self.connection is None:
            raise self.reason
        return self.connection

    async def close(self) -> None:
        """Close and stay closed; forced when the server does not answer."""
        task, self._task = self._task, None
        connection, self.connection = self.connection, None
        self.reason = BrokerUnavailableError("the broker was closed")
        self._attempt_over.set()
        if connection is not None:
            await connection.finish()
        if task is not None:
            task.cancel()
            await asyncio.wait({task}, timeout=CLOSE_SECONDS)

    def abort(self, why: str) -> None:
        """Drop the connection with all that is unsent; it is made anew."""
        if self.connection is not None:
            self.connection.reset(why)

    async def _keep(self) -> None:
        attempt = 0
        while True:
            self._attempt_over.clear()
            self._deaf = ""
            error: DulyError
            try:
                connection = await self._connect()
            except DulyError as refused:
                error = refused
            else:
                self._up(connection)
                why = await connection.gone
                detail = f"{self.settings.shown}: {self.settings.censor(why)}"[:500]
                attempt = attempt if self._deaf else 0
                error = BrokerUnavailableError(detail)
                if self._deaf:
                    error = ConfigurationError(detail, code=RIGHTS)
            self._lost(error, tell=attempt == 0 or type(error) is not type(self.reason))
            attempt += 1
            await asyncio.sleep(_BACKOFF.delay(attempt, random.random()))

    async def _connect(self) -> Connection:
        self._turn = (self._turn + 1) % len(self.settings.hosts)
        host, port = self.settings.hosts[self._turn]
        connection = Connection(self.settings, self._denied)
        try:
            await connection.open(host, port, purpose=self._purpose)
        except DulyError:
            raise
        except Exception as error:  # whatever it is, there is no connection
            raise self._mapped(error, connection.problem) from error
        return connection

    def _mapped(self, error: Exception, problem: str) -> DulyError:
        """nats-py tries twice and then says "no servers"; what it complained of before is why."""
        text = str(error) or type(error).__name__
        if isinstance(error, nats_errors.NoServersError) and problem:
            text = problem
        detail = f"{self.settings.shown}: {self.settings.censor(text)}"[:500]
        if any(word in text.lower() for word in _LOGIN_WORDS):
            return ConfigurationError(detail, code=LOGIN_REFUSED)
        if isinstance(error, OSError) and "certificate" in text.lower():
            return ConfigurationError(detail, code=TLS_REFUSED)
        return BrokerUnavailableError(detail)

    def _up(self, connection: Connection) -> None:
        self.connection = connection
        self._attempt_over.set()
        _log.info("connected to %s for %s", self.settings.shown, self._purpose)
        for user in list(self.users):
            user.up(connection)

    def _lost(self, reason: DulyError, *, tell: bool) -> None:
        self.connection = None
        if tell:
            _log.warning("no connection for %s: %s", self._purpose, reason.detail)
        self.reason = reason
        self._attempt_over.set()
        for user in list(self.users):
            user.down(reason)

    def _denied(self, action: str, subject: str) -> None:
        if action.startswith("subscription") and subject.startswith(self.inbox.lower()):
            self._deaf = subject  # no answer could ever come
            self.abort(f"no permission for subscription to {self.inbox}.>")
            return
        _log.warning("%s: no permission for %s to %s", self.settings.shown, action, subject)
        for user in list(self.users):
            user.denied(action, subject)
