"""One call at work: attempts under a deadline, a guard and a policy, sync and async alike.

Theory of operation.  An attempt takes a place, then a permit, then calls; what came of it ends the
permit, and the end of the work frees the place.  After a failure the policy says whether there is
another attempt, the budget and the time left say whether it can be.

    async function   is cancelled at the deadline, in place
    plain function   with a deadline runs in a thread; at the deadline its caller goes on and the
                     thread keeps its place until it has really ended; without one it runs here

The invariants: no lock is held during a call; each permit and each place is given back exactly once
however the attempt ends, by cancellation too; nobody waits for an attempt that could only begin
past the deadline; what was cut off at the deadline is unknown, what never began is refused.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from duly.calls.deadline import deadline
from duly.calls.guard import Guard
from duly.calls.policy import CallPolicy, Meaning
from duly.calls.threads import Task, Threads
from duly.errors import CallDeadlineError, CallRefusedError
from duly.kernel import failpoints
from duly.kernel.breaker import Permit, State

__all__ = ["CallCore"]

Arguments = tuple[Any, ...]
Keywords = Mapping[str, Any]
_monotonic = time.monotonic


class CallCore:
    """What both colours of a call have in common: its policy, its guard, its threads.

    moved: told of every change of the breaker's state.
    """

    def __init__(
        self, function: Callable[..., Any], policy: CallPolicy, moved: Callable[[State], None]
    ) -> None:
        self.function, self.policy = function, policy
        self.guard = Guard(
            policy.name, policy.breaker, policy.bulkhead, budget=policy.budget, moved=moved
        )
        self.threads = Threads(policy.name)
        self._seconds = math.inf if policy.deadline_seconds is None else policy.deadline_seconds

    # --- plain functions --------------------------------------------------------------------------
    def run(self, args: Arguments, kwargs: Keywords) -> Any:
        """Call a plain function. Raises what the last attempt raised, CallRefusedError,
        CallDeadlineError.
        """
        end, attempt = self._end(), 1
        while True:
            try:
                return self._attempt(args, kwargs, attempt=attempt, end=end)
            except Exception as error:
                delay = self._again(error, attempt, end)
                if delay is None:
                    raise
            attempt += 1
            time.sleep(delay)

    def _attempt(self, args: Arguments, kwargs: Keywords, *, attempt: int, end: float) -> Any:
        guard, task = self.guard, None
        if not guard.take():
            guard.take_waiting(end - _monotonic())
        try:
            permit = guard.enter(attempt == 1)
            try:
                failpoints.hit(failpoints.CALL_PERMITTED)
                if self._seconds == math.inf:
                    value = self.function(*args, **kwargs)
                else:
                    self._check_time(end)
                    task = self._start(args, kwargs, end)
                    value = self._result(task, end)
                failpoints.hit(failpoints.CALL_ANSWERED)
            except BaseException as error:
                self._judge(permit, error)
                raise
            guard.succeeded(permit)
            return value
        finally:
            if task is None:  # else its thread does
                guard.leave()

    def _start(self, args: Arguments, kwargs: Keywords, end: float) -> Task:
        outer = deadline.get()
        deadline.set(end)
        try:
            task = Task(partial(self.function, *args, **kwargs), self.guard.leave)
        finally:
            deadline.set(outer)
        self.threads.start(task)
        return task

    def _result(self, task: Task, end: float) -> Any:
        try:
            if not task.wait(max(0.0, end - _monotonic())):
                raise self._cut()
        except BaseException:
            self.threads.abandon(task)
            raise
        if task.error is not None:
            raise task.error
        return task.value

    # --- async functions --------------------------------------------------------------------------
    async def run_async(self, args: Arguments, kwargs: Keywords) -> Any:
        """Call an async function. Raises as ``run``."""
        end, attempt = self._end(), 1
        while True:
            try:
                return await self._attempt_async(args, kwargs, attempt=attempt, end=end)
            except Exception as error:
                delay = self._again(error, attempt, end)
                if delay is None:
                    raise
            attempt += 1
            await asyncio.sleep(delay)

    async def _attempt_async(
        self, args: Arguments, kwargs: Keywords, *, attempt: int, end: float
    ) -> Any:
        guard = self.guard
        if not guard.take():
            await guard.take_waiting_async(end - _monotonic())
        try:
            permit = guard.enter(attempt == 1)
            try:
                failpoints.hit(failpoints.CALL_PERMITTED)
                if end == math.inf:
                    value = await self.function(*args, **kwargs)
                else:
                    value = await self._within(args, kwargs, end)
                failpoints.hit(failpoints.CALL_ANSWERED)
            except BaseException as error:
                self._judge(permit, error)
                raise
            guard.succeeded(permit)
            return value
        finally:
            guard.leave()

    async def _within(self, args: Arguments, kwargs: Keywords, end: float) -> Any:
        left = self._check_time(end)
        outer = deadline.get()
        deadline.set(end)
        scope = asyncio.timeout(left)
        try:
            async with scope:
                return await self.function(*args, **kwargs)
        except TimeoutError:
            if scope.expired():
                raise self._cut() from None
            raise  # the function's own
        finally:
            deadline.set(outer)

    # --- both -------------------------------------------------------------------------------------
    def _end(self) -> float:
        """When it is over, by the monotonic clock: never later than what we are called from."""
        return min(_monotonic() + self._seconds, deadline.get())

    def _check_time(self, end: float) -> float:
        """The time left. Raises CallRefusedError where there is none."""
        left = end - _monotonic()
        if left <= 0:
            raise CallRefusedError(
                f"{self.policy.name}: no time left to begin", code="NO_TIME_LEFT"
            )
        return left

    def _cut(self) -> CallDeadlineError:
        return CallDeadlineError(f"{self.policy.name}: no answer in {self._seconds:g} s")

    def _judge(self, permit: Permit, error: BaseException) -> None:
        """End the permit of an attempt that raised."""
        meaning = self.policy.meaning(error)
        if meaning in (Meaning.FAILED, Meaning.UNKNOWN):
            self.guard.failed(permit)
        else:
            self.guard.returned(permit)

    def _again(self, error: Exception, attempt: int, end: float) -> float | None:
        """The seconds until the next attempt; None where there is none."""
        delay = self.policy.again(error, attempt, random.random())
        if delay is None or _monotonic() + delay >= end or not self.guard.may_retry():
            return None
        return delay
