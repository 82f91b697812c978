"""Calls to other systems: deadline, retry, breaker, bulkhead, and what a failure means.

Owns the public names of this room; ``app.call`` makes a function a call.
"""

from duly.calls.deadline import time_left
from duly.calls.deferral import Answer, Deferred
from duly.calls.http import Http, Reply
from duly.calls.policy import Fail, Fallback
from duly.kernel.backoff import Retry
from duly.kernel.breaker import Breaker
from duly.kernel.budget import Budget
from duly.kernel.bulkhead import Bulkhead
from duly.kernel.outcomes import NotFound
from duly.outbox.after_commit import Ignore

__all__ = [
    "Answer",
    "Breaker",
    "Budget",
    "Bulkhead",
    "Deferred",
    "Fail",
    "Fallback",
    "Http",
    "Ignore",
    "NotFound",
    "Reply",
    "Retry",
    "time_left",
]
