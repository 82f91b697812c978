"""A fair gate before BEGIN IMMEDIATE.

SQLite's busy handler sleeps and tries again, so a thread that commits in a loop can starve the
others for seconds. Threads of one process therefore queue here first, first come first served; only
the head of the queue asks SQLite. The gate is held while the write lock is being *asked for*, never
while it is held.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Gate", "gate_of"]

_gates: dict[str, Gate] = {}
_gates_lock = threading.Lock()


class Gate:
    """A first-come-first-served lock with a time limit."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queue: deque[threading.Event] = deque()

    @contextmanager
    def turn(self, timeout_seconds: float) -> Iterator[None]:
        """Wait for our turn, at most ``timeout_seconds``; then go on out of turn: SQLite's own lock
        still protects.
        """
        ticket = threading.Event()
        with self._lock:
            self._queue.append(ticket)
            if self._queue[0] is ticket:
                ticket.set()
        ticket.wait(timeout_seconds)
        try:
            yield
        finally:
            self._leave(ticket)

    def _leave(self, ticket: threading.Event) -> None:
        with self._lock:
            self._queue.remove(ticket)
            if self._queue:
                self._queue[0].set()


def gate_of(path: str) -> Gate:
    """The gate of a file, one per process."""
    with _gates_lock:
        return _gates.setdefault(path, Gate())
