from __future__ import annotations

import socket
import threading

import pytest

from bench.wiretap import Tally, Wiretap

COMPLETE = b"C" + (4 + 6).to_bytes(4, "big") + b"BEGIN\0"
ROW = b"D" + (4 + 10).to_bytes(4, "big") + b"C" * 10  # its content looks like the head of another
READY = b"Z" + (5).to_bytes(4, "big") + b"I"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_statements_are_counted_however_the_stream_is_cut(size: int):
    stream = READY + ROW + COMPLETE + READY + COMPLETE + COMPLETE + READY
    tally = Tally()
    for at in range(0, len(stream), size):
        tally.feed(stream[at : at + size])
    assert tally.statements == 3


def test_encryption_is_declined_and_everything_else_passes_unchanged():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        startup = (12).to_bytes(4, "big") + (196608).to_bytes(4, "big") + b"user"
        received: list[bytes] = []

        def serve() -> None:
            client, _ = server.accept()
            with client:
                received.append(client.recv(1000))
                client.sendall(COMPLETE + READY)

        threading.Thread(target=serve, daemon=True).start()
        with Wiretap(f"postgresql://me@127.0.0.1:{port}/shop") as tap:
            assert tap.url.startswith("postgresql://me@127.0.0.1:")
            assert tap.url.endswith("/shop")
            place = ("127.0.0.1", int(tap.url.rpartition(":")[2].partition("/")[0]))
            with socket.create_connection(place, timeout=5) as client:
                client.sendall((8).to_bytes(4, "big") + (80877103).to_bytes(4, "big"))
                assert client.recv(1) == b"N"
                client.sendall(startup)
                answer = b""
                while len(answer) < len(COMPLETE + READY):
                    answer += client.recv(1000)
            assert answer == COMPLETE + READY
            assert received == [startup]
            assert tap.statements == 1
