"""What a subscription asks for and answers, against a scripted server."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

import pytest

from duly.brokers.nats import consumer
from duly.brokers.nats.consumer import Consumer
from duly.brokers.nats.frames import Frame
from duly.brokers.nats.settings import parse
from duly.errors import BrokerUnavailableError
from duly.ports import SubscriptionSpec, TopicSpec

TOPIC = TopicSpec("orders", "event")
_REQUEST = re.compile(rb'NEXT\.(\S+) (\S+) \d+\r\n\{"batch":(\d+)')
_ANSWER = re.compile(rb"PUB (\$JS\.ACK\S+) 4\r\n(\S{4})\r\n")


class Server:
    """A link and its connection in one."""

    def __init__(self) -> None:
        self.settings = parse("nats://localhost")
        self.inbox = "in"
        self.users: list[Any] = []
        self.connection: Any = self
        self.lanes: dict[int, Callable[..., None]] = {}
        self.sids = 0
        self.said: list[bytes] = []

    def listen(self, _subject: str, lane: Callable[..., None]) -> int:
        self.sids += 1
        self.lanes[self.sids] = lane
        return self.sids

    def unlisten(self, sid: int) -> None:
        self.lanes.pop(sid)

    def emit(self, data: bytes) -> None:
        self.said.append(data)

    # --- looking ------------------------------------------------------------------------------
    def requests(self) -> list[int]:
        """The batch of each request so far."""
        return [int(found[3]) for one in self.said for found in [_REQUEST.search(one)] if found]

    def answers(self, word: bytes) -> list[int]:
        """The sequences that were answered so."""
        found = [m for one in self.said for m in _ANSWER.finditer(one)]
        return [int(m[1].split(b".")[5]) for m in found if m[2] == word]

    # --- delivering ---------------------------------------------------------------------------
    def deliver(self, *numbers: int) -> None:
        lane = self.lanes[max(self.lanes)]
        for n in numbers:
            lane(Frame(b"x", b"$JS.ACK.S.readers.1.%d.%d.0.0" % (n, n), None, b"%d" % n))

    def status(self, text: bytes) -> None:
        self.lanes[max(self.lanes)](Frame(b"in", b"", b"NATS/1.0 %s\r\n\r\n" % text, b""))


@pytest.fixture
async def server() -> Server:
    return Server()


def made(server: Server, *, prefetch: int = 10, ordered: bool = False) -> Consumer:
    spec = SubscriptionSpec("readers", (TOPIC,), prefetch=prefetch, ordered=ordered)
    found = Consumer(server, None, spec, notify=lambda: None)  # type: ignore[arg-type]
    found.open()
    return found


async def settled() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def asked(server: Server, times: int) -> None:
    async with asyncio.timeout(10):
        while len(server.requests()) < times:  # no event says so
            await asyncio.sleep(0.01)


async def test_no_more_is_asked_for_than_there_is_room(server: Server) -> None:
    c = made(server)
    assert server.requests() == [10]
    server.deliver(*range(1, 11))
    await settled()
    assert server.requests() == [10], "full"
    tokens = list(c.arrived)
    c.ack(tokens[:1])
    assert server.requests() == [10], "one is too little for a request of its own"
    c.ack(tokens[1:6])
    assert server.requests() == [10, 6]
    c.ack(tokens)
    assert server.answers(b"+ACK") == list(range(1, 11)), "each once"
    assert server.requests() == [10, 6], "one request at a time"
    server.deliver(*range(11, 17))
    await settled()
    assert server.requests() == [10, 6, 4]
    c.close()


async def test_a_request_that_ended_or_was_lost_is_made_again(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumer, "BEAT_SECONDS", 0.02)
    c = made(server)
    server.status(b"408 Request Timeout")
    await settled()
    assert server.requests() == [10, 10]
    monkeypatch.setattr(consumer, "REQUEST_SECONDS", 0.05)
    monkeypatch.setattr(consumer, "GRACE_SECONDS", 0.05)
    server.status(b"408 Request Timeout")
    await asked(server, 5)  # the last two: the word that they ended was lost
    monkeypatch.setattr(consumer, "REQUEST_SECONDS", 60.0)
    await asked(server, len(server.requests()) + 1)
    before = len(server.requests())
    server.status(b"409 Exceeded MaxWaiting")
    await settled()
    assert len(server.requests()) == before, "asked again by the clock only"
    c.close()


async def test_what_is_under_way_is_said_to_be_in_progress(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumer, "BEAT_SECONDS", 0.02)
    c = made(server)
    server.deliver(1, 2, 3)
    c.ack([c.arrived[1]])
    await asyncio.sleep(0.2)
    assert set(server.answers(b"+WPI")) == {1, 3}
    c.close()
    said = len(server.said)
    await asyncio.sleep(0.1)
    assert len(server.said) == said


async def test_an_ack_while_the_connection_is_away_is_sent_later(server: Server) -> None:
    c = made(server)
    server.deliver(1, 2)
    tokens = list(c.arrived)
    server.connection = None
    c.down(BrokerUnavailableError("cut"))
    c.ack(tokens[:1])
    assert server.answers(b"+ACK") == []
    server.connection = server
    c.up(server)  # type: ignore[arg-type]
    assert server.answers(b"+ACK") == [1]
    assert server.requests() == [10, 9], "the other is still ours"
    c.ack(tokens)
    assert server.answers(b"+ACK") == [1, 2]
    c.close()


async def test_a_release_gives_back_in_order_and_pauses(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumer, "RELEASE_PAUSE_SECONDS", 0.1)
    c = made(server)
    server.deliver(1, 2, 3, 4, 5)
    seen = [c.arrived.popleft() for _ in range(3)]
    c.ack(seen[1:2])
    c.release([seen[2], seen[0]])
    assert server.answers(b"-NAK") == [1, 3, 4, 5], "what nobody has seen goes with it"
    assert not c.arrived
    assert not server.lanes
    c.release(seen)
    assert server.answers(b"-NAK") == [1, 3, 4, 5]
    assert server.requests() == [10]
    await asyncio.sleep(0.3)
    assert server.requests() == [10, 10]
    c.close()


async def test_close_gives_back_what_is_not_answered(server: Server) -> None:
    c = made(server)
    server.deliver(1, 2, 3)
    tokens = list(c.arrived)
    c.ack(tokens[:1])
    c.close()
    c.close()
    assert server.answers(b"-NAK") == [2, 3]
    c.ack(tokens)
    c.release(tokens)
    assert server.answers(b"+ACK") == [1]
    assert server.answers(b"-NAK") == [2, 3]
    assert server.users == []


async def test_a_group_in_order_asks_each_of_its_consumers(server: Server) -> None:
    c = made(server, prefetch=64, ordered=True)
    assert server.requests() == [4] * 16
    consumers = {one.split(b" ")[1].rpartition(b".")[2] for one in server.said if b"NEXT" in one}
    assert consumers == {b"readers+%d" % n for n in range(16)}
    c.close()


@pytest.mark.parametrize("text", [b"409 Consumer Deleted", b"503"])
async def test_a_consumer_that_is_gone_is_declared_again(
    server: Server, monkeypatch: pytest.MonkeyPatch, text: bytes
) -> None:
    monkeypatch.setattr(consumer, "REOPEN_SECONDS", 0.02)
    declared: list[Any] = []

    async def declare(*arguments: Any) -> None:
        declared.append(arguments[-1])
        if len(declared) == 1:
            raise BrokerUnavailableError("not yet")

    monkeypatch.setattr(consumer, "declare", declare)
    c = made(server)
    server.status(text)
    server.status(text)
    await asyncio.sleep(0.3)
    assert len(declared) == 1
    assert server.requests() == [10, 10], "it is asked again, and tells when it is still gone"
    server.status(text)
    await asyncio.sleep(0.3)
    assert len(declared) == 2
    c.close()
