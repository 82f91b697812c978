"""A pool of asyncio tasks: the light-weight executor, for async functions only.

Owns the tasks - strongly, for a loop keeps none - and the bound on how many run at once.  A call
runs on the loop it was submitted from, where the caller's async engines and clients live; from a
thread without one, on a loop of the pool's own.  Its timeout cuts it off in place.  The invariant:
every call ends its handle exactly once, also when its loop ends first or is closed already.
"""

from __future__ import annotations

import asyncio
import atexit
import contextvars
import io
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

from duly.background.pool import Pool, PoolContext, Wake
from duly.background.task import Call, Inside, Task, begin, current, interrupts, settle
from duly.errors import BackgroundClosedError, BackgroundTimeoutError
from duly.observe.facts import TaskOverdue
from duly.runtime.portal import Portal

__all__ = ["TaskPool"]

PORTAL_SECONDS = 1.0
_Jobs = dict[asyncio.Task[None], Task[Any]]
_log = logging.getLogger("duly.background")


class TaskPool(Pool):
    """Runs async functions."""

    executor: ClassVar[str] = "tasks"

    def __init__(self, name: str, context: PoolContext, *, workers: int, queue: int) -> None:
        super().__init__(name, context, workers=workers, queue=queue)
        self._jobs: _Jobs = {}
        self._portal: Portal | None = None

    def put(self, task: Task[Any], wake: Wake | None = None) -> bool:
        """As ``Pool.put``."""
        task.submitted_at = time.monotonic()
        loop = asyncio._get_running_loop()
        with self._mutex:
            if self._closing:
                raise BackgroundClosedError(f"pool {self.name} drains")
            if self.full:
                if wake is not None:
                    self._wanting.append(wake)
                return False
            if loop is None:
                if self._portal is None:
                    self._portal = Portal(f"background-{self.name}", drain_seconds=PORTAL_SECONDS)
                    # The drain at exit ends it; by itself it would end first, with what runs.
                    atexit.unregister(self._portal.close)
                loop = self._portal.loop
            task.loop = loop
            if self._busy >= self.workers:
                self._waiting.append(task)
                return True
            self._busy += 1
        if not self._launch(task):
            self._left()
        return True

    def help(self, task: Task[Any]) -> None:
        """Nobody of this pool blocks: handles refuse to on a loop. Its own threads may wait."""

    async def before_awaiting(self, task: Task[Any]) -> None:
        """As ``Pool.before_awaiting``."""
        inside = current.get()
        if inside is None:
            return
        if inside.pool is not self:
            self.check_wait(inside)
        elif (call := begin(task)) is not None:
            job = asyncio.create_task(self._perform(task, call), context=call.context)
            self._jobs[job] = task
            job.add_done_callback(lambda done: self._jobs.pop(done, None))
            await asyncio.wait([job])

    # --- running ----------------------------------------------------------------------------------
    def _launch(self, task: Task[Any]) -> bool:
        """Begin a task on its loop; False where that has been closed."""
        assert task.loop is not None
        if task.loop is asyncio._get_running_loop():
            self._begin(task)
            return True
        try:
            task.loop.call_soon_threadsafe(self._begin, task)
        except RuntimeError:
            self._fail(task)
            return False
        return True

    def _begin(self, task: Task[Any]) -> None:
        call = begin(task)
        if call is None:
            self._left()
            return
        performing = self._perform(task, call)
        job = asyncio.get_running_loop().create_task(performing, context=call.context)
        self._jobs[job] = task
        job.add_done_callback(partial(self._over, task, call))

    async def _perform(self, task: Task[Any], call: Call) -> None:
        function, value, error = call.function, None, None
        limit = function.timeout_seconds
        task.began_at = time.monotonic()
        until = None if limit is None else task.began_at + limit
        current.set(Inside(self, until))
        scope = asyncio.timeout(limit)
        try:
            async with scope:
                value = await function.run(*call.args, **call.kwargs)
        except BaseException as raised:
            error = raised
            if scope.expired() and isinstance(raised, TimeoutError):
                text = f"{function.name} was cut off after {limit:g} s"
                error = BackgroundTimeoutError(text)
                error.__cause__ = raised
                fact = TaskOverdue(pool=self.name, function=function.name, seconds=limit or 0.0)
                self.context.hooks.emit(fact)
            if isinstance(raised, asyncio.CancelledError | GeneratorExit) or interrupts(raised):
                raise  # others would end the loop, which is not this call's to end
        finally:
            settle(task, value, error)
            closed = isinstance(error, GeneratorExit)  # and may not await any more
            if error is not None and function.failure_log and not closed:
                await _aside(partial(self.ended, task, call, error))
            else:
                self.ended(task, call, error)
            task = call = error = None  # type: ignore[assignment]  # the error's frames end here

    def _over(self, task: Task[Any], call: Call, job: asyncio.Task[None]) -> None:
        self._jobs.pop(job, None)
        error = asyncio.CancelledError("its event loop ended before it could begin")
        if settle(task, None, error):  # cancelled before its first step
            self.ended(task, call, error)
        if not job.cancelled():
            job.exception()  # the handle has it
        elif job.cancelling() and not self._closing:
            self._fail_waiting(job.get_loop())
        self._left()

    def _fail_waiting(self, loop: asyncio.AbstractEventLoop) -> None:
        """Somebody else cancels the jobs of a loop: it ends, and would begin others in vain."""
        with self._mutex:
            lost = [task for task in self._waiting if task.loop is loop]
            for task in lost:
                self._waiting.remove(task)
        for task in lost:
            self._fail(task)

    def _fail(self, task: Task[Any]) -> None:
        call = begin(task)
        if call is not None:
            text = f"the event loop ended before {task.function.name} could begin"
            error = BackgroundClosedError(text)
            settle(task, None, error)
            self.ended(task, call, error)

    def _left(self) -> None:
        """A place is free: the next one, and who waits for one."""
        while True:
            task = None
            with self._mutex:
                self._busy -= 1
                wake = self._wanting.popleft() if self._wanting else None
                if self._waiting:
                    task = self._waiting.popleft()
                    self._busy += 1
            if wake is not None:
                wake()
            if task is None or self._launch(task):
                return

    # --- ending -----------------------------------------------------------------------------------
    @property
    def hopeless(self) -> bool:
        """As ``Pool.hopeless``: calls of this loop cannot go on while its thread waits."""
        here = asyncio._get_running_loop()
        return here is not None and any(job.get_loop() is here for job in list(self._jobs))

    def cancel(self) -> None:
        """As ``Pool.cancel``."""
        here = asyncio._get_running_loop()
        for job in list(self._jobs):
            loop = job.get_loop()
            if loop is here:
                job.cancel()
            elif not loop.is_closed():
                loop.call_soon_threadsafe(job.cancel)

    def stop(self) -> int:
        """As ``Pool.stop``."""
        left = self._not_lost(self._jobs)
        for job, task in left.items():
            out = io.StringIO()
            job.print_stack(file=out)
            text = "pool %s does not wait any longer for %s, which is here:\n%s"
            _log.error(text, self.name, task.function.name, out.getvalue())
        with self._mutex:
            portal, self._portal = self._portal, None
        if portal is not None:
            portal.close()
        self._jobs = self._not_lost(left)
        return len(left)

    def _not_lost(self, jobs: _Jobs) -> _Jobs:
        return {job: task for job, task in jobs.items() if not self._is_lost(job, task)}

    def _is_lost(self, job: asyncio.Task[None], task: Task[Any]) -> bool:
        """Whether its loop was closed over it; then its handle is ended here."""
        if not job.get_loop().is_closed():
            return False
        if settle(task, None, asyncio.CancelledError("its event loop was closed")):
            self._left()
        return True


async def _aside(run: Callable[[], None]) -> None:
    """In a thread, to the end: the failure log is a database's."""
    context = contextvars.copy_context()
    try:
        job = asyncio.get_running_loop().run_in_executor(None, context.run, run)
    except RuntimeError:  # the interpreter ends: no thread is given any more
        run()
        return
    await asyncio.shield(job)
