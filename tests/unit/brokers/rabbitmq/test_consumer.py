from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from pika import frame, spec

from duly.brokers.rabbitmq import frames
from duly.brokers.rabbitmq.consumer import Acks, Consumer, Token
from duly.brokers.rabbitmq.settings import parse
from duly.errors import BrokerUnavailableError
from duly.ports import SubscriptionSpec, TopicSpec

SPEC = SubscriptionSpec("g", (TopicSpec("a", "event"), TopicSpec("b", "event")), prefetch=20)


@pytest.mark.parametrize("seed", range(20))
def test_every_tag_is_answered_exactly_once(seed: int) -> None:
    chance = random.Random(seed)
    acks, answered = Acks(), set()
    open_tags = list(range(1, 200))
    while open_tags:
        part = chance.sample(open_tags, min(len(open_tags), chance.randrange(1, 20)))
        upto, single = acks.take(part * 2)
        now = set(single) | {t for t in range(1, upto + 1) if t not in answered}
        assert now == set(part)
        if upto:
            assert upto in part, "the server knows only unanswered tags"
        answered |= now
        open_tags = [t for t in open_tags if t not in answered]
    assert acks.take(range(1, 200)) == (0, [])


def test_answers_in_order_are_one_frame() -> None:
    acks = Acks()
    assert acks.take([1, 2, 3]) == (3, [])
    assert acks.take([6, 7]) == (0, [6, 7])
    assert acks.take([5, 4]) == (5, [])
    assert acks.take([8]) == (8, [])


class Server:
    """A channel, a connection, a link and an I/O thread in one."""

    channel_number = 5

    def __init__(self, spec: SubscriptionSpec | None = None) -> None:
        self.is_open = True
        self.connection: Any = self
        self.users: list[Any] = []
        self.lanes: dict[int, Any] = {}
        self.calls: list[str] = []
        self.sent: list[Any] = []
        self.timers: list[Callable[[], None]] = []
        self.cancels: list[Callable[[Any], None]] = []
        self._consumers: dict[str, Any] = {"0": None}  # pika's, which it cancels before it closes
        self.notified = 0
        self.loop = SimpleNamespace(add_callback=lambda action: action())
        self.io = self
        self.settings = parse("amqp://localhost/")
        self.consumer = Consumer(self, spec or SPEC, self.notify)  # type: ignore[arg-type]
        self.consumer.up(self)  # type: ignore[arg-type]

    def notify(self) -> None:
        self.notified += 1

    def channel(self, on_open_callback: Callable[[Any], None]) -> None:
        on_open_callback(self)

    def add_on_close_callback(self, callback: Callable[..., None]) -> None:
        self.on_close = callback

    def add_on_cancel_callback(self, callback: Callable[..., None]) -> None:
        self.on_cancel = callback

    def __getattr__(self, name: str) -> Callable[..., None]:
        def call(*args: Any, callback: Callable[[Any], None] | None = None, **_: Any) -> None:
            self.calls.append(f"{name} {args[0] if args else ''}".strip())
            if callback is not None:
                callback(None)

        return call

    def basic_consume(self, queue: str, _on_message: Any, consumer_tag: str) -> None:
        self.calls.append(f"consume {queue} {consumer_tag}")

    def basic_cancel(self, tag: str, callback: Callable[[Any], None]) -> None:
        self.calls.append(f"cancel {tag}")
        self.cancels.append(callback)

    def later(self, _seconds: float, action: Callable[[], None]) -> Callable[[], None]:
        self.timers.append(action)
        return lambda: None

    def emit(self, data: bytes) -> None:
        while data:
            size, value = frame.decode_frame(data)
            self.sent.append(value.method)
            data = data[size:]

    def deliver(self, tag: int, body: bytes = b"body", *, source: int = 0, pieces: int = 1) -> None:
        method = spec.Basic.Deliver(str(source), tag, False, "x", "k")
        parts = [frame.Method(5, method), frame.Header(5, len(body), spec.BasicProperties())]
        step = -(-len(body) // pieces) or 1
        parts += [frame.Body(5, body[i : i + step]) for i in range(0, len(body), step)]
        for part in parts:
            data = part.marshal()
            assert self.consumer.frame(data[0], data, (7, len(data) - 1))


def tokens(*tags: int, channel: int = 1) -> list[Token]:
    return [Token(channel, tag) for tag in tags]


def test_it_declares_before_it_consumes() -> None:
    server = Server()
    words = [call.split()[0] for call in server.calls]
    assert words.index("consume") > words.index("queue_declare")
    assert [c for c in server.calls if c.startswith("consume")] == [
        "consume g:a 0",
        "consume g:b 1",
    ]


def test_bodies_in_pieces_and_without_any() -> None:
    server = Server()
    server.deliver(1, b"one")
    server.deliver(2, b"")
    server.deliver(3, b"in three pieces", source=1, pieces=3)
    found = [(raw.token.tag, raw.source, raw.body) for raw in server.consumer.arrived]
    assert found == [(1, 0, b"one"), (2, 0, b""), (3, 1, b"in three pieces")]
    assert server.notified == 3


def test_acks_are_joined_and_late_ones_dropped() -> None:
    server = Server()
    server.consumer.ack(tokens(1, 2, 3, 5))
    server.consumer.ack(tokens(4, channel=0))
    assert [(m.delivery_tag, m.multiple) for m in server.sent] == [(3, True), (5, False)]
    server.consumer.down(BrokerUnavailableError("gone"))
    server.consumer.ack(tokens(6))
    server.consumer.release(tokens(7))
    assert len(server.sent) == 2


def test_release_gives_back_what_it_holds_after_it_has_stopped_receiving() -> None:
    server = Server()
    server.deliver(3)
    server.consumer.ack(tokens(1))
    server.consumer.release(tokens(2))
    server.consumer.release(tokens(4))
    assert [c for c in server.calls if "cancel" in c] == ["cancel 0", "cancel 1"]
    assert len(server.sent) == 1, "not before the server has stopped delivering"
    for done in server.cancels:
        done(None)
    assert [(type(m).__name__, m.delivery_tag) for m in server.sent[1:]] == [
        ("Nack", 2),
        ("Nack", 3),
        ("Nack", 4),
    ]
    server.consumer.release(tokens(5))
    assert server.sent[-1].delivery_tag == 5
    before = server.calls.count("consume g:a 0")
    server.timers[-1]()
    assert server.calls.count("consume g:a 0") == before + 1


def test_an_ordered_group_gives_back_by_closing_its_channel() -> None:
    server = Server(replace(SPEC, ordered=True))
    server.deliver(3)
    server.consumer.release(tokens(2))
    assert server._consumers == {}
    assert [c for c in server.calls if "cancel" in c or "close" in c] == ["close"]
    assert server.sent == []


def test_a_channel_closed_by_the_server_is_opened_again() -> None:
    server = Server()
    server.deliver(1)
    server.on_close(server, SimpleNamespace(reply_code=406, reply_text="timeout"))
    assert not server.consumer.arrived
    server.timers[-1]()
    server.deliver(1)
    assert server.consumer.arrived[0].token == Token(2, 1)
    server.consumer.ack(tokens(1, channel=1))
    assert server.sent == []


def test_a_closed_consumer_stays_closed() -> None:
    server = Server()
    server.consumer.close()
    assert server._consumers == {}  # cancelled first, an heir would begin behind what is still ours
    server.on_close(server, SimpleNamespace(reply_code=200, reply_text="bye"))
    assert server.timers == []
    calls = len(server.calls)
    server.consumer.up(server)  # type: ignore[arg-type]
    assert len(server.calls) == calls


def test_other_methods_are_left_to_pika() -> None:
    server = Server()
    data = frame.Method(5, spec.Basic.Cancel("0")).marshal()
    assert not server.consumer.frame(frames.METHOD, data, (7, len(data) - 1))
