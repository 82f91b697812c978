"""How many calls there may be at once.

Owns the policy; who has a place and who waits for one is elsewhere.  The invariant: it is bounded,
and so is the wait.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from duly.errors import ConfigurationError
from duly.kernel.durations import Duration, seconds

__all__ = ["LIMIT_MAX", "Bulkhead"]

LIMIT_MAX = 10_000


@dataclass(frozen=True)
class Bulkhead:
    """At most ``limit`` of these calls at once; more wait up to ``wait`` for a place.

    limit: 1 to 10,000. wait: a duration, 0 to be refused at once. Raises ConfigurationError for
    values outside these limits.
    """

    limit: int = 16
    wait: Duration = 0
    wait_seconds: float = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if type(self.limit) is not int or not 1 <= self.limit <= LIMIT_MAX:
            raise ConfigurationError(
                f"Bulkhead: limit must be a whole number from 1 to {LIMIT_MAX}"
            )
        wait = seconds(self.wait, "Bulkhead: wait", allow_zero=True)
        object.__setattr__(self, "wait_seconds", wait)
