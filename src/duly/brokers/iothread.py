"""The one thread that owns every connection: an event loop of its own, and the way into it.

Invariant: nothing that is asked of it can end it, and nobody waits for it longer than they said.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

__all__ = ["IoThread"]

T = TypeVar("T")


class IoThread:
    """An asyncio loop in a daemon thread of its own. name: of the thread."""

    def __init__(self, name: str) -> None:
        self.loop = None  # not before the start: it holds file descriptors
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    loop: asyncio.AbstractEventLoop | None

    def start(self) -> None:
        """Start the thread."""
        self.loop = asyncio.new_event_loop()
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether what is posted will be run."""
        return self._thread.is_alive() and not self._stopped

    def post(self, action: Callable[..., Any], *arguments: Any) -> None:
        """Run ``action`` in the thread, from any thread. Dropped once it has stopped."""
        if self.loop is not None and self.alive:
            try:
                self.loop.call_soon_threadsafe(action, *arguments)
            except RuntimeError:  # it stopped meanwhile
                return

    async def ask(self, question: Coroutine[Any, Any, T], timeout_seconds: float) -> T:
        """Run a coroutine in the thread; past the time it is cancelled. Raises TimeoutError."""
        if self.loop is None or not self.alive:
            question.close()
            raise TimeoutError("the I/O thread is not running")
        future = asyncio.run_coroutine_threadsafe(question, self.loop)
        return await asyncio.wait_for(asyncio.wrap_future(future), timeout_seconds)

    def stop(self, timeout_seconds: float) -> None:
        """End the thread. Idempotent."""
        if self._thread.is_alive() and self.loop is not None:
            self._stopped = True
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(timeout_seconds)

    def _run(self) -> None:
        loop = self.loop
        assert loop is not None
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
            left = asyncio.all_tasks(loop)
            for task in left:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        finally:
            loop.close()
