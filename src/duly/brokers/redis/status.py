"""Streams as an operator sees them: depth, groups, lag, and the messages themselves.

Reads only, and consumes nothing. Invariant: a lag is never guessed low - what the server cannot
count is counted entry by entry, up to a limit that is then named as the least.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from duly.brokers.redis.entries import message_of
from duly.brokers.redis.link import CALL_SECONDS, Link, raised
from duly.brokers.redis.scripts import RELEASED
from duly.brokers.redis.settings import Settings
from duly.brokers.redis.topology import registry_name, stream_name, topic_of
from duly.ports import GroupStatus, Peeked, TopicSpec, TopicStatus

__all__ = ["peek", "statuses"]

COUNT_MAX = 10_000


def statuses(link: Link, settings: Settings) -> list[TopicStatus]:
    """Every declared stream. Raises what the server's answers are mapped to."""
    names = sorted(name.decode() for name in link.ask("SMEMBERS", registry_name(settings.prefix)))
    found = []
    for stream in names:
        topic = topic_of(settings.prefix, stream)
        answer = link.ask_all([("XINFO", "GROUPS", stream)], timeout_seconds=CALL_SECONDS)[0]
        if isinstance(answer, Exception) and "no such key" in str(answer):
            found.append(TopicStatus(topic.name, topic.kind, 0, ()))
            continue
        rows = [_facts(row) for row in raised(link, answer)]
        groups = tuple(_group(link, settings, stream=stream, row=row) for row in rows)
        depth = int(link.ask("XLEN", stream))
        found.append(TopicStatus(topic.name, topic.kind, depth, groups))
    return found


def _facts(row: Sequence[Any]) -> dict[str, Any]:
    return {
        name.decode(): value.decode() if isinstance(value, bytes) else value
        for name, value in zip(row[::2], row[1::2], strict=True)
    }


def _group(link: Link, settings: Settings, *, stream: str, row: dict[str, Any]) -> GroupStatus:
    name, pending, unread = row["name"], int(row["pending"]), row.get("lag")
    if unread is None:  # before 7.0, or the server has lost count
        after = f"({row['last-delivered-id']}"
        unread = len(link.ask("XRANGE", stream, after, "+", "COUNT", COUNT_MAX))
    read = row.get("entries-read")
    consumers = [_facts(one) for one in link.ask("XINFO", "CONSUMERS", stream, name)]
    awake = settings.lease_seconds * 1000
    members = [c for c in consumers if c["name"] != RELEASED and int(c["idle"]) < awake]
    done = None if read is None else int(read) - pending
    return GroupStatus(name, done, int(unread) + pending, len(members))


def peek(
    link: Link, settings: Settings, topic: str, *, after: str | None, limit: int
) -> list[Peeked]:
    """Messages behind a cursor, or the newest. Raises what the server's answers are mapped to."""
    stream = stream_name(settings.prefix, TopicSpec(topic, "event"))
    if not link.ask("EXISTS", stream):
        stream = stream_name(settings.prefix, TopicSpec(topic, "command"))
    if after is None:
        entries = link.ask("XREVRANGE", stream, "+", "-", "COUNT", limit)[::-1]
    else:
        entries = link.ask("XRANGE", stream, f"({after}" if after else "-", "+", "COUNT", limit)
    return [_peeked(stream, topic, entry) for entry in entries]


def _peeked(stream: str, topic: str, entry: Sequence[Any]) -> Peeked:
    position = entry[0].decode()
    message = message_of(entry[1], topic=topic, fallback_id=f"{stream}/{position}")
    created_at = int(position.partition("-")[0]) / 1000
    return Peeked(position, created_at, stream, position, message)
