"""How many retries there may be for so many calls.

Retries help while few calls fail, and are the load that keeps a peer down when all of them do.  The
invariant: over any stretch of time retries are at most ``reserve`` plus ``share`` of the calls made
in it.  A bucket holds that: a call puts ``share`` of a retry in, up to ``reserve``; a retry takes
one out, or is not made.  Pure; shared by threads it is used under its owner's lock.
"""

from __future__ import annotations

from dataclasses import dataclass

from duly.errors import ConfigurationError

__all__ = ["Budget", "BudgetState"]

RESERVE_MAX = 10_000


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Retry at most ``share`` of the calls, and ``reserve`` besides.

    share: 0 to 10, 0.2 for one retry on five calls. reserve: 1 to 10,000. Raises
    ConfigurationError for values outside these limits.
    """

    share: float = 0.2
    reserve: int = 10

    def __post_init__(self) -> None:
        if type(self.share) not in (int, float) or not 0 <= self.share <= 10:
            raise ConfigurationError("Budget: share must be a number from 0 to 10")
        if type(self.reserve) is not int or not 1 <= self.reserve <= RESERVE_MAX:
            raise ConfigurationError(
                f"Budget: reserve must be a whole number from 1 to {RESERVE_MAX}"
            )


class BudgetState:
    """One budget at work; begins full."""

    __slots__ = ("_left", "_most", "_share")

    def __init__(self, policy: Budget) -> None:
        self._share = policy.share
        self._most = self._left = float(policy.reserve)

    def called(self) -> None:
        """A call was made, its retries not counted."""
        if self._left < self._most:
            self._left = min(self._most, self._left + self._share)

    def spend(self) -> bool:
        """Take one retry; False where there is none left."""
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True
