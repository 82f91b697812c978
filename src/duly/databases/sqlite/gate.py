"""A fair gate before BEGIN IMMEDIATE.

SQLite's busy handler sleeps and tries again, so a thread that commits in a loop can starve the
others for seconds. Threads of one process therefore queue here first, first come first served; only
the head of the queue asks SQLite. The gate is held while the write lock is being *asked for*, never
while it is held.
"""

from __future__ import annotations

import threading
from collections import deque

__all__ = ["Gate", "Turn", "gate_of"]

_gates: dict[str, Gate] = {}
_gates_lock = threading.Lock()


class Gate:
    """A first-come-first-served lock with a time limit."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queue: deque[Turn] = deque()

    def turn(self, timeout_seconds: float) -> Turn:
        """Wait for our turn, at most ``timeout_seconds``; then go on out of turn: SQLite's own lock
        still protects.
        """
        return Turn(self._lock, self._queue, timeout_seconds)


class Turn:
    """One turn at a gate: a context manager, used once."""

    __slots__ = ("_called", "_lock", "_queue", "_timeout_seconds")

    def __init__(self, lock: threading.Lock, queue: deque[Turn], timeout_seconds: float) -> None:
        self._lock, self._queue, self._timeout_seconds = lock, queue, timeout_seconds
        self._called: threading.Event | None = None  # nearly always nobody is in front

    def __enter__(self) -> None:
        with self._lock:
            if self._queue:
                self._called = threading.Event()
            self._queue.append(self)
        if self._called is not None:
            self._called.wait(self._timeout_seconds)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._queue.remove(self)
            if self._queue and (called := self._queue[0]._called) is not None:
                called.set()


def gate_of(path: str) -> Gate:
    """The gate of a file, one per process."""
    with _gates_lock:
        return _gates.setdefault(path, Gate())
