"""The Protocol of a database that can prepare transactions, beside ``ports``.

A *branch* is one database's part of a global transaction.  It is prepared on the connection that
did its work, and from then on it can be ended by name, on any connection of that database.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from duly.ports import Connection, Finding

__all__ = ["BranchVerb", "Finished", "PreparesTransactions"]

BranchVerb = Literal["begin", "prepare", "commit", "rollback", "abandon"]


class Finished(Enum):
    """What came of ending a branch by name. BUSY: it is there, and somebody else has it in hand."""

    DONE = "done"
    GONE = "gone"
    BUSY = "busy"


@runtime_checkable
class PreparesTransactions(Protocol):
    """What a Database may have besides: prepared transactions that outlive a connection.

    name: of a branch, as ``kernel.twophase.branch_name`` makes it; nothing else stands in SQL text.
    """

    def branch_words(self, verb: BranchVerb, name: str) -> Sequence[str]:
        """What is said on the connection of a branch, in order. rollback: of a prepared branch,
        abandon: of one that is not.
        """
        ...

    def branch_mark(self, name: str) -> str:
        """One statement, the last before ``prepare``: gives the mark of the branch, by which
        ``fate`` can be asked (NULL for none), or no row where its transaction was ended meanwhile.
        Fails where the transaction has failed.  Empty where there are no marks.
        """
        ...

    def prepared(self, connection: Connection) -> list[str]:
        """The names of duly's prepared branches in this database; perhaps of its whole server."""
        ...

    def finish(self, connection: Connection, name: str, *, commit: bool) -> Finished:
        """End a prepared branch. Idempotence: GONE the second time. Raises the database's errors as
        ours.
        """
        ...

    def fate(self, connection: Connection, mark: str) -> bool | None:
        """How a marked branch ended: True committed, False rolled back, None where it has not ended
        or nobody knows any more.
        """
        ...

    def inspect_prepared(self) -> list[Finding]:
        """What stands against global transactions in this database: settings, rights, versions."""
        ...
