"""Answers of a scripted server in every order: what settles a message, and what never does."""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from duly.brokers.nats import publisher
from duly.brokers.nats.api import RefusedError
from duly.brokers.nats.frames import Frame
from duly.brokers.nats.publisher import Call, Publisher
from duly.brokers.nats.settings import parse
from duly.errors import BrokerUnavailableError
from duly.message import Message
from duly.ports import Outcome, OutcomeKind, TopicSpec
from duly.testing.broker_target import message

TOPIC = TopicSpec("orders", "event")
CONFIRMED, REFUSED, UNROUTED, IMPOSSIBLE, UNKNOWN, UNAVAILABLE = (
    OutcomeKind.CONFIRMED,
    OutcomeKind.REFUSED,
    OutcomeKind.UNROUTED,
    OutcomeKind.IMPOSSIBLE,
    OutcomeKind.UNKNOWN,
    OutcomeKind.UNAVAILABLE,
)
STORED = b'{"stream":"duly-event-orders","seq":1}'
NOBODY = b"NATS/1.0 503\r\n\r\n"
_PUBLISH = re.compile(rb"HPUB (\S+) (\S+) (\d+) (\d+)\r\n")


class Server:
    """A link, its connection and the API in one."""

    def __init__(self) -> None:
        self.settings = parse("nats://localhost")
        self.inbox = "in"
        self.users: list[Any] = []
        self.usable, self.connecting = True, False
        self.reason = BrokerUnavailableError("the server is away")
        self.connection: Any = self
        self.max_payload = 2000
        self.unsent_bytes = 0
        self.aborted: list[str] = []
        self.sent: list[tuple[str, bytes]] = []  # subject, reply
        self.asked: list[str] = []
        self.streams: dict[str, Exception | None] = {}
        self.heard: Callable[..., None] = lambda *_: None
        self.remade = 0
        self.unfinished = 0
        self.finished: list[Callable[[], None]] = []
        self.under_way: list[Callable[[], bool]] = []
        self.publisher = Publisher(self, self, remake=self.remake)  # type: ignore[arg-type]
        self.publisher.up(self)  # type: ignore[arg-type]

    def remake(self) -> None:
        self.remade += 1

    def listen(self, subject: str, lane: Callable[..., None]) -> int:
        assert subject == "in.pub.*"
        self.heard = lane
        return 1

    def emit(self, data: bytes) -> None:
        at = 0
        while at < len(data):
            found = _PUBLISH.match(data, at)
            assert found, data[at : at + 60]
            self.sent.append((found[1].decode(), found[2]))
            at = found.end() + int(found[4]) + 2

    def abort(self, why: str) -> None:
        self.aborted.append(why)

    async def ask(self, subject: str, body: Any = None) -> dict[str, Any]:
        del body
        self.asked.append(subject)
        await asyncio.sleep(0)
        if error := self.streams.get(subject.removeprefix("STREAM.INFO.")):
            raise error
        return {}

    # --- answering ----------------------------------------------------------------------------
    def answer(self, at: int, data: bytes = STORED, block: bytes | None = None) -> None:
        self.heard(Frame(self.sent[at][1], b"", block, data))

    def refuse(self, at: int, code: int, err_code: int) -> None:
        error = {"code": code, "err_code": err_code, "description": "because"}
        self.answer(at, msgspec.json.encode({"error": error}))


@pytest.fixture
async def server() -> Server:
    return Server()


def publish(server: Server, messages: list[Message], seconds: float = 60.0) -> list[Outcome]:
    """The list that gets the outcomes, once."""
    found: list[Outcome] = []
    given: list[int] = []

    def done(outcomes: list[Outcome]) -> None:
        given.append(1)
        assert len(given) == 1, "answered twice"
        found.extend(outcomes)

    server.publisher.submit(Call(messages, time.monotonic() + seconds, done))
    return found


def kinds(outcomes: list[Outcome]) -> list[OutcomeKind]:
    assert all(o.error for o in outcomes if o.kind is not CONFIRMED)
    return [o.kind for o in outcomes]


def messages(count: int) -> list[Message]:
    return [message(TOPIC, n, key=f"k{n % 7}") for n in range(count)]


async def test_each_message_is_settled_by_its_own_answer(server: Server) -> None:
    outcomes = publish(server, messages(300))
    order = list(range(300))
    random.Random(3).shuffle(order)
    for n in order[:-1]:
        server.answer(n)
        server.answer(n)  # a second answer counts for nothing
    assert not outcomes
    server.answer(order[-1])
    assert kinds(outcomes) == [CONFIRMED] * 300
    assert not server.aborted


@pytest.mark.parametrize(
    ("code", "err_code", "kind"),
    [
        (400, 10054, IMPOSSIBLE),
        (503, 10077, REFUSED),
        (400, 10060, REFUSED),
        (503, 10008, UNAVAILABLE),
        (429, 10167, UNAVAILABLE),
    ],
)
async def test_what_a_refusal_means(
    server: Server, code: int, err_code: int, kind: OutcomeKind
) -> None:
    outcomes = publish(server, messages(2))
    server.refuse(0, code, err_code)
    server.answer(1)
    assert kinds(outcomes) == [kind, CONFIRMED]
    assert "because" in outcomes[0].error


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b'{"stream":"duly-event-orders","seq":1,"duplicate":true}', CONFIRMED),
        (b'{"seq":1, "stream":"duly-event-orders"}', CONFIRMED),
        (b'{"stream":"everything","seq":1}', REFUSED),
        (b'{"stream":"duly-event-orders~2","seq":1}', REFUSED),
        (b"{}", REFUSED),
        (b"+OK", UNKNOWN),
        (b"", UNKNOWN),
    ],
)
async def test_only_the_own_stream_confirms(server: Server, data: bytes, kind: OutcomeKind) -> None:
    outcomes = publish(server, messages(1))
    server.answer(0, data)
    assert kinds(outcomes) == [kind]


async def test_nobody_there_is_unrouted_only_when_the_stream_is_missing(server: Server) -> None:
    missing = RefusedError("$JS.API.STREAM.INFO", 10059, status_code=404, text="stream not found")
    server.streams["duly-event-orders"] = missing
    outcomes = publish(server, messages(40))
    for n in range(40):
        server.answer(n, b"", NOBODY)
    await asyncio.sleep(0.05)
    assert kinds(outcomes) == [UNROUTED] * 40
    assert server.asked == ["STREAM.INFO.duly-event-orders"], "asked once for all"
    assert kinds(publish(server, messages(3))) == [UNROUTED] * 3, "for a second nothing is sent"
    assert len(server.sent) == 40


async def test_a_stream_of_our_own_group_that_is_missing_is_made_again(server: Server) -> None:
    missing = RefusedError("$JS.API.STREAM.INFO", 10059, status_code=404, text="stream not found")
    server.streams["duly-event-orders"] = missing
    server.publisher.declared.add("duly-event-orders")
    outcomes = publish(server, messages(2))
    server.answer(0, b"", NOBODY)
    server.answer(1, b"", NOBODY)
    await asyncio.sleep(0.05)
    assert kinds(outcomes) == [UNAVAILABLE] * 2, "the server lost it; an event must not go with it"
    assert server.remade == 1


@pytest.mark.parametrize(
    "answer",
    [None, BrokerUnavailableError("away"), RefusedError("x", 10008, status_code=503, text="away")],
)
async def test_nobody_there_for_a_moment_uses_up_no_attempt(
    server: Server, answer: Exception | None
) -> None:
    server.streams["duly-event-orders"] = answer
    outcomes = publish(server, messages(2))
    server.answer(0, b"", NOBODY)
    server.answer(1)
    await asyncio.sleep(0.05)
    assert kinds(outcomes) == [UNAVAILABLE, CONFIRMED]


async def test_what_found_nobody_is_not_unknown_when_the_time_is_up(server: Server) -> None:
    outcomes = publish(server, messages(2), seconds=0.05)
    server.answer(0, b"", NOBODY)
    server.publisher.give_up(server.publisher._sent[2].call, "the deadline passed")
    assert kinds(outcomes) == [UNAVAILABLE, UNKNOWN]


async def test_the_deadline_ends_the_sending(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher, "WINDOW_MESSAGES", 100)
    monkeypatch.setattr(publisher, "CHUNK_MESSAGES", 64)
    outcomes = publish(server, messages(500), seconds=0.05)
    sent = len(server.sent)
    assert 100 <= sent < 500
    server.answer(0)
    server.unsent_bytes = 1
    await asyncio.sleep(0.3)
    assert kinds(outcomes) == [CONFIRMED, *[UNKNOWN] * (sent - 1), *[UNAVAILABLE] * (500 - sent)]
    [why] = server.aborted  # bytes on their way are discarded
    assert why.startswith("the deadline passed")
    for n in range(1, sent):
        server.answer(n)  # late
    assert len(server.sent) == sent
    after = publish(server, messages(1))
    server.answer(sent)
    assert kinds(after) == [CONFIRMED]


async def test_the_window_bounds_what_is_under_way(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher, "WINDOW_MESSAGES", 100)
    monkeypatch.setattr(publisher, "CHUNK_MESSAGES", 64)
    calls = [publish(server, messages(150)) for _ in range(3)]
    answered = 0
    while answered < len(server.sent):
        assert len(server.sent) - answered <= 100 + publisher.CHUNK_MESSAGES
        server.answer(answered)
        answered += 1
    assert answered == 450
    assert [kinds(outcomes) for outcomes in calls] == [[CONFIRMED] * 150] * 3
    assert server.publisher._in_flight_bytes == 0


async def test_a_lost_connection_answers_everything(server: Server) -> None:
    outcomes = publish(server, messages(3))
    server.answer(1)
    server.connection = None
    server.publisher.down(BrokerUnavailableError("cut"))
    assert kinds(outcomes) == [UNKNOWN, CONFIRMED, UNKNOWN]
    assert kinds(publish(server, messages(1))) == [UNAVAILABLE]
    server.connecting = True
    waiting = publish(server, messages(1))
    assert not waiting
    server.connection = server
    server.publisher.up(server)  # type: ignore[arg-type]
    server.answer(len(server.sent) - 1)
    assert kinds(waiting) == [CONFIRMED]
    assert kinds(publish(server, messages(1), seconds=-1.0)) == [UNAVAILABLE]


async def test_a_forbidden_subject_refuses_its_messages_only(server: Server) -> None:
    batch = [message(TOPIC, n, key="one") for n in range(3)]
    other = message(TopicSpec("Other", "event"), 1, key="one")
    outcomes = publish(server, [*batch, other])
    server.publisher.denied("publish", server.sent[0][0].lower())
    assert not outcomes
    server.publisher.denied("publish", server.sent[3][0].lower())
    assert kinds(outcomes) == [REFUSED] * 4
    assert "orders" in outcomes[0].error
    assert kinds(publish(server, batch)) == [REFUSED] * 3, "for a second nothing is sent"


async def test_what_cannot_travel_is_impossible(server: Server) -> None:
    batch = [
        message(TOPIC, 1),
        message(TOPIC, key="\ud800"),
        message(TOPIC, payload=bytes(2000)),
        message(TOPIC, payload=bytes(1000)),
    ]
    outcomes = publish(server, batch)
    assert len(server.sent) == 2
    server.answer(0)
    server.answer(1)
    assert kinds(outcomes) == [CONFIRMED, IMPOSSIBLE, IMPOSSIBLE, CONFIRMED]
    assert kinds(publish(server, [batch[1]])) == [IMPOSSIBLE]


async def test_a_message_goes_to_the_same_place_when_it_is_sent_again(server: Server) -> None:
    batch = [message(TOPIC, n) for n in range(20)]
    publish(server, batch)
    publish(server, batch)
    subjects = [subject for subject, _ in server.sent]
    assert subjects[:20] == subjects[20:]
    assert len(set(subjects)) > 4, "without a key they are spread"


async def test_nothing_is_sent_while_a_stream_may_lack_its_groups(server: Server) -> None:
    server.unfinished = 1
    outcomes = publish(server, [message(TOPIC, 1)])
    assert not server.sent
    server.unfinished = 0
    for go_on in server.finished:
        go_on()
    assert len(server.sent) == 1
    server.answer(0)
    assert kinds(outcomes) == [CONFIRMED]
