"""The circuit breaker: stop asking a peer that keeps failing, and find out cheaply when it is back.

Theory of operation.  The breaker is closed while calls go well.  ``failures`` failures in a row
open it; for ``open_for`` nothing is admitted.  The first question after that makes it half-open,
and half-open admits exactly ``probes`` calls.  Each must end in one of three ways: it succeeded, it
failed, or it was given back unanswered (the caller was cancelled) and then somebody else may have
it.  One failed probe opens the breaker again; when all have succeeded it closes.

    state      | signal            | becomes
    -----------+-------------------+----------
    closed     | failures reached  | open
    open       | time passed       | half-open
    half-open  | probe failed      | open
    half-open  | all probes passed | closed

Every change of state starts a new round, and a permit belongs to its round: the late answer of a
call that was admitted before the breaker opened changes nothing.  The invariant: in a half-open
round the probes under way and the probes that passed are together never more than ``probes``.  Time
comes in as an argument; a breaker shared by threads is called under its owner's lock.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from duly.errors import ConfigurationError
from duly.kernel.durations import Duration, seconds

__all__ = ["Breaker", "BreakerState", "Permit", "State"]


class State(Enum):
    """Where a breaker stands."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class _Signal(Enum):
    FAILURES_REACHED = 1
    TIME_PASSED = 2
    PROBE_FAILED = 3
    ALL_PROBES_PASSED = 4


_NEXT = {
    (State.CLOSED, _Signal.FAILURES_REACHED): State.OPEN,
    (State.OPEN, _Signal.TIME_PASSED): State.HALF_OPEN,
    (State.HALF_OPEN, _Signal.PROBE_FAILED): State.OPEN,
    (State.HALF_OPEN, _Signal.ALL_PROBES_PASSED): State.CLOSED,
}


class Permit(NamedTuple):
    """Leave to make one call. round: the round it was given in; serial: which probe it is, 0 for an
    ordinary call.
    """

    round: int
    serial: int


@dataclass(frozen=True)
class Breaker:
    """Open after ``failures`` failures in a row, for ``open_for``; then admit ``probes`` calls to
    find out.

    failures: 1 to 10,000. open_for: a duration. probes: 1 to 1,000.
    Raises ConfigurationError for values outside these limits.
    """

    failures: int = 5
    open_for: Duration = "30s"
    probes: int = 1
    open_for_seconds: float = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, value, most in (
            ("failures", self.failures, 10_000),
            ("probes", self.probes, 1_000),
        ):
            if type(value) is not int or not 1 <= value <= most:
                raise ConfigurationError(f"Breaker: {name} must be a whole number from 1 to {most}")
        object.__setattr__(self, "open_for_seconds", seconds(self.open_for, "Breaker: open_for"))


class BreakerState:
    """One breaker at work: ask ``allow`` before a call, and end every permit exactly once."""

    def __init__(self, policy: Breaker) -> None:
        self.policy = policy
        self.state = State.CLOSED
        self._round = 0
        self._failed_in_a_row = 0
        self._open_until = 0.0
        self._serial = 0
        self._probing: set[int] = set()
        self._passed = 0

    def allow(self, now: float) -> Permit | None:
        """A permit for one call at ``now`` (seconds of a monotonic clock), or None: do not call."""
        if self.state is State.OPEN and now >= self._open_until:
            self._move(_Signal.TIME_PASSED)
        if self.state is State.CLOSED:
            return Permit(self._round, 0)
        if self.state is State.OPEN or len(self._probing) + self._passed >= self.policy.probes:
            return None
        self._serial += 1
        self._probing.add(self._serial)
        return Permit(self._round, self._serial)

    def wait_seconds(self, now: float) -> float:
        """How long an open breaker will admit nothing; 0 when it is closed or half-open."""
        return max(0.0, self._open_until - now) if self.state is State.OPEN else 0.0

    def succeeded(self, permit: Permit) -> None:
        """The call was answered well. A permit of an earlier round, or one that has ended, changes
        nothing.
        """
        if permit.round != self._round:
            return
        if self.state is State.CLOSED:
            self._failed_in_a_row = 0
        elif self._end(permit):
            self._passed += 1
            if self._passed == self.policy.probes:
                self._move(_Signal.ALL_PROBES_PASSED)

    def failed(self, permit: Permit, now: float) -> None:
        """The call failed by the peer's fault. A permit of an earlier round, or one that has ended,
        changes nothing.
        """
        if permit.round != self._round:
            return
        if self.state is State.CLOSED:
            self._failed_in_a_row += 1
            if self._failed_in_a_row >= self.policy.failures:
                self._open(_Signal.FAILURES_REACHED, now)
        elif self._end(permit):
            self._open(_Signal.PROBE_FAILED, now)

    def returned(self, permit: Permit) -> None:
        """The call was never made or never judged; a probe's place is free again."""
        self._end(permit)

    def _end(self, permit: Permit) -> bool:
        known = permit.serial in self._probing
        self._probing.discard(permit.serial)
        return known

    def _open(self, signal: _Signal, now: float) -> None:
        self._open_until = now + self.policy.open_for_seconds
        self._move(signal)

    def _move(self, signal: _Signal) -> None:
        self.state = _NEXT[self.state, signal]
        self._round += 1
        self._failed_in_a_row = 0
        self._passed = 0
        self._probing.clear()
