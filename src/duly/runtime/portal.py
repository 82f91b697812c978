"""An event loop in a thread, for programs that have none.

The runtime is one asyncio loop.  Sync users (Flask, scripts, tests) reach it here: ``call`` runs a
coroutine there and waits, ``spawn`` starts one and goes on.  The thread ends with ``close``, or at
the exit of the process after a short wait for what was spawned.
"""

from __future__ import annotations

import asyncio
import atexit
import threading
from collections.abc import Coroutine
from concurrent.futures import Future, wait
from typing import Any, TypeVar

__all__ = ["Portal"]

T = TypeVar("T")


class Portal:
    """A loop in a daemon thread. drain_seconds: how long ``close`` waits for what was spawned."""

    def __init__(self, name: str, *, drain_seconds: float = 5.0) -> None:
        self._loop = asyncio.new_event_loop()
        self._drain_seconds = drain_seconds
        self._spawned: set[Future[Any]] = set()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name=f"duly-{name}", daemon=True
        )
        self._thread.start()
        self._closed = False
        atexit.register(self.close)

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop behind it."""
        return self._loop

    def call(self, coroutine: Coroutine[Any, Any, T], *, timeout_seconds: float | None = None) -> T:
        """Run a coroutine to its end. Raises TimeoutError (and cancels it) past the time."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result(timeout_seconds)
        except BaseException:
            future.cancel()
            raise

    def spawn(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Start a coroutine and return its future."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        self._spawned.add(future)
        future.add_done_callback(self._spawned.discard)
        return future

    def finish(self) -> None:
        """Wait a little for what was spawned and cancel the rest."""
        _, late = wait(list(self._spawned), timeout=self._drain_seconds)
        for future in late:
            future.cancel()

    def close(self) -> None:
        """Wait a little for what was spawned, cancel the rest, end the thread. Idempotent."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        self.finish()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(self._drain_seconds)
        if not self._thread.is_alive():
            self._loop.close()
