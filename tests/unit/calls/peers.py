"""Peers that misbehave, as real servers on a port of this machine, each in a thread of its own."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

REQUEST_MAX = 65_536


def hang(peer: socket.socket, stop: threading.Event) -> None:
    """Takes the request and says nothing."""
    peer.recv(REQUEST_MAX)
    stop.wait(60)


def drip(peer: socket.socket, stop: threading.Event) -> None:
    """One byte of an endless answer at a time: no timeout of a single read ever passes."""
    peer.recv(REQUEST_MAX)
    peer.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
    while not stop.wait(0.02):
        peer.sendall(b"x")


def drip_headers(peer: socket.socket, stop: threading.Event) -> None:
    """The same before the body has begun."""
    peer.recv(REQUEST_MAX)
    peer.sendall(b"HTTP/1.1 200 OK\r\nx: ")
    while not stop.wait(0.02):
        peer.sendall(b"x")


def flood(peer: socket.socket, stop: threading.Event) -> None:
    """An answer without end, as fast as it goes."""
    peer.recv(REQUEST_MAX)
    peer.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    chunk = b"10000\r\n" + b"x" * 65_536 + b"\r\n"
    while not stop.is_set():
        peer.sendall(chunk)


def reset(peer: socket.socket, _: threading.Event) -> None:
    """The connection ends with a reset when the request has come."""
    peer.recv(REQUEST_MAX)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")


def answering(*answers: bytes) -> Callable[[socket.socket, threading.Event], None]:
    """These answers, one for each connection; the last for all further ones."""
    left = list(answers)

    def answer(peer: socket.socket, _: threading.Event) -> None:
        peer.recv(REQUEST_MAX)
        peer.sendall(left.pop(0) if len(left) > 1 else left[0])

    return answer


def ok(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    """A whole answer."""
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(body)}", "connection: close", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


@contextmanager
def serving(talk: Callable[[socket.socket, threading.Event], None]) -> Iterator[str]:
    """The URL of a server that talks so to every connection."""
    stop = threading.Event()
    server = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []

    def one(peer: socket.socket) -> None:
        with suppress(OSError), peer:
            talk(peer, stop)

    def accept() -> None:
        with suppress(OSError):
            while True:
                peer, _ = server.accept()
                peer.settimeout(30)
                threads.append(threading.Thread(target=one, args=(peer,), daemon=True))
                threads[-1].start()

    accepting = threading.Thread(target=accept, daemon=True)
    accepting.start()
    try:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
    finally:
        stop.set()
        with suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)
        server.close()
        end = time.monotonic() + 10
        for thread in (accepting, *threads):
            thread.join(max(0.1, end - time.monotonic()))
