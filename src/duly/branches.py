"""The Protocols of what can take part in a global transaction, beside ``ports``.

A *branch* is the part of one database or broker.  It is prepared on the connection that did its
work, and from then on it can be ended by name, on any connection to the same server.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from duly.message import Message
    from duly.ports import Connection, Finding

__all__ = [
    "BranchVerb",
    "EndsBranches",
    "Finished",
    "MessageBranch",
    "PreparesMessages",
    "PreparesTransactions",
]

BranchVerb = Literal["begin", "prepare", "commit", "rollback", "abandon"]


class Finished(Enum):
    """What came of ending a branch by name. BUSY: it is there, and somebody else has it in hand.
    COMMITTED, ROLLED_BACK: it is not, and the server knows that a person ended it so.
    """

    DONE = "done"
    GONE = "gone"
    BUSY = "busy"
    COMMITTED = "committed by hand"
    ROLLED_BACK = "rolled back by hand"


class EndsBranches(Protocol):
    """What everybody has who takes part: prepared branches that outlive their connection.

    name: of a branch, as ``kernel.twophase.branch_name`` makes it. connection: of ``connect``.
    """

    def connect(self) -> Any:
        """A connection for a recovery, with ``close``. Raises the errors of what is behind it as
        ours.
        """
        ...

    def prepared(self, connection: Any) -> list[str]:
        """The names of duly's prepared branches there; perhaps of the whole server."""
        ...

    def finish(self, connection: Any, name: str, *, commit: bool) -> Finished:
        """End a prepared branch. Idempotence: GONE the second time. Raises as ``connect``."""
        ...

    def inspect_prepared(self) -> list[Finding]:
        """What stands against global transactions there: settings, rights, versions."""
        ...

    def close(self) -> None:
        """Close what was opened."""
        ...


@runtime_checkable
class PreparesTransactions(EndsBranches, Protocol):
    """What a Database may have besides: prepared transactions. name: nothing else stands in SQL
    text.
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

    def fate(self, connection: Connection, mark: str) -> bool | None:
        """How a marked branch ended: True committed, False rolled back, None where it has not ended
        or nobody knows any more.
        """
        ...


class MessageBranch(Protocol):
    """One branch on the broker's connection that does its work; nothing is said before
    ``deliver``. Each blocks, and raises the broker's errors as ours.
    """

    def deliver(self, messages: Sequence[Message]) -> list[Message]:
        """Begin the branch and send in it; nothing may follow. Returns the events that nobody
        reads, which were not sent.
        """
        ...

    def prepare(self) -> None:
        """Prepare it; what it raises may leave it prepared or not."""
        ...

    def finish(self, *, commit: bool) -> None:
        """End it, prepared or not."""
        ...

    def close(self) -> None:
        """Give up the connection; what is prepared stays so. Never raises."""
        ...


@runtime_checkable
class PreparesMessages(EndsBranches, Protocol):
    """A broker that takes part: messages are sent in its branch, and are nobody's until that is
    committed.
    """

    def branch(self, name: str) -> MessageBranch:
        """A branch that is not begun."""
        ...

    def forget(self, connection: Any, name: str) -> None:
        """Let the broker forget how a branch was ended by hand; its end is recorded.
        Idempotent.
        """
        ...
