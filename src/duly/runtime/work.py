"""What a lane reader needs to know of the work that it reads: a row, a verdict, and the port
between them.

The reader (``runtime.lanes``) owns order, holds, leases and settling; the work (the relay's send,
the inbox's handler) owns what is done with a row and says how it ended.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import NamedTuple, Protocol

import msgspec

from duly.kernel.backoff import Retry
from duly.kernel.lease import LeaseTerm

__all__ = ["LaneTerms", "LaneWork", "Row", "Verdict", "VerdictKind"]


class Row(msgspec.Struct, frozen=True, gc=False):
    """A row of the outbox or inbox, in the column order of the store. handler, dedupe_key: inbox
    only. A Struct, since thousands live at once: the garbage collector does not look at them.
    """

    id: int
    message_id: str
    message_type: str
    kind: str
    topic: str
    key: str | None
    lane: int
    payload: bytes
    headers: str
    status: str
    attempts: int
    handler: str = ""
    dedupe_key: str = ""


class VerdictKind(Enum):
    """How one row ended."""

    DONE = "done"  # settle it: delete, or keep as `sent`
    UNROUTED = "unrouted"  # settle it as unrouted
    SETTLED = "settled"  # the work has settled it in its own transaction
    STALE = "stale"  # not done: read it again, if it is still ours
    RETRY = "retry"  # uses up an attempt; failed after the last one
    WAIT = "wait"  # again in a moment; nobody's fault, uses up no attempt, only this row waits
    FAILED = "failed"  # permanent: no more attempts
    HELD = "held"  # for a person to decide
    LATER = "later"  # not tried, or nobody knows: again, without using up an attempt
    TOPIC_LATER = "topic_later"  # the same, but only this topic is in trouble


class Verdict(NamedTuple):
    """kind, and for everything but success ``CODE: text`` without payloads or secrets."""

    kind: VerdictKind
    error: str = ""


LaneTerms = Callable[[int], LeaseTerm | None]
"""The term under which a lane is held now, None when it is not: the fence for work that writes by
itself.
"""


class LaneWork(Protocol):
    """The work behind one scope of lanes.

    box: ``outbox`` or ``inbox``. scope: the name of the lanes, ``outbox`` or ``inbox:GROUP``.
    group: in the inbox. batch_max: rows of one deliver. in_flight_max: delivers at once.
    """

    box: str
    scope: str
    group: str
    batch_max: int
    in_flight_max: int

    async def deliver(
        self, rows: Sequence[Row], *, deadline_seconds: float, terms: LaneTerms
    ) -> Sequence[Verdict]:
        """Do the work of these rows: a verdict for each, in order. No two share a wave key."""
        ...

    def order_key(self, row: Row) -> tuple[str, str] | None:
        """(topic, key) where order is kept, None where rows are free."""
        ...

    def wave_key(self, row: Row) -> tuple[str, str] | None:
        """The order key, or None where rows of one key may be in one deliver because it is done
        whole and in order.
        """
        ...

    def retry_of(self, row: Row) -> Retry:
        """The retry policy of this row's route or handler."""
        ...

    def blocks(self, row: Row) -> bool:
        """Whether a row that failed for good keeps its key blocked (``on_exhausted="block"``)."""
        ...
