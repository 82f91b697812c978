"""What happened: the facts that every part states and every sink reads.

A fact is past tense and complete in itself.  The invariant: it carries names, codes, counts, ids
and durations - never a payload, a header, an error's text with values in it, or a secret - so that
any sink may print it whole.  Hot paths state one fact per batch, not one per message; a message by
its id is named only where something went wrong. What is done with facts belongs to the sinks
(logging, metrics, tracing); who hears them, to ``hooks``.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec

__all__ = [
    "AfterCommitFailed",
    "BatchBegan",
    "BatchEnded",
    "BatchProgressed",
    "BatchScheduled",
    "BatchStepEnded",
    "BreakerMoved",
    "CallDeferred",
    "CallFailed",
    "CallInTransaction",
    "Called",
    "CaptureLagged",
    "CaptureStopped",
    "Captured",
    "Connected",
    "Disconnected",
    "DroppedByPolicy",
    "Duplicate",
    "EffectCalled",
    "EffectInDoubt",
    "EffectReused",
    "Fact",
    "Failed",
    "GlobalTransactionRecovered",
    "Handled",
    "HandlerFailed",
    "Held",
    "HistoryLost",
    "LeaseLost",
    "LeaseTaken",
    "OperatorActed",
    "Published",
    "Received",
    "Relayed",
    "SendFailed",
    "Skipped",
    "StillStuck",
    "TaskFailed",
    "TaskNotQueued",
    "TaskOverdue",
    "TaskRan",
    "Unrouted",
]


class Fact(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened. name: ``room.what``, stable, the same in logs, metrics and docs."""

    name: ClassVar[str] = "fact"


# --- outbox ---------------------------------------------------------------------------------------
class Published(Fact, frozen=True, kw_only=True):
    """Messages were committed with their transaction; not said of a raw connection outside
    ``duly.atomic``, whose commit duly does not see.
    """

    name = "outbox.published"
    topic: str
    count: int


class Relayed(Fact, frozen=True, kw_only=True):
    """Messages were confirmed by the broker and settled. seconds: of the batch, from send to
    settled.
    """

    name = "outbox.relayed"
    topic: str
    count: int
    seconds: float


class SendFailed(Fact, frozen=True, kw_only=True):
    """A send was not confirmed. due_in_seconds: until the next attempt, None where no attempt was
    used up.
    """

    name = "outbox.send_failed"
    message_id: str
    topic: str
    code: str
    attempts: int
    due_in_seconds: float | None = None


class Unrouted(Fact, frozen=True, kw_only=True):
    """Events were confirmed but nobody is bound to their topic."""

    name = "outbox.unrouted"
    topic: str
    count: int


class DroppedByPolicy(Fact, frozen=True, kw_only=True):
    """Messages or tasks were let go, as their policy allows. code: of what stood in the way."""

    name = "outbox.dropped_by_policy"
    topic: str
    code: str
    count: int


class AfterCommitFailed(Fact, frozen=True, kw_only=True):
    """A hook raised after its transaction was committed; the commit stands. hook: its qualified
    name.
    """

    name = "outbox.after_commit_failed"
    hook: str
    code: str


# --- calls ----------------------------------------------------------------------------------------
class Called(Fact, frozen=True, kw_only=True):
    """A call was answered. seconds: with all attempts and the waits between them."""

    name = "calls.called"
    call: str
    seconds: float


class CallFailed(Fact, frozen=True, kw_only=True):
    """A call was not answered well. outcome: ``refused``, ``failed``, ``unknown`` or ``other``.
    choice: what the caller made of it: ``fail``, ``ignore``, ``fallback`` or ``defer``.
    """

    name = "calls.failed"
    call: str
    code: str
    outcome: str
    choice: str
    seconds: float


class CallDeferred(Fact, frozen=True, kw_only=True):
    """A call waits in the caller's transaction, to be made when that has been committed."""

    name = "calls.deferred"
    call: str
    message_id: str


class BreakerMoved(Fact, frozen=True, kw_only=True):
    """The breaker of a call changed. state: ``closed``, ``open`` or ``half-open``."""

    name = "calls.breaker_moved"
    call: str
    state: str


class CallInTransaction(Fact, frozen=True, kw_only=True):
    """A call ended while a transaction around it was open for too long. seconds: so long."""

    name = "calls.in_transaction"
    call: str
    seconds: float


# --- outbox and inbox -----------------------------------------------------------------------------
class Held(Fact, frozen=True, kw_only=True):
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


class Failed(Fact, frozen=True, kw_only=True):
    """A message was given up until an operator acts. group, handler: empty in the outbox."""

    name = "box.failed"
    box: str
    message_id: str
    topic: str
    code: str
    attempts: int
    group: str = ""
    handler: str = ""


class OperatorActed(Fact, frozen=True, kw_only=True):
    """An operator's verb was carried out. actor: who, as the audit has it."""

    name = "box.operator_acted"
    box: str
    verb: str
    actor: str
    count: int


class StillStuck(Fact, frozen=True, kw_only=True):
    """Unfinished work has not moved for too long. what: the box, lane or stream; code: why, where
    known.
    """

    name = "box.still_stuck"
    what: str
    code: str
    count: int
    oldest_seconds: float


# --- inbox ----------------------------------------------------------------------------------------
class Received(Fact, frozen=True, kw_only=True):
    """Messages came from the broker. source: the queue or partition."""

    name = "inbox.received"
    group: str
    source: str
    count: int


class Handled(Fact, frozen=True, kw_only=True):
    """Messages were handled and committed. seconds: of the batch; lag_seconds: of its oldest, since
    publish.
    """

    name = "inbox.handled"
    group: str
    handler: str
    count: int
    seconds: float
    lag_seconds: float


class Duplicate(Fact, frozen=True, kw_only=True):
    """Messages had been handled before and were let go."""

    name = "inbox.duplicate"
    group: str
    handler: str
    count: int


class Skipped(Fact, frozen=True, kw_only=True):
    """Messages are of a type this group does not handle."""

    name = "inbox.skipped"
    group: str
    type: str
    count: int


class HandlerFailed(Fact, frozen=True, kw_only=True):
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
class EffectCalled(Fact, frozen=True, kw_only=True):
    """The outside world was called and its answer recorded. seconds: of the call."""

    name = "effect.called"
    group: str
    handler: str
    step: str
    seconds: float


class EffectReused(Fact, frozen=True, kw_only=True):
    """A recorded answer was used instead of a second call."""

    name = "effect.reused"
    group: str
    handler: str
    step: str


class EffectInDoubt(Fact, frozen=True, kw_only=True):
    """An effect was begun and nobody knows its outcome. resolution: ``asked``, ``repeated`` or
    ``held``.
    """

    name = "effect.in_doubt"
    group: str
    handler: str
    step: str
    message_id: str
    resolution: str


# --- broker ---------------------------------------------------------------------------------------
class HistoryLost(Fact, frozen=True, kw_only=True):
    """A broker has lost what it had confirmed, or somebody deleted it.

    place: the topic or queue, as the broker names it; group: whose, empty for all; messages: how
    many, None when nobody can tell.
    """

    name = "broker.history_lost"
    place: str
    group: str
    messages: int | None


# --- change data capture --------------------------------------------------------------------------
class Captured(Fact, frozen=True, kw_only=True):
    """Changes of a source were stored with the messages made of them. seconds: of the batch;
    lag_seconds: since the oldest of its commits.
    """

    name = "cdc.captured"
    stream: str
    transactions: int
    changes: int
    messages: int
    seconds: float
    lag_seconds: float


class CaptureStopped(Fact, frozen=True, kw_only=True):
    """A stream does not move: a rule raises (tries: how often so far), or history is lost and a
    person decides (0).
    """

    name = "cdc.stopped"
    stream: str
    code: str
    tries: int


class CaptureLagged(Fact, frozen=True, kw_only=True):
    """How far a stream is behind its source now. lag_bytes, lag_transactions, kept_bytes (of log
    that the source keeps for it): None where the source cannot tell.
    """

    name = "cdc.lagged"
    stream: str
    lag_bytes: int | None
    lag_transactions: int | None
    kept_bytes: int | None


# --- background -----------------------------------------------------------------------------------
class TaskRan(Fact, frozen=True, kw_only=True):
    """A call in the background ended, well or not. wait_seconds: until it began; seconds: of it."""

    name = "background.ran"
    pool: str
    function: str
    wait_seconds: float
    seconds: float


class TaskFailed(Fact, frozen=True, kw_only=True):
    """A call in the background raised; who was told is another matter."""

    name = "background.failed"
    pool: str
    function: str
    code: str


class TaskNotQueued(Fact, frozen=True, kw_only=True):
    """A pool had no place for a call. outcome: ``raised``, ``ran_by_caller`` or ``deferred``."""

    name = "background.not_queued"
    pool: str
    function: str
    outcome: str


class TaskOverdue(Fact, frozen=True, kw_only=True):
    """A call in the background is past its timeout; in a thread it runs on."""

    name = "background.overdue"
    pool: str
    function: str
    seconds: float


# --- batch ----------------------------------------------------------------------------------------
class BatchScheduled(Fact, frozen=True, kw_only=True):
    """Instances were made because their time had come."""

    name = "batch.scheduled"
    job: str
    count: int


class BatchBegan(Fact, frozen=True, kw_only=True):
    """An attempt at a run began in this process."""

    name = "batch.began"
    job: str
    instance: str
    attempt: int


class BatchProgressed(Fact, frozen=True, kw_only=True):
    """How far a step is, in all; at most every few seconds."""

    name = "batch.progressed"
    job: str
    instance: str
    step: str
    rows: int
    size_bytes: int
    total_bytes: int | None


class BatchStepEnded(Fact, frozen=True, kw_only=True):
    """A step ended. seconds: in this attempt."""

    name = "batch.step_ended"
    job: str
    instance: str
    step: str
    rows: int
    size_bytes: int
    seconds: float


class BatchEnded(Fact, frozen=True, kw_only=True):
    """An attempt ended. status: of the run now; code: of what it failed by, or empty."""

    name = "batch.ended"
    job: str
    instance: str
    attempt: int
    status: str
    code: str
    seconds: float


# --- global transactions --------------------------------------------------------------------------
class GlobalTransactionRecovered(Fact, frozen=True, kw_only=True):
    """A global transaction that its coordinator had left was ended. outcome: ``committed``,
    ``aborted``, or ``heuristic``: somebody had ended a branch against the decision.
    """

    name = "twophase.recovered"
    outcome: str
    branches: int


# --- runtime --------------------------------------------------------------------------------------
class LeaseTaken(Fact, frozen=True, kw_only=True):
    """This process owns these now. what: ``lane``, ``member`` ...; names: which of them."""

    name = "runtime.lease_taken"
    what: str
    names: tuple[str, ...]


class LeaseLost(Fact, frozen=True, kw_only=True):
    """This process does not own these any more and did not give them back itself."""

    name = "runtime.lease_lost"
    what: str
    names: tuple[str, ...]


class Connected(Fact, frozen=True, kw_only=True):
    """A connection stands. peer: ``database`` or ``broker``; url: redacted."""

    name = "runtime.connected"
    peer: str
    url: str


class Disconnected(Fact, frozen=True, kw_only=True):
    """A connection was lost or could not be made. retry_in_seconds: until it is tried again."""

    name = "runtime.disconnected"
    peer: str
    url: str
    code: str
    retry_in_seconds: float
