"""What all consumers of one App share, and one piece of work of theirs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from duly.inbox.claims import BatchClaim, Claim, FreshClaim, RowClaim
from duly.inbox.handlers import Handler, HandlerRegistry
from duly.inbox.identity import Identity
from duly.kernel.lease import LeaseTerm
from duly.message import Message, Registry
from duly.observe.hooks import Hooks
from duly.outbox.publish import MessageOutlet
from duly.ports import Database
from duly.runtime.leases import Deadlines
from duly.runtime.work import Row

__all__ = ["ConsumeContext", "Job"]


@dataclass(frozen=True, kw_only=True)
class ConsumeContext:
    """Shared by the consumers of one App.

    holder: the name under which this process holds its leases now, for the liveness of effects;
    empty while it has none. handler_timeout_seconds: the hard deadline. dedupe_window_seconds: how
    long after it was first sent a message is still handled. effect_wait_seconds: how long a second
    delivery waits for somebody else's call. turn: a fair gate before BEGIN on SQLite.
    after_unclean_exit: whether what comes now may have ended a process before.
    """

    database: Database
    registry: Registry
    handlers: HandlerRegistry
    outlet: MessageOutlet
    hooks: Hooks
    deadlines: Deadlines
    holder: Callable[[], str] = str
    wake: Callable[[], None] = lambda: None
    handler_timeout_seconds: float = 300.0
    dedupe_window_seconds: float = 30 * 86_400.0
    effect_wait_seconds: float = 5.0
    workers: int = 4
    turn: Callable[[], AbstractContextManager[Any]] = nullcontext
    after_unclean_exit: Callable[[], bool] = bool
    calling: set[str] = field(default_factory=set)
    name: str = field(default_factory=lambda: f"unleased-{uuid4().hex[:12]}")

    def process(self) -> str:
        """Under which name this process begins effects."""
        return self.holder() or self.name


@dataclass(slots=True, eq=False)
class Job:
    """Messages of one handler that go into one transaction; row and term: of a stored message.

    tokens: what the broker wants back. values: decoded already, where the identity needed it.
    """

    handler: Handler
    messages: Sequence[Message]
    identities: Sequence[Identity]
    tokens: Sequence[Any] = ()
    row: Row | None = None
    term: LeaseTerm | None = None
    values: dict[int, Any] = field(default_factory=dict)

    def claim(self) -> Claim:
        """The first statement of its transaction; a new object for every attempt."""
        if self.row is not None and self.term is not None:
            return RowClaim(self.row, self.term)
        if self.handler.batch is not None:
            return BatchClaim(self.identities, self.messages)
        return FreshClaim(self.identities[0], self.messages[0])

    def part(self, places: Sequence[int]) -> Job:
        """A job of some of its messages."""
        return Job(
            self.handler,
            [self.messages[place] for place in places],
            [self.identities[place] for place in places],
            values={
                n: self.values[place] for n, place in enumerate(places) if place in self.values
            },
            row=self.row,
            term=self.term,
        )
