"""Many holders, thawed ones among them, and a person's verbs, in any order."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from duly.errors import WrongStatusError
from duly.kernel import runs
from duly.kernel.runs import VERBS, Run

STEPS = 3


class Runs(RuleBasedStateMachine):
    """A row with compare-and-set on its token, and whoever believes to hold it.

    A holder works through the steps in order and stores each under its token, as ``batch.runs``
    does; the database alone says whether that token is still the row's.
    """

    def __init__(self) -> None:
        super().__init__()
        self.row = Run("due")
        self.done = 0  # steps stored
        self.holders: dict[int, int] = {}  # token -> step it is at, of every attempt ever begun
        self.stored_by: list[int] = []

    def effective(self, token: int) -> bool:
        return self.row.status == "running" and self.row.token == token

    @rule()
    def somebody_begins(self) -> None:
        """By the lease, which may be wrong: the holder before may still be working."""
        try:
            self.row = runs.begun(self.row)
        except WrongStatusError:
            assert self.row.status not in ("due", "running")
            return
        assert self.row.token not in self.holders
        self.holders[self.row.token] = self.done

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def somebody_works(self, data: st.DataObject) -> None:
        token = data.draw(st.sampled_from(sorted(self.holders)))
        at = self.holders[token]
        if not self.effective(token):
            return  # nothing that it does is stored
        self.stored_by.append(token)
        if at == STEPS:
            assert self.done == STEPS
            self.row = runs.ended(self.row)
            return
        assert at == self.done, "a step is skipped or done by two"
        self.done += 1
        self.holders[token] = at + 1
        self.row = runs.got_on(self.row)

    @precondition(lambda self: self.holders)
    @rule(data=st.data(), how=st.sampled_from(["again", "for good", "safe point"]))
    def somebody_ends(self, data: st.DataObject, how: str) -> None:
        token = data.draw(st.sampled_from(sorted(self.holders)))
        if self.effective(token):
            self.row = (
                runs.given_back(self.row)
                if how == "safe point"
                else runs.broken(self.row, again=how == "again")
            )

    @rule(verb=st.sampled_from(sorted(VERBS)), step=st.integers(0, STEPS))
    def somebody_decides(self, verb: str, step: int) -> None:
        try:
            after = runs.decided(verb, self.row)
        except WrongStatusError:
            return
        if verb == "rerun":
            self.done = min(self.done, step)
        if (self.row.status, after.status) == ("running", "stopped"):
            assert after.token > self.row.token
        self.row = after

    @invariant()
    def one_at_most_is_effective(self) -> None:
        assert sum(map(self.effective, self.holders)) <= 1

    @invariant()
    def done_means_every_step(self) -> None:
        assert self.row.status != "done" or self.done == STEPS

    @invariant()
    def the_fence_only_grows(self) -> None:
        assert self.stored_by == sorted(self.stored_by)
        assert self.row.token >= max(self.holders, default=0)


TestRuns = Runs.TestCase
TestRuns.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
