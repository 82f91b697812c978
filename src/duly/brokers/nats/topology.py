"""Streams, subjects and consumers: their names, their settings, and how they are declared.

A topic is a stream of its name, made by the first group that reads it: until then a publish finds
nobody and says so. Its messages lie on 16 subjects, chosen by the key. An event stream keeps a
message until every group has it, a command stream until its one reader has it; nothing else removes
any. A group without order is one consumer; a group with order is one consumer per subject that has
one message under way at a time, so that whoever receives, and however often it is received, a key's
next message comes only after the ack of the one before. Invariant: two different topics or groups
never share a name, whatever dots their names have: '~' and '+' are in no name.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from duly.brokers.nats.api import (
    CONSUMER_MISSING,
    STREAM_MISSING,
    TOPOLOGY,
    Api,
    RefusedError,
)
from duly.brokers.nats.settings import Settings
from duly.errors import ConfigurationError
from duly.kernel.names import place
from duly.ports import SubscriptionSpec, TopicSpec

__all__ = [
    "ACK_WAIT_SECONDS",
    "PARTITIONS",
    "Source",
    "consumer_name",
    "declare",
    "sources_of",
    "stream_name",
    "subject_of",
]

PARTITIONS = 16
ACK_WAIT_SECONDS = 4.0  # then a dead receiver's come back; a living one asks for more time
UNDER_WAY_MAX = 20_000
DUPLICATE_WINDOW_SECONDS = 120.0
_QUEUE = "queue"  # the consumer of a command stream, whatever the group
_SECOND = 1_000_000_000
_STREAM_IN_USE = 10058
_SUBJECTS_OVERLAP = 10065


class Source(NamedTuple):
    """One consumer to pull from. partition: of an ordered group, else None."""

    topic: TopicSpec
    stream: str
    consumer: str
    partition: int | None


def stream_name(prefix: str, topic: TopicSpec) -> str:
    """The stream of a topic."""
    return f"{prefix}-{topic.kind}-{topic.name.replace('.', '~')}"


def subject_of(prefix: str, topic: TopicSpec, place_in: int | str) -> str:
    """The subject of a partition of a topic, or with ``*`` of all."""
    return f"{prefix}.{topic.kind}.{topic.name.replace('.', '~')}.{place_in}"


@lru_cache(maxsize=16_384)
def partition_of(topic: str, key: str) -> int:
    """Where the messages of a key lie; part of the wire format."""
    return place(topic, key).stripe % PARTITIONS


def consumer_name(group: str, topic: TopicSpec, partition: int | None = None) -> str:
    """The durable consumer of a group."""
    name = _QUEUE if topic.kind == "command" else group.replace(".", "~")
    return name if partition is None else f"{name}+{partition}"


def sources_of(prefix: str, spec: SubscriptionSpec) -> list[Source]:
    """What a subscription pulls from."""
    places: Sequence[int | None] = range(PARTITIONS) if spec.ordered else [None]
    return [
        Source(topic, stream_name(prefix, topic), consumer_name(spec.group, topic, at), at)
        for topic in spec.topics
        for at in places
    ]


# --- declaring ------------------------------------------------------------------------------------
async def declare(api: Api, settings: Settings, specs: Iterable[SubscriptionSpec]) -> None:
    """Make or check the streams and consumers of subscriptions. Idempotent.

    Raises BrokerUnavailableError, ConfigurationError.
    """
    specs = list(specs)
    topics = dict.fromkeys(topic for spec in specs for topic in spec.topics)
    try:
        with api.making() as begin:
            for topic in topics:
                await _stream(api, settings, topic, begin=begin)
            for spec in specs:
                for topic in dict.fromkeys(spec.topics):
                    await _refuse_other_mode(api, settings, spec, topic=topic)
                sources = sources_of(settings.prefix, spec)
                await _all(_consumer(api, settings, source) for source in sources)
    except RefusedError as error:
        raise error.mapped() from error


async def _all(steps: Iterable[Awaitable[None]]) -> None:
    """All at once; when one fails, the others still end before its error is raised."""
    results = await asyncio.gather(*steps, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result


def stream_settings(settings: Settings, topic: TopicSpec) -> dict[str, Any]:
    """What a stream is made with."""
    return {
        "name": stream_name(settings.prefix, topic),
        "subjects": [subject_of(settings.prefix, topic, "*")],
        "retention": "workqueue" if topic.kind == "command" else "interest",
        "storage": "file",
        "num_replicas": settings.replicas,
        "discard": "new",
        "max_consumers": -1,
        "max_msgs": -1,
        "max_bytes": -1,
        "max_age": 0,
        "duplicate_window": int(DUPLICATE_WINDOW_SECONDS * _SECOND),
    }


def consumer_settings(settings: Settings, source: Source) -> dict[str, Any]:
    """What a consumer is made with. A new group begins with what is sent after it was made; a queue
    with all that waits."""
    at = "*" if source.partition is None else source.partition
    return {
        "durable_name": source.consumer,
        "ack_policy": "explicit",
        "ack_wait": int(ACK_WAIT_SECONDS * _SECOND),
        "deliver_policy": "all" if source.topic.kind == "command" else "new",
        "replay_policy": "instant",
        "filter_subject": subject_of(settings.prefix, source.topic, at),
        "max_deliver": -1,
        "max_ack_pending": UNDER_WAY_MAX if source.partition is None else 1,
    }


async def _stream(
    api: Api, settings: Settings, topic: TopicSpec, *, begin: Callable[[], Awaitable[None]]
) -> None:
    wanted = stream_settings(settings, topic)
    name = wanted["name"]
    try:
        found = (await api.ask(f"STREAM.INFO.{name}"))["config"]
    except RefusedError as error:
        if error.code != STREAM_MISSING:
            raise
        await begin()
        try:
            await api.ask(f"STREAM.CREATE.{name}", wanted)
        except RefusedError as refused:
            if refused.code == _STREAM_IN_USE:  # another process was quicker: look at what it made
                found = (await api.ask(f"STREAM.INFO.{name}"))["config"]
            elif refused.code == _SUBJECTS_OVERLAP:
                hint = f"another stream already takes {wanted['subjects'][0]}; narrow its subjects"
                detail = f"{settings.shown}: {hint}"
                raise ConfigurationError(detail, code=TOPOLOGY) from refused
            else:
                raise
        else:
            return
    for part in ("retention", "subjects"):
        if found.get(part) != wanted[part]:
            raise ConfigurationError(
                f"{settings.shown}: stream {name} has {part} {found.get(part)}, not "
                f"{wanted[part]}; delete it or make it as it should be",
                code=TOPOLOGY,
            )
    if found.get("no_ack"):
        detail = f"{settings.shown}: stream {name} confirms nothing (no_ack)"
        raise ConfigurationError(detail, code=TOPOLOGY)


async def _refuse_other_mode(
    api: Api, settings: Settings, spec: SubscriptionSpec, *, topic: TopicSpec
) -> None:
    """A group's consumers of the other order mode would keep every message for nobody."""
    stream = stream_name(settings.prefix, topic)
    other = consumer_name(spec.group, topic, None if spec.ordered else 0)
    try:
        await api.ask(f"CONSUMER.INFO.{stream}.{other}")
    except RefusedError as error:
        if error.code == CONSUMER_MISSING:
            return
        raise
    mode = "without order" if spec.ordered else "in order"
    raise ConfigurationError(
        f"{settings.shown}: group {spec.group} has read {topic.name} {mode} before; delete the "
        f"consumer {other} of stream {stream}{'' if spec.ordered else ' and its like'} first",
        code=TOPOLOGY,
    )


async def _consumer(api: Api, settings: Settings, source: Source) -> None:
    wanted = consumer_settings(settings, source)
    place_of = f"{source.stream}.{source.consumer}"
    try:
        found = (await api.ask(f"CONSUMER.INFO.{place_of}"))["config"]
    except RefusedError as error:
        if error.code != CONSUMER_MISSING:
            raise
        body = {"stream_name": source.stream, "config": wanted}
        found = (await api.ask(f"CONSUMER.DURABLE.CREATE.{place_of}", body))["config"]
    checked = ["ack_policy", "max_deliver", "filter_subject"]
    checked += [] if source.partition is None else ["max_ack_pending"]
    for part in checked:
        if found.get(part) != wanted[part]:
            raise ConfigurationError(
                f"{settings.shown}: consumer {place_of} has {part} {found.get(part)}, not "
                f"{wanted[part]}; delete it or make it as it should be",
                code=TOPOLOGY,
            )
