"""The databases and brokers that take part in global transactions, by name.

Owns what was declared and the objects made of it.  A branch is kept in the journal under
its participant's name, so that whoever recovers it - another process, another day - knows where to
go without a URL or a password being stored.  The invariant: no branch begins where it could not
be prepared.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from threading import Lock
from typing import Any

from duly.branches import EndsBranches, PreparesMessages, PreparesTransactions
from duly.errors import ConfigurationError, DulyError
from duly.kernel.names import check_sql_name
from duly.ports import Database, Finding, Severity

__all__ = ["OWN", "Databases", "Participant", "Participants"]

OWN = "app"  # the App's own database


class Participant:
    """One participant: what its branches are in. name: as declared."""

    def __init__(self, name: str, resource: Any) -> None:
        if not isinstance(resource, PreparesTransactions | PreparesMessages):
            raise ConfigurationError(
                f"participant {name}: {resource.dialect} cannot prepare a transaction; global "
                "transactions need PostgreSQL or MySQL/MariaDB (or use the outbox)",
                code="GLOBAL_TX_DATABASE",
            )
        self.name = name
        self.resource: EndsBranches = resource
        self._checked = False

    @property
    def database(self) -> Database:
        """Its database. Raises ConfigurationError (PARTICIPANT) for a broker."""
        return self.branches  # type: ignore[return-value]  # a Database that is both

    @property
    def branches(self) -> PreparesTransactions:
        """What its database can do as a branch. Raises as ``database``."""
        if isinstance(self.resource, PreparesTransactions):
            return self.resource
        text = f"{self.name} is a broker and has no session; gtx.publish(..., via={self.name!r})"
        raise ConfigurationError(text, code="PARTICIPANT")

    def as_broker(self) -> PreparesMessages:
        """Its broker. Raises ConfigurationError (PARTICIPANT) for a database."""
        if isinstance(self.resource, PreparesMessages):
            return self.resource
        text = f"{self.name} is a database; via= names a broker (activemq://...), the outbox none"
        raise ConfigurationError(text, code="PARTICIPANT")

    def check(self) -> None:
        """Raise ConfigurationError with the code of what stands against it; asked once."""
        if self._checked:
            return
        for finding in self.resource.inspect_prepared():
            if finding.severity is Severity.RED:
                text = f"participant {self.name}: {finding.message}; {finding.fix}"
                raise ConfigurationError(text, code=finding.code)
        self._checked = True


class Participants:
    """What one App has declared."""

    def __init__(self) -> None:
        self._given: dict[str, Any] = {}

    @property
    def names(self) -> list[str]:
        """The declared names."""
        return sorted(self._given)

    def add(self, name: str, resource: Any) -> None:
        """Declare one; see ``App.participant``."""
        if check_sql_name(name, "participant") == OWN:
            text = f"{OWN!r} is the App's own database and takes part by itself"
            raise ConfigurationError(text, code="PARTICIPANT")
        if name in self._given:
            text = f"the participant {name!r} is declared twice"
            raise ConfigurationError(text, code="PARTICIPANT")
        self._given[name] = resource

    def given(self, name: str) -> Any:
        """What was declared under a name. Raises ConfigurationError (PARTICIPANT)."""
        if name not in self._given:
            known = ", ".join([OWN, *self.names])
            text = f"there is no participant {name!r:.60}; there are: {known}"
            raise ConfigurationError(text, code="PARTICIPANT")
        return self._given[name]


class Databases:
    """The participants of one App as they are open. own: the App's database. make: a Database, or a
    broker that takes part, of what was declared.
    """

    def __init__(
        self, declared: Participants, own: Database, *, make: Callable[[Any], EndsBranches]
    ) -> None:
        self._declared, self._own, self._make = declared, own, make
        self._open: dict[str, Participant] = {}
        self._lock = Lock()

    @property
    def names(self) -> list[str]:
        """All of them, the App's own first."""
        return [OWN, *self._declared.names]

    def find(self, name: str) -> Participant:
        """One of them, perhaps never used. Raises ConfigurationError (PARTICIPANT,
        GLOBAL_TX_DATABASE), MissingExtraError.
        """
        with self._lock:
            if name not in self._open:
                own = name == OWN
                made: Any = self._own if own else self._make(self._declared.given(name))
                self._open[name] = Participant(name, made)
            return self._open[name]

    def ready(self, name: str) -> Participant:
        """One of them, fit to begin a branch. Raises as ``find``, and what stands against it."""
        found = self.find(name)
        found.check()
        return found

    def inspect(self) -> list[Finding]:
        """What ``check`` says of every participant; nothing where none is declared."""
        found: list[Finding] = []
        for name in self.names if self._declared.names else ():
            try:
                found += self.find(name).resource.inspect_prepared()
            except ConfigurationError as error:
                found.append(Finding(error.code, Severity.RED, error.detail))
            except DulyError as error:
                text = f"participant {name} not reached: {error}"
                fix = "start it, or correct the URL"
                found.append(Finding("PARTICIPANT_UNREACHABLE", Severity.WEAK, text, fix))
        return found

    def close(self) -> None:
        """Close what was made here; the App closes its own."""
        with self._lock:
            for name, participant in self._open.items():
                if name != OWN:
                    with suppress(Exception):  # of a server that is away; nothing is left to do
                        participant.resource.close()
            self._open.clear()
