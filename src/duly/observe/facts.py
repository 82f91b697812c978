"""What happened: the facts that every part states and every sink reads.

A fact is past tense and complete in itself.  The invariant: it carries names, codes, counts, ids
and durations - never a payload, a header, an error's text with values in it, or a secret - so that
any sink may print it whole.  Hot paths state one fact per batch, not one per message; a message by
its id is named only where something went wrong. What is done with facts belongs to the sinks
(logging, metrics, tracing); who hears them, to ``hooks``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

__all__ = [
    "AfterCommitFailed",
    "Connected",
    "Disconnected",
    "DroppedByPolicy",
    "Duplicate",
    "EffectCalled",
    "EffectInDoubt",
    "EffectReused",
    "Fact",
    "Failed",
    "Handled",
    "HandlerFailed",
    "Held",
    "LeaseLost",
    "LeaseTaken",
    "OperatorActed",
    "Published",
    "Received",
    "Relayed",
    "SendFailed",
    "Skipped",
    "StillStuck",
    "Unrouted",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """Something that happened. name: ``room.what``, stable, the same in logs, metrics and docs."""

    name: ClassVar[str] = "fact"


# --- outbox ---------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, kw_only=True)
class Published(Fact):
    """Messages were committed with their transaction."""

    name = "outbox.published"
    topic: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Relayed(Fact):
    """Messages were confirmed by the broker and settled. seconds: of the batch, from send to
    settled.
    """

    name = "outbox.relayed"
    topic: str
    count: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SendFailed(Fact):
    """A send was not confirmed. due_in_seconds: until the next attempt, None where no attempt was
    used up.
    """

    name = "outbox.send_failed"
    message_id: str
    topic: str
    code: str
    attempts: int
    due_in_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Unrouted(Fact):
    """Events were confirmed but nobody is bound to their topic."""

    name = "outbox.unrouted"
    topic: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DroppedByPolicy(Fact):
    """Messages or tasks were let go, as their policy allows. code: of what stood in the way."""

    name = "outbox.dropped_by_policy"
    topic: str
    code: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AfterCommitFailed(Fact):
    """A hook raised after its transaction was committed; the commit stands. hook: its qualified
    name.
    """

    name = "outbox.after_commit_failed"
    hook: str
    code: str


# --- outbox and inbox -----------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, kw_only=True)
class Held(Fact):
    """Messages wait behind their key or for a person. group: empty in the outbox. message_id: when
    it is one.
    """

    name = "box.held"
    box: str
    topic: str
    code: str
    count: int
    group: str = ""
    message_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed(Fact):
    """A message was given up until an operator acts. group, handler: empty in the outbox."""

    name = "box.failed"
    box: str
    message_id: str
    topic: str
    code: str
    attempts: int
    group: str = ""
    handler: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorActed(Fact):
    """An operator's verb was carried out. actor: who, as the audit has it."""

    name = "box.operator_acted"
    box: str
    verb: str
    actor: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StillStuck(Fact):
    """Unfinished work has not moved for too long. what: the box, lane or stream; code: why, where
    known.
    """

    name = "box.still_stuck"
    what: str
    code: str
    count: int
    oldest_seconds: float


# --- inbox ----------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, kw_only=True)
class Received(Fact):
    """Messages came from the broker. source: the queue or partition."""

    name = "inbox.received"
    group: str
    source: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Handled(Fact):
    """Messages were handled and committed. seconds: of the batch; lag_seconds: of its oldest, since
    publish.
    """

    name = "inbox.handled"
    group: str
    handler: str
    count: int
    seconds: float
    lag_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Duplicate(Fact):
    """Messages had been handled before and were let go."""

    name = "inbox.duplicate"
    group: str
    handler: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped(Fact):
    """Messages are of a type this group does not handle."""

    name = "inbox.skipped"
    group: str
    type: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HandlerFailed(Fact):
    """A handler raised and its transaction was rolled back. due_in_seconds: until the next attempt,
    None for none.
    """

    name = "inbox.handler_failed"
    group: str
    handler: str
    message_id: str
    code: str
    attempts: int
    due_in_seconds: float | None = None


# --- effects --------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, kw_only=True)
class EffectCalled(Fact):
    """The outside world was called and its answer recorded. seconds: of the call."""

    name = "effect.called"
    group: str
    handler: str
    step: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EffectReused(Fact):
    """A recorded answer was used instead of a second call."""

    name = "effect.reused"
    group: str
    handler: str
    step: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EffectInDoubt(Fact):
    """An effect was begun and nobody knows its outcome. resolution: ``asked``, ``repeated`` or
    ``held``.
    """

    name = "effect.in_doubt"
    group: str
    handler: str
    step: str
    message_id: str
    resolution: str


# --- runtime --------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseTaken(Fact):
    """This process owns these now. what: ``lane``, ``member`` ...; names: which of them."""

    name = "runtime.lease_taken"
    what: str
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseLost(Fact):
    """This process does not own these any more and did not give them back itself."""

    name = "runtime.lease_lost"
    what: str
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Connected(Fact):
    """A connection stands. peer: ``database`` or ``broker``; url: redacted."""

    name = "runtime.connected"
    peer: str
    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Disconnected(Fact):
    """A connection was lost or could not be made. retry_in_seconds: until it is tried again."""

    name = "runtime.disconnected"
    peer: str
    url: str
    code: str
    retry_in_seconds: float
