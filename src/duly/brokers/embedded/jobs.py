"""What a thread is asked to do, in order, and its sleep until there is something.

Invariant: a job that was put is never slept over.  A bell (a pair of sockets) stands beside the
queue, so that a thread can wait for jobs and for news on a connection at the same time.
"""

from __future__ import annotations

import select
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress

__all__ = ["Jobs"]


class Jobs:
    """A queue for one thread; others put into it."""

    def __init__(self) -> None:
        self._queue: deque[Callable[[], None]] = deque()
        self._bell: tuple[socket.socket, socket.socket] | None = None

    def open(self) -> None:
        """Make the bell; not before the thread is started, because it holds file descriptors."""
        self._bell = socket.socketpair()
        for end in self._bell:
            end.setblocking(False)

    def close(self) -> None:
        """Give the bell back."""
        for end in self._bell or ():
            end.close()

    def put(self, job: Callable[[], None]) -> None:
        """Add a job, from any thread."""
        self._queue.append(job)
        if self._bell is not None:
            with suppress(OSError):  # full: it is ringing already; closed: nobody comes any more
                self._bell[1].send(b"!")

    def take(self) -> Callable[[], None] | None:
        """The next job, if there is one."""
        return self._queue.popleft() if self._queue else None

    def wait(self, timeout_seconds: float, descriptor: int | None) -> None:
        """Sleep until a job is put, ``descriptor`` is readable, or time is up."""
        if self._queue or self._bell is None:
            return
        bell = self._bell[0]
        poll = select.poll()
        poll.register(bell, select.POLLIN)
        if descriptor is not None:
            poll.register(descriptor, select.POLLIN)
        if poll.poll(timeout_seconds * 1000):
            with suppress(BlockingIOError):  # it was the other one
                bell.recv(4096)
