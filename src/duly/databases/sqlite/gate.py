"""A fair gate before BEGIN IMMEDIATE, and how it is said.

SQLite's busy handler sleeps up to a tenth of a second and tries again, so whoever commits in a loop
can starve the others for seconds. Threads of one process therefore queue here first, first come
first served; only the head of the queue asks SQLite, and it asks several times in a millisecond at
first: between two transactions of another process the file is free for less than one. The gate is
held while the write lock is being *asked for*, never while it is held.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections import deque
from typing import Any, Final

__all__ = ["Gate", "Turn", "begin", "begin_async", "gate_of", "is_busy"]

_AGAIN_SECONDS: Final = (0.0003, 0.002)  # at first, and after a tenth of a second
_SLOWER: Final = 1.02
_BEGIN: Final = "BEGIN IMMEDIATE"

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


def begin(db: sqlite3.Connection, busy_seconds: float) -> None:
    """Say BEGIN IMMEDIATE, and again while others write, for at most ``busy_seconds``.

    Raises sqlite3.OperationalError.
    """
    db.execute("PRAGMA busy_timeout = 0")
    try:
        end, (pause, longest) = time.monotonic() + busy_seconds, _AGAIN_SECONDS
        while True:
            try:
                db.execute(_BEGIN)
                return
            except sqlite3.OperationalError as error:
                if not is_busy(error) or time.monotonic() >= end:
                    raise
            time.sleep(pause)
            pause = min(pause * _SLOWER, longest)
    finally:
        db.execute(_patience(busy_seconds))


async def begin_async(db: Any, busy_seconds: float) -> None:
    """The same on a connection of aiosqlite."""
    import asyncio  # only where it runs already: `import duly` stays light

    await db.execute("PRAGMA busy_timeout = 0")
    try:
        end, (pause, longest) = time.monotonic() + busy_seconds, _AGAIN_SECONDS
        while True:
            try:
                await db.execute(_BEGIN)
                return
            except sqlite3.OperationalError as error:
                if not is_busy(error) or time.monotonic() >= end:
                    raise
            await asyncio.sleep(pause)
            pause = min(pause * _SLOWER, longest)
    finally:
        await db.execute(_patience(busy_seconds))


def is_busy(error: sqlite3.Error) -> bool:
    """Whether others hold the lock that was asked for."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY


def _patience(seconds: float) -> str:
    return f"PRAGMA busy_timeout = {max(0, int(seconds * 1000))}"
