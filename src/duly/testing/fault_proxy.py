"""A TCP proxy that misbehaves on demand, for tests of anything that speaks over TCP.

It runs in a thread of its own with its own event loop, listens on the loopback interface only, and
is told what to do from any thread (``set``) or any event loop (``aset``); both return when the
fault is in force, for connections that are open and for new ones. Invariant: a connection that has
lost bytes to a fault never goes on as if nothing had happened; it is reset when the fault changes.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

__all__ = ["DROP_REPLIES", "PASS", "REFUSE", "RESET", "SILENT", "Fault", "FaultProxy"]

CONNECTIONS_MAX = 256
CONTROL_SECONDS = 10.0
CONNECT_SECONDS = 5.0
ACCEPT_SECONDS = 0.01
READ_BYTES = 65_536
_LINGER_RESET = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class Fault:
    """What the proxy does. mode: one of

    ``pass`` forward; ``refuse`` no listener, open connections are reset; ``reset`` accept, then
    reset; ``silent`` accept and swallow everything, as a half-open connection does;
    ``drop_replies`` forward requests, swallow the answers.

    With ``pass`` and ``drop_replies``: delay_seconds before each piece; bytes_per_second in each
    direction; slice_bytes: the largest piece; cut_after_bytes: reset when so many bytes of requests
    have gone through one connection since this fault was set. 0 turns each off.
    """

    mode: str = "pass"
    delay_seconds: float = 0.0
    bytes_per_second: int = 0
    slice_bytes: int = 0
    cut_after_bytes: int = 0

    def __post_init__(self) -> None:
        if self.mode not in ("pass", "refuse", "reset", "silent", "drop_replies"):
            raise ValueError(f"unknown mode {self.mode!r}")


PASS = Fault()
REFUSE = Fault("refuse")
RESET = Fault("reset")
SILENT = Fault("silent")
DROP_REPLIES = Fault("drop_replies")


class FaultProxy:
    """A proxy to ``target_host:target_port``; listens at ``host:port`` between start and stop.

    Use it as ``with FaultProxy(...) as proxy`` or ``async with``. Guarantee: the port stays the
    same over every fault. Bounded: 256 connections, further ones are reset.
    """

    host = "127.0.0.1"

    def __init__(self, target_host: str, target_port: int) -> None:
        self._target = (target_host, target_port)
        self._fault = PASS
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="fault-proxy", daemon=True)
        self._listener: socket.socket | None = None
        self._pairs: set[_Pair] = set()
        self.port = 0
        self.accepted = 0
        self.request_bytes = 0
        self.reply_bytes = 0

    # --- control ------------------------------------------------------------------------------
    def start(self) -> Self:
        """Listen. Raises OSError."""
        self._thread.start()
        self._do(self._listen())
        return self

    def stop(self) -> None:
        """Reset every connection and end the thread. Idempotent."""
        if self._thread.is_alive():
            self._do(self._close())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(CONTROL_SECONDS)

    def set(self, fault: Fault) -> None:
        """Change the fault, from any thread but the proxy's."""
        self._do(self._change(fault))

    async def aset(self, fault: Fault) -> None:
        """Change the fault, from any event loop."""
        future = asyncio.run_coroutine_threadsafe(self._change(fault), self._loop)
        await asyncio.wait_for(asyncio.wrap_future(future), CONTROL_SECONDS)

    def cut(self) -> None:
        """Reset the connections that are open now; new ones are served."""
        self._do(self._reset_all(lambda _pair: True))

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._pairs)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        return await asyncio.to_thread(self.start)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await asyncio.to_thread(self.stop)

    # --- in the thread ------------------------------------------------------------------------
    def _run(self) -> None:
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(CONTROL_SECONDS)

    async def _listen(self) -> None:
        # By hand: asyncio.Server.close() loses a connection that it is just accepting.
        listener = socket.create_server((self.host, self.port), backlog=CONNECTIONS_MAX)
        listener.setblocking(False)
        self.port = listener.getsockname()[1]
        self._listener = listener
        self._loop.add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except OSError:  # it has gone again
            return
        self.accepted += 1
        if self._fault.mode == "reset" or len(self._pairs) >= CONNECTIONS_MAX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
            sock.close()
            return
        pair = _Pair(self, sock)
        self._pairs.add(pair)
        pair.task = self._loop.create_task(self._serve(pair))

    async def _serve(self, pair: _Pair) -> None:
        try:
            await pair.run(self._target)
        finally:
            self._pairs.discard(pair)

    async def _unlisten(self) -> None:
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    async def _change(self, fault: Fault) -> None:
        lossy = {pair for pair in self._pairs if pair.lossy} if fault.mode != "silent" else set()
        self._fault = fault
        if fault.mode == "refuse":
            await self._unlisten()
        elif self._listener is None:
            await self._listen()
        now_void = fault.mode in ("refuse", "reset")
        await self._reset_all(lambda pair: now_void or pair in lossy)
        for pair in self._pairs:
            pair.counted = 0

    async def _reset_all(self, chosen: Callable[[_Pair], bool]) -> None:
        await asyncio.sleep(ACCEPT_SECONDS)  # those that only the kernel knows are open too
        gone = [pair for pair in self._pairs if chosen(pair)]
        tasks = {pair.task for pair in gone if pair.task is not None}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CONTROL_SECONDS)

    async def _close(self) -> None:
        await self._unlisten()
        await self._reset_all(lambda _pair: True)

    async def forward(self, data: bytes, pair: _Pair, *, request: bool) -> bool:
        """Treat one piece as the fault of this moment says; False ends the connection."""
        fault = self._fault
        if fault.mode == "silent" or (fault.mode == "drop_replies" and not request):
            pair.lossy = True
            return True
        if fault.delay_seconds:
            await asyncio.sleep(fault.delay_seconds)
        step = fault.slice_bytes or len(data)
        for start in range(0, len(data), step):
            piece = data[start : start + step]
            if fault.cut_after_bytes and request:
                piece = piece[: max(0, fault.cut_after_bytes - pair.counted)]
                pair.counted += len(piece)
            await self._write(piece, pair, request=request)
            if fault.cut_after_bytes and pair.counted >= fault.cut_after_bytes:
                return False
        return True

    async def _write(self, piece: bytes, pair: _Pair, *, request: bool) -> None:
        if request:
            self.request_bytes += len(piece)
        else:
            self.reply_bytes += len(piece)
        writer = pair.target if request else pair.client
        assert writer is not None  # both directions run only when both ends are there
        if self._fault.bytes_per_second:
            await asyncio.sleep(len(piece) / self._fault.bytes_per_second)
        writer.write(piece)
        await writer.drain()
        if self._fault.slice_bytes:
            await asyncio.sleep(0)  # let the piece leave alone


class _Pair:
    """A client's connection and ours to the target."""

    def __init__(self, proxy: FaultProxy, sock: socket.socket) -> None:
        self._proxy = proxy
        self._sock = sock
        self.client: asyncio.StreamWriter | None = None
        self.target: asyncio.StreamWriter | None = None
        self.task: asyncio.Task[None] | None = None
        self.lossy = False
        self.counted = 0

    async def run(self, target: tuple[str, int]) -> None:
        """Carry both directions until one of them ends."""
        try:
            requests, self.client = await asyncio.open_connection(sock=self._sock, limit=READ_BYTES)
            opening = asyncio.open_connection(*target, limit=READ_BYTES)
            replies, self.target = await asyncio.wait_for(opening, CONNECT_SECONDS)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._carry(requests, request=True))
                both.create_task(self._carry(replies, request=False))
        except* (OSError, TimeoutError, _CutError, asyncio.CancelledError):
            pass  # each is how a connection ends here
        finally:
            self._reset_client()
            if self.target is not None:
                self.target.close()  # what went through before the cut arrives

    async def _carry(self, reader: asyncio.StreamReader, *, request: bool) -> None:
        while data := await reader.read(READ_BYTES):
            if not await self._proxy.forward(data, self, request=request):
                raise _CutError
        if not self.lossy:
            raise _CutError  # a peer that closed: the other is told; a half-open one hears nothing

    def _reset_client(self) -> None:
        """Close with RST, so that the client sees an error and what is buffered is gone."""
        if self._sock.fileno() == -1:
            return  # the client was first
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
        if self.client is not None:
            self.client.transport.abort()
        else:
            self._sock.close()


class _CutError(Exception):
    """The connection is to end."""
