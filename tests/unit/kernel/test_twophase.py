"""The rules of global transactions, case by case."""

from __future__ import annotations

import itertools

import pytest

from duly.kernel.twophase import (
    OPEN,
    Branch,
    BranchName,
    Ending,
    Status,
    branch_name,
    commits,
    decode,
    encode,
    ended_as,
    parse_branch,
)
from duly.message import new_id

JOURNAL = "0123456789ab"


def test_a_name_is_read_back_and_fits_into_xa() -> None:
    name = BranchName(JOURNAL, new_id(), 31)
    text = branch_name(name)
    assert parse_branch(text) == name
    assert len(text) <= 64


@pytest.mark.parametrize(
    "text",
    ["", "x", f"duly-{JOURNAL}-{'0' * 32}", f"_sa_{'0' * 32}", f"duly-{JOURNAL}-{'0' * 32}-1\n"],
)
def test_what_is_not_ours_is_no_branch(text: str) -> None:
    assert parse_branch(text) is None


@pytest.mark.parametrize("part", ["'; DROP TABLE t; --", "0123456789aG"])
def test_nothing_else_becomes_a_name(part: str) -> None:
    with pytest.raises(AssertionError):
        branch_name(BranchName(part, new_id(), 0))


def test_what_branches_are_told_depends_on_the_state_alone() -> None:
    told = {status: commits(status) for status in Status}
    assert told == {
        Status.PREPARING: None,
        Status.COMMITTING: True,
        Status.ABORTING: False,
        Status.COMMITTED: True,
        Status.ABORTED: False,
        Status.HEURISTIC: None,
    }
    assert set(OPEN) == {Status.PREPARING, Status.COMMITTING, Status.ABORTING}


@pytest.mark.parametrize("commit", [True, False])
def test_a_transaction_has_ended_when_every_branch_has(commit: bool) -> None:
    good = Status.COMMITTED if commit else Status.ABORTED
    for endings in itertools.product(Ending, repeat=2):
        found = ended_as(commit, endings)
        if Ending.LATER in endings:
            assert found is None
        elif set(endings) & {Ending.AGAINST, Ending.FORGOTTEN}:
            assert found is Status.HEURISTIC
        else:
            assert found is good


def test_branches_are_kept_as_text() -> None:
    branches = [Branch("app", "4711"), Branch("ledger", ending=Ending.GONE)]
    assert decode(encode(branches)) == branches
