"""Streams and groups: their names, and how they are declared.

A topic or queue is one stream; each group of an event topic is a consumer group of its stream, a
command queue has one group, named after it, whoever reads it. Invariant: an event topic and a
command queue never share a stream, whatever their names: ':' is in no name.
"""

from __future__ import annotations

from collections.abc import Iterable

from duly.brokers.redis.link import CALL_SECONDS, Link, raised
from duly.ports import SubscriptionSpec, TopicSpec

__all__ = [
    "declare",
    "group_name",
    "lease_name",
    "make_group",
    "registry_name",
    "stream_name",
    "topic_of",
]


def stream_name(prefix: str, topic: TopicSpec) -> str:
    """The key of a topic's stream."""
    return f"{prefix}{topic.kind}:{topic.name}"


def topic_of(prefix: str, stream: str) -> TopicSpec:
    """The topic of a stream's key."""
    kind, _, name = stream.removeprefix(prefix).partition(":")
    return TopicSpec(name, kind)


def group_name(group: str, topic: TopicSpec) -> str:
    """The consumer group that reads a topic for a group of handlers."""
    return topic.name if topic.kind == "command" else group


def lease_name(prefix: str, group: str, stream: str) -> str:
    """The key of the lease on a stream of an ordered group."""
    return f"{prefix}lease:{group}:{stream.removeprefix(prefix)}"


def registry_name(prefix: str) -> str:
    """The key of the set of all streams that were declared."""
    return f"{prefix}streams"


def declare(
    link: Link,
    prefix: str,
    *,
    topics: Iterable[TopicSpec],
    subscriptions: Iterable[SubscriptionSpec],
) -> None:
    """Make sure that every group is there. Raises what the server's answers are mapped to."""
    subscriptions = list(subscriptions)
    all_topics = {*topics, *(t for s in subscriptions for t in s.topics)}
    names = sorted(stream_name(prefix, topic) for topic in all_topics)
    if not names:
        link.ask("PING")
        return
    link.ask("SADD", registry_name(prefix), *names)
    for spec in subscriptions:
        for topic in spec.topics:
            start = "0" if spec.from_start else "$"
            make_group(link, stream_name(prefix, topic), group_name(spec.group, topic), start=start)


def make_group(link: Link, stream: str, group: str, *, start: str) -> bool:
    """Make a group; False when it was there. start: ``0`` the oldest entry, ``$`` only new ones."""
    asked = ("XGROUP", "CREATE", stream, group, start, "MKSTREAM")
    answer = link.ask_all([asked], timeout_seconds=CALL_SECONDS)[0]
    if isinstance(answer, Exception) and "BUSYGROUP" in str(answer):
        return False
    raised(link, answer)
    return True
