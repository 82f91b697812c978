"""One connection, kept: opened, watched, opened again with growing pauses.

``Connection`` speaks STOMP: it hands received messages to whoever subscribed and receipts to
whoever waits for them, and beats. An ERROR is the last word on a connection by the rules of STOMP.
``Link`` tells its users of every change. Invariant: a connection whose send queue may hold bytes
that must not be sent any more is aborted with a reset, which discards them in the kernel too. Runs
in the I/O thread only.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import random
import socket
import ssl
import struct
import termios
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol, cast

from duly.brokers.activemq.frames import HEARTBEAT, Frame, Parser, encode
from duly.brokers.activemq.settings import Settings
from duly.errors import BrokerUnavailableError, ConfigurationError, DulyError
from duly.kernel.backoff import ATTEMPTS_MAX, Retry

__all__ = ["RIGHTS", "Connection", "Link", "User", "is_about_rights"]

CLOSE_SECONDS = 2.0
CLASSIC, LOGIN_REFUSED = "ACTIVEMQ_CLASSIC", "ACTIVEMQ_LOGIN_REFUSED"
RIGHTS, TLS_REFUSED = "ACTIVEMQ_RIGHTS", "ACTIVEMQ_TLS_REFUSED"
_BACKOFF = Retry(attempts=ATTEMPTS_MAX, base=0.2, max=5.0)
_LINGER_RESET = struct.pack("ii", 1, 0)
_TLS_ALERT = 0x15

_log = logging.getLogger("duly.brokers.activemq")


class User(Protocol):
    """Who wants to know when a link comes and goes."""

    def up(self, connection: Connection) -> None:
        """The connection is open."""
        ...

    def down(self, reason: DulyError) -> None:
        """The connection is gone, or could not be made."""
        ...


def is_about_rights(text: str) -> bool:
    """Whether an ERROR may mean that the login may not do this; the server keeps why to its log."""
    return any(word in text for word in ("AMQ339011", "AMQ339016", "AMQ229032", "permission"))


class Connection(asyncio.Protocol):
    """One connection, used once."""

    def __init__(self, settings: Settings) -> None:
        loop = asyncio.get_running_loop()
        self._settings = settings
        self._parser = Parser()
        self._transport: asyncio.Transport | None = None
        self._greeting: asyncio.Future[Frame] = loop.create_future()
        self._lanes: dict[str, Callable[[Frame], None]] = {}
        self._receipts: dict[str, Callable[[str], None]] = {}
        self._numbers = 0
        self._heard = loop.time()
        self._beating: asyncio.Task[None] | None = None
        self.gone: asyncio.Future[str] = loop.create_future()
        self.server = ""
        self.refused = ""  # the first ERROR

    # --- life ---------------------------------------------------------------------------------
    async def open(self, host: str, port: int) -> None:
        """Connect and log in. Raises DulyError for what the server refuses, OSError, TimeoutError,
        ssl.SSLError.
        """
        settings, loop = self._settings, asyncio.get_running_loop()
        try:
            async with asyncio.timeout(2.0 * settings.connection_timeout_seconds):
                await loop.create_connection(
                    lambda: self,
                    host,
                    port,
                    ssl=settings.tls_context() if settings.tls else None,
                    server_hostname=host if settings.tls else None,
                    ssl_handshake_timeout=settings.connection_timeout_seconds
                    if settings.tls
                    else None,
                )
                beat = settings.heartbeat_seconds * 1000
                headers = {"accept-version": "1.2", "host": host, "heart-beat": f"{beat},{beat}"}
                if settings.user:
                    headers |= {"login": settings.user, "passcode": settings.password}
                self._write(encode("CONNECT", headers))
                self._welcome(await self._greeting)
        except BaseException:
            self.reset("not connected")
            raise

    def _welcome(self, frame: Frame) -> None:
        shown = self._settings.shown
        if frame.command != b"CONNECTED":
            text = self._settings.censor(_error_text(frame))
            if "ecurity" in text or "assword" in text or "uthenti" in text:
                detail = f"{shown}: the server refused the login"
                raise ConfigurationError(detail, code=LOGIN_REFUSED)
            raise ConfigurationError(f"{shown}: {text[:300]}")
        self.server = frame.header("server")
        if self.server.startswith("ActiveMQ/"):
            detail = (
                f"{shown}: {self.server} is ActiveMQ Classic; use ActiveMQ Artemis 2.20 or newer"
            )
            raise ConfigurationError(detail, code=CLASSIC)
        if frame.header("version") != "1.2":
            raise ConfigurationError(f"{shown}: the server does not speak STOMP 1.2")
        theirs, wanted = (int(n) for n in (frame.header("heart-beat") or "0,0").split(","))
        self._beating = asyncio.create_task(self._beat(theirs / 1000, wanted / 1000))

    async def _beat(self, theirs_seconds: float, wanted_seconds: float) -> None:
        """Say that we are here as often as the server wants, and listen whether it is."""
        pauses = [seconds / 2 for seconds in (theirs_seconds, wanted_seconds) if seconds]
        loop = asyncio.get_running_loop()
        while pauses and not self.gone.done():
            await asyncio.sleep(min(pauses))
            if wanted_seconds:
                self._write(HEARTBEAT)
            if theirs_seconds and loop.time() - self._heard > 2 * theirs_seconds + 1:
                self.reset(f"nothing heard for {loop.time() - self._heard:.0f} s")

    async def finish(self) -> None:
        """Close after everything that was written has been taken, or after a while."""
        if not self.gone.done():
            done = asyncio.Event()
            self.command("DISCONNECT", {}, lambda _error: done.set())
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_SECONDS):
                    await done.wait()
        self.reset("closed")

    def reset(self, why: str) -> None:
        """Drop the connection and everything in its buffers at once. Idempotent."""
        transport = self._transport
        if transport is not None:
            sock = transport.get_extra_info("socket")
            with suppress(OSError, AttributeError):  # closed by the peer already
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
            transport.abort()
        self._end(why)

    def _end(self, why: str) -> None:
        if self._beating is not None and self._beating is not asyncio.current_task():
            self._beating.cancel()
        self._lanes.clear()
        self._receipts.clear()
        if not self._greeting.done():
            self._greeting.set_exception(ConnectionError(why))
            self._greeting.exception()  # whoever waited may have gone
        if not self.gone.done():
            self.gone.set_result(why)

    # --- asyncio.Protocol ---------------------------------------------------------------------
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        self._transport = cast(asyncio.Transport, transport)
        sock = transport.get_extra_info("socket")
        if sock is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 20_000)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio."""
        self._end(f"{type(exc).__name__} {exc}" if exc else "closed by the server")

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        self._heard = asyncio.get_running_loop().time()
        try:
            if not self._greeting.done() and data[0] == _TLS_ALERT:
                detail = f"{self._settings.shown}: the server wants TLS; write stomp+tls://"
                self._greeting.set_exception(ConfigurationError(detail, code=TLS_REFUSED))
                return
            for frame in self._parser.feed(data):
                self._took(frame)
        except ValueError as error:
            self.reset(str(error))
        except Exception:  # noqa: BLE001  # its state is unknown: made anew
            _log.exception("a callback failed; the connection is made anew")
            self.reset("an exception escaped in the I/O thread")

    def _took(self, frame: Frame) -> None:
        if not self._greeting.done():
            self._greeting.set_result(frame)
        elif frame.command == b"MESSAGE":
            lane = self._lanes.get(frame.header("subscription"))
            if lane is not None:
                lane(frame)
        elif frame.command == b"RECEIPT":
            if self.refused:
                return  # a busy Artemis answers the COMMIT of a SEND that it has refused, too
            if done := self._receipts.pop(frame.header("receipt-id"), None):
                done("")
        elif frame.command == b"ERROR":
            text = self._settings.censor(_error_text(frame))[:400]
            if done := self._receipts.pop(frame.header("receipt-id"), None):
                done(text)
            self.refused = self.refused or text
            # After the rest of this read: the refusal of a COMMIT follows that of its SEND.
            asyncio.get_running_loop().call_soon(self.reset, self.refused)

    # --- asking -------------------------------------------------------------------------------
    @property
    def usable(self) -> bool:
        """Whether what is written may still arrive."""
        return self._beating is not None and not self.gone.done()

    @property
    def unsent_bytes(self) -> int:
        """What the peer's kernel has not taken: asyncio's buffer and the socket's send queue."""
        if self._transport is None:
            return 0
        sock = self._transport.get_extra_info("socket")
        return int(self._transport.get_write_buffer_size()) + _send_queue(sock)

    def emit(self, data: bytes) -> None:
        """Send frames that are already encoded; dropped when the connection is gone."""
        self._write(data)

    def _write(self, data: bytes) -> None:
        if self._transport is not None and not self.gone.done():
            self._transport.write(data)

    def expect(self, done: Callable[[str], None]) -> str:
        """A name for a receipt; ``done`` gets "" or the server's refusal, or nothing when the
        connection goes first.
        """
        self._numbers += 1
        self._receipts[str(self._numbers)] = done
        return str(self._numbers)

    def command(
        self,
        name: str,
        headers: dict[str, str],
        done: Callable[[str], None] | None = None,
        *,
        body: bytes = b"",
    ) -> None:
        """Send one frame, with a receipt where ``done`` is given."""
        if done is not None:
            headers = {**headers, "receipt": self.expect(done)}
        self._write(encode(name, headers, body))

    def listen(
        self, headers: dict[str, str], lane: Callable[[Frame], None], done: Callable[[str], None]
    ) -> str:
        """Subscribe; ``lane`` gets every message. Returns what ``unlisten`` needs."""
        self._numbers += 1
        name = f"s{self._numbers}"
        self._lanes[name] = lane
        self.command("SUBSCRIBE", {"id": name, **headers}, done)
        return name

    def unlisten(self, name: str, done: Callable[[str], None]) -> None:
        """End a subscription; what was not acked goes back before ``done``."""
        if self._lanes.pop(name, None) is not None:
            self.command("UNSUBSCRIBE", {"id": name}, done)


def _error_text(frame: Frame) -> str:
    """What an ERROR says, without the headers of the message that it quotes."""
    text = frame.header("message") or frame.body.decode(errors="replace")
    return " ".join(text.partition("CoreMessage[")[0].split()) or "an ERROR without a text"


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
        self._turn = random.randrange(len(settings.hosts))
        self.users: list[User] = []
        self.connection: Connection | None = None
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
            error: DulyError
            try:
                connection = await self._connect()
            except DulyError as refused:
                error = refused
            else:
                self._up(connection)
                why = await connection.gone
                detail = f"{self.settings.shown}: {self.settings.censor(why)}"[:500]
                attempt = attempt if connection.refused else 0
                error = BrokerUnavailableError(detail)
            self._lost(error, tell=attempt == 0 or type(error) is not type(self.reason))
            attempt += 1
            await asyncio.sleep(_BACKOFF.delay(attempt, random.random()))

    async def _connect(self) -> Connection:
        self._turn = (self._turn + 1) % len(self.settings.hosts)
        host, port = self.settings.hosts[self._turn]
        connection = Connection(self.settings)
        try:
            await connection.open(host, port)
        except DulyError:
            raise
        except Exception as error:  # whatever it is, there is no connection
            raise self._mapped(error) from error
        return connection

    def _mapped(self, error: Exception) -> DulyError:
        text = f"{type(error).__name__} {error}".strip()
        detail = f"{self.settings.shown}: {self.settings.censor(text)}"[:500]
        if isinstance(error, ssl.SSLError) or "SSL handshake" in text:
            return ConfigurationError(detail, code=TLS_REFUSED)
        return BrokerUnavailableError(detail)

    def _up(self, connection: Connection) -> None:
        self.connection = connection
        self._attempt_over.set()
        _log.info("connected to %s for %s", self.settings.shown, self._purpose)
        for user in list(self.users):
            user.up(connection)

    def _lost(self, reason: DulyError, *, tell: bool) -> None:
        if tell:
            _log.warning("no connection for %s: %s", self._purpose, reason.detail)
        self.connection = None
        self.reason = reason
        self._attempt_over.set()
        for user in list(self.users):
            user.down(reason)
