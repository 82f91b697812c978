"""What is stored of a message that could not be handled, so that the broker can forget it.

Owns the translation of an ending into a row: status, attempts, due time, the lane it is retried
from.  The invariant: a message leaves the broker only when its handler has committed, it is
nobody's business, or its row - with the payload - is committed here.  A row that stands there
already owns the message and is left alone, except the one that a handler committed together with
half of its work: that one is opened again, as failed.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from duly.inbox.ending import End, Ending
from duly.inbox.identity import Identity, busy_key
from duly.kernel import failpoints
from duly.kernel.backoff import Retry
from duly.kernel.names import LANES, place
from duly.message import Message
from duly.ports import Statement, Steps

__all__ = ["STORED", "Stored", "Unhandled", "dated", "lane_of", "plan", "received_row", "store"]

LATER_SECONDS = 1.0
STORED = frozenset({End.RETRY, End.FAILED, End.HELD, End.LATER, End.BUSY})
_encode = msgspec.json.Encoder().encode


class Unhandled(NamedTuple):
    """A message and how it ended. retry: of its handler."""

    identity: Identity
    message: Message
    ending: Ending
    retry: Retry
    ordered: bool = False


class Stored(NamedTuple):
    """What a row says. delay_seconds: until it is due, None for never by itself."""

    status: str
    attempts: int
    delay_seconds: float | None


def plan(ending: Ending, retry: Retry) -> Stored:
    """The row that an ending leads to; it is the first one of its message."""
    if ending.end is End.RETRY and not retry.exhausted(1):
        return Stored("retry", 1, ending.due_in_seconds or retry.delay(1, random.random()))
    if ending.end in (End.RETRY, End.FAILED):
        return Stored("failed", 1, None)
    if ending.end is End.LATER:
        return Stored("retry", 0, LATER_SECONDS)
    return Stored("held", 0, None)


def dated(ending: Ending, retry: Retry) -> Ending:
    """It, with the time until the second attempt, where there is to be one."""
    if ending.end is not End.RETRY or retry.exhausted(1):
        return ending
    return ending._replace(due_in_seconds=retry.delay(1, random.random()))


def store(unhandled: Sequence[Unhandled]) -> Steps[None]:
    """Store messages in one transaction."""
    for one in unhandled:
        values = _values(one)
        if one.ending.half:
            reopened = yield Statement("inbox.reopen", values)
            if reopened.count:
                continue
        yield Statement("inbox.store", values)
    failpoints.hit(failpoints.CONSUME_FAILURE_STORED)


def _values(one: Unhandled) -> dict[str, Any]:
    stored = plan(one.ending, one.retry)
    values = received_row(one.identity, one.message, ordered=one.ordered)
    if one.ending.end is End.BUSY:
        values["dedupe_key"] = busy_key(one.message)
    return {
        **values,
        "status": stored.status,
        "attempts": stored.attempts,
        "delay_seconds": stored.delay_seconds,
        "error": one.ending.error[:1000] or "UNKNOWN",
    }


def received_row(identity: Identity, message: Message, *, ordered: bool) -> dict[str, Any]:
    """The values of a message's row."""
    return {
        **identity.where,
        "message_id": message.id,
        "message_type": message.type,
        "kind": message.kind,
        "topic": message.topic,
        "key": message.key,
        "lane": lane_of(message, ordered=ordered),
        "payload": bytes(message.payload),
        "headers": _encode(message.headers).decode(),
    }


def lane_of(message: Message, *, ordered: bool) -> int:
    """The lane of its key where order is kept, else any."""
    if ordered and message.key is not None:
        return place(message.topic, message.key).lane
    return random.randrange(LANES)
