"""Sorting what came from the broker: whose is it, what is it, may it be handled?

Owns these decisions and nothing that waits.

    the envelope is broken                              -> held   UNDECODABLE
    an event that this group does not handle            -> skipped, acknowledged, counted
    a command that nobody handles                       -> held   UNKNOWN_TYPE
    a newer version of a handled type                   -> held   NEWER_VERSION
    first sent longer ago than the dedupe window        -> held   DEDUPE_WINDOW_PASSED
    a business key that cannot be computed              -> failed
    everything else                                     -> an entry

A message without an id gets one from its place.  An id that comes again with another body is the
same message: the first one wins, as it does everywhere else; no digest is kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from duly.errors import PermanentError
from duly.inbox.context import ConsumeContext
from duly.inbox.ending import End, Ending, error_text
from duly.inbox.failures import Unhandled
from duly.inbox.handlers import Handler
from duly.inbox.identity import Identity, business_key, message_key
from duly.kernel.backoff import Retry
from duly.message import HEADER_UNDECODABLE, HEADER_VERSION, Message
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

NO_HANDLER = "none"  # the handler in the row of a message that has none
_NO_RETRY = Retry(attempts=1)


class Entry(NamedTuple):
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
    """A message that is stored instead of handled."""

    delivery: Delivery
    unhandled: Unhandled


class Intake(NamedTuple):
    """A sorted batch. order: all deliveries as they came. skipped: counts by type."""

    order: list[Delivery]
    entries: list[Entry]
    stored: list[Rejected]
    skipped: Counter[str]


def sort(context: ConsumeContext, group: str, batch: Sequence[Delivery]) -> Intake:
    """Decide for every delivery."""
    intake = Intake([], [], [], Counter())
    oldest = datetime.now(UTC).timestamp() - context.dedupe_window_seconds
    known: dict[tuple[Any, ...], tuple[Handler | None, str | None]] = {}
    for given in batch:
        delivery = given if given.message.id else _with_id(given)
        intake.order.append(delivery)
        message = delivery.message
        headers = message.headers
        look = (
            message.type,
            message.kind,
            headers.get(HEADER_VERSION),
            HEADER_UNDECODABLE in headers,
        )
        if look not in known:  # one decision per kind of message, not per message
            handler = handler_of(context, group, message)
            known[look] = (handler, problem_of(context, group, message, handler=handler))
        handler, problem = known[look]
        if problem is None and handler is not None and _sent(message) < oldest:
            problem = "DEDUPE_WINDOW_PASSED: first sent too long ago"
        if problem is not None:
            intake.stored.append(_rejected(delivery, group, handler=handler, problem=problem))
        elif handler is None:
            intake.skipped[message.type] += 1
        elif handler.dedupe is None:
            identity = Identity(group, handler.name, message_key(message))
            intake.entries.append(Entry(delivery, handler, identity))
        else:
            _enter(context, intake, delivery=delivery, handler=handler)
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
        return "UNDECODABLE: the envelope is broken"
    if handler is not None:
        return None
    if context.handlers.handles(group, message.type):
        known = context.registry.find(message.type, message.version)
        word = "UNKNOWN_VERSION" if known is not None else "NEWER_VERSION"
        return f"{word}: version {message.version} has no handler here"
    return "UNKNOWN_TYPE: no handler for this command" if message.kind == "command" else None


def _rejected(delivery: Delivery, group: str, *, handler: Handler | None, problem: str) -> Rejected:
    name = handler.name if handler is not None else NO_HANDLER
    identity = Identity(group, name, message_key(delivery.message))
    ordered = handler is not None and handler.order == "key"
    return Rejected(
        delivery,
        Unhandled(identity, delivery.message, Ending(End.HELD, problem), _NO_RETRY, ordered),
    )


def _enter(
    context: ConsumeContext, intake: Intake, *, delivery: Delivery, handler: Handler
) -> None:
    """A handler with a business key."""
    message = delivery.message
    assert handler.dedupe is not None
    try:
        value = context.registry.decode(handler.type, message.payload)
        key = business_key(handler.dedupe, value)
    except Exception as error:  # noqa: BLE001  # the user's function may raise anything
        end = End.FAILED if isinstance(error, PermanentError) else End.RETRY
        identity = Identity(handler.group, handler.name, message_key(message))
        entry = Entry(delivery, handler, identity)
        intake.stored.append(Rejected(delivery, entry.as_unhandled(Ending(end, error_text(error)))))
    else:
        identity = Identity(handler.group, handler.name, key)
        intake.entries.append(Entry(delivery, handler, identity, value, decoded=True))


def _with_id(delivery: Delivery) -> Delivery:
    message = delivery.message
    fields = {name: getattr(message, name) for name in message.__struct_fields__}
    return delivery._replace(
        message=Message(**{**fields, "id": f"{delivery.source}/{delivery.position}"})
    )


def _sent(message: Message) -> float:
    """When it was published, in seconds since 1970; now where that is not said."""
    try:
        sent = datetime.fromisoformat(message.time)
    except ValueError:
        return float("inf")
    return (sent if sent.tzinfo else sent.replace(tzinfo=UTC)).timestamp()


def seconds_since(message: Message) -> float:
    """How long ago it was published; 0 where that is not said."""
    return max(0.0, datetime.now(UTC).timestamp() - _sent(message))
