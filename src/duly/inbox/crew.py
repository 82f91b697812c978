"""Who runs the jobs of one handler: threads for a plain handler, tasks for an async one.

Owns the workers, each with a desk of its own, and the queue in front of them.  The invariant: every
job that was submitted ends in exactly one call of its ``done`` - with one ending per message,
failures stored where that was asked for - or is given back by ``stop``.  ``done`` may be called
from any thread.  How much is queued is bounded by whoever submits.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import NamedTuple, Protocol

from duly.errors import DulyError, error_code
from duly.inbox.context import ConsumeContext, Job
from duly.inbox.ending import End, Ending, all_done, error_text
from duly.inbox.failures import STORED, Unhandled, dated, store
from duly.inbox.handlers import Handler
from duly.inbox.runner import run, run_async
from duly.runtime.desk import AsyncDesk, Desk

__all__ = ["Crew", "Done", "Task", "crew_of"]

TASKS = 16  # of an async handler, unless it says concurrency=
Done = Callable[[Job, Sequence[Ending]], None]
_log = logging.getLogger("duly.consume")


class Task(NamedTuple):
    """A job, who is told of its end, and whether its failures are stored here (else by whoever is
    told).
    """

    job: Job
    done: Done
    stores: bool


class Crew(Protocol):
    """The workers of one handler."""

    def submit(self, task: Task) -> None:
        """Queue a job. From the loop's thread."""
        ...

    def stop(self) -> list[Task]:
        """Start nothing more; returns what was not begun."""
        ...

    async def join(self, timeout_seconds: float) -> bool:
        """Wait for what is under way; False when it did not end. What can be cancelled then is, and
        not done.
        """
        ...


class _Threads:
    """Plain handlers."""

    def __init__(self, context: ConsumeContext, handler: Handler, count: int) -> None:
        self._context, self._handler = context, handler
        self._tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"duly-{handler.label}-{n}", daemon=True)
            for n in range(count)
        ]
        self._started = False

    def submit(self, task: Task) -> None:
        self._tasks.put(task)
        if not self._started:
            self._started = True
            for thread in self._threads:
                thread.start()

    def stop(self) -> list[Task]:
        left: list[Task] = []
        try:
            while (task := self._tasks.get_nowait()) is not None:
                left.append(task)
        except queue.Empty:
            pass
        for _ in self._threads:
            self._tasks.put(None)
        return left

    async def join(self, timeout_seconds: float) -> bool:
        if not self._started:
            return True
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout_seconds
        for thread in self._threads:
            await asyncio.to_thread(thread.join, max(0.0, until - loop.time()))
        return not any(thread.is_alive() for thread in self._threads)

    def _work(self) -> None:
        context = self._context
        desk = Desk(
            context.database, limit_seconds=context.handler_timeout_seconds, turn=context.turn
        )
        while (task := self._tasks.get()) is not None:
            try:
                endings = run(context, desk, task.job)
                if task.stores:
                    endings = self._store(desk, task.job, endings)
            except BaseException as error:  # noqa: BLE001  # a fault of ours: the job is told, the worker lives
                endings = _fault(task.job, error)
                desk.close()
            task.done(task.job, endings)
        desk.close()

    def _store(self, desk: Desk, job: Job, endings: list[Ending]) -> list[Ending]:
        if all_done(endings):
            return endings
        endings = [dated(ending, job.handler.retry) for ending in endings]
        unhandled = unstored(job, endings)
        if unhandled:
            try:
                desk.run(store(unhandled))
            except DulyError as error:
                return _not_stored(endings, error)
        return endings


class _Tasks:
    """Async handlers."""

    def __init__(self, context: ConsumeContext, handler: Handler, count: int) -> None:
        self._context, self._handler, self._count = context, handler, count
        self._waiting: asyncio.Queue[Task | None] = asyncio.Queue()
        self._workers: list[asyncio.Task[None]] = []

    def submit(self, task: Task) -> None:
        self._waiting.put_nowait(task)
        if not self._workers:
            self._workers = [
                asyncio.create_task(self._work(), name=f"duly {self._handler.label} {n}")
                for n in range(self._count)
            ]

    def stop(self) -> list[Task]:
        left = []
        while not self._waiting.empty():
            if (task := self._waiting.get_nowait()) is not None:
                left.append(task)
        for _ in range(self._count):
            self._waiting.put_nowait(None)
        return left

    async def join(self, timeout_seconds: float) -> bool:
        if not self._workers:
            return True
        _, running = await asyncio.wait(self._workers, timeout=timeout_seconds)
        for worker in running:
            worker.cancel()
        if running:
            await asyncio.wait(running, timeout=timeout_seconds)
        return not running

    async def _work(self) -> None:
        context = self._context
        # No gate here: waiting for it would hold up the loop, and with it the writer in front.
        desk = AsyncDesk(
            context.database, limit_seconds=context.handler_timeout_seconds, turn=nullcontext
        )
        try:
            while (task := await self._waiting.get()) is not None:
                task.done(task.job, await self._handle(desk, task))
        finally:
            await desk.close()

    async def _handle(self, desk: AsyncDesk, task: Task) -> Sequence[Ending]:
        try:
            endings = await run_async(self._context, desk, task.job)
            if task.stores:
                endings = [dated(ending, task.job.handler.retry) for ending in endings]
            unhandled = unstored(task.job, endings) if task.stores else []
            if unhandled:
                try:
                    await desk.call(lambda: desk.desk.run(store(unhandled)))
                except DulyError as error:
                    return _not_stored(endings, error)
            return endings
        except asyncio.CancelledError:
            task.done(task.job, [Ending(End.AGAIN, "CANCELLED")] * len(task.job.messages))
            raise
        except Exception as error:  # noqa: BLE001  # a fault of ours: the job is told, the worker lives
            await desk.close()
            return _fault(task.job, error)


def crew_of(context: ConsumeContext, handler: Handler) -> Crew:
    """The workers of a handler; nothing is started before the first job."""
    if handler.is_async:
        return _Tasks(context, handler, handler.concurrency or max(context.workers, TASKS))
    return _Threads(context, handler, handler.concurrency or context.workers)


def unstored(job: Job, endings: Sequence[Ending]) -> list[Unhandled]:
    """What of a job has to be stored."""
    return [
        Unhandled(identity, message, ending, job.handler.retry, job.handler.order == "key")
        for identity, message, ending in zip(job.identities, job.messages, endings, strict=True)
        if ending.end in STORED
    ]


def _not_stored(endings: Sequence[Ending], error: DulyError) -> list[Ending]:
    again = Ending(End.AGAIN, error_text(error))
    return [again if ending.end in STORED else ending for ending in endings]


def _fault(job: Job, error: BaseException) -> list[Ending]:
    _log.error(
        "%s: a job ended unexpectedly",
        job.handler.label,
        exc_info=error,
        extra={"code": error_code(error)},
    )
    return [Ending(End.AGAIN, error_text(error))] * len(job.messages)
