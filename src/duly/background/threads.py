"""A pool of threads.

Owns the threads, the queue in front of them and their timeouts.  A thread cannot be ended from
outside: past its timeout a call's handle is told so, its place stays taken until it really ends,
and its late end is told too.  A worker starts in an empty context and runs each call in the context
it was submitted in, so nothing leaks from one call to the next.  Threads are made when work comes
and kept; an idle one waits on a lock of its own.
"""

from __future__ import annotations

import contextvars
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any, ClassVar

from duly.background.pool import Pool, PoolContext, Wake
from duly.background.task import Inside, Task, begin, current, interrupts, settle
from duly.errors import BackgroundClosedError, BackgroundFullError, BackgroundTimeoutError
from duly.observe.facts import TaskOverdue

__all__ = ["ThreadPool", "stack_of"]

LOOK_SECONDS = 0.005
STOP_SECONDS = 1.0  # for idle workers to end
_log = logging.getLogger("duly.background")


class ThreadPool(Pool):
    """Runs plain functions."""

    executor: ClassVar[str] = "threads"

    def __init__(self, name: str, context: PoolContext, *, workers: int, queue: int) -> None:
        super().__init__(name, context, workers=workers, queue=queue)
        self._threads = 0
        self._started = 0
        self._ending = False
        self._parked: list[Any] = []
        self._running: dict[int, Task[Any]] = {}  # by thread
        self._watch = _Watch(name, self._expire)

    def put(self, task: Task[Any], wake: Wake | None = None) -> bool:
        """As ``Pool.put``. Raises BackgroundFullError where the system gives no thread."""
        task.submitted_at = time.monotonic()
        start = False
        with self._mutex:
            if self._closing:
                raise BackgroundClosedError(f"pool {self.name} drains")
            if self.full:
                if wake is not None:
                    self._wanting.append(wake)
                return False
            self._waiting.append(task)
            if self._parked:
                self._parked.pop().release()
            elif self._threads < self.workers:
                self._threads += 1
                self._started += 1
                start = True
        if start:
            self._start(task)
        return True

    def run_here(self, task: Task[Any]) -> None:
        """Run a task in this thread, without a place in the pool."""
        task.submitted_at = time.monotonic()
        self._run(task)

    def help(self, task: Task[Any]) -> None:
        """As ``Pool.help``; done already by another thread: nothing."""
        self._run(task)

    async def before_awaiting(self, task: Task[Any]) -> None:
        """As ``Pool.before_awaiting``."""
        self.before_waiting(task)

    def _threads_now(self) -> int:
        return self._threads

    # --- the workers ------------------------------------------------------------------------------
    def _start(self, task: Task[Any]) -> None:
        work = contextvars.Context().run  # a free-threaded build would inherit the caller's
        thread = threading.Thread(
            target=work, args=(self._work,), name=f"duly-{self.name}-{self._started}", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as error:
            with self._mutex:
                self._threads -= 1
                if self._threads or task not in self._waiting:
                    _log.warning("pool %s gets no further thread: %s", self.name, error)
                    return
                self._waiting.remove(task)
            raise BackgroundFullError(f"pool {self.name} gets no thread: {error}") from error

    def _work(self) -> None:
        bell = threading.Lock()
        bell.acquire()
        ran = over = False
        while not over:
            task = wake = None
            with self._mutex:
                if ran:
                    self._busy -= 1
                    wake = self._wanting.popleft() if self._wanting else None
                if self._waiting:
                    task = self._waiting.popleft()
                    self._busy += 1
                elif self._ending:
                    self._threads -= 1
                    over = True
                else:
                    self._parked.append(bell)
            if wake is not None:
                wake()
            ran = task is not None
            if task is not None:
                self._release()
                self._run(task)
                self._release()
            elif not over:
                bell.acquire()

    def _run(self, task: Task[Any] | None) -> None:
        assert task is not None
        call = begin(task)
        if call is None:
            return
        function, value, error, interrupt = call.function, None, None, None
        task.began_at, until = time.monotonic(), None
        me = threading.get_ident()
        before, self._running[me] = self._running.get(me), task
        if function.timeout_seconds is not None:
            until = task.began_at + function.timeout_seconds
            self._watch.add(task, until)
        try:
            call.context.run(current.set, Inside(self, until))
            value = call.context.run(function.run, *call.args, **call.kwargs)
        except BaseException as raised:  # noqa: BLE001  # it is the handle's, and told
            error = raised
            interrupt = raised if interrupts(raised) else None
        if before is None:
            del self._running[me]
        else:
            self._running[me] = before
        if until is not None:
            self._watch.drop(task)
        if not settle(task, value, error):
            self._ended_late(task, error)
        self.ended(task, call, error)
        task = call = error = before = None  # the error's frames begin here and keep what they hold
        if interrupt is not None:
            raise interrupt

    def _release(self) -> None:
        try:
            self.context.release()
        except Exception:  # noqa: BLE001  # the call has its own end; this one is the framework's
            _log.exception("a connection of a worker of pool %s was not given back", self.name)

    # --- timeouts ---------------------------------------------------------------------------------
    def _expire(self, task: Task[Any]) -> None:
        limit = task.function.timeout_seconds or 0.0
        name = task.function.name
        error = BackgroundTimeoutError(f"{name} has not ended in {limit:g} s")
        if not settle(task, None, error):
            return
        with self._mutex:
            self._overdue += 1
        self.context.hooks.emit(TaskOverdue(pool=self.name, function=name, seconds=limit))
        thread = next((ident for ident, one in list(self._running.items()) if one is task), 0)
        text = "background %s has not ended in %g s; it runs on and keeps its place, here:\n%s"
        _log.warning(text, name, limit, stack_of(thread))

    def _ended_late(self, task: Task[Any], error: BaseException | None) -> None:
        with self._mutex:
            self._overdue -= 1
        assert task.began_at is not None
        seconds, name = time.monotonic() - task.began_at, task.function.name
        if error is None:
            _log.warning("background %s ended after %.1f s; nobody has its result", name, seconds)
        else:
            self.uncaught(task.function, error)

    # --- ending -----------------------------------------------------------------------------------
    def cancel(self) -> None:
        """As ``Pool.cancel``: a thread cannot be ended from outside."""

    def stop(self) -> int:
        """As ``Pool.stop``."""
        with self._mutex:
            self._ending = True
            parked, self._parked = self._parked, []
            left = dict(self._running)
        for bell in parked:
            bell.release()
        end = time.monotonic() + STOP_SECONDS
        while self._threads > len(left) and time.monotonic() < end:
            time.sleep(LOOK_SECONDS)
        with self._mutex:
            self._ending = False
        for thread, task in left.items():
            text = "pool %s does not wait any longer for %s, which is here:\n%s"
            _log.error(text, self.name, task.function.name, stack_of(thread))
        return len(left)


class _Watch:
    """Tells when the time of a running call is up. The thread is made with the first timeout."""

    def __init__(self, name: str, expire: Callable[[Task[Any]], None]) -> None:
        self._name, self._expire = name, expire
        self._changed = threading.Condition(threading.Lock())
        self._until: dict[Task[Any], float] = {}
        self._next = float("inf")
        self._alive = False

    def add(self, task: Task[Any], until: float) -> None:
        """Watch a call until ``drop``."""
        with self._changed:
            self._until[task] = until
            if until < self._next:
                self._next = until
                self._changed.notify()
            if self._alive:
                return
            self._alive = True
        target = contextvars.Context().run
        name = f"duly-{self._name}-watch"
        try:
            threading.Thread(target=target, args=(self._work,), name=name, daemon=True).start()
        except RuntimeError as error:  # the next call tries again
            self._alive = False
            _log.error("pool %s cannot watch its timeouts: %s", self._name, error)

    def drop(self, task: Task[Any]) -> None:
        """It has ended."""
        with self._changed:
            self._until.pop(task, None)

    def _work(self) -> None:
        while True:
            with self._changed:
                now = time.monotonic()
                late = [task for task, until in self._until.items() if until <= now]
                for task in late:
                    del self._until[task]
                if not late:
                    self._next = min(self._until.values(), default=float("inf"))
                    wait = None if self._next == float("inf") else self._next - now
                    self._changed.wait(wait)
            for task in late:
                self._expire(task)
            late.clear()


def stack_of(thread: int) -> str:
    """Where a thread is: files, lines and code, never values."""
    with suppress(KeyError):
        return "".join(traceback.format_stack(sys._current_frames()[thread]))
    return "  (it has just ended)"
