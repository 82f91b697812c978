"""Confirm counting against a scripted server: every order of acks, nacks, returns and losses."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from pika import frame, spec
from pika.exceptions import ChannelClosedByBroker

from duly.brokers.rabbitmq import frames, publisher
from duly.brokers.rabbitmq.publisher import Call, Publisher
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


class Channel:
    channel_number = 1

    def __init__(self) -> None:
        self.on: dict[str, Callable[..., None]] = {}

    def add_on_close_callback(self, callback: Callable[..., None]) -> None:
        self.on["close"] = callback

    def add_on_return_callback(self, callback: Callable[..., None]) -> None:
        self.on["return"] = callback

    def confirm_delivery(self, _ack: Any, callback: Callable[[Any], None]) -> None:
        callback(None)


class Server:
    """A link, a connection and an I/O thread in one; time is told when to pass."""

    def __init__(self) -> None:
        self.params = SimpleNamespace(frame_max=131_072)
        self.lanes: dict[int, Any] = {}
        self.is_open = self.is_up = True
        self.connecting = False
        self.blocked: str | None = None
        self.reason = BrokerUnavailableError("the server is away")
        self.connection: Any = self
        self.published = 0
        self.sent = 0
        self.unsent_bytes = 0
        self.aborted: list[str] = []
        self.timers: list[Callable[[], None]] = []
        self.publisher = Publisher(self, self)  # type: ignore[arg-type]
        self.publisher.up(self)  # type: ignore[arg-type]

    def channel(self, on_open_callback: Callable[[Any], None]) -> None:
        self.open_channel = Channel()
        on_open_callback(self.open_channel)

    def later(self, _seconds: float, action: Callable[[], None]) -> Callable[[], None]:
        self.timers.append(action)
        return lambda: self.timers.remove(action) if action in self.timers else None

    def pass_time(self) -> None:
        timers, self.timers = self.timers, []
        for timer in timers:
            timer()

    def emit(self, data: bytes) -> None:
        self.sent += len(data)
        while data:
            size, value = frame.decode_frame(data)
            self.published += getattr(value, "method", None).__class__ is spec.Basic.Publish
            data = data[size:]

    def abort(self, why: str) -> None:
        self.aborted.append(why)

    def answer(self, method: Any) -> None:
        data = frame.Method(1, method).marshal()
        assert self.publisher.frame(frames.METHOD, data, (7, len(data) - 1))

    def ack(self, tag: int, *, multiple: bool = False) -> None:
        self.answer(spec.Basic.Ack(tag, multiple))

    def nack(self, tag: int, *, multiple: bool = False) -> None:
        self.answer(spec.Basic.Nack(tag, multiple))

    def give_back(self, one: Message) -> None:
        method = SimpleNamespace(reply_text="NO_ROUTE")
        self.open_channel.on["return"](None, method, SimpleNamespace(message_id=one.id), b"")

    def close_channel(self, code: int, text: str) -> None:
        self.open_channel.on["close"](self.open_channel, ChannelClosedByBroker(code, text))


class Asked:
    """A publish call and what came of it."""

    def __init__(self, server: Server, messages: Sequence[Message], seconds: float = 60.0) -> None:
        self.answers: list[list[Outcome]] = []
        self.call = Call(messages, time.monotonic() + seconds, self.answers.append)
        server.publisher.submit(self.call)

    @property
    def kinds(self) -> list[OutcomeKind]:
        assert len(self.answers) == 1, "answered once"
        return [o.kind for o in self.answers[0]]


def batch(count: int) -> list[Message]:
    return [message(TOPIC, n) for n in range(count)]


def test_acks_one_by_one_and_many_at_once() -> None:
    server = Server()
    one, two = Asked(server, batch(100)), Asked(server, batch(5))
    assert server.published == 105
    server.ack(3)
    server.ack(2)
    server.ack(99, multiple=True)
    assert not one.answers
    server.ack(104, multiple=True)
    assert one.kinds == [CONFIRMED] * 100
    assert not two.answers
    server.ack(105)
    assert two.kinds == [CONFIRMED] * 5
    assert (server.publisher._in_flight, server.publisher._in_flight_bytes) == (0, 0)


@pytest.mark.parametrize("seed", range(30))
def test_any_order_of_answers_gives_each_message_its_own(seed: int) -> None:
    chance = random.Random(seed)
    server = Server()
    sizes = [chance.randrange(1, 300) for _ in range(4)]
    asked = [Asked(server, batch(size)) for size in sizes]
    wanted: dict[int, OutcomeKind] = {}
    open_tags = list(range(1, sum(sizes) + 1))
    tag_of = {}
    number = 0
    for one in asked:
        for m in one.call.messages:
            number += 1
            tag_of[number] = m
    while open_tags:
        tag = chance.choice(open_tags[:50])
        multiple, nack = chance.random() < 0.2, chance.random() < 0.3
        tags = [t for t in open_tags if t <= tag] if multiple else [tag]
        for t in tags:
            if not nack and chance.random() < 0.2:
                server.give_back(tag_of[t])
                wanted[t] = UNROUTED
            else:
                wanted[t] = REFUSED if nack else CONFIRMED
        (server.nack if nack else server.ack)(tag, multiple=multiple)
        open_tags = [t for t in open_tags if t not in tags]
    number = 0
    for one, size in zip(asked, sizes, strict=True):
        assert one.kinds == [wanted[number + i + 1] for i in range(size)]
        number += size
    assert (server.publisher._in_flight, server.publisher._in_flight_bytes) == (0, 0)
    assert not server.timers


def test_the_window_is_kept_and_moves_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "WINDOW_MESSAGES", 128)
    server = Server()
    asked = Asked(server, batch(1000))
    assert server.published == 128
    while not asked.answers:
        server.ack(server.published, multiple=True)
        assert server.publisher._in_flight <= 128
    assert asked.kinds == [CONFIRMED] * 1000


def test_large_messages_are_bounded_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "WINDOW_BYTES", 1_000_000)
    server = Server()
    big = [message(TOPIC, payload=bytes(400_000)) for _ in range(10)]
    asked = Asked(server, big)
    assert server.sent < 1_500_000
    for tag in range(1, 11):
        server.ack(tag)
    assert asked.kinds == [CONFIRMED] * 10


def test_the_deadline_tells_sent_from_unsent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "WINDOW_MESSAGES", 64)
    server = Server()
    asked = Asked(server, batch(200))
    server.ack(10, multiple=True)
    published = server.published
    server.pass_time()
    assert asked.kinds == [CONFIRMED] * 10 + [UNKNOWN] * 54 + [UNAVAILABLE] * 136
    server.ack(64, multiple=True)
    assert server.published == published, "nothing is sent after the deadline"
    assert server.aborted == []
    assert asked.kinds[10] is UNKNOWN


def test_bytes_that_are_still_here_at_the_deadline_are_thrown_away() -> None:
    server = Server()
    asked = Asked(server, batch(3))
    server.unsent_bytes = 17
    server.pass_time()
    assert asked.kinds == [UNKNOWN] * 3
    assert len(server.aborted) == 1


def test_a_passed_deadline_sends_nothing() -> None:
    server = Server()
    assert Asked(server, batch(2), seconds=-1.0).kinds == [UNAVAILABLE] * 2
    assert server.published == 0


def test_a_lost_connection_answers_everybody() -> None:
    server = Server()
    sent = Asked(server, batch(3))
    server.ack(1)
    server.blocked = "memory"
    waiting = Asked(server, batch(2))
    server.is_up = False
    server.publisher.down(BrokerUnavailableError("gone"))
    assert sent.kinds == [CONFIRMED, UNKNOWN, UNKNOWN]
    assert waiting.kinds == [UNAVAILABLE] * 2
    assert Asked(server, batch(1)).kinds == [UNAVAILABLE]
    assert not server.timers


def test_a_blocked_server_gets_nothing_until_it_takes_messages() -> None:
    server = Server()
    server.blocked = "disk"
    late, patient = Asked(server, batch(2)), Asked(server, batch(2))
    assert server.published == 0
    server.publisher.give_up(late.call, "the deadline passed")
    assert late.kinds == [UNAVAILABLE] * 2
    assert "disk" in late.answers[0][0].error
    server.blocked = None
    server.publisher.unblocked()
    server.ack(2, multiple=True)
    assert patient.kinds == [CONFIRMED] * 2


def test_a_missing_exchange_is_unrouted_and_not_asked_again_at_once() -> None:
    server = Server()
    here, nowhere = message(TOPIC), message(TopicSpec("nowhere", "event"))
    asked = Asked(server, [here, nowhere, here, nowhere])
    server.ack(1)
    server.close_channel(404, "NOT_FOUND - no exchange 'nowhere' in vhost '/'")
    assert asked.kinds == [CONFIRMED, UNROUTED, UNKNOWN, UNROUTED]
    server.pass_time()  # the channel is opened again
    published = server.published
    again = Asked(server, [nowhere, here])
    assert server.published == published + 1
    server.ack(1)
    assert again.kinds == [UNROUTED, CONFIRMED]


def test_a_size_the_server_refuses_is_learnt() -> None:
    server = Server()
    small, big = message(TOPIC), message(TOPIC, payload=bytes(2000))
    asked = Asked(server, [small, big])
    text = "PRECONDITION_FAILED - message size 2000 is larger than configured max size 1000"
    server.close_channel(406, text)
    assert asked.kinds == [UNKNOWN, IMPOSSIBLE]
    server.pass_time()
    again = Asked(server, [big, small])
    server.ack(1)
    assert again.kinds == [IMPOSSIBLE, CONFIRMED]


def test_a_topic_without_rights_is_refused() -> None:
    server = Server()
    asked = Asked(server, [message(TOPIC), message(TopicSpec("theirs", "event"))])
    text = "ACCESS_REFUSED - access to exchange 'theirs' in vhost '/' refused for user 'x'"
    server.close_channel(403, text)
    assert asked.kinds == [UNKNOWN, REFUSED]


def test_a_batch_of_which_nothing_can_be_sent_is_answered() -> None:
    server = Server()
    assert Asked(server, [message(TOPIC, key="\ud800")] * 3).kinds == [IMPOSSIBLE] * 3
    assert server.published == 0
    assert not server.timers


def test_frames_of_no_concern_are_left_to_pika() -> None:
    server = Server()
    data = frame.Method(1, spec.Channel.Flow(True)).marshal()
    assert not server.publisher.frame(frames.METHOD, data, (7, len(data) - 1))
    assert not server.publisher.frame(frames.HEADER, data, (7, len(data) - 1))
