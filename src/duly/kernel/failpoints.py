"""Named places where a process may die, and nothing else.

``hit(NAME)`` is a call to an empty function until a test arms it (``duly.testing.failpoints``).
The names are the vocabulary of the crash runs: each states what has already happened when the
process stops there.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["ALL", "hit"]

OUTBOX_BEFORE_FLUSH = "outbox.before_flush"
OUTBOX_FLUSHED = "outbox.flushed"
RELAY_READ = "relay.read"
RELAY_SENT = "relay.sent_no_confirm"
RELAY_CONFIRMED = "relay.confirmed"
RELAY_SETTLED = "relay.settled"
RELAY_FAILED = "relay.failure_not_stored"
RELAY_FAILURE_STORED = "relay.failure_stored"
LEASE_RENEWED = "lease.renewed"
CONSUME_RECEIVED = "consume.received"
CONSUME_DEDUPED = "consume.dedupe_inserted"
CONSUME_HANDLED = "consume.handled"
CONSUME_COMMITTED = "consume.committed_not_acked"
CONSUME_ACKED = "consume.acked"
CONSUME_STORED = "consume.ordered_stored_not_acked"
CONSUME_FAILURE_STORED = "consume.failure_stored"
EFFECT_INTENT = "effect.intent_committed"
EFFECT_CALLED = "effect.called_not_recorded"
EFFECT_RECORDED = "effect.recorded"
BATCH_CHUNK_WRITTEN = "batch.chunk_written"
BATCH_CHUNK_SYNCED = "batch.chunk_synced"
BATCH_CHECKPOINT_SAVED = "batch.checkpoint_saved"
BATCH_PARTITION_CLAIMED = "batch.partition_claimed"
BATCH_PARTITIONS_GATHERED = "batch.partitions_gathered"
BATCH_SEALED = "batch.sealed"
BATCH_BLOCK_ACKED = "batch.block_acked"
BATCH_UPLOADED = "batch.uploaded"
BATCH_VERIFIED = "batch.verified"
BATCH_RENAMED = "batch.renamed_unanswered"
BATCH_MARKED = "batch.marked"
CDC_CLAIMED = "cdc.claimed"
CDC_READ = "cdc.read"
CDC_WRITTEN = "cdc.written_not_committed"
CDC_STORED = "cdc.stored_not_confirmed"
CDC_CONFIRMED = "cdc.confirmed"
CDC_CHUNK_MARKED = "cdc.chunk_marked"
CDC_CHUNK_READ = "cdc.chunk_read"
CDC_CHUNK_STORED = "cdc.chunk_stored"
SINK_WRITTEN = "sink.written_not_committed"
SINK_APPLIED = "sink.applied_not_stored"
CALL_PERMITTED = "call.permitted_not_called"
CALL_ANSWERED = "call.answered"
CALL_DEFERRED = "call.deferred_not_stored"
BATCH_CLAIMED = "batch.claimed"
BATCH_STEP_DONE = "batch.step_done"
BATCH_DONE = "batch.done_not_told"
TWOPHASE_JOURNALLED = "twophase.journalled"
TWOPHASE_BRANCH_PREPARED = "twophase.branch_prepared"
TWOPHASE_PREPARED = "twophase.prepared_not_decided"
TWOPHASE_DECIDED = "twophase.decided"
TWOPHASE_BRANCH_ENDED = "twophase.branch_ended"
TWOPHASE_NOT_RECORDED = "twophase.ended_not_recorded"
TWOPHASE_PRESUMED = "twophase.abort_presumed"
TWOPHASE_RECOVERED = "twophase.branch_recovered"
DRAIN_STARTED = "drain.started"

ALL: frozenset[str] = frozenset(
    v for k, v in globals().items() if k.isupper() and isinstance(v, str)
)


def _nothing(name: str) -> None:
    """Off: the state of every process that no test has armed."""


_armed: Callable[[str], None] = _nothing


def arm(action: Callable[[str], None] | None) -> None:
    """Install what happens at every failpoint; None turns them off again."""
    global _armed
    _armed = action or _nothing


def hit(name: str) -> None:
    """Mark that the process has come to this place."""
    _armed(name)
