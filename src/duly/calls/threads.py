"""The threads that plain functions with a deadline run on.

Owns reuse: the thread that was used last is given the next function, and one that has been idle for
a while ends.  How many there are is bounded by whoever submits (the places of
``Guard``), so nothing queues here.  The threads are daemons: a function that never returns holds up
its place, not the exit of the process.

A thread cannot be stopped.  The invariant: the caller is free at its deadline, and ``ended`` is
called when the function has really ended, exactly once, whether or not anybody still waits.
"""

from __future__ import annotations

import contextvars
import threading
import weakref
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any

from duly.calls import guard

__all__ = ["Task", "Threads"]

IDLE_SECONDS = 10.0


class Task:
    """One function under way in a thread. ended: called in that thread, last."""

    __slots__ = ("_context", "_done", "_ended", "_function", "error", "late", "over", "value")

    def __init__(self, function: Callable[[], Any], ended: Callable[[], None]) -> None:
        self._function = function
        self._ended = ended
        self._context = contextvars.copy_context()
        self._done = threading.Lock()
        self._done.acquire()
        self.value: Any = None
        self.error: BaseException | None = None
        self.late = self.over = False

    def wait(self, seconds: float) -> bool:
        """Wait for its end; False when the time is over."""
        return self._done.acquire(timeout=seconds)

    def run(self) -> None:
        """Run it here."""
        try:
            self.value = self._context.run(self._function)
        except BaseException as error:  # noqa: BLE001  # handed to the caller, SystemExit too
            self.error = error
        self._function = self._context = None  # type: ignore[assignment]  # frees what they hold

    def finish(self) -> None:
        """It has run; tell whoever waits."""
        self._ended()
        self._done.release()


class Threads:
    """The threads of one call. name: shown in dumps of stacks."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.begin()
        guard.at_fork(self)

    def begin(self) -> None:
        """Forget all threads: a forked child has none."""
        self._lock = threading.Lock()
        self._idle: list[SimpleQueue[Task]] = []
        self.overrunning = 0

    def start(self, task: Task) -> None:
        """Run a task at once. Raises RuntimeError when no thread can be started."""
        with self._lock:
            box = self._idle.pop() if self._idle else None
        if box is not None:
            box.put(task)
            return
        box = SimpleQueue()
        box.put(task)
        name = f"duly-call-{self._name}"
        threading.Thread(
            target=_work, args=(weakref.ref(self), box), name=name, daemon=True
        ).start()

    def abandon(self, task: Task) -> None:
        """Nobody waits for a task any more; it is counted in ``overrunning`` until it ends."""
        with self._lock:
            if not task.over:
                task.late = True
                self.overrunning += 1

    def rest(self, task: Task, box: SimpleQueue[Task]) -> None:
        """A task has run, and its thread is idle."""
        with self._lock:
            task.over = True
            self.overrunning -= task.late
            self._idle.append(box)

    def retire(self, box: SimpleQueue[Task]) -> bool:
        """Whether an idle thread may end; False when it has just been given a task."""
        with self._lock:
            if box not in self._idle:
                return False
            self._idle.remove(box)
            return True


def _work(owner: weakref.ref[Threads], box: SimpleQueue[Task]) -> None:
    task: Task | None = box.get()
    while True:
        if task is not None:
            task.run()
            if (threads := owner()) is not None:
                threads.rest(task, box)  # before its caller is told: it may come back at once
            del threads
            task.finish()
            task = None
        try:
            task = box.get(timeout=IDLE_SECONDS)
        except Empty:
            if (threads := owner()) is None or threads.retire(box):
                return
            del threads
