"""The coordinator's journal: the rows of ``duly_global_tx``, in the App's database.

Owns the compare-and-sets that decide, and the connections that they run on.  The invariant: a
transaction is decided by one of them and by nothing else; whoever comes second learns what was
decided.  ``fence`` is the lease of a recovery: without it what a stale one has in hand is dropped.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from duly.errors import (
    DatabaseUnavailableError,
    OutcomeUnknownError,
    RetryableError,
    StaleLeaseError,
)
from duly.kernel.twophase import Branch, Status, decode, encode
from duly.message import new_id
from duly.ports import Connection, Database, Statement, Steps

__all__ = ["DECIDE_SECONDS", "Journal", "Row"]

T = TypeVar("T")
DECIDE_SECONDS = 15.0  # so long an unreachable journal is asked again
LIMIT = 200
_IDLE_MAX = 16
_PAUSE_SECONDS = 0.2
_NAME = "twophase/journal"


class Row(NamedTuple):
    """A global transaction. overdue: its coordinator should have decided by now. created_at,
    decided_at, ended_at: seconds since 1970, None for not yet.
    """

    id: str
    status: Status
    branches: list[Branch]
    overdue: bool
    created_at: float
    decided_at: float | None
    ended_at: float | None


class Journal:
    """The journal of one App. Safe to use from any thread."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._idle: deque[tuple[int, Connection]] = deque()
        self._name = ""

    @property
    def name(self) -> str:
        """What the branches of this journal are named after; drawn once, kept with the tables."""
        if not self._name:
            self._name = self._use(lambda connection: connection.run(_drawn()))
        return self._name

    # --- the coordinator's ------------------------------------------------------------------------
    def add(self, transaction: str, branches: Sequence[Branch], *, seconds: float) -> None:
        """Store a transaction that is about to be prepared. seconds: until it is presumed aborted.

        Idempotence: safe to repeat. Raises RetryableError.
        """
        values = {"id": transaction, "branches": encode(branches), "seconds": seconds}
        self._ask(Statement("global_tx.add", values))

    def decide(self, transaction: str, *, commit: bool) -> Status:
        """Decide, unless somebody has; returns the state that stands, ABORTED where the row is
        gone.

        Raises OutcomeUnknownError (GLOBAL_TX_UNDECIDED) where the journal does not answer, a commit
        is asked for again for 15 s: then no branch may be touched.
        """
        wanted = Status.COMMITTING if commit else Status.ABORTING
        end = time.monotonic() + (DECIDE_SECONDS if commit else 0.0)  # an abort is presumed anyway
        while True:
            try:
                return self._decided(transaction, wanted)
            except (RetryableError, OutcomeUnknownError) as error:
                if time.monotonic() > end:
                    text = f"the journal did not answer: {transaction} may be decided or not"
                    raise OutcomeUnknownError(text, code="GLOBAL_TX_UNDECIDED") from error
                time.sleep(_PAUSE_SECONDS)

    def _decided(self, transaction: str, wanted: Status) -> Status:
        values = {"id": transaction, "status": wanted}
        if self._ask(Statement("global_tx.decide", values)).count:
            return wanted
        rows = self.read([transaction])
        return rows[0].status if rows else Status.ABORTED

    def end(
        self,
        row: Row,
        status: Status,
        branches: Sequence[Branch],
        *,
        fence: Mapping[str, Any] | None = None,
    ) -> bool:
        """Store how a decided transaction ended; False when somebody else has. Raises
        StaleLeaseError.
        """
        return self._fenced(self.ending(row, status, branches), fence)

    @staticmethod
    def ending(row: Row, status: Status, branches: Sequence[Branch]) -> Statement:
        """The statement of ``end``, for a transaction of somebody else's."""
        values = {"id": row.id, "was": row.status, "status": status, "branches": encode(branches)}
        return Statement("global_tx.end", values)

    # --- recovery's -------------------------------------------------------------------------------
    def presume_aborted(self, transaction: str, *, fence: Mapping[str, Any] | None) -> Status:
        """Decide to abort what its coordinator has not decided in time; returns the state that
        stands. Raises StaleLeaseError.
        """
        if self._fenced(Statement("global_tx.presume", {"id": transaction}), fence):
            return Status.ABORTING
        rows = self.read([transaction])
        return rows[0].status if rows else Status.ABORTED

    def due(self, *, grace_seconds: float) -> list[Row]:
        """What should have ended, the oldest first. grace_seconds: after the decision, for the
        coordinator itself.
        """
        values = {"grace_seconds": grace_seconds, "limit": LIMIT}
        return _rows(self._ask(Statement("global_tx.due", values)).rows)

    def read(self, transactions: Sequence[str]) -> list[Row]:
        """These, as far as they are there."""
        return _rows(self._ask(Statement("global_tx.read", {"ids": list(transactions)})).rows)

    def find(self, statuses: Sequence[Status], *, limit: int = LIMIT) -> list[Row]:
        """Those in one of these states, the newest first."""
        values = {"statuses": [str(status) for status in statuses], "limit": limit}
        return _rows(self._ask(Statement("global_tx.list", values)).rows)

    def prune(self, *, keep_seconds: float) -> None:
        """Forget what ended long ago, a part at a time."""
        values = {"keep_seconds": keep_seconds, "limit": LIMIT}
        self._ask(Statement("global_tx.prune", values))

    def close(self) -> None:
        """Close the connections; another use opens new ones."""
        while self._idle:
            self._idle.pop()[1].close()

    # --- connections ------------------------------------------------------------------------------
    def _fenced(self, statement: Statement, fence: Mapping[str, Any] | None) -> bool:
        if fence is None:
            return bool(self._ask(statement).count)

        def steps() -> Steps[int]:
            if not (yield Statement("lease.guard", fence)).rows:
                raise StaleLeaseError("another process recovers global transactions now")
            return (yield statement).count

        return bool(self._use(lambda connection: connection.run(steps())))

    def _ask(self, statement: Statement) -> Any:
        return self._use(lambda connection: connection.ask(statement))

    def _use(self, job: Callable[[Connection], T]) -> T:
        while True:
            found = self._taken()
            connection = found or self._database.connect()
            try:
                answer = job(connection)
            except (DatabaseUnavailableError, OutcomeUnknownError):
                connection.close()
                if found is None:
                    raise
                continue  # it was cut while it was idle; every job here may be repeated
            except BaseException:
                connection.close()
                raise
            if len(self._idle) < _IDLE_MAX:
                self._idle.append((os.getpid(), connection))
            else:
                connection.close()
            return answer

    def _taken(self) -> Connection | None:
        """An idle connection of this process; those of a parent before a fork are left alone."""
        while self._idle:
            try:
                pid, connection = self._idle.pop()
            except IndexError:  # another thread was quicker
                return None
            if pid == os.getpid():
                return connection
        return None


def _drawn() -> Steps[str]:
    yield Statement("meta.put_new", {"name": _NAME, "value": new_id()[-12:]})
    rows = (yield Statement("meta.all")).rows
    return str(dict(rows)[_NAME])


def _rows(rows: Sequence[tuple[Any, ...]]) -> list[Row]:
    return [
        Row(str(id_), Status(status), decode(branches), bool(overdue), *map(_seconds, moments))
        for id_, status, branches, overdue, *moments in rows
    ]


def _seconds(value: Any) -> Any:
    return None if value is None else float(value)
