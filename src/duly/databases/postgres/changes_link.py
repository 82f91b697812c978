"""The replication connection: bytes of PostgreSQL's COPY stream in and out, on the event loop.

Owns the socket while the stream runs: libpq's buffers are read when the loop says that there is
something, what is told to the server goes out at once or when the socket has room.  What follows
within a moment is read together: a reader that is woken for every piece takes the processor from
the very server that it reads.  Invariants: no call here blocks; whatever ends the stream is said
once, as one error; reading can be paused while telling goes on.  What frames mean is not known
here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from duly.errors import DatabaseUnavailableError

__all__ = ["Link", "connect"]

SETTINGS = {
    "DateStyle": "ISO",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "extra_float_digits": "3",
    "bytea_output": "hex",
    "row_security": "off",
    "lock_timeout": "10000",
    "idle_in_transaction_session_timeout": "300000",
}
_KEEPALIVE = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 3,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}
_ANSWER_SECONDS = 60.0
_TOGETHER_SECONDS = 0.002  # how long what follows may wait for more
_ROUNDS = 16  # of libpq's buffer, before others have their turn


async def connect(url: str, *, name: str, replication: bool = False, own_path: bool = False) -> Any:
    """An open connection in autocommit, with the settings under which values are read.

    name: shown in ``pg_stat_activity``. own_path: keep the role's search path. Raises psycopg's
    errors.
    """
    import psycopg

    settings = SETTINGS if own_path else {**SETTINGS, "search_path": "pg_catalog"}
    arguments: dict[str, Any] = {
        **_KEEPALIVE,
        "application_name": name,
        "client_encoding": "UTF8",
        "options": " ".join(f"-c {key}={value}" for key, value in settings.items()),
    }
    if replication:
        arguments["replication"] = "database"
    return await psycopg.AsyncConnection.connect(url, autocommit=True, **arguments)


class Link:
    """A stream over one connection.

    take: called with the frames that came, in their order. failed: called once with the error that
    ended the stream.
    """

    def __init__(
        self, raw: Any, *, take: Callable[[list[bytes]], None], failed: Callable[[Exception], None]
    ) -> None:
        import psycopg

        self._driver = psycopg
        self._raw = raw
        self._pg = raw.pgconn
        self._socket = self._pg.socket
        self._take = take
        self._failed = failed
        self._loop = asyncio.get_running_loop()
        self._reading = False
        self._open = False
        self._next: asyncio.Handle | None = None  # the next look without being woken
        self.heard = False  # whether something came since somebody looked

    async def start(self, command: str) -> None:
        """Send START_REPLICATION and wait until the stream runs. Raises psycopg's errors,
        DatabaseUnavailableError.
        """
        self._pg.nonblocking = 1
        self._pg.send_query(command.encode())
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                await self._answered()
        except TimeoutError as error:
            text = f"no answer to START_REPLICATION within {_ANSWER_SECONDS:.0f} s"
            raise DatabaseUnavailableError(text) from error
        result = self._pg.get_result()
        if result is None or result.status != self._driver.pq.ExecStatus.COPY_BOTH:
            raise self._error_of(result)
        self._open = True
        self.resume()

    async def _answered(self) -> None:
        while self._pg.flush():
            await self._ready(self._loop.add_writer, self._loop.remove_writer)
        while self._pg.is_busy():
            await self._ready(self._loop.add_reader, self._loop.remove_reader)
            self._pg.consume_input()

    async def _ready(self, add: Any, remove: Any) -> None:
        ready = asyncio.Event()
        add(self._socket, ready.set)
        try:
            await ready.wait()
        finally:
            remove(self._socket)

    def pause(self) -> None:
        """Read no more until ``resume``; the server waits with its socket full."""
        self._reading = False
        if self._open:
            self._sleep()

    def resume(self) -> None:
        """Read on, what libpq holds already first."""
        if self._open and not self._reading:
            self._reading = True
            self._next = self._loop.call_soon(self._look)

    def send(self, frame: bytes) -> None:
        """Tell the server something; nothing once the stream has ended."""
        if not self._open:
            return
        try:
            self._pg.put_copy_data(frame)
            self._flush()
        except self._driver.Error as error:
            self._end(error)

    def _flush(self) -> None:
        if self._pg.flush():
            self._loop.add_writer(self._socket, self._writable)

    def _writable(self) -> None:
        self._loop.remove_writer(self._socket)
        try:
            self._flush()
        except self._driver.Error as error:
            self._end(error)

    def _woken(self) -> None:
        self.heard = True
        self._sleep()
        self._look()

    def _sleep(self) -> None:
        """Neither be woken nor look."""
        self._loop.remove_reader(self._socket)
        if self._next is not None:
            self._next.cancel()
            self._next = None

    def _look(self) -> None:
        """Take what is there, and decide when to look again."""
        came = more = self._drain()
        for _ in range(_ROUNDS):
            if not (self._reading and self._consumed()):
                return
            more = self._drain()
            came = came or more
            if not more:
                break
        if not self._reading:
            return
        if more:
            self._next = self._loop.call_soon(self._look)
        elif came:
            self._next = self._loop.call_later(_TOGETHER_SECONDS, self._look)
        else:
            self._loop.add_reader(self._socket, self._woken)

    def _consumed(self) -> bool:
        try:
            self._pg.consume_input()
        except self._driver.Error as error:
            self._end(error)
        return self._open

    def _drain(self) -> bool:
        """Hand over what libpq holds; whether that was anything."""
        get, frames = self._pg.get_copy_data, []
        try:
            size, data = get(1)
            while size > 0:
                frames.append(bytes(data))
                size, data = get(1)
            if frames:
                self.heard = True
                self._take(frames)
        except Exception as error:  # noqa: BLE001  # whatever ends the stream is told, never lost
            self._end(error)
        else:
            if size < 0:
                self._end(self._error_of(self._pg.get_result()))
        return bool(frames)

    def _error_of(self, result: Any) -> Exception:
        if result is not None and result.error_field(self._driver.pq.DiagnosticField.SQLSTATE):
            error: Exception = self._driver.errors.error_from_result(result)
            return error
        said = self._pg.error_message.decode(errors="replace").strip()
        return DatabaseUnavailableError(f"the server ended the stream: {said[:200] or 'no reason'}")

    def _end(self, error: Exception) -> None:
        if self._open:
            self._quiet()
            self._failed(error)

    def _quiet(self) -> None:
        self._open = self._reading = False
        self._sleep()
        self._loop.remove_writer(self._socket)

    def cut(self) -> None:
        """Leave the loop and the server at once. Idempotent."""
        if self._open:
            self._quiet()
        self._pg.finish()
