"""What comes from the server is cut into messages, however the network has cut it."""

from __future__ import annotations

import random

import pytest
from nats.aio.client import Client
from nats.errors import ProtocolError

from duly.brokers.nats.frames import Frame
from duly.brokers.nats.link import _Reader

STREAM = (
    b"PING\r\n"
    b"MSG a 1 3\r\nx\r\n\r\n"
    b"HMSG b 2 r.1 12 17\r\nNATS/1.0\r\n\r\nhello\r\n"
    b"-ERR 'Permissions Violation for Publish to \"x.y\"'\r\n"
    b"MSG c 3 r.2 0\r\n\r\n"
    b"+OK\r\nPONG\r\n"
    b"MSG d 4 100000\r\n" + bytes(100_000) + b"\r\n"
)
WANTED = [
    "ping",
    (1, Frame(b"a", b"", None, b"x\r\n")),
    (2, Frame(b"b", b"r.1", b"NATS/1.0\r\n\r\n", b"hello")),
    "'permissions violation for publish to \"x.y\"'",
    (3, Frame(b"c", b"r.2", None, b"")),
    "pong",
    (4, Frame(b"d", b"", None, bytes(100_000))),
]


class Heard(Client):
    """A client that notes what the parser tells it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[object] = []

    async def _process_ping(self) -> None:
        self.found.append("ping")

    async def _process_pong(self) -> None:
        self.found.append("pong")

    async def _process_err(self, err_msg: str) -> None:
        self.found.append(err_msg)


@pytest.mark.parametrize("largest", [1, 7, 40, 5_000, 1_000_000])
async def test_messages_are_found_whatever_the_pieces(largest: int) -> None:
    chance = random.Random(largest)
    heard = Heard()
    reader = _Reader(heard, lambda sid, frame: heard.found.append((sid, frame)))
    at = 0
    while at < len(STREAM):
        size = chance.randint(1, largest)
        await reader.parse(STREAM[at : at + size])
        at += size
    assert heard.found == WANTED


async def test_a_line_that_is_no_protocol_ends_the_connection() -> None:
    reader = _Reader(Heard(), lambda _sid, _frame: None)
    with pytest.raises(ProtocolError):
        await reader.parse(b"MSG a 1 what\r\n")
    with pytest.raises(ProtocolError):
        await _Reader(Heard(), lambda _sid, _frame: None).parse(b"nonsense\r\n")
