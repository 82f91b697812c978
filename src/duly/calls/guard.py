"""Who may call now: breaker, places and retry budget, which all callers of one call share.

Theory of operation.  ``enter`` gives a permit or raises; every permit ends exactly once with
``succeeded``, ``failed`` or ``returned``.  The place (of the bulkhead) is given back apart from it,
with ``leave``, because a thread that was cut off at its deadline works on: its verdict is in, its
place is not free.  The lock is held for these few lines and never during a call, so a slow call
holds up nobody.

    place     | taken by      | given back by
    ----------+---------------+---------------------------------------------------
    free      | ``enter``     | ``leave``, when the work has really ended
    none free | a waiter      | ``leave`` hands it to the waiter that waits longest

The invariants: places in use are never more than ``limit``; a place that is handed to a waiter
which has just given up is handed on.  A forked child has none of its parent's work, and begins
anew.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import Protocol

from duly.errors import CallRefusedError
from duly.kernel.breaker import Breaker, BreakerState, Permit, State
from duly.kernel.budget import Budget, BudgetState
from duly.kernel.bulkhead import LIMIT_MAX, Bulkhead

__all__ = ["Begins", "Guard", "at_fork"]

_FREE = Permit(0, 0)  # of a call without a breaker
Moved = Callable[[State], None]


# --- forks ----------------------------------------------------------------------------------------
class Begins(Protocol):
    """What holds locks, places or threads of this process."""

    def begin(self) -> None:
        """Forget all that is under way."""
        ...


# Everything of that kind in this process: a child that was forked while a thread of the parent
# held a lock, or a place, would wait for it for ever.
_living: weakref.WeakSet[Begins] = weakref.WeakSet()


def at_fork(one: Begins) -> None:
    """A forked child begins anew with it."""
    _living.add(one)


def _begin_all() -> None:
    for one in list(_living):
        one.begin()


os.register_at_fork(after_in_child=_begin_all)


# --- places and permits ---------------------------------------------------------------------------


class _Waiter:
    """Somebody who waits for a place. tell: wakes it, from any thread."""

    __slots__ = ("granted", "tell")

    def __init__(self, tell: Callable[[], object]) -> None:
        self.tell = tell
        self.granted = False


class Guard:
    """The guard of one call. moved: told of every change of the breaker, outside the lock."""

    def __init__(
        self,
        name: str,
        breaker: Breaker | None,
        bulkhead: Bulkhead | None,
        *,
        budget: Budget,
        moved: Moved = lambda _: None,
    ) -> None:
        self._name, self._moved = name, moved
        self._policy, self._bulkhead, self._budget_policy = breaker, bulkhead, budget
        self._limit = LIMIT_MAX if bulkhead is None else bulkhead.limit
        self._wait_seconds = 0.0 if bulkhead is None else bulkhead.wait_seconds
        self.begin()
        at_fork(self)

    def begin(self) -> None:
        """Forget all that is under way."""
        self._lock = threading.Lock()
        self._breaker = None if self._policy is None else BreakerState(self._policy)
        self._budget = BudgetState(self._budget_policy)
        self._in_use = 0
        self._waiting: deque[_Waiter] = deque()

    # --- what it says -----------------------------------------------------------------------------
    @property
    def state(self) -> State | None:
        """Of the breaker; None without one."""
        return None if self._breaker is None else self._breaker.state

    @property
    def in_use(self) -> int:
        """Places taken, by calls whose callers have gone too."""
        return self._in_use

    # --- places -----------------------------------------------------------------------------------
    def take(self) -> bool:
        """A place at once; False where none is free."""
        with self._lock:
            if self._in_use >= self._limit:
                return False
            self._in_use += 1
            return True

    def take_waiting(self, left_seconds: float) -> None:
        """A place, waiting for it in this thread. Raises CallRefusedError."""
        if self.take():
            return
        patience = self._patience(left_seconds)
        ready = threading.Lock()
        ready.acquire()
        waiter = self._queue(ready.release)
        try:
            if ready.acquire(timeout=patience):
                return
        except BaseException:
            self._give_up(waiter, keep=False)
            raise
        self._give_up(waiter, keep=True)

    async def take_waiting_async(self, left_seconds: float) -> None:
        """The same on an event loop."""
        if self.take():
            return
        patience = self._patience(left_seconds)
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        waiter = self._queue(lambda: loop.call_soon_threadsafe(ready.set))
        try:
            async with asyncio.timeout(patience):
                await ready.wait()
        except TimeoutError:
            self._give_up(waiter, keep=True)
        except BaseException:
            self._give_up(waiter, keep=False)
            raise

    def leave(self) -> None:
        """The work has ended: its place is free, or goes to the one who waits longest."""
        while True:
            with self._lock:
                if not self._waiting:
                    self._in_use -= 1
                    return
                waiter = self._waiting.popleft()
                waiter.granted = True
            try:
                waiter.tell()
                return
            except RuntimeError:  # its event loop is closed: nobody waits there any more
                continue

    def _patience(self, left_seconds: float) -> float:
        patience = min(self._wait_seconds, left_seconds)
        if patience <= 0:
            raise self._full()
        return patience

    def _queue(self, tell: Callable[[], object]) -> _Waiter:
        waiter = _Waiter(tell)
        with self._lock:
            if self._in_use < self._limit:
                self._in_use += 1
                waiter.granted = True
            else:
                self._waiting.append(waiter)
        if waiter.granted:
            tell()
        return waiter

    def _give_up(self, waiter: _Waiter, *, keep: bool) -> None:
        """It waits no longer. keep: a place that has come just now is used, else handed on."""
        with self._lock:
            granted = waiter.granted
            if not granted:
                self._waiting.remove(waiter)
        if granted and not keep:
            self.leave()
        elif not granted and keep:
            raise self._full()

    def _full(self) -> CallRefusedError:
        return CallRefusedError(f"{self._name}: all {self._limit} places", code="BULKHEAD_FULL")

    # --- permits ----------------------------------------------------------------------------------
    def enter(self, first: bool) -> Permit:
        """Leave to call, with a place in hand. first: no retry. Raises CallRefusedError."""
        breaker = self._breaker
        with self._lock:
            if first:
                self._budget.called()
            if breaker is None:
                return _FREE
            before = breaker.state
            permit = breaker.allow(time.monotonic() if before is not State.CLOSED else 0.0)
            after = breaker.state
        if after is not before:
            self._moved(after)
        if permit is None:
            wait = breaker.wait_seconds(time.monotonic())
            raise CallRefusedError(f"{self._name}: open for {wait:.1f} s", code="BREAKER_OPEN")
        return permit

    def succeeded(self, permit: Permit) -> None:
        """The call was answered well."""
        breaker = self._breaker
        if breaker is None:
            return
        with self._lock:
            before = breaker.state
            breaker.succeeded(permit)
            after = breaker.state
        if after is not before:
            self._moved(after)

    def failed(self, permit: Permit) -> None:
        """The call failed by the peer's fault, or nobody knows."""
        breaker = self._breaker
        if breaker is None:
            return
        with self._lock:
            before = breaker.state
            breaker.failed(permit, time.monotonic())
            after = breaker.state
        if after is not before:
            self._moved(after)

    def returned(self, permit: Permit) -> None:
        """The call was cancelled, or failed by nobody's fault: a probe's place is free again."""
        if self._breaker is not None:
            with self._lock:
                self._breaker.returned(permit)

    def may_retry(self) -> bool:
        """Take one retry from the budget; False where it is used up."""
        with self._lock:
            return self._budget.spend()
