from __future__ import annotations

import asyncio
import gc
import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest

from duly.testing.fault_proxy import (
    DROP_REPLIES,
    PASS,
    REFUSE,
    RESET,
    SILENT,
    Fault,
    FaultProxy,
)


class Echo:
    """A server that sends back what it gets and notes it."""

    def __init__(self) -> None:
        self.got = bytearray()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self._threads.append(threading.Thread(target=self._serve, args=(sock,), daemon=True))
            self._threads[-1].start()

    def _serve(self, sock: socket.socket) -> None:
        with sock:
            try:
                while data := sock.recv(65_536):
                    self.got += data
                    sock.sendall(data)
            except OSError:
                return

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(5.0)


@pytest.fixture
def echo() -> Iterator[Echo]:
    echo = Echo()
    yield echo
    echo.close()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[FaultProxy]:
    with FaultProxy("127.0.0.1", echo.port) as proxy:
        yield proxy


def connect(proxy: FaultProxy) -> socket.socket:
    return socket.create_connection((proxy.host, proxy.port), timeout=1.0)


def receive(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        data += sock.recv(count - len(data)) or pytest.fail("closed early")
    return data


def wait_for(echo: Echo, data: bytes) -> None:
    end = time.monotonic() + 5.0
    while bytes(echo.got) != data:
        assert time.monotonic() < end, bytes(echo.got)
        time.sleep(0.005)  # a pause between two looks


def test_it_passes_both_ways(proxy: FaultProxy) -> None:
    with connect(proxy) as sock:
        sock.sendall(b"x" * 200_000)
        assert receive(sock, 200_000) == b"x" * 200_000
        assert proxy.connections == 1
    assert proxy.request_bytes == proxy.reply_bytes == 200_000


def test_a_closed_end_closes_the_other(proxy: FaultProxy) -> None:
    connect(proxy).close()
    end = time.monotonic() + 5.0
    while proxy.connections or not proxy.accepted:
        assert time.monotonic() < end
        time.sleep(0.005)  # a pause between two looks


def test_refuse_and_reset_at_the_same_port(proxy: FaultProxy) -> None:
    port = proxy.port
    with connect(proxy) as old:
        proxy.set(REFUSE)
        with pytest.raises(ConnectionResetError):
            old.recv(1)
    with pytest.raises(ConnectionRefusedError):
        connect(proxy)
    proxy.set(RESET)
    with pytest.raises(ConnectionResetError), connect(proxy) as sock:
        sock.recv(1)
    proxy.set(PASS)
    assert proxy.port == port
    with connect(proxy) as sock:
        sock.sendall(b"back")
        assert receive(sock, 4) == b"back"


def test_silence_swallows_and_ends_with_a_reset(proxy: FaultProxy, echo: Echo) -> None:
    with connect(proxy) as old:
        old.sendall(b"heard")
        assert receive(old, 5) == b"heard"
        proxy.set(SILENT)
        old.sendall(b"unheard")
        old.settimeout(0.2)
        with pytest.raises(TimeoutError):
            old.recv(1)
        with connect(proxy) as new:  # accepted, and as silent
            new.sendall(b"unheard too")
            new.settimeout(0.1)
            with pytest.raises(TimeoutError):
                new.recv(1)
        proxy.set(PASS)
        with pytest.raises(ConnectionResetError):
            old.recv(1)
    assert bytes(echo.got) == b"heard"


def test_an_idle_connection_survives_silence(proxy: FaultProxy) -> None:
    with connect(proxy) as sock:
        sock.sendall(b"a")
        receive(sock, 1)
        proxy.set(SILENT)
        proxy.set(PASS)
        sock.sendall(b"b")
        assert receive(sock, 1) == b"b"


def test_lost_replies_were_requests_that_arrived(proxy: FaultProxy, echo: Echo) -> None:
    with connect(proxy) as sock:
        proxy.set(DROP_REPLIES)
        sock.sendall(b"do it")
        wait_for(echo, b"do it")
        sock.settimeout(0.2)
        with pytest.raises(TimeoutError):
            sock.recv(1)
        proxy.set(PASS)
        with pytest.raises(ConnectionResetError):
            sock.recv(1)


def test_a_cut_lets_through_what_it_says(proxy: FaultProxy, echo: Echo) -> None:
    with connect(proxy) as sock:
        sock.sendall(b"before")
        receive(sock, 6)
        proxy.set(Fault(cut_after_bytes=3))
        sock.sendall(b"abcdef")
        with pytest.raises(ConnectionResetError):
            while sock.recv(10):
                pass
    wait_for(echo, b"beforeabc")


def test_cut_hits_those_that_are_open(proxy: FaultProxy) -> None:
    with connect(proxy) as old:
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            old.recv(1)
    with connect(proxy) as new:
        new.sendall(b"new")
        assert receive(new, 3) == b"new"


def test_slices_and_delays(proxy: FaultProxy) -> None:
    proxy.set(Fault(slice_bytes=1))
    with connect(proxy) as sock:
        sock.sendall(b"slices")
        assert receive(sock, 6) == b"slices"
        proxy.set(Fault(delay_seconds=0.1))
        began = time.monotonic()
        sock.sendall(b"late")
        assert receive(sock, 4) == b"late"
        assert 0.2 <= time.monotonic() - began < 1.0


def test_bandwidth(proxy: FaultProxy) -> None:
    proxy.set(Fault(bytes_per_second=5_000))
    with connect(proxy) as sock:
        began = time.monotonic()
        sock.sendall(b"x" * 1_000)
        receive(sock, 1_000)
        assert 0.3 < time.monotonic() - began < 1.5


def test_an_absent_target_is_a_reset() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with (
        FaultProxy("127.0.0.1", port) as proxy,
        pytest.raises(ConnectionResetError),
        connect(proxy) as sock,
    ):
        sock.recv(1)


async def test_it_is_controlled_from_an_event_loop(echo: Echo) -> None:
    async with FaultProxy("127.0.0.1", echo.port) as proxy:
        await proxy.aset(REFUSE)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(proxy.host, proxy.port)
        await proxy.aset(PASS)
        reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        writer.close()


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown mode"):
        Fault("explode")


def test_stopping_twice_is_fine(echo: Echo) -> None:
    proxy = FaultProxy("127.0.0.1", echo.port).start()
    proxy.stop()
    proxy.stop()
    assert proxy.connections == 0


def test_a_client_that_resets_first_is_let_go_in_silence(
    proxy: FaultProxy, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(20):
        client = socket.create_connection(("127.0.0.1", proxy.port))
        client.sendall(b"x")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
    until = time.monotonic() + 30
    while (proxy.accepted < 20 or proxy.connections) and time.monotonic() < until:
        time.sleep(0.01)  # until the proxy has seen them come and go
    gc.collect()  # a task that nobody awaited tells its exception when it is gone
    assert proxy.connections == 0
    assert [r.getMessage() for r in caplog.records if r.name == "asyncio"] == []
