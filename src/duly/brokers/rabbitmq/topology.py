"""Exchanges, queues and bindings: their names, their arguments, and how they are declared.

An event topic is a durable topic exchange of its name; each group has one queue per topic, bound
with ``#``. A command queue is a queue of its name on the default exchange. Invariant: two different
(group, topic) never share a queue, whatever dots their names have: ':' is in no name. Names that
begin with ``amq.`` belong to the server and get a '~' before them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from functools import partial
from typing import Any

from duly.brokers.rabbitmq.settings import Settings
from duly.brokers.rabbitmq.thread import IoThread
from duly.errors import BrokerUnavailableError, ConfigurationError, DulyError
from duly.ports import SubscriptionSpec, TopicSpec

__all__ = [
    "Steps",
    "count_steps",
    "declare_steps",
    "drive",
    "exchange_name",
    "queue_arguments",
    "queue_name",
    "refusal",
    "route",
    "run_on_channel",
]

# Each step is a channel method that takes ``callback=``; the generator receives the server's reply.
Steps = Generator[Callable[..., Any], Any, None]

_SINGLE_ACTIVE = "x-single-active-consumer"


def exchange_name(topic: str) -> str:
    """The exchange of an event topic."""
    return f"~{topic}" if topic.startswith("amq.") else topic


def queue_name(group: str, topic: TopicSpec) -> str:
    """The queue that a group reads for a topic; of a command queue the same for every group."""
    name = topic.name if topic.kind == "command" else f"{group}:{topic.name}"
    return f"~{name}" if name.startswith("amq.") else name


def route(kind: str, topic: str, message_type: str) -> tuple[str, str]:
    """Exchange and routing key of a message."""
    if kind == "command":
        return "", queue_name("", TopicSpec(topic, kind))
    return exchange_name(topic), message_type


def queue_arguments(settings: Settings, *, ordered: bool) -> dict[str, Any]:
    """The arguments that this adapter declares queues with."""
    return {"x-queue-type": settings.queue_type} | ({_SINGLE_ACTIVE: True} if ordered else {})


def declare_steps(
    channel: Any,
    settings: Settings,
    *,
    topics: Iterable[TopicSpec],
    subscriptions: Iterable[SubscriptionSpec],
) -> Steps:
    """Declare everything. A queue is made by who handles it: only it knows if order counts."""
    events = {t.name for t in topics if t.kind == "event"}
    events |= {t.name for s in subscriptions for t in s.topics if t.kind == "event"}
    for name in sorted(events):
        yield partial(
            channel.exchange_declare, exchange_name(name), exchange_type="topic", durable=True
        )
    for spec in subscriptions:
        arguments = queue_arguments(settings, ordered=spec.ordered)
        for topic in spec.topics:
            queue = queue_name(spec.group, topic)
            yield partial(channel.queue_declare, queue, durable=True, arguments=arguments)
            if topic.kind == "event":
                yield partial(channel.queue_bind, queue, exchange_name(topic.name), routing_key="#")


def count_steps(channel: Any, queues: Iterable[str], counts: dict[str, tuple[int, int]]) -> Steps:
    """Put (messages ready, consumers) of each queue into ``counts``."""
    for queue in dict.fromkeys(queues):
        reply = yield partial(channel.queue_declare, queue, passive=True)
        counts[queue] = (reply.method.message_count, reply.method.consumer_count)


def drive(channel: Any, steps: Steps, done: Callable[[], None]) -> None:
    """Run the steps one after the other on a channel; a refused step closes the channel instead."""

    def advance(reply: Any) -> None:
        try:
            step = steps.send(reply)
        except StopIteration:
            done()
            return
        step(callback=advance)

    advance(None)


def run_on_channel(
    io: IoThread,
    connection: Any,
    make: Callable[[Any], Steps],
    *,
    done: Callable[[DulyError | None], None],
    timeout_seconds: float,
) -> None:
    """Open a channel, run steps on it, close it; ``done`` is called once, with an error or None."""
    finished = False

    def finish(error: DulyError | None) -> None:
        nonlocal finished
        if not finished:
            finished = True
            cancel()
            done(error)

    def expired() -> None:
        finish(BrokerUnavailableError(f"no answer in {timeout_seconds:.0f} s"))

    def opened(channel: Any) -> None:
        channel.add_on_close_callback(lambda _channel, reason: finish(refusal(reason)))

        def complete() -> None:
            finish(None)
            if channel.is_open:
                channel.close()

        drive(channel, make(channel), complete)

    cancel = io.later(timeout_seconds, expired)
    connection.channel(on_open_callback=opened)


def refusal(reason: Any) -> DulyError:
    """Why the server closed a channel, as one of our errors."""
    code = getattr(reason, "reply_code", 0)
    text = str(getattr(reason, "reply_text", "")) or type(reason).__name__
    if code in (403, 405, 406, 530, 540):  # refused, locked, other arguments, not allowed
        hint = "; delete the queue or declare it as it is" if code == 406 else ""
        return ConfigurationError(f"RabbitMQ: {text}{hint}")
    return BrokerUnavailableError(f"RabbitMQ: {code} {text}")
