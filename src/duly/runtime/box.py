"""The statements behind a lane reader: what it asks of the outbox or the inbox, as steps.

Owns which statements belong into one transaction.  A change of attempts, ``held`` or ``failed`` is
fenced: it first locks the lane's lease row and finds its own token there.  Settling is not fenced:
a confirmed message is a fact. Marking followers as held, and letting a hold die, both lock the hold
first, so neither can slip past the other.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from duly.errors import StaleLeaseError
from duly.kernel.lease import LeaseTerm
from duly.ports import Result, Statement, Steps
from duly.runtime.work import Row

__all__ = ["Box", "Failure", "Reading"]

Key = tuple[str, str]
PER_KEY_MAX = 100  # followers of one held key read at a time


class Reading(NamedTuple):
    """What limits a read: the lanes in hand, the rows already in memory, the topics set aside, how
    many.
    """

    lanes: Collection[int]
    busy: Collection[int]
    aside: Collection[str]
    limit: int


class Failure(NamedTuple):
    """What is to be stored of a row that failed. blocks: its key waits behind it."""

    row: Row
    term: LeaseTerm
    holder: str
    status: str
    attempts: int
    error: str
    delay_seconds: float | None
    blocks: bool


class Box:
    """One table (``outbox`` or ``inbox``), one scope of lanes. keep: settle to ``sent`` instead of
    deleting.
    """

    def __init__(self, name: str, scope: str, *, group: str = "", keep: bool = False) -> None:
        self.name, self.scope, self.group, self._keep = name, scope, group, keep
        self._where = {"scope": scope, "group": group}

    def _statement(self, verb: str, **values: Any) -> Statement:
        return Statement(f"{self.name}.{verb}", {**self._where, **values})

    def _limits(self, reading: Reading) -> dict[str, Any]:
        return {
            "lanes": list(reading.lanes),
            "busy": list(reading.busy),
            "aside": list(reading.aside),
            "limit": reading.limit,
        }

    def read(self, reading: Reading, after: int) -> Statement:
        """Ready rows above an id, in the order of ids."""
        return self._statement("read", after=after, **self._limits(reading))

    def due(self, reading: Reading) -> Statement:
        """Rows whose retry is due."""
        return self._statement("due", **self._limits(reading))

    def drain(self, reading: Reading) -> Statement:
        """The oldest held rows of keys that nothing blocks any more."""
        return self._statement("drain", per_key=PER_KEY_MAX, **self._limits(reading))

    def settle(self, rows: Sequence[tuple[Row, str]]) -> Statement:
        """Settle confirmed rows as ``sent`` or ``unrouted``, by (id, message_id)."""
        many = [
            {"id": row.id, "message_id": row.message_id, "status": status} for row, status in rows
        ]
        return Statement(f"{self.name}.{'keep' if self._keep else 'settle'}", many=many)

    def settle_held(self, rows: Sequence[tuple[Row, str]]) -> Steps[set[Key]]:
        """Settle rows of keys on hold and free what they blocked; returns the keys whose hold has
        died.
        """
        keys = sorted({(row.topic, row.key) for row, _ in rows if row.key is not None})
        yield self._lock(keys)
        yield self.settle(rows)
        return (yield from self._free(keys, [row.id for row, _ in rows]))

    def free_settled(self, rows: Sequence[Row]) -> Steps[set[Key]]:
        """Free what these rows blocked, which the work has settled itself; returns the keys whose
        hold has died.
        """
        keys = sorted({(row.topic, row.key) for row in rows if row.key is not None})
        yield self._lock(keys)
        return (yield from self._free(keys, [row.id for row in rows]))

    def fail(self, failure: Failure) -> Steps[set[Key]]:
        """Store a failure and what follows for its key; returns the keys whose hold has died.

        Raises StaleLeaseError, with nothing stored, when the lane is somebody else's.
        """
        row = failure.row
        yield from self._guard(failure.term, failure.holder)
        if row.key is not None:
            yield self._lock([(row.topic, row.key)])  # the hold before the row, as everywhere
        values = {
            "id": row.id,
            "message_id": row.message_id,
            "status": failure.status,
            "attempts": failure.attempts,
            "error": failure.error,
            "delay_seconds": failure.delay_seconds,
        }
        changed = yield self._statement("fail", **values)
        if not changed.rows or row.key is None:
            return set()
        if failure.blocks:
            values = {"topic": row.topic, "key": row.key, "lane": row.lane, "blocker_id": row.id}
            yield Statement("hold.block", {"scope": self.scope, **values})
            return set()
        return (yield from self.free_settled([row]))

    def hold_followers(
        self, rows: Sequence[Row], terms: Sequence[LeaseTerm] = (), *, holder: str = ""
    ) -> Steps[int]:
        """Mark ready rows as held while the hold of their key exists; returns how many were.

        terms, holder: the fence, of the rows' lanes in order. Raises StaleLeaseError, with nothing
        stored, when one of them is somebody else's.
        """
        for term in terms:
            yield from self._guard(term, holder)
        yield self._lock(sorted({(row.topic, row.key) for row in rows if row.key is not None}))
        result = yield self._statement("mark_held", ids=[row.id for row in rows])
        return result.count

    def sweep(self, lanes: Collection[int]) -> Steps[list[tuple[str, str, int | None]]]:
        """Repair holds without blocker and held rows without hold; returns the holds of these
        lanes.
        """
        values = {"lanes": list(lanes)}
        yield self._statement("sweep_blockers", **values)
        yield self._statement("sweep_orphans", **values)
        yield self._statement("sweep_empty", **values)
        result = yield self._statement("sweep_holds", **values)
        return [(topic, key, blocker) for topic, key, blocker in result.rows]

    def horizon(self) -> Statement:
        """(flushes under way, oldest writer, next writer): what the id floor needs."""
        return Statement("lease.horizon")

    def _guard(self, term: LeaseTerm, holder: str) -> Steps[None]:
        values = {"name": term.name, "holder": holder, "token": term.token}
        found: Result = yield Statement("lease.guard", values)
        if not found.rows:
            raise StaleLeaseError(f"{term.name} has another owner")

    def _lock(self, keys: Sequence[Key]) -> Statement:
        values = {"topics": [topic for topic, _ in keys], "keys": [key for _, key in keys]}
        return Statement("hold.lock", {"scope": self.scope, **values})

    def _free(self, keys: Sequence[Key], ids: Sequence[int]) -> Steps[set[Key]]:
        values = {
            "topics": [topic for topic, _ in keys],
            "keys": [key for _, key in keys],
            "ids": list(ids),
        }
        result = yield self._statement("free_holds", **values)
        return {(topic, key) for topic, key in result.rows}
