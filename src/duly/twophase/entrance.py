"""What an App holds for global transactions: the way in, for users, roles and operators.

Owns when things are made: participants are declared while modules are imported, databases and
journal open with the first use, and again when the App has been wired anew (``override``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakSet

from duly.branches import EndsBranches
from duly.errors import ConfigurationError
from duly.observe.hooks import Hooks
from duly.outbox.publish import MessageOutlet
from duly.ports import Database, Finding, Join
from duly.twophase.journal import Journal
from duly.twophase.operator import GlobalOperator
from duly.twophase.recovery import Recovery
from duly.twophase.registry import Databases, Participants

if TYPE_CHECKING:
    from duly.twophase.transaction import Scope, TwoPhase

__all__ = ["GlobalTransactions", "Wiring"]


class Wiring(Protocol):
    """The part of an App's wiring that is needed here."""

    @property
    def database(self) -> Database:
        """The App's own."""
        ...

    @property
    def outlet(self) -> MessageOutlet:
        """Where its messages go."""
        ...


class GlobalTransactions:
    """Global transactions of one App. wired: its wiring in force. make: a Database, or a broker
    that takes part, of what a participant was declared with. prepare_seconds: as a ``Coordinator``
    has it.
    """

    def __init__(
        self,
        wired: Callable[[], Wiring],
        *,
        make: Callable[[Any], EndsBranches],
        join_of: Callable[[Any], Join],
        hooks: Hooks,
        prepare_seconds: Callable[[], float],
    ) -> None:
        self.participants = Participants()
        self._prepare_seconds = prepare_seconds
        self._wired, self._make, self._join_of, self._hooks = wired, make, join_of, hooks
        self._joined: WeakSet[Any] = WeakSet()
        self._open: tuple[Wiring, TwoPhase] | None = None

    def scope(self) -> Scope:
        """A block that is not begun. Raises ConfigurationError (PARTICIPANT): none is declared."""
        if not self.wanted:
            text = "a global transaction needs a participant: declare it by app.participant(...)"
            raise ConfigurationError(text, code="PARTICIPANT")
        from duly.twophase.transaction import Scope  # which needs SQLAlchemy

        return Scope(self._opened)

    def refuse_keyed(self, target: Any) -> None:
        """As ``TwoPhase.refuse_keyed``."""
        if self._joined and target in self._joined:
            self._opened().refuse_keyed(target)

    @property
    def wanted(self) -> bool:
        """Whether there is anything for a recovery to look after."""
        return bool(self.participants.names)

    def recovery(self) -> Recovery:
        """A recovery of this process; whoever makes it closes it."""
        found = self._opened()
        return Recovery(found.databases, found.journal, hooks=self._hooks)

    def operator(self) -> GlobalOperator:
        """The operator's verbs."""
        found = self._opened()
        database = self._wired().database
        return GlobalOperator(found.databases, found.journal, database=database, hooks=self._hooks)

    def inspect(self) -> list[Finding]:
        """What ``check`` says of the participants; nothing where none is declared."""
        return self._opened().databases.inspect() if self.wanted else []

    def close(self) -> None:
        """Close what was opened."""
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def _opened(self) -> TwoPhase:
        wiring = self._wired()
        if self._open is None or self._open[0] is not wiring:
            self._open = (wiring, self._made(wiring))
        return self._open[1]

    def _made(self, wiring: Wiring) -> TwoPhase:
        from duly.twophase.transaction import TwoPhase

        return TwoPhase(
            databases=Databases(self.participants, wiring.database, make=self._make),
            journal=Journal(wiring.database),
            outlet=wiring.outlet,
            buffer=lambda target, entry: self._join_of(target).buffer(target, entry),
            flush=lambda target: self._join_of(target).flush(target),
            joined=self._joined,
            prepare_seconds=self._prepare_seconds(),
            hooks=self._hooks,
        )
