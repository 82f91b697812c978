"""The Protocol of a place that is kept in step with a table; part of ``ports``.

A *sink* holds a copy of one table, as a projection makes it: rows of another database, documents of
a search index, entries of a cache.  It is fed by one reader at a time, in order, and keeps by
itself how far it is: a batch and the place that it reaches are stored together where the target can
do that, else a batch may be applied again.  Where a stream reads and what a row looks like is not
known here; calls are synchronous, one at a time, in a thread that may wait.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from duly.kernel.upserts import Operation

__all__ = ["Batch", "Fed", "Feed", "Sink"]


@dataclass(frozen=True, slots=True)
class Feed:
    """Who feeds a sink. name: of the stream. token: of its reader; it grows. epoch: counts how
    often the copy was begun; what a later epoch brings rules over everything before.
    """

    name: str
    token: int
    epoch: int


class Fed(NamedTuple):
    """How far a sink is by itself. epoch: 0 where it was never fed under this name, or was emptied.
    place: up to where, empty where it does not keep that.
    """

    epoch: int = 0
    place: str = ""


class Batch(NamedTuple):
    """What is applied at once. operations: in order; may be many, and be walked once only. place:
    reached with the last of them. complete: with them the target holds all there is, and what is
    only of an earlier epoch is removed.
    """

    operations: Iterable[Operation]
    place: str
    complete: bool = False


class Sink(Protocol):
    """A place that is kept in step with a table.

    Every call raises SinkUnavailableError (it is away or too busy: again later, from where it is),
    SinkRefusedError (it does not take this: a person decides), ConfigurationError.
    """

    @property
    def snapshots(self) -> bool:
        """Whether it wants the rows that are there already; False where only changes matter."""
        ...

    @property
    def place(self) -> str:
        """Where it is, fit to be shown: without secrets."""
        ...

    def look(self, name: str) -> Fed:
        """How far it is with a stream. Makes nothing."""
        ...

    def open(self, feed: Feed) -> None:
        """Be fed by this reader from now on, and by no older one; called again for a new epoch.

        Raises StaleLeaseError where a newer reader has it.
        """
        ...

    def apply(self, batch: Batch) -> None:
        """Make the copy so.

        Guarantee: what returned is in the target. On failure: nothing of it, or a part from its
        beginning. Idempotence: applying what was applied before, in order, leaves the target as it
        was. Raises StaleLeaseError, and SinkLostError where the target is behind what it had.
        """
        ...

    def close(self) -> None:
        """Let go of the target; never raises. Idempotent."""
        ...
