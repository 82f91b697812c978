"""The replication connection, over a pair of sockets in place of a server."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from duly.databases.postgres.changes_link import Link
from duly.errors import DatabaseUnavailableError

SECONDS = 10.0


class Conn:
    """What the link asks of libpq; a frame is a line."""

    nonblocking = 0
    error_message = b"gone"

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._held = b""
        self.socket = end.fileno()
        self.looks = 0
        self.told: list[bytes] = []

    def send_query(self, command: bytes) -> None: ...

    def is_busy(self) -> bool:
        return False

    def flush(self) -> int:
        return 0

    def get_result(self) -> Any:
        return SimpleNamespace(
            status=psycopg.pq.ExecStatus.COPY_BOTH, error_field=lambda field: None
        )

    def consume_input(self) -> None:
        self.looks += 1
        try:
            came = self._end.recv(4096)
        except BlockingIOError:
            return
        if not came:
            raise psycopg.OperationalError("server closed the connection")
        self._held += came

    def get_copy_data(self, _async: int) -> tuple[int, memoryview]:
        line, found, rest = self._held.partition(b"\n")
        if not found:
            return 0, memoryview(b"")
        if line == b"end":
            return -1, memoryview(b"")
        self._held = rest
        return len(line), memoryview(line)

    def put_copy_data(self, frame: bytes) -> None:
        self.told.append(frame)

    def finish(self) -> None: ...


class Reader:
    """A link, what it handed over, and the other end."""

    def __init__(self, server: socket.socket, client: socket.socket) -> None:
        self.server = server
        self.conn = Conn(client)
        self.batches: list[list[bytes]] = []
        self.errors: list[Exception] = []
        self.link = Link(SimpleNamespace(pgconn=self.conn), take=self.take, failed=self.failed)
        self.pause_at = 0

    def take(self, frames: list[bytes]) -> None:
        self.batches.append(frames)
        if self.pause_at and len(self.frames) >= self.pause_at:
            self.link.pause()
        if b"bad" in frames:
            raise ValueError("bad")

    def failed(self, error: Exception) -> None:
        self.errors.append(error)

    @property
    def frames(self) -> list[bytes]:
        return [frame for batch in self.batches for frame in batch]

    def send(self, *lines: str) -> None:
        self.server.sendall("".join(f"{line}\n" for line in lines).encode())

    async def until(self, count: int) -> None:
        async with asyncio.timeout(SECONDS):
            while len(self.frames) < count:
                await asyncio.sleep(0.001)

    async def until_failed(self) -> None:
        async with asyncio.timeout(SECONDS):
            while not self.errors:
                await asyncio.sleep(0.001)


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    server, client = socket.socketpair()
    for end in (server, client):
        end.setblocking(False)
    with server, client:
        yield server, client


@pytest.fixture
async def reader(ends: tuple[socket.socket, socket.socket]) -> Reader:
    made = Reader(*ends)
    await made.link.start("START_REPLICATION")
    return made


async def test_pieces_that_follow_each_other_are_read_together(reader: Reader) -> None:
    sent = [f"frame {n}" for n in range(3000)]
    loop = asyncio.get_running_loop()
    for line in sent:
        await loop.sock_sendall(reader.server, f"{line}\n".encode())
        await asyncio.sleep(0)  # the loop has its chance to be woken for each
    await reader.until(len(sent))
    assert reader.frames == [line.encode() for line in sent]
    assert len(reader.batches) < len(sent) / 3
    assert reader.link.heard


async def test_it_is_woken_again_after_a_silence(reader: Reader) -> None:
    for number in range(3):
        looks = reader.conn.looks
        reader.send(f"frame {number}")
        await reader.until(number + 1)
        await asyncio.sleep(0.05)
        assert reader.conn.looks - looks < 10, "it looks again and again at nothing"


async def test_half_a_frame_is_heard_and_waited_for(reader: Reader) -> None:
    reader.link.heard = False
    reader.server.sendall(b"one fra")
    async with asyncio.timeout(SECONDS):
        while not reader.link.heard:
            await asyncio.sleep(0.001)
    assert reader.frames == []
    reader.server.sendall(b"me\n")
    await reader.until(1)
    assert reader.frames == [b"one frame"]


async def test_nothing_is_read_in_a_pause_and_nothing_lost(reader: Reader) -> None:
    reader.pause_at = 1
    reader.send("first")
    await reader.until(1)
    reader.send(*(f"late {n}" for n in range(2000)))
    looks = reader.conn.looks
    await asyncio.sleep(0.05)
    assert (reader.frames, reader.conn.looks) == ([b"first"], looks)
    reader.link.send(b"told meanwhile")
    assert reader.conn.told == [b"told meanwhile"]
    reader.pause_at = 0
    reader.link.resume()
    await reader.until(2001)
    assert reader.frames[-1] == b"late 1999"


async def test_a_pause_that_is_over_at_once_looks_once(reader: Reader) -> None:
    reader.link.pause()
    reader.link.resume()
    reader.link.pause()
    reader.link.resume()
    reader.send("one")
    await reader.until(1)
    assert reader.frames == [b"one"]


@pytest.mark.parametrize("line", ["bad", "end"])
async def test_what_ends_the_stream_is_told_once(reader: Reader, line: str) -> None:
    reader.send("good", line, "never")
    await reader.until_failed()
    await asyncio.sleep(0.02)
    kind = ValueError if line == "bad" else DatabaseUnavailableError
    assert [type(error) for error in reader.errors] == [kind]
    assert reader.frames[0] == b"good"
    reader.link.resume()
    reader.link.send(b"too late")
    assert reader.conn.told == []


async def test_a_server_that_goes_is_told_after_what_it_sent(reader: Reader) -> None:
    reader.send("last words")
    reader.server.close()
    await reader.until_failed()
    assert reader.frames == [b"last words"]
    assert isinstance(reader.errors[0], psycopg.OperationalError)
    reader.link.cut()
