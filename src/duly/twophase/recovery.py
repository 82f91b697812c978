"""Ends what coordinators have left: at a start, in the background, and when a person asks.

Owns the sweep over the journal and the participants.  Two ways lead to a branch: a row that should
have ended, and a branch that is prepared though its row has ended or is gone - of a coordinator
that slept while it was rolled back, or of a database that lost the end of it in a crash.  The
invariant: no branch is touched before the row is decided, and a row without a decision gets one
only by the compare-and-set; so two sweeps at once, or a sweep beside a living coordinator, do no
harm.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from duly.branches import Finished, PreparesMessages
from duly.errors import DulyError, StaleLeaseError
from duly.kernel import failpoints
from duly.kernel.twophase import (
    Branch,
    BranchName,
    Ending,
    Status,
    branch_name,
    commits,
    ended_as,
    parse_branch,
)
from duly.observe.facts import GlobalTransactionRecovered
from duly.observe.hooks import Hooks
from duly.ports import Connection
from duly.twophase.journal import Journal, Row
from duly.twophase.registry import Databases, Participant

__all__ = ["Recovery"]

GRACE_SECONDS = 2.0  # for the coordinator, from its decision to its last branch
LOOK_SECONDS = 5.0  # between two looks at what is prepared
KEEP_SECONDS = 7 * 86_400.0
_BY_HAND = {Finished.COMMITTED: True, Finished.ROLLED_BACK: False}
_log = logging.getLogger("duly.twophase")


class Recovery:
    """One process's recovery of one App; used by one thread at a time."""

    def __init__(self, databases: Databases, journal: Journal, *, hooks: Hooks) -> None:
        self._databases, self._journal, self._hooks = databases, journal, hooks
        self._connections: dict[str, Connection] = {}
        self._complaints: dict[str, str] = {}
        self._looked_at = 0.0
        self._rowless: set[str] = set()  # seen by the last look, without a row

    def sweep(self, fence: Mapping[str, Any] | None = None) -> None:
        """End what can be ended now.

        Raises StaleLeaseError, and RetryableError where the journal cannot be reached.
        """
        looks = time.monotonic() - self._looked_at > LOOK_SECONDS
        listed = self._listed() if looks else None  # before the rows: those are older than these
        for row in self._journal.due(grace_seconds=GRACE_SECONDS):
            self.settle(row, fence)
        if listed is not None:
            self._late(listed)
            self._looked_at = time.monotonic()
            if all(names is not None for names in listed.values()):
                self._journal.prune(keep_seconds=KEEP_SECONDS)

    def settle(self, row: Row, fence: Mapping[str, Any] | None = None) -> bool:
        """End the branches of one transaction; True when it has ended."""
        if row.status is Status.PREPARING:
            status = self._journal.presume_aborted(row.id, fence=fence)
            failpoints.hit(failpoints.TWOPHASE_PRESUMED)
            if status is not Status.ABORTING:
                return status not in (Status.PREPARING, Status.COMMITTING)
            row = row._replace(status=status)
        commit = commits(row.status)
        if commit is None or row.status in (Status.COMMITTED, Status.ABORTED):
            return True
        ended = [self._end(row, number, commit=commit) for number in range(len(row.branches))]
        branches = [
            Branch(branch.participant, branch.mark, ending)
            for branch, ending in zip(row.branches, ended, strict=True)
        ]
        last = ended_as(commit, ended)
        if last is None:
            return False
        if self._journal.end(row, last, branches, fence=fence):
            self._tell(row, last)
        return True

    def listed(self, participant: str) -> list[str] | None:
        """The names of this journal's branches that are prepared in one participant, None where
        that cannot be asked.
        """
        try:
            place = self._databases.find(participant)
            names = place.resource.prepared(self._connection(place))
        except DulyError as error:
            self._complain(participant, error)
            return None
        mine = self._journal.name
        return [name for name in names if (found := parse_branch(name)) and found.journal == mine]

    def close(self) -> None:
        """Close the connections."""
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()

    # --- branches ---------------------------------------------------------------------------------
    def _end(self, row: Row, number: int, *, commit: bool) -> Ending:
        branch = row.branches[number]
        if branch.ending is not Ending.LATER:
            return branch.ending
        name = branch_name(BranchName(self._journal.name, row.id, number))
        try:
            place = self._databases.find(branch.participant)
            ending = self._ended(place, name, branch.mark, commit=commit)
        except StaleLeaseError:
            raise
        except DulyError as error:
            self._complain(branch.participant, error)
            return Ending.LATER
        self._complaints.pop(branch.participant, None)
        failpoints.hit(failpoints.TWOPHASE_RECOVERED)
        return ending

    def _ended(self, place: Participant, name: str, mark: str, *, commit: bool) -> Ending:
        connection = self._connection(place)
        finished = place.resource.finish(connection, name, commit=commit)
        if finished in (Finished.DONE, Finished.BUSY):
            return Ending.DONE if finished is Finished.DONE else Ending.LATER
        fate = _BY_HAND.get(finished)
        if fate is None and mark:
            fate = place.branches.fate(connection, mark)
        if fate is None:
            return Ending.GONE
        return Ending.DONE if fate == commit else Ending.AGAINST

    # --- what is prepared and should not be -------------------------------------------------------
    def _listed(self) -> dict[str, list[str] | None]:
        return {name: self.listed(name) for name in self._databases.names}

    def _late(self, listed: Mapping[str, list[str] | None]) -> None:
        """End prepared branches whose rows have ended, or are gone."""
        found = {(place, name) for place, names in listed.items() for name in names or ()}
        wanted = sorted({part.transaction for _, name in found if (part := parse_branch(name))})
        rows = {row.id: row for row in self._journal.read(wanted)} if wanted else {}
        rowless: set[str] = set()
        for place, name in sorted(found):
            part = parse_branch(name)
            assert part is not None, "only parsed names are listed"
            row = rows.get(part.transaction)
            if row is None:
                rowless.add(name)
                # The second look at it: had it a coordinator, that would be done by now.
                if name in self._rowless:
                    self._end_late(place, name, commit=False)
            elif row.ended_at is not None and (commit := commits(row.status)) is not None:
                self._end_late(place, name, commit=commit)
            elif row.status is Status.HEURISTIC:
                self._forget(place, name)
        self._rowless = rowless

    def _end_late(self, participant: str, name: str, *, commit: bool) -> None:
        verb = "commit" if commit else "roll back"
        try:
            place = self._databases.find(participant)
            finished = place.resource.finish(self._connection(place), name, commit=commit)
        except DulyError as error:
            self._complain(participant, error)
            return
        if finished in _BY_HAND:  # a broker lists it until it may forget
            self._forget(participant, name)
            return
        _log.warning("%s: branch %s came late: %s, %s", participant, name, verb, finished.value)
        failpoints.hit(failpoints.TWOPHASE_RECOVERED)

    def _forget(self, participant: str, name: str) -> None:
        """A broker keeps the name of a branch that was ended by hand; how is in its row by now."""
        try:
            place = self._databases.find(participant)
            if isinstance(place.resource, PreparesMessages):
                place.resource.forget(self._connection(place), name)
        except DulyError as error:
            self._complain(participant, error)

    # --- details ----------------------------------------------------------------------------------
    def _connection(self, place: Participant) -> Connection:
        found = self._connections.get(place.name)
        if found is None:
            found = self._connections[place.name] = place.resource.connect()
        return found

    def _complain(self, participant: str, error: DulyError) -> None:
        """Say it once, and connect anew the next time."""
        if self._complaints.get(participant) != error.code:
            text, code = "participant %s: %s; its branches wait", {"code": error.code}
            _log.warning(text, participant, error, extra=code)
        self._complaints[participant] = error.code
        with suppress(KeyError):
            self._connections.pop(participant).close()

    def _tell(self, row: Row, last: Status) -> None:
        level = logging.ERROR if last is Status.HEURISTIC else logging.INFO
        _log.log(level, "global transaction %s recovered: %s", row.id, last)
        fact = GlobalTransactionRecovered(outcome=str(last), branches=len(row.branches))
        self._hooks.emit(fact)
