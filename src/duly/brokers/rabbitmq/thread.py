"""The one thread that owns every connection, and the way into it.

Invariant: nothing that is posted can end the thread; an exception that escapes a callback is logged
and the connections are dropped, because their state is no longer known, and made anew.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from pika.adapters.select_connection import IOLoop

__all__ = ["IoThread"]

T = TypeVar("T")

_log = logging.getLogger("duly.brokers.rabbitmq")


class IoThread:
    """A pika ioloop in a thread of its own. on_panic: called in it after an exception escaped."""

    def __init__(self, *, on_panic: Callable[[], None]) -> None:
        self._on_panic = on_panic
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="duly-rabbitmq", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self.loop = IOLoop()  # not before: it holds file descriptors
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether what is posted will be run."""
        return self._thread.is_alive() and not self._stopping

    def post(self, action: Callable[[], Any]) -> None:
        """Run ``action`` in the thread, from any thread."""
        self.loop.add_callback_threadsafe(action)

    def ask(self, question: Callable[[], T]) -> Future[T]:
        """Run ``question`` in the thread and give its answer."""
        future: Future[T] = Future()

        def answer() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(question())
                except Exception as error:  # noqa: BLE001 - it is the asker's
                    future.set_exception(error)

        self.post(answer)
        return future

    def later(self, seconds: float, action: Callable[[], None]) -> Callable[[], None]:
        """Run ``action`` after a time; gives a function that cancels it. In the thread only."""
        timer = self.loop.call_later(seconds, action)
        return lambda: self.loop.remove_timeout(timer)

    def stop(self, timeout_seconds: float) -> None:
        """End the thread. Idempotent."""
        if self._thread.is_alive():
            self.post(self._stop)
            self._thread.join(timeout_seconds)

    def _stop(self) -> None:
        self._stopping = True
        self.loop.stop()

    def _run(self) -> None:
        while not self._stopping:
            try:
                self.loop.start()
            except Exception:  # noqa: BLE001 - no callback may end the thread
                _log.exception("a callback failed; the connections are made anew")
                self._on_panic()
        self.loop.close()
