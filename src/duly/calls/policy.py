"""What a call is declared with, and what its errors mean.

Owns the table:

    the error                              | is      | breaker | made again        | on_failure
    ---------------------------------------+---------+---------+-------------------+-----------
    CallRefusedError                       | refused | -       | no                | yes
    OutcomeUnknownError, ``unknown``,      | unknown | failed  | keyed, repeatable | see below
    cut off at the deadline                |         |         |                   |
    ``retry.on``; where that is empty, any | failed  | failed  | ``retry.on`` only | yes
    but PermanentError                     |         |         |                   |
    every other one                        | other   | -       | no                | no

The invariants: what nobody named is not made again; an unknown outcome is never taken for a failure
- it is made again only where that is harmless (``key_as``, ``repeatable``), ignored only by
``Ignore``, and replaced by a fallback only where the call is repeatable or the caller says so.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal

from duly.errors import CallRefusedError, ConfigurationError, OutcomeUnknownError, PermanentError
from duly.kernel.backoff import Retry
from duly.kernel.breaker import Breaker
from duly.kernel.budget import Budget
from duly.kernel.bulkhead import Bulkhead
from duly.outbox.after_commit import Ignore

__all__ = ["CallPolicy", "Fail", "Fallback", "Meaning", "OnFailure", "once", "retry_after_seconds"]

once = Retry(attempts=1)


class Meaning(Enum):
    """What an error of a call means."""

    REFUSED = "refused"  # it was not made
    FAILED = "failed"  # by the peer's fault, and nothing was done
    UNKNOWN = "unknown"  # it may have been done
    OTHER = "other"  # the peer has answered, or the program is wrong


@dataclass(frozen=True)
class Fail:
    """A failure raises; the transaction around the call is the caller's to roll back."""


@dataclass(frozen=True)
class Fallback:
    """A failure gives ``value``, or what it returns where it is a function: it gets the call's
    arguments.

    unknown: also when nobody knows whether the call was done; without it that still raises, unless
    the call is repeatable.
    """

    value: Any
    unknown: bool = False


OnFailure = Fail | Ignore | Fallback


@dataclass(frozen=True, kw_only=True)
class CallPolicy:
    """A call's options, checked. deadline_seconds: None without one. defer: None where it cannot be
    deferred."""

    name: str
    deadline_seconds: float | None
    retry: Retry = once
    breaker: Breaker | None = None
    bulkhead: Bulkhead | None = None
    budget: Budget = field(default_factory=Budget)
    key_as: str | None = None
    repeatable: bool = False
    unknown: tuple[type[Exception], ...] = ()
    reconcile: Callable[[str], Any] | None = None
    defer: Retry | Literal[False] = False

    @property
    def harmless(self) -> bool:
        """Whether it may be made again although it may have been done: it does no harm, or the
        peer knows it by its key. A peer that must be asked (``reconcile``) is asked first.
        """
        return self.repeatable or (self.key_as is not None and self.reconcile is None)

    def meaning(self, error: BaseException) -> Meaning:
        """What an error means."""
        if isinstance(error, CallRefusedError):
            return Meaning.REFUSED
        if isinstance(error, (OutcomeUnknownError, *self.unknown)):
            return Meaning.UNKNOWN
        if isinstance(error, self.retry.on):
            return Meaning.FAILED
        if self.retry.on or not isinstance(error, Exception) or isinstance(error, PermanentError):
            return Meaning.OTHER
        return Meaning.FAILED

    def again(self, error: BaseException, attempt: int, chance: float) -> float | None:
        """The seconds to wait before the next attempt; None: there is none. attempt: that just
        failed.
        """
        if self.retry.exhausted(attempt):
            return None
        meaning = self.meaning(error)
        if meaning is Meaning.UNKNOWN:
            if not self.harmless:
                return None
        elif meaning is not Meaning.FAILED or not isinstance(error, self.retry.on):
            return None
        asked = retry_after_seconds(error)
        if asked is not None and asked > self.retry.max_seconds:
            return None  # not before we have given up anyway
        return max(self.retry.delay(attempt, chance), asked or 0.0)

    def may_defer(self, error: BaseException) -> bool:
        """Whether the call may be stored and made later although this came of it now."""
        meaning = self.meaning(error)
        if meaning is Meaning.REFUSED or self.harmless:
            return meaning is not Meaning.OTHER
        if meaning is Meaning.UNKNOWN:
            return self.reconcile is not None
        return meaning is Meaning.FAILED and isinstance(error, self.retry.on)

    def covers(self, choice: OnFailure, error: BaseException) -> bool:
        """Whether the caller's choice stands in for this error."""
        meaning = self.meaning(error)
        if isinstance(choice, Fail) or meaning is Meaning.OTHER:
            return False
        if meaning is Meaning.UNKNOWN and isinstance(choice, Fallback):
            return choice.unknown or self.repeatable
        return True

    def check(self, function: Callable[..., Any]) -> None:
        """Raise ConfigurationError where the options contradict each other or the function."""
        for option, value, kind in (
            ("breaker", self.breaker, Breaker),
            ("bulkhead", self.bulkhead, Bulkhead),
            ("budget", self.budget, Budget),
            ("retry", self.retry, Retry),
        ):
            if value is not None and not isinstance(value, kind):
                text = f"{option} must be a {kind.__name__}(...)"
                raise ConfigurationError(f"call {self.name}: {text}")
        if self.breaker is not None and self.deadline_seconds is None:
            text = "a breaker needs deadline=: a probe that never ends would keep it half-open"
            raise ConfigurationError(f"call {self.name}: {text}")
        if self.retry.attempts > 1 and not self.retry.on:
            text = "name the errors that are worth a retry: Retry(on=(ConnectError,), ...)"
            raise ConfigurationError(f"call {self.name}: {text}")
        if self.key_as is not None and not _takes(function, self.key_as):
            raise ConfigurationError(f"call {self.name}: no parameter {self.key_as!r} for key_as")
        if self.reconcile is not None and self.key_as is None:
            text = "reconcile= asks by the key of the call: say key_as="
            raise ConfigurationError(f"call {self.name}: {text}")


def retry_after_seconds(error: BaseException) -> float | None:
    """When the peer wants to be asked again, by its own word (``PeerUnavailableError``)."""
    asked = getattr(error, "retry_after_seconds", None)
    return float(asked) if isinstance(asked, int | float) and asked >= 0 else None


def _takes(function: Callable[..., Any], name: str) -> bool:
    parameters = inspect.signature(function).parameters
    found = parameters.get(name)
    keyword = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if found is not None:
        return found.kind in keyword
    return any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
