"""The rules of a global transaction: its states, its branches' names, and what its end was.

Theory of operation (presumed abort):

    state        may become             by
    preparing    committing, aborting   one compare-and-set, whoever comes first
    committing   committed, heuristic   when every branch has ended
    aborting     aborted, heuristic     when every branch has ended

The coordinator's row is there before the first branch is prepared, so a prepared branch without a
row belongs to a transaction that was never decided, or was rolled back and is forgotten: it is
rolled back.  The invariant: what a branch is told depends on the row's state alone, so everybody
who has read it - coordinator, recovery, operator, at once or again - tells it the same.  Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import NamedTuple

import msgspec

__all__ = [
    "BRANCHES_MAX",
    "OPEN",
    "Branch",
    "BranchName",
    "Ending",
    "Status",
    "branch_name",
    "commits",
    "decode",
    "encode",
    "ended_as",
    "parse_branch",
]

BRANCHES_MAX = 32
_NAME = re.compile(r"duly-([0-9a-f]{12})-([0-9a-f]{32})-(\d{1,2})", re.ASCII)


class Status(StrEnum):
    """The state of a global transaction. HEURISTIC: a branch was ended against the decision."""

    PREPARING = "preparing"
    COMMITTING = "committing"
    ABORTING = "aborting"
    COMMITTED = "committed"
    ABORTED = "aborted"
    HEURISTIC = "heuristic"


OPEN = (Status.PREPARING, Status.COMMITTING, Status.ABORTING)
_COMMITS = {
    Status.COMMITTING: True,
    Status.COMMITTED: True,
    Status.ABORTING: False,
    Status.ABORTED: False,
}


class Ending(StrEnum):
    """What became of one branch.

    DONE: ended as decided, by us or as its database says. GONE: it is not there, and its database
    cannot say how it ended. AGAINST: its database says that it ended against the decision.
    FORGOTTEN: a person gave it up. LATER: not ended, or not to be asked now.
    """

    DONE = "done"
    GONE = "gone"
    AGAINST = "against"
    FORGOTTEN = "forgotten"
    LATER = ""


class Branch(msgspec.Struct, frozen=True):
    """One branch as its row tells it. participant: the name of its database. mark: what that
    database can be asked about later, empty where there is no such thing. ending: as ``Ending``.
    """

    participant: str
    mark: str = ""
    ending: Ending = Ending.LATER


class BranchName(NamedTuple):
    """A branch as databases know it. journal: whose transaction; number: its place in the row."""

    journal: str
    transaction: str
    number: int


def branch_name(name: BranchName) -> str:
    """The name in a form that PostgreSQL (200 bytes) and XA (64 bytes) can hold."""
    text = f"duly-{name.journal}-{name.transaction}-{name.number}"
    assert _NAME.fullmatch(text), "journal and transaction are hex digits"
    return text


def parse_branch(text: str) -> BranchName | None:
    """The parts of a name; None for what is not duly's."""
    found = _NAME.fullmatch(text)
    return None if found is None else BranchName(found[1], found[2], int(found[3]))


def commits(status: Status) -> bool | None:
    """What branches are told in a state: commit, roll back, or None: nothing."""
    return _COMMITS.get(status)


def ended_as(commit: bool, endings: Iterable[Ending]) -> Status | None:
    """The last state of a decided transaction; None while a branch has not ended."""
    found = set(endings)
    if Ending.LATER in found:
        return None
    if found & {Ending.AGAINST, Ending.FORGOTTEN}:
        return Status.HEURISTIC
    return Status.COMMITTED if commit else Status.ABORTED


def encode(branches: Sequence[Branch]) -> str:
    """Branches as the row keeps them."""
    return msgspec.json.encode(list(branches)).decode()


def decode(text: str) -> list[Branch]:
    """Branches of a row. Raises msgspec.ValidationError for what is no such text."""
    return msgspec.json.decode(text, type=list[Branch])
