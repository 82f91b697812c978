"""What a run of the kill loop is told to do, and what it saw.

Owns the names of the places where processes die, the two leases, and the figures of a run.  The
invariant: every place has its share of the kills, so that a row cannot be filled with the easy
ones.  How the loop goes about it is ``loop``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

SETTLE_SECONDS = 90.0
RANDOM = "at random"
PRODUCER_POINTS = ("outbox.before_flush", "outbox.flushed")
WORKER_POINTS = (
    "relay.read",
    "relay.sent_no_confirm",
    "relay.confirmed",
    "relay.settled",
    "relay.failure_not_stored",
    "relay.failure_stored",
    "lease.renewed",
    "consume.received",
    "consume.dedupe_inserted",
    "consume.handled",
    "consume.committed_not_acked",
    "consume.acked",
    "consume.ordered_stored_not_acked",
    "consume.failure_stored",
    "effect.intent_committed",
    "effect.called_not_recorded",
    "effect.recorded",
    "drain.started",
    RANDOM,
)
POINTS = PRODUCER_POINTS + WORKER_POINTS
CONSUME_AND_RELAY = (
    *PRODUCER_POINTS,
    "relay.sent_no_confirm",
    "relay.confirmed",
    "relay.settled",
    "consume.dedupe_inserted",
    "consume.handled",
    "consume.committed_not_acked",
    "effect.called_not_recorded",
    RANDOM,
)
CDC_POINTS = (
    "cdc.claimed",
    "cdc.read",
    "cdc.written_not_committed",
    "cdc.stored_not_confirmed",
    "cdc.confirmed",
    "cdc.chunk_marked",
    "cdc.chunk_read",
    "cdc.chunk_stored",
)
CDC_AND_ON = (
    *CDC_POINTS,
    "relay.sent_no_confirm",
    "relay.confirmed",
    "consume.ordered_stored_not_acked",
    "consume.handled",
    "drain.started",
    RANDOM,
)
SINK_POINTS = (
    "cdc.claimed",
    "cdc.read",
    "sink.written_not_committed",
    "sink.applied_not_stored",
    "cdc.stored_not_confirmed",
    "cdc.confirmed",
    "cdc.chunk_marked",
    "cdc.chunk_read",
    "cdc.chunk_stored",
)
SINKS_AND_ON = (*SINK_POINTS, "drain.started", RANDOM)
RARE = {
    "relay.failure_not_stored",
    "relay.failure_stored",
    "consume.failure_stored",
    "effect.intent_committed",
    "effect.called_not_recorded",
    "effect.recorded",
    "consume.ordered_stored_not_acked",
    "consume.acked",
    "consume.received",
    "cdc.claimed",
}


@dataclass(frozen=True)
class Lease:
    """A lease as the App's settings have it, in seconds. broker: of the embedded broker's
    readers."""

    ttl: float
    renew: float
    send: float
    broker: float

    @property
    def settings(self) -> dict[str, float]:
        """For a child's config."""
        return {
            "lease": self.ttl,
            "renew": self.renew,
            "send_timeout": self.send,
            "broker_lease": self.broker,
        }


PRODUCTION = Lease(5.0, 1.5, 3.0, 4.0)
SHORT = Lease(1.0, 0.3, 0.8, 1.5)


@dataclass
class Orders:
    """What a run is to do. kills: in all; slow_kills: of these, at the production lease."""

    kills: int
    seed: int
    slow_kills: int = 20
    workers: int = 3
    minutes: float = 25.0
    points: Sequence[str] = POINTS
    writers: int = 2
    lease: Lease = SHORT
    settle_seconds: float = SETTLE_SECONDS
    meddle: bool = False  # an operator edits rows in flight meanwhile
    least_messages: int = 0  # committed before the end, however soon the kills are done

    @property
    def share(self) -> int:
        """The least number of kills at each point."""
        return -(-self.kills // (3 * len(self.points)))


@dataclass
class Tally:
    """What the loop saw."""

    kills: Counter[str] = field(default_factory=Counter)
    uncounted: int = 0
    recoveries: list[float] = field(default_factory=list)
    worst: dict[str, float] = field(default_factory=dict)  # recovery by kind of work
    troubles: list[str] = field(default_factory=list)
    seconds: float = 0.0
