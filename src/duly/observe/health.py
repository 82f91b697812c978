"""Whether the roles of a process make progress.

Owns the judgement; who asks (a probe, the command line) and who is asked (the supervisor's roles)
are elsewhere.  A role is healthy when its loop turned lately - not when its thread exists, and not
when there was work: an idle loop turns, a loop stuck in a call does not.  The invariant: nothing a
role said long ago counts; silence past its limit is STALLED, whatever it last reported.  Time comes
from the clock given; calls are safe from any thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from threading import Lock
from typing import NamedTuple

__all__ = ["CallHealth", "Health", "Report", "RoleHealth", "RoleState"]


class RoleState(Enum):
    """How a role is."""

    STARTING = "starting"  # its loop has not turned yet
    HEALTHY = "healthy"
    DEGRADED = "degraded"  # its loop turns, but says why it cannot do its work
    STALLED = "stalled"  # its loop has not turned for too long
    STOPPED = "stopped"  # it ended as it was told to


class RoleHealth(NamedTuple):
    """One role now. silent_seconds: since its loop last turned. code: why it is degraded, else
    empty.
    """

    role: str
    state: RoleState
    silent_seconds: float
    code: str


class CallHealth(NamedTuple):
    """A call to another system. breaker: ``closed``, ``open``, ``half-open``, empty without one.
    in_use: its places that are taken; overrunning: threads that work on past their deadline.
    """

    call: str
    breaker: str
    in_use: int
    overrunning: int


class Report(NamedTuple):
    """All roles. live: none is stalled; restart the process otherwise. ready: all work. calls: how
    other systems look from here; they make nobody unready, or one that is down would take down all
    who call it.
    """

    live: bool
    ready: bool
    roles: tuple[RoleHealth, ...]
    calls: tuple[CallHealth, ...] = ()


@dataclass(frozen=True, slots=True)
class _Role:
    within_seconds: float
    turned_at: float
    state: RoleState
    code: str = ""


class Health:
    """The progress of the roles of a process. monotonic: e.g. ``SystemClock().monotonic``."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._roles: dict[str, _Role] = {}
        self._lock = Lock()
        self._calls: list[Callable[[], CallHealth]] = []

    def watch_call(self, read: Callable[[], CallHealth]) -> None:
        """Show a call in the reports."""
        self._calls.append(read)

    def expect(self, role: str, *, within_seconds: float) -> None:
        """From now on the loop of ``role`` must turn at least every ``within_seconds``."""
        with self._lock:
            self._roles[role] = _Role(within_seconds, self._monotonic(), RoleState.STARTING)

    def turned(self, role: str, *, code: str = "") -> None:
        """The loop of an expected role turned. code: why it could not do its work this time. Raises
        KeyError.
        """
        state = RoleState.DEGRADED if code else RoleState.HEALTHY
        with self._lock:
            known = self._roles[role]
            self._roles[role] = replace(known, turned_at=self._monotonic(), state=state, code=code)

    def stopped(self, role: str) -> None:
        """An expected role ended in order; it may be silent from now on. Raises KeyError."""
        with self._lock:
            self._roles[role] = replace(self._roles[role], state=RoleState.STOPPED, code="")

    def finished(self, role: str) -> None:
        """An expected role has done what it was there for; nothing more is expected of it."""
        with self._lock:
            self._roles.pop(role, None)

    def report(self) -> Report:
        """How every role is now. A process without roles is live but not ready."""
        with self._lock:
            roles = sorted(self._roles.items())
        now = self._monotonic()
        found = tuple(_judge(name, role, now) for name, role in roles)
        live = all(role.state is not RoleState.STALLED for role in found)
        ready = bool(found) and all(role.state is RoleState.HEALTHY for role in found)
        return Report(live, ready, found, tuple(sorted(read() for read in self._calls)))


def _judge(name: str, role: _Role, now: float) -> RoleHealth:
    silent = max(0.0, now - role.turned_at)
    if role.state is not RoleState.STOPPED and silent > role.within_seconds:
        return RoleHealth(name, RoleState.STALLED, silent, role.code)
    return RoleHealth(name, role.state, silent, role.code)
