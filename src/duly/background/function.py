"""A function that can be called in the background, and the ways to do so.

Owns what a user calls - ``submit``, ``after``, ``durable`` - and what happens when the pool is
full.  The function itself stays what it was: called directly it runs here and now.  The invariants:
a call is checked for what belongs to its caller before it goes anywhere; no way into a pool blocks
an event loop; a call that waits for a commit begins after the outermost one or is cancelled.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from typing import Any, Generic, NoReturn, ParamSpec, Protocol, TypeVar

from duly.background.guard import Bound, check
from duly.background.pool import Pool
from duly.background.task import Call, Function, Task, begin, current, hold, in_event_loop, settle
from duly.background.threads import ThreadPool
from duly.errors import BackgroundClosedError, BackgroundFullError
from duly.message import Command
from duly.observe.facts import DroppedByPolicy, TaskNotQueued
from duly.ports import Join, Outlet

__all__ = ["AfterCommit", "Background", "Durable", "Surroundings"]

P = ParamSpec("P")
R = TypeVar("R")  # what a direct call returns
T = TypeVar("T")  # what the handle gives


class Surroundings(Protocol):
    """What a function needs of its App."""

    @property
    def bound(self) -> Bound:
        """Tells what belongs to its caller."""
        ...

    def join_of(self, target: Any) -> Join:
        """How a target's transaction is joined."""
        ...

    def send(self, target: Any, command: Command) -> str:
        """Store a command with a transaction; its message id."""
        ...

    def store(self, command: Command) -> str:
        """Store a command by itself; its message id."""
        ...

    def report(self, name: str, error: Exception) -> None:
        """Something after a commit failed."""
        ...


class Background(Generic[P, R, T]):
    """A function that can also be called in the background."""

    def __init__(
        self, function: Function, pool: Callable[[], Pool], *, around: Surroundings
    ) -> None:
        functools.update_wrapper(self, function.run)  # first: it copies attributes, of any name
        self.function, self._pool, self._around = function, pool, around

    @cached_property
    def pool(self) -> Pool:
        """Where it runs; made at the first use."""
        return self._pool()

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call it here and now."""
        return self.function.run(*args, **kwargs)  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        return f"<background {self.function.name} in pool {self.pool.name}>"

    # --- now --------------------------------------------------------------------------------------
    def submit(self, *args: P.args, **kwargs: P.kwargs) -> Task[T]:
        """Start it in the pool; returns its handle at once.

        Guarantee: it runs at most once; lost when the process dies first. On failure: the handle
        raises, and where nobody looks ``on_error`` is called or an error is logged. Idempotence:
        none; each call is one. Raises BackgroundFullError by ``on_full``, BackgroundClosedError,
        CrossesThreadsError.
        """
        task: Task[T] = self._task(args, kwargs)
        if not self._put(task):
            self._full(task)
        return task

    async def asubmit(self, *args: P.args, **kwargs: P.kwargs) -> Task[T]:
        """As ``submit``, and where ``on_full`` says ``block``, ``caller_runs`` or ``defer``, wait
        for that without blocking the event loop.
        """
        task: Task[T] = self._task(args, kwargs)
        if self._put(task):
            return task
        if self.function.on_full == "defer":
            await asyncio.to_thread(self._defer, task)
        elif self.function.on_full in ("block", "caller_runs"):
            await self._until_place(task)
        else:
            self._full(task)
        return task

    # --- with a transaction -----------------------------------------------------------------------
    def after(self, target: Any) -> AfterCommit[P, T]:
        """``after(session).submit(...)``: start it after the outermost commit of ``target``.

        target: as for ``App.publish``. Guarantee: never for what was rolled back, never before the
        commit can be seen; lost when the process dies in between. On failure: as ``submit``; where
        the pool is full then, the handle has it, for the commit stands.
        """
        return AfterCommit(self, target)

    def durable(self, target: Any) -> Durable[P]:
        """``durable(session).submit(...)``: store the call as a command with ``target``; it runs
        where the App's role ``consumer`` does.

        Guarantee: committed together, or not at all; runs at least once, and again after a crash.
        On failure: tried again by ``retry``, then kept for a person. Idempotence: the function's
        own business. Arguments are JSON, read back by the function's annotations.
        """
        return Durable(self, target)

    def remaining_seconds(self) -> float | None:
        """Inside a call: the seconds until its timeout; None where it has none."""
        inside = current.get()
        if inside is None or inside.until is None:
            return None
        return inside.until - time.monotonic()

    # --- details ----------------------------------------------------------------------------------
    def _task(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Task[Any]:
        function = self.function
        context = contextvars.copy_context()
        if function.without:
            context = _without(context, function.without)
        if function.guard:
            check(function.run, args, kwargs, context=context, bound=self._around.bound)
        call = Call(function, args, kwargs, context)
        if function.failure_log:
            function.form.check(call)
        return Task(call, self.pool)

    def _put(self, task: Task[Any]) -> bool:
        try:
            return self.pool.put(task)
        except BackgroundClosedError:
            if self.function.on_full != "defer":
                raise
            return False  # a pool that drains has no place either

    def _full(self, task: Task[Any]) -> None:
        policy, pool = self.function.on_full, self.pool
        if policy == "discard":
            task.cancel()
            dropped = DroppedByPolicy(topic=self.function.name, code="BACKGROUND_FULL", count=1)
            pool.context.hooks.emit(dropped)
        elif policy == "raise":
            self._refuse(f"{pool.name} has {pool.workers} at work and {pool.queue} waiting")
        elif in_event_loop():
            self._refuse(f"{pool.name} is full and {policy} would block the event loop; asubmit")
        elif policy == "caller_runs" or self._is_inside():
            assert isinstance(pool, ThreadPool)
            self._not_queued("ran_by_caller")
            pool.run_here(task)
        elif policy == "defer":
            self._defer(task)
        else:
            self._block(task)

    def _is_inside(self) -> bool:
        """Whether a worker of this very pool asks for a place: it would wait for itself."""
        inside = current.get()
        if inside is None or self.function.on_full != "block":
            return False
        if inside.pool is not self.pool:
            self.pool.check_wait(inside)
            return False
        return isinstance(self.pool, ThreadPool)

    def _block(self, task: Task[Any]) -> None:
        bell = threading.Lock()
        bell.acquire()
        until = time.monotonic() + self.function.full_timeout_seconds
        while not self.pool.put(task, bell.release):
            if not bell.acquire(timeout=max(0.0, until - time.monotonic())):
                self.pool.unwant(bell.release)
                if self.pool.put(task):  # a place that was told of in that very moment
                    return
                self._refuse(f"{self.pool.name} had no place in time")

    async def _until_place(self, task: Task[Any]) -> None:
        await self.pool.before_awaiting(task)
        if task.call is None:  # a call of this very pool asked: it has done it itself
            return
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self.function.full_timeout_seconds):
                while True:
                    free = asyncio.Event()

                    def wake(free: asyncio.Event = free) -> None:
                        with suppress(RuntimeError):  # its loop has ended meanwhile
                            loop.call_soon_threadsafe(free.set)

                    if self.pool.put(task, wake):
                        return
                    try:
                        await free.wait()
                    except BaseException:
                        self.pool.unwant(wake)
                        raise
        except TimeoutError:
            if not self.pool.put(task):
                self._refuse(f"{self.pool.name} had no place in time")

    def _refuse(self, text: str) -> NoReturn:
        self._not_queued("raised")
        raise BackgroundFullError(text)

    def _not_queued(self, outcome: str) -> None:
        fact = TaskNotQueued(pool=self.pool.name, function=self.function.name, outcome=outcome)
        self.pool.context.hooks.emit(fact)

    def _defer(self, task: Task[Any]) -> None:
        """Store it; its handle is cancelled, for the result will be had elsewhere."""
        call = task.call
        if call is None or not hold(task):  # who waited for it has begun it
            return
        self._around.store(self.function.form.command(call))
        self._not_queued("deferred")
        task.cancel()

    def _enter_late(self, task: Task[Any]) -> None:
        """After a commit: as ``submit``, but what goes wrong is the handle's."""
        task.commits_in = None
        try:
            if self._put(task):
                return
            if self.function.on_full == "defer" and in_event_loop():
                asyncio.get_running_loop().run_in_executor(None, self._defer_late, task)
            else:
                self._full(task)
        except Exception as error:  # noqa: BLE001  # the commit stands
            self._fail_late(task, error)

    def _defer_late(self, task: Task[Any]) -> None:
        try:
            self._defer(task)
        except Exception as error:  # noqa: BLE001  # nobody else would see it
            self._fail_late(task, error)

    def _fail_late(self, task: Task[Any], error: Exception) -> None:
        task.commits_in = None
        call = begin(task)
        if call is not None:
            settle(task, None, error)
            self.pool.ended(task, call, error)


class AfterCommit(Generic[P, T]):
    """A function, bound to the commit of a transaction."""

    def __init__(self, background: Background[P, Any, T], target: Any) -> None:
        self._background, self._target = background, target

    def submit(self, *args: P.args, **kwargs: P.kwargs) -> Task[T]:
        """Start it after the outermost commit; see ``Background.after``.

        Returns its handle: cancelled where the work is rolled back. Raises NotInTransactionError,
        CrossesThreadsError, ConfigurationError.
        """
        task: Task[T] = self._background._task(args, kwargs)
        task.commits_in = asyncio.current_task() if in_event_loop() else threading.get_ident()
        entry = _Entry(self._background, task)
        self._background._around.join_of(self._target).buffer(self._target, entry)
        return task


class Durable(Generic[P]):
    """A function, bound to a transaction that stores its calls."""

    def __init__(self, background: Background[P, Any, Any], target: Any) -> None:
        self._background, self._target = background, target

    def submit(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """Store the call; returns its message id. See ``Background.durable``.

        Raises NotSerializableError, PayloadTooLargeError, NotInTransactionError,
        CrossesThreadsError.
        """
        background = self._background
        function, nothing = background.function, contextvars.Context()
        if function.guard:
            check(function.run, args, kwargs, context=nothing, bound=background._around.bound)
        command = function.form.command(Call(function, args, kwargs, nothing))
        return background._around.send(self._target, command)


class _Entry:
    """What waits on a transaction's frame (``ports.Pending``)."""

    __slots__ = ("_background", "_task")
    outlet: Outlet | None = None
    frozen = True

    def __init__(self, background: Background[Any, Any, Any], task: Task[Any]) -> None:
        self._background = background
        self._task: Task[Any] | None = task

    def resolve(self) -> None:
        """Nothing is late in a call."""

    def committed(self) -> None:
        """Start it."""
        task, self._task = self._task, None
        if task is not None:
            self._background._enter_late(task)

    def failed(self, error: Exception) -> None:
        """Only what the user's session did after the commit comes here."""
        self._background._around.report(self._background.function.name, error)

    def __del__(self) -> None:
        # The frame is gone and nothing was committed: a rollback has no other moment that all
        # kinds of transactions have.
        if self._task is not None:
            self._task.cancel()


def _without(
    context: contextvars.Context, left_out: tuple[contextvars.ContextVar[Any], ...]
) -> contextvars.Context:
    found = contextvars.Context()
    for variable, value in context.items():
        if variable not in left_out:
            found.run(variable.set, value)
    return found
