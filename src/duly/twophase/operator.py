"""What a person may ask of global transactions: look, commit, roll back, forget.

Owns the verbs on a row.  The invariants: a decision is made by the same compare-and-set as the
coordinator's, and never reversed; committing needs every branch to be seen prepared; what is given
up is kept as heuristic until it is forgotten a second time.  Every change has its line in the
audit.
"""

from __future__ import annotations

from contextlib import closing
from typing import Literal, NamedTuple

from duly.errors import NotFoundError, WrongStatusError
from duly.kernel.twophase import (
    OPEN,
    Branch,
    BranchName,
    Ending,
    Status,
    branch_name,
    commits,
)
from duly.observe.facts import OperatorActed
from duly.observe.hooks import Hooks
from duly.outbox.operator import By, check_by
from duly.outbox.verbs import Change as Acting
from duly.outbox.verbs import audit
from duly.ports import Database, Statement, Steps
from duly.twophase.journal import Journal, Row
from duly.twophase.recovery import Recovery
from duly.twophase.registry import Databases

__all__ = ["BranchLine", "GlobalOperator", "Line", "Verb"]

BOX = "twophase"
Verb = Literal["commit", "rollback", "forget"]


class BranchLine(NamedTuple):
    """A branch as it stands. state: ``prepared``, ``not prepared``, ``unreachable``, or how it
    ended.
    """

    participant: str
    name: str
    state: str


class Line(NamedTuple):
    """A global transaction as it stands. overdue: nobody but a recovery will end it. created_at,
    decided_at, ended_at: seconds since 1970, None for not yet.
    """

    id: str
    status: str
    overdue: bool
    created_at: float
    decided_at: float | None
    ended_at: float | None
    branches: tuple[BranchLine, ...]


class GlobalOperator:
    """The operator's verbs on the global transactions of one App."""

    def __init__(
        self, databases: Databases, journal: Journal, *, database: Database, hooks: Hooks
    ) -> None:
        self._databases, self._journal = databases, journal
        self._database, self._hooks = database, hooks

    def find(self, *, ended: bool = False, limit: int = 200) -> list[Line]:
        """What has not ended, or ended against its decision; ended: the rest, too. Newest first."""
        wanted = [*Status] if ended else [*OPEN, Status.HEURISTIC]
        rows = self._journal.find(wanted, limit=limit)
        with closing(self._recovery()) as recovery:
            names = {branch.participant for row in rows for branch in row.branches}
            prepared = {name: recovery.listed(name) for name in names}
        return [self._line(row, prepared) for row in rows]

    def resolve(self, transaction: str, verb: Verb, *, by: By) -> str:
        """Decide what is not decided, end what can be ended; returns the status afterwards.

        commit: only where every branch is prepared. forget: gives up the branches that cannot be
        ended; of a heuristic one, its row. Raises NotFoundError, WrongStatusError (it is decided
        otherwise, or not yet), RetryableError.
        """
        check_by(by)
        row = self._row(transaction)
        if row.status is Status.HEURISTIC and verb == "forget":
            self._act(verb, row, by=by, change=Statement("global_tx.drop", {"id": row.id}))
            return "forgotten"
        if row.status not in OPEN:
            raise WrongStatusError(f"{transaction} has ended: {row.status}")
        if verb == "forget":
            return self._give_up(row, by)
        return self._decide(row, commit=verb == "commit", by=by)

    # --- details ----------------------------------------------------------------------------------
    def _decide(self, row: Row, *, commit: bool, by: By) -> str:
        verb = "commit" if commit else "rollback"
        if row.status is Status.PREPARING:
            if commit:
                self._require_prepared(row)
            wanted = Status.COMMITTING if commit else Status.ABORTING
            values = {"id": row.id, "status": wanted}
            self._act(verb, row, by=by, change=Statement("global_tx.decide", values))
            row = self._row(row.id)
        decided = commits(row.status)
        if decided is not None and decided != commit:
            raise WrongStatusError(f"{row.id} was decided otherwise: {row.status}")
        with closing(self._recovery()) as recovery:
            recovery.settle(row)
        return str(self._row(row.id).status)

    def _give_up(self, row: Row, by: By) -> str:
        if row.status is Status.PREPARING:
            raise WrongStatusError(f"{row.id} is not decided; commit it or roll it back first")
        with closing(self._recovery()) as recovery:
            if recovery.settle(row):
                return str(self._row(row.id).status)
            prepared = {b.participant: recovery.listed(b.participant) for b in row.branches}
        given_up = [
            Branch(branch.participant, branch.mark, _given_up(line))
            for branch, line in zip(row.branches, self._line(row, prepared).branches, strict=True)
        ]
        change = self._journal.ending(row, Status.HEURISTIC, given_up)
        self._act("forget", row, by=by, change=change)
        return str(Status.HEURISTIC)

    def _require_prepared(self, row: Row) -> None:
        with closing(self._recovery()) as recovery:
            prepared = {b.participant: recovery.listed(b.participant) for b in row.branches}
        missing = [b for b in self._line(row, prepared).branches if b.state != "prepared"]
        if missing:
            text = ", ".join(f"{branch.participant} is {branch.state}" for branch in missing)
            raise WrongStatusError(f"{row.id} cannot be committed: {text}")

    def _act(self, verb: str, row: Row, *, by: By, change: Statement) -> None:
        """The change and its audit in one transaction; nothing where the row has changed."""
        acting = Acting(box=BOX, verb=verb, actor=by.actor, reason=by.reason)
        detail = {"was": str(row.status), "branches": [b.participant for b in row.branches]}

        def steps() -> Steps[None]:
            if (yield change).count != 1:
                raise WrongStatusError(f"{row.id} has changed meanwhile; look again")
            yield audit(acting, f"{BOX}/{row.id}", message_id=None, detail=detail)

        with closing(self._database.connect()) as connection:
            connection.run(steps())
        self._hooks.emit(OperatorActed(box=BOX, verb=verb, actor=by.actor, count=1))

    def _line(self, row: Row, prepared: dict[str, list[str] | None]) -> Line:
        branches = []
        for number, branch in enumerate(row.branches):
            name = branch_name(BranchName(self._journal.name, row.id, number))
            names = prepared[branch.participant]
            state = str(branch.ending)
            if not state:
                there = names is not None and name in names
                state = "prepared" if there else "not prepared"
                state = "unreachable" if names is None else state
            branches.append(BranchLine(branch.participant, name, state))
        moments = row.created_at, row.decided_at, row.ended_at
        return Line(row.id, str(row.status), row.overdue, *moments, tuple(branches))

    def _row(self, transaction: str) -> Row:
        rows = self._journal.read([transaction])
        if not rows:
            raise NotFoundError(f"there is no global transaction {transaction!r:.80}")
        return rows[0]

    def _recovery(self) -> Recovery:
        return Recovery(self._databases, self._journal, hooks=self._hooks)


def _given_up(branch: BranchLine) -> Ending:
    return Ending.GONE if branch.state == "not prepared" else Ending.FORGOTTEN
