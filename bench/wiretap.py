"""A proxy before PostgreSQL that counts statements: the answers ``CommandComplete`` on the wire.

Invariant: every statement that the server ran for a connection through here is counted once,
BEGIN, COMMIT and each part of a text of several statements too; nothing is changed on the way.
Encrypted connections cannot be counted and are declined, as a server without TLS does.
"""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

__all__ = ["Tally", "Wiretap"]

READ_BYTES = 262_144
_ENCRYPTION_CODES = {80877103, 80877104}
_STARTUP_HEAD_BYTES = 8


class Tally:
    """Counts answers in one direction of one connection, however they are cut into pieces."""

    def __init__(self) -> None:
        self.statements = 0
        self._head = b""
        self._skip = 0

    def feed(self, piece: bytes) -> None:
        """Look at the next bytes of the server: one byte of type, four of length, the rest."""
        at = 0
        while at < len(piece):
            if self._skip:
                step = min(self._skip, len(piece) - at)
                self._skip -= step
                at += step
                continue
            wanted = 5 - len(self._head)
            self._head += piece[at : at + wanted]
            at += wanted
            if len(self._head) == 5:
                self.statements += self._head[:1] == b"C"
                self._skip = int.from_bytes(self._head[1:], "big") - 4
                self._head = b""


class Wiretap:
    """A counting proxy to the server of a URL. url: where to connect instead."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._target = (parts.hostname or "127.0.0.1", parts.port or 5432)
        self._listener = socket.create_server(("127.0.0.1", 0))
        user = parts.netloc.rpartition("@")[0]
        place = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.url = parts._replace(netloc=f"{user}@{place}" if user else place).geturl()
        self._tallies: list[Tally] = []
        self._sockets: list[socket.socket] = []

    @property
    def statements(self) -> int:
        """How many the server has answered so far, over all connections."""
        return sum(tally.statements for tally in self._tallies)

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, name="wiretap", daemon=True).start()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _: TracebackType | None,
    ) -> None:
        for one in (self._listener, *self._sockets):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        with suppress(OSError):  # closed: nobody connects any more
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        server = socket.create_connection(self._target)
        for one in (client, server):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sockets += [client, server]
        tally = Tally()
        self._tallies.append(tally)
        server.sendall(_startup(client))
        threading.Thread(target=_pump, args=(client, server), daemon=True).start()
        _pump(server, client, tally)


def _startup(client: socket.socket) -> bytes:
    """The first packet that is not a question for encryption, which is answered with no."""
    while True:
        head = _exactly(client, _STARTUP_HEAD_BYTES)
        if int.from_bytes(head[4:], "big") not in _ENCRYPTION_CODES:
            return head + _exactly(client, int.from_bytes(head[:4], "big") - len(head))
        client.sendall(b"N")


def _exactly(client: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count:
        piece = client.recv(count - len(found))
        if not piece:
            raise ConnectionError("closed while starting")
        found += piece
    return found


def _pump(source: socket.socket, sink: socket.socket, tally: Tally | None = None) -> None:
    with suppress(OSError):  # either end is closed
        while piece := source.recv(READ_BYTES):
            if tally is not None:
                tally.feed(piece)
            sink.sendall(piece)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
