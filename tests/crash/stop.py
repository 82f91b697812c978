"""When a child is to end: its SIGTERM, to be looked at by its threads.

A signal's handler runs in the middle of whatever the main thread does.  Where that is waiting for a
``threading.Event``, with the Event's lock in hand, setting it there waits for ever; so this is a
flag that is looked at.
"""

from __future__ import annotations

import signal
import time

__all__ = ["Stop"]

LOOK_SECONDS = 0.02


class Stop:
    """Made by the main thread; asked by any."""

    def __init__(self) -> None:
        self._wanted = False
        signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, _number: int, _frame: object) -> None:
        self._wanted = True

    def is_set(self) -> bool:
        """Whether to end."""
        return self._wanted

    def wait(self, seconds: float) -> bool:
        """Wait for so long, or until the end; whether it is the end."""
        until = time.monotonic() + seconds
        while not self._wanted and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, LOOK_SECONDS))
        return self._wanted
