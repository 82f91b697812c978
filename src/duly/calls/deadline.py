"""The deadline that the running call is under, for all that it calls in turn.

Owns one context variable.  The invariant: a call inside a call is never allowed more time than the
outer one has left, also in another thread or task, which get a copy of the context.
"""

from __future__ import annotations

import math
import time
from contextvars import ContextVar

__all__ = ["deadline", "time_left"]

deadline: ContextVar[float] = ContextVar("duly_deadline", default=math.inf)


def time_left() -> float:
    """The seconds until the deadline of the call that this code runs in; infinite outside of one.

    For timeouts of drivers: ``socket.settimeout(time_left())``.
    """
    return max(0.0, deadline.get() - time.monotonic())
