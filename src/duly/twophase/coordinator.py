"""The coordinator of one global transaction: from the end of the user's work to the end of it.

Theory of operation, with what a crash leaves at each place:

    settle      all work is said              every server rolls its branch back
    journal     the row: preparing            nothing is prepared; the row is presumed aborted
    prepare     each branch in turn           recovery wins the row's compare-and-set, rolls back
    decide      compare-and-set: committing   before: as above; after: recovery commits
    finish      each branch in turn           recovery commits the others
    record      the row: committed            recovery finds the branches gone, and records it

The invariant: between the first preparation and the decision no branch is ended by anybody; after
it, everybody ends branches the same way.  So what fails after the decision is no failure of the
transaction: it is logged, and left to recovery.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

from duly.errors import ConfigurationError, OutcomeUnknownError, RetryableError, error_code
from duly.kernel import failpoints
from duly.kernel.twophase import (
    BRANCHES_MAX,
    Branch,
    BranchName,
    Ending,
    Status,
    branch_name,
    commits,
)
from duly.message import new_id
from duly.twophase.branch import LiveBranch
from duly.twophase.journal import Journal, Row
from duly.twophase.registry import OWN

__all__ = ["Coordinator"]

T = TypeVar("T")
_log = logging.getLogger("duly.twophase")


class Coordinator:
    """One global transaction. prepare_seconds: from the row to the decision; then it is presumed
    aborted. aside: runs what blocks on the journal, away from an event loop.
    """

    def __init__(
        self,
        journal: Journal,
        *,
        prepare_seconds: float,
        aside: Callable[[Callable[[], Any]], Any],
    ) -> None:
        self.id = new_id()
        self.branches: list[LiveBranch] = []
        self._journal, self._prepare_seconds, self._aside = journal, prepare_seconds, aside
        self._clean: set[int] = set()  # branches that ended as decided

    def next_name(self) -> str:
        """The name of the next branch. Raises ConfigurationError (TOO_MANY_BRANCHES)."""
        number = len(self.branches)
        if number == BRANCHES_MAX:
            text = f"a global transaction has at most {BRANCHES_MAX} branches"
            raise ConfigurationError(text, code="TOO_MANY_BRANCHES")
        journal = self._aside(lambda: self._journal.name)
        return branch_name(BranchName(journal, self.id, number))

    def roll_back(self) -> None:
        """Give up everything; nothing was prepared. Never raises."""
        self._release()

    def commit(self) -> None:
        """Commit all branches or none.

        Raises what a branch raises before the decision, RetryableError (GLOBAL_TX_ABORTED): it took
        too long and was presumed aborted - then nothing is committed anywhere;
        OutcomeUnknownError (GLOBAL_TX_UNDECIDED): the journal cannot be reached, recovery ends it.
        """
        try:
            if self.branches:
                self._commit()
        finally:
            self._release()

    def _commit(self) -> None:
        for branch in self.branches:
            branch.settle()
        marks = [Branch(branch.participant.name, branch.mark()) for branch in self.branches]
        seconds = self._prepare_seconds
        self._aside(lambda: self._journal.add(self.id, marks, seconds=seconds))
        failpoints.hit(failpoints.TWOPHASE_JOURNALLED)
        try:
            for branch in self.branches:
                branch.prepare()
                failpoints.hit(failpoints.TWOPHASE_BRANCH_PREPARED)
        except Exception as error:
            if self._end(marks, commit=False) is not Status.COMMITTING:
                raise
            _log.warning("%s: committed by an operator after %s", self.id, error_code(error))
            return
        failpoints.hit(failpoints.TWOPHASE_PREPARED)
        status = self._end(marks, commit=True)
        if status is Status.HEURISTIC:
            text = f"{self.id} was ended by a person"
            raise OutcomeUnknownError(text, code="GLOBAL_TX_UNDECIDED")
        if status is not Status.COMMITTING:
            text = f"{self.id} was not decided within {seconds:g} s and is rolled back everywhere"
            raise RetryableError(text, code="GLOBAL_TX_ABORTED")

    def _end(self, marks: list[Branch], *, commit: bool) -> Status:
        """Decide, and tell the branches what stands; the state that does."""
        try:
            status: Status = self._aside(lambda: self._journal.decide(self.id, commit=commit))
        except OutcomeUnknownError as error:
            if commit:
                raise
            _log.warning("%s: %s; recovery rolls it back", self.id, error.code)
            return Status.ABORTING
        failpoints.hit(failpoints.TWOPHASE_DECIDED)
        decided = commits(status)
        if decided is None:  # a person has given it up meanwhile
            return status
        # What waits for the commit in the App's database hears of it when the others have ended.
        for number, branch in sorted(enumerate(self.branches), key=_own_last):
            self._finish(number, branch, commit=decided)
        if status in (Status.COMMITTING, Status.ABORTING) and len(self._clean) == len(marks):
            self._record(status, marks)
        return Status.COMMITTING if decided else Status.ABORTING

    def _finish(self, number: int, branch: LiveBranch, *, commit: bool) -> None:
        try:
            branch.finish(commit=commit)
        except Exception as error:  # noqa: BLE001  # the decision stands; recovery ends the branch
            verb, name = "commit" if commit else "roll back", branch.participant.name
            text = "%s: could not %s the branch in %s now (%s); recovery will"
            _log.warning(text, self.id, verb, name, error_code(error))
            return
        self._clean.add(number)
        failpoints.hit(failpoints.TWOPHASE_BRANCH_ENDED)

    def _record(self, status: Status, marks: list[Branch]) -> None:
        failpoints.hit(failpoints.TWOPHASE_NOT_RECORDED)
        last = Status.COMMITTED if status is Status.COMMITTING else Status.ABORTED
        ended = [Branch(one.participant, one.mark, Ending.DONE) for one in marks]
        row = Row(self.id, status, marks, False, 0.0, None, None)
        try:
            self._aside(lambda: self._journal.end(row, last, ended))
        except (RetryableError, OutcomeUnknownError) as error:  # recovery finds nothing to do
            _log.info("%s ended, not recorded yet: %s", self.id, error.code)

    def _release(self) -> None:
        for number, branch in enumerate(self.branches):
            branch.release(clean=number in self._clean)
        self.branches.clear()


def _own_last(numbered: tuple[int, LiveBranch]) -> bool:
    return numbered[1].participant.name == OWN
