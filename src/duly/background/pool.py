"""What every pool shares: its bounds, its figures, and what it tells.

Owns the promises that do not depend on who runs the work.  A failure is a fact at once, and is
handed to ``on_error`` or logged when nobody looks at the handle.  A worker that waits for work of
its own pool does that work itself; one that waits for another pool makes an edge, and an edge that
closes a circle is refused, because all workers of both could come to wait for each other.  Left
out: threads (``threads``), tasks (``tasks``), the ways into a pool (``registry``).
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from duly.background.task import Call, Function, Inside, Task, current, hold, tell
from duly.errors import ConfigurationError, error_code
from duly.observe.facts import TaskFailed, TaskRan
from duly.observe.hooks import Hooks

__all__ = ["Pool", "PoolContext", "PoolStatus", "Wake"]

Wake = Callable[[], None]
_log = logging.getLogger("duly.background")


class PoolStatus(NamedTuple):
    """A pool now. workers: at most; threads: that there are, 0 for tasks; overdue: that run past
    their timeout and keep their place.
    """

    name: str
    executor: str
    workers: int
    threads: int
    running: int
    waiting: int
    queue: int
    overdue: int


@dataclass(eq=False)
class PoolContext:
    """What pools of one App work with.

    release: gives back what a framework keeps for a thread; called around every call. log_failure:
    writes a failed call to the failure log. waits: which pool waits for which.
    """

    hooks: Hooks
    release: Callable[[], None]
    log_failure: Callable[[Call, BaseException], None]
    waits: dict[str, set[str]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def may_wait(self, inside: str, target: str) -> bool:
        """Note that workers of one pool wait for another; False where that closes a circle."""
        with self.lock:
            seen, todo = {target}, [target]
            while todo:
                for further in self.waits.get(todo.pop(), ()):
                    if further not in seen:
                        seen.add(further)
                        todo.append(further)
            if inside in seen:
                return False
            self.waits.setdefault(inside, set()).add(target)
            return True


class Pool(ABC):
    """A bounded pool. workers: how many calls run at once; queue: how many may wait besides."""

    executor: ClassVar[str]

    def __init__(self, name: str, context: PoolContext, *, workers: int, queue: int) -> None:
        self.name, self.workers, self.queue = name, workers, queue
        self.context = context
        self.untold: weakref.WeakSet[Task[Any]] = weakref.WeakSet()
        self._mutex = threading.Lock()
        self._waiting: deque[Task[Any]] = deque()
        self._wanting: deque[Wake] = deque()
        self._busy = 0
        self._overdue = 0
        self._closing = False

    # --- for the ways into it ---------------------------------------------------------------------
    @abstractmethod
    def put(self, task: Task[Any], wake: Wake | None = None) -> bool:
        """Take a task; False where there is no place. wake: called once when one becomes free.

        Raises BackgroundClosedError while it drains.
        """

    def unwant(self, wake: Wake) -> None:
        """Take back a ``wake``; a used one is passed on, for its place was not taken."""
        following = None
        with self._mutex:
            if wake in self._wanting:
                self._wanting.remove(wake)
            elif self._wanting:
                following = self._wanting.popleft()
        if following is not None:
            following()

    @property
    def full(self) -> bool:
        """Whether the bound is reached; the mutex is held."""
        return len(self._waiting) + self._busy >= self.workers + self.queue

    def status(self) -> PoolStatus:
        """The figures now."""
        with self._mutex:
            return PoolStatus(
                self.name,
                self.executor,
                self.workers,
                self._threads_now(),
                self._busy,
                len(self._waiting),
                self.queue,
                self._overdue,
            )

    def _threads_now(self) -> int:
        return 0

    # --- for handles ------------------------------------------------------------------------------
    def before_waiting(self, task: Task[Any]) -> None:
        """A thread is about to wait for a task of this pool, for as long as it takes.

        Raises ConfigurationError (WAIT_CYCLE).
        """
        inside = current.get()
        if inside is None:
            return
        if inside.pool is self:
            self.help(task)
        else:
            self.check_wait(inside)

    @abstractmethod
    def help(self, task: Task[Any]) -> None:
        """Do a waiting task here and now, in place of the one that waits for it."""

    @abstractmethod
    async def before_awaiting(self, task: Task[Any]) -> None:
        """As ``before_waiting``, on an event loop."""

    def check_wait(self, inside: Inside) -> None:
        """Raise ConfigurationError where waiting from in there could be waiting for ever."""
        if not self.context.may_wait(inside.pool.name, self.name):
            text = f"pool {inside.pool.name} waits for pool {self.name}, which waits for it"
            raise ConfigurationError(f"{text}; await or collect outside", code="WAIT_CYCLE")

    def uncaught(self, function: Function, error: BaseException) -> None:
        """Tell of a failure that nobody has looked at. Never raises."""
        if function.on_error is not None:
            try:
                function.on_error(function.name, error)
            except Exception:  # noqa: BLE001  # a handler of failures may fail, not hide them
                _log.exception("on_error of %s failed itself", function.name)
            else:
                return
        code = error_code(error)
        text = "background %s failed, and nobody looked (%s)"
        _log.error(text, function.name, code, exc_info=error, extra={"code": code})

    # --- for the executors ------------------------------------------------------------------------
    def ended(self, task: Task[Any], call: Call, error: BaseException | None) -> None:
        """State what a call has come to. Never raises an Exception."""
        hooks, name = self.context.hooks, task.function.name
        if hooks.listening and task.began_at is not None:
            now = time.monotonic()
            hooks.emit(
                TaskRan(
                    pool=self.name,
                    function=name,
                    wait_seconds=task.began_at - task.submitted_at,
                    seconds=now - task.began_at,
                )
            )
        if error is not None:
            hooks.emit(TaskFailed(pool=self.name, function=name, code=error_code(error)))
            if task.function.failure_log:
                self.context.log_failure(call, error)

    # --- ending, in the order of ``drain`` --------------------------------------------------------
    def close(self) -> None:
        """Take nothing new."""
        with self._mutex:
            self._closing = True

    def open(self) -> None:
        """Take new calls again."""
        with self._mutex:
            self._closing = False

    @property
    def idle(self) -> bool:
        """Whether nothing waits or runs."""
        with self._mutex:
            return not self._waiting and not self._busy

    @property
    def hopeless(self) -> bool:
        """Whether waiting in this thread is what keeps it from becoming idle."""
        return False

    def give_up(self, store: Callable[[Call], bool]) -> tuple[int, int]:
        """Begin nothing more: how many calls were cancelled, how many stored instead."""
        with self._mutex:
            waiting = list(self._waiting)
            self._waiting.clear()
            wanting = list(self._wanting)
            self._wanting.clear()
        for wake in wanting:
            wake()  # they try again, and are told that it is closed
        cancelled = deferred = 0
        for task in waiting:
            call = task.call
            defers = call is not None and call.function.on_full == "defer" and hold(task)
            kept = call is not None and defers and store(call)
            if task.cancel():
                deferred += kept
                cancelled += not kept
        return cancelled, deferred

    @abstractmethod
    def cancel(self) -> None:
        """Cancel what runs, where that can be done."""

    @abstractmethod
    def stop(self) -> int:
        """End the workers; how many calls still run, whose stacks are in the log now."""

    def tell_all(self) -> None:
        """Tell of every failure that nobody has looked at."""
        for task in list(self.untold):
            tell(task)

    def forget(self) -> None:
        """A child of ``fork`` has none of the threads: begin anew; what waited is the parent's."""
        waiting = list(self._waiting)
        self.__init__(  # type: ignore[misc]
            self.name, self.context, workers=self.workers, queue=self.queue
        )
        for task in waiting:
            task._condition = threading.Condition()  # another thread may have held it
            task.cancel()
