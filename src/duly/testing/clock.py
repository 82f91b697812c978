"""A clock that only a test moves.

Implements ``ports.Clock``.  Time stands still until ``advance`` is called or somebody sleeps on it:
``sleep`` moves the clock and yields once to the event loop, so that code which waits for hours is
tested in microseconds.  Invariant: ``time`` and ``monotonic`` move together and never go back.
Leaves out threads that wait in the operating system; those know no other clock.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from threading import Lock

from duly.kernel.durations import Duration, seconds

__all__ = ["FakeClock"]


class FakeClock:
    """A clock for tests. at: the time it starts at, in seconds since 1970; now by default.

    Safe to use from any thread.
    """

    def __init__(self, at: float | None = None) -> None:
        self._start = time.time() if at is None else float(at)
        self._passed = 0.0
        self._lock = Lock()

    def time(self) -> float:
        """Seconds since 1970."""
        return self._start + self._passed

    def monotonic(self) -> float:
        """Seconds since this clock was made."""
        return self._passed

    def now(self) -> datetime:
        """The same as ``time``, in UTC."""
        return datetime.fromtimestamp(self.time(), UTC)

    def advance(self, duration: Duration) -> None:
        """Let time pass: seconds, a ``timedelta`` or "5m". Raises ConfigurationError below zero."""
        passed = seconds(duration, "advance")
        with self._lock:
            self._passed += passed

    async def sleep(self, seconds: float) -> None:
        """Let the time pass at once, and the event loop turn."""
        with self._lock:
            self._passed += max(0.0, seconds)
        await asyncio.sleep(0)
