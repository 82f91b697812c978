"""The real clock.

Owns the choice of the monotonic clock: CLOCK_BOOTTIME where the system has it, because it goes on
while the machine is suspended - a holder that woke from sleep must see that its lease is over.
Elsewhere (macOS, Windows) ``monotonic`` is what there is, and a suspended machine is noticed at the
next renewal instead.  The tests' clock is another class.
"""

from __future__ import annotations

import time

__all__ = ["SystemClock"]

_BOOTTIME: int | None = getattr(time, "CLOCK_BOOTTIME", None)


class SystemClock:
    """Time as the operating system tells it; implements ``ports.Clock``."""

    def time(self) -> float:
        """Seconds since 1970; may jump."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds that never go back; they go on in suspend where the system can tell."""
        return time.monotonic() if _BOOTTIME is None else time.clock_gettime(_BOOTTIME)

    async def sleep(self, seconds: float) -> None:
        """Wait on the event loop."""
        import asyncio  # only here: a program that just publishes needs none of it

        await asyncio.sleep(seconds)
