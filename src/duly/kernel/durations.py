"""Durations as users write them, turned into seconds.

Owns the one rule for every timeout, delay and window: a ``timedelta``, a number of seconds, or text
with a unit ("250ms", "5m", "1.5h", "2d").  The invariant: whatever leaves here is finite, positive
and at most ten years, so no later comparison can be defeated by NaN, infinity or a forgotten unit.
Text without a unit is refused, because the reader cannot tell whether its author meant seconds or
milliseconds.
"""

from __future__ import annotations

import math
import re
from datetime import timedelta
from typing import TypeAlias

from duly.errors import ConfigurationError

__all__ = ["SECONDS_MAX", "Duration", "seconds"]

Duration: TypeAlias = float | int | str | timedelta

SECONDS_MAX = 10 * 365.25 * 86_400

_TEXT = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,9})?) ?(ms|s|m|h|d)", re.ASCII)
_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}


def seconds(value: Duration, what: str = "duration", *, allow_zero: bool = False) -> float:
    """The seconds of a duration.

    value: a timedelta, seconds as a number, or text with one of the units ms, s, m, h, d. what: the
    name shown in the error. allow_zero: whether 0 is a meaningful value here. Raises
    ConfigurationError for anything negative, not finite, above ten years, unitless, or of another
    type.
    """
    number = _number(value, what)
    if (
        not math.isfinite(number)
        or number < 0
        or number > SECONDS_MAX
        or (number == 0 and not allow_zero)
    ):
        least = "0" if allow_zero else "more than 0"
        raise ConfigurationError(
            f"{what} is {_shown(value)}; it must be {least} and at most 10 years"
        )
    return number


def _number(value: object, what: str) -> float:
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return math.inf
    if isinstance(value, str) and (match := _TEXT.fullmatch(value.strip())):
        return float(match[1]) * _UNIT_SECONDS[match[2]]
    raise ConfigurationError(
        f"{what} is {_shown(value)}; "
        "write a timedelta, seconds as a number, or text with a unit such as '5m'"
    )


def _shown(value: object) -> str:
    return (
        ascii(value)[:60]
        if isinstance(value, str | float | bool | timedelta)
        else type(value).__name__
    )
