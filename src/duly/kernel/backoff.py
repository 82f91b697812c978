"""How often something is tried, and how long to wait in between.

Owns the retry policy that routes, handlers and calls share.  The invariant: a delay grows from
``base`` by ``factor`` up to ``max`` and never past it, for any attempt number; with jitter it lies
between half of that and the whole, so that many rows that failed together do not come back
together.  Chance comes in as an argument.  A call repeats only what ``on`` names; routes and
handlers decide by themselves what is worth a retry, and refuse ``on``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from duly.errors import ConfigurationError
from duly.kernel.durations import Duration, seconds

__all__ = ["ATTEMPTS_MAX", "Retry"]

ATTEMPTS_MAX = 10_000
_FACTOR_MAX = 100.0


@dataclass(frozen=True, kw_only=True)
class Retry:
    """Try ``attempts`` times in all, waiting ``base``, ``base * factor`` ... up to ``max`` in
    between.

    attempts: 1 (never again) to 10,000. base, max: durations. factor: 1 (always the same) to 100.
    jitter: whether each delay is shortened by chance to between half and the whole. on: of a call,
    the errors that mean that nothing was done and that it may be made again. Raises
    ConfigurationError for values outside these limits.
    """

    attempts: int = 8
    base: Duration = "1s"
    max: Duration = "5m"
    factor: float = 2.0
    jitter: bool = True
    on: tuple[type[Exception], ...] = ()
    base_seconds: float = field(init=False, repr=False, compare=False)
    max_seconds: float = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if type(self.attempts) is not int or not 1 <= self.attempts <= ATTEMPTS_MAX:
            raise ConfigurationError(
                f"Retry: attempts must be a whole number from 1 to {ATTEMPTS_MAX}"
            )
        if type(self.factor) not in (int, float) or not 1 <= self.factor <= _FACTOR_MAX:
            raise ConfigurationError(f"Retry: factor must be a number from 1 to {_FACTOR_MAX:.0f}")
        if type(self.jitter) is not bool:
            raise ConfigurationError("Retry: jitter must be True or False")
        if type(self.on) is not tuple or not all(_is_error(one) for one in self.on):
            raise ConfigurationError("Retry: on must be a tuple of exception classes")
        object.__setattr__(self, "base_seconds", seconds(self.base, "Retry: base"))
        object.__setattr__(self, "max_seconds", seconds(self.max, "Retry: max"))
        if self.max_seconds < self.base_seconds:
            raise ConfigurationError("Retry: max must not be shorter than base")

    def delay(self, attempt: int, chance: float) -> float:
        """The seconds to wait after the ``attempt``-th failure (the first is 1), by a ``chance``
        from 0 to 1.
        """
        if attempt < 1 or not 0 <= chance <= 1:
            raise ValueError(f"attempt {attempt} must be at least 1, chance {chance} from 0 to 1")
        # Compared as logarithms: factor ** (attempt - 1) overflows long before attempts do.
        growth = (attempt - 1) * math.log(self.factor)
        if growth >= math.log(self.max_seconds / self.base_seconds):
            whole = self.max_seconds
        else:
            whole = min(self.base_seconds * self.factor ** (attempt - 1), self.max_seconds)
        return whole * (0.5 + 0.5 * chance) if self.jitter else whole

    def exhausted(self, attempts: int) -> bool:
        """Whether, after this many failed attempts, nothing is tried again."""
        return attempts >= self.attempts

    def refuse_on(self, what: str) -> None:
        """Raise ConfigurationError where ``on`` is set: ``what`` is no call."""
        if self.on:
            raise ConfigurationError(f"{what}: Retry(on=...) is for calls; leave it out here")


def _is_error(one: object) -> bool:
    return isinstance(one, type) and issubclass(one, Exception)
