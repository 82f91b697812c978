"""Sorting what came from the broker: whose is it, what is it, may it be handled?

Owns these decisions and nothing that waits.

    the envelope is broken                              -> held   UNDECODABLE
    an event that this group does not handle            -> skipped, acknowledged, counted
    a command that nobody handles                       -> held   UNKNOWN_TYPE
    a newer version of a handled type                   -> held   NEWER_VERSION
    first sent longer ago than the dedupe window        -> held   DEDUPE_WINDOW_PASSED
    a business key that cannot be computed              -> failed
    everything else                                     -> an entry

A message without an id gets one from its place.  Where the broker cannot name one (RabbitMQ) it
gets one from its content, which equal messages share: what comes for the first time is new and is
handled; what comes again, too, unless the inbox has its content already: then nobody can tell, and
it is held as NO_MESSAGE_ID.  A business key makes all this needless.

An id that comes again with another body is the same message: the first one wins, as it does
everywhere else; no digest is kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import replace

from duly.errors import PermanentError
from duly.inbox.context import ConsumeContext
from duly.inbox.ending import End, Ending, error_text
from duly.inbox.failures import Unhandled, dated
from duly.inbox.handlers import Handler
from duly.inbox.identity import (
    Identity,
    business_key,
    content_id,
    message_key,
    own_key,
)
from duly.kernel.backoff import Retry
from duly.message import HEADER_TIME, HEADER_UNDECODABLE, HEADER_VERSION, Message
from duly.ports import Delivery

__all__ = [
    "NO_HANDLER",
    "Entry",
    "Intake",
    "Rejected",
    "handler_of",
    "problem_of",
    "seconds_since",
    "sort",
]

NO_MESSAGE_ID = "NO_MESSAGE_ID: it came again without an id, and an equal one was received before"
NO_HANDLER = "none"  # the handler in the row of a message that has none
_NO_RETRY = Retry(attempts=1)


class Entry(msgspec.Struct, frozen=True, gc=False):
    """A message for a handler. value: the object, where the identity needed it (decoded)."""

    delivery: Delivery
    handler: Handler
    identity: Identity
    value: Any = None
    decoded: bool = False

    def as_unhandled(self, ending: Ending) -> Unhandled:
        """It, with an end."""
        handler = self.handler
        return Unhandled(
            self.identity, self.delivery.message, ending, handler.retry, handler.order == "key"
        )


class Rejected(NamedTuple):
    """A message that is stored instead of handled. final: only seen now, when it is received, so
    that no lane owner may judge it again.
    """

    delivery: Delivery
    unhandled: Unhandled
    final: bool = False


class Intake(NamedTuple):
    """A sorted batch. order: all deliveries as they came. skipped: counts by type. doubtful: come
    again without an id, so that only the inbox can tell whether they were handled.
    """

    order: list[Delivery]
    entries: list[Entry]
    stored: list[Rejected]
    skipped: Counter[str]
    doubtful: list[Entry]

    def decide(self, known: Collection[str]) -> None:
        """Of the doubtful: those whose content was received before are held. known: their ids."""
        for entry in self.doubtful:
            if entry.delivery.message.id in known:
                held = entry.as_unhandled(Ending(End.HELD, NO_MESSAGE_ID))
                self.stored.append(Rejected(entry.delivery, held, final=True))
            else:
                self.entries.append(entry)
        self.doubtful.clear()


def sort(context: ConsumeContext, group: str, batch: Sequence[Delivery]) -> Intake:
    """Decide for every delivery."""
    intake = Intake([], [], [], Counter(), [])
    keep, enter = intake.order.append, intake.entries.append
    oldest = datetime.now(UTC) - timedelta(seconds=context.dedupe_window_seconds)
    known: dict[tuple[Any, ...], tuple[Handler | None, str | None]] = {}
    for given in batch:
        delivery, message, nameless = given, given.message, False
        if not message.id:
            delivery = _with_id(given)
            message, nameless = delivery.message, not given.position
        keep(delivery)
        headers = message.headers
        version, broken = headers.get(HEADER_VERSION), headers.get(HEADER_UNDECODABLE)
        look = (message.type, message.kind, version, broken)
        found = known.get(look)
        if found is None:  # one decision per kind of message, not per message
            handler = handler_of(context, group, message)
            found = handler, problem_of(context, group, message, handler=handler)
            known[look] = found
        handler, problem = found
        late = False
        if problem is None and handler is not None:
            sent = _sent(headers.get(HEADER_TIME))
            if sent is not None and sent < oldest:
                problem, late = "DEDUPE_WINDOW_PASSED: first sent too long ago", True
        if problem is not None:
            key = own_key(message) if nameless else message_key(message)
            identity = Identity(group, NO_HANDLER if handler is None else handler.name, key)
            one = _rejected(delivery, identity, handler=handler, problem=problem)
            intake.stored.append(one._replace(final=late))
        elif handler is None:
            intake.skipped[message.type] += 1
        elif nameless and handler.dedupe is None:
            identity = Identity(group, handler.name, own_key(message))
            entries = intake.doubtful if delivery.redelivered else intake.entries
            entries.append(Entry(delivery, handler, identity))
        elif handler.dedupe is None:
            identity = Identity(group, handler.name, message_key(message))
            enter(Entry(delivery, handler, identity))
        else:
            _enter(context, intake, delivery=delivery, handler=handler, nameless=nameless)
    return intake


def handler_of(context: ConsumeContext, group: str, message: Message) -> Handler | None:
    """The handler of a message in a group: of its version, else of the newest older one that is
    known.
    """
    known = context.registry.find(message.type, message.version)
    return None if known is None else context.handlers.find(group, known.name, known.version)


def problem_of(
    context: ConsumeContext, group: str, message: Message, *, handler: Handler | None
) -> str | None:
    """Why a message waits for a person, None when it need not."""
    if HEADER_UNDECODABLE in message.headers:
        return f"UNDECODABLE: {message.headers[HEADER_UNDECODABLE]}"
    if handler is not None:
        return None
    if context.handlers.handles(group, message.type):
        known = context.registry.find(message.type, message.version)
        word = "UNKNOWN_VERSION" if known is not None else "NEWER_VERSION"
        return f"{word}: version {message.version} has no handler here"
    return "UNKNOWN_TYPE: no handler for this command" if message.kind == "command" else None


def _rejected(
    delivery: Delivery, identity: Identity, *, handler: Handler | None, problem: str
) -> Rejected:
    ordered = handler is not None and handler.order == "key"
    return Rejected(
        delivery,
        Unhandled(identity, delivery.message, Ending(End.HELD, problem), _NO_RETRY, ordered),
    )


def _enter(
    context: ConsumeContext,
    intake: Intake,
    *,
    delivery: Delivery,
    handler: Handler,
    nameless: bool,
) -> None:
    """A handler with a business key."""
    message = delivery.message
    assert handler.dedupe is not None
    try:
        value = context.registry.decode(handler.type, message.payload)
        key = business_key(handler.dedupe, value)
    except Exception as error:  # noqa: BLE001  # the user's function may raise anything
        end = End.FAILED if isinstance(error, PermanentError) else End.RETRY
        own = own_key(message) if nameless else message_key(message)
        identity = Identity(handler.group, handler.name, own)
        entry = Entry(delivery, handler, identity)
        ending = dated(Ending(end, error_text(error)), handler.retry)
        intake.stored.append(Rejected(delivery, entry.as_unhandled(ending)))
    else:
        identity = Identity(handler.group, handler.name, key)
        intake.entries.append(Entry(delivery, handler, identity, value, decoded=True))


def _with_id(delivery: Delivery) -> Delivery:
    message = delivery.message
    place = f"{delivery.source}/{delivery.position}" if delivery.position else content_id(message)
    return replace(delivery, message=replace(message, id=place))


def _sent(text: str | None) -> datetime | None:
    """When a message was published, by its header; None where that is not said."""
    if not text:
        return None
    try:
        sent = datetime.fromisoformat(text)
    except ValueError:
        return None
    return sent if sent.tzinfo is not None else sent.replace(tzinfo=UTC)


def seconds_since(message: Message) -> float:
    """How long ago it was published; 0 where that is not said."""
    sent = _sent(message.time)
    return 0.0 if sent is None else max(0.0, (datetime.now(UTC) - sent).total_seconds())
