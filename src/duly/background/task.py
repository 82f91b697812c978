"""The handle of one call in the background: a future that is never silent.

Owns what a caller holds - ``result``, ``exception``, ``await``, ``cancel`` - and the promise that a
failure nobody looked at is told: by the handle's own end of life, or at the drain of its pool,
whichever comes first.  Waiting asks the pool first, because a worker that waits for work which only
it could do would wait for ever.  Left out: where it runs, and what telling means (``pool``).
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future, InvalidStateError
from concurrent.futures._base import CANCELLED, PENDING, RUNNING
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from duly.errors import ConfigurationError
from duly.kernel.backoff import Retry

if TYPE_CHECKING:
    from duly.background.pool import Pool
    from duly.background.stored import StoredForm

__all__ = [
    "Call",
    "Function",
    "Inside",
    "Task",
    "Tell",
    "begin",
    "current",
    "hold",
    "in_event_loop",
    "interrupts",
    "settle",
    "tell",
]

R = TypeVar("R")
Tell = Callable[[str, BaseException], object]
_log = logging.getLogger("duly.background")


class Inside:
    """The call that runs here, known by identity. until: when its time is up, monotonic."""

    __slots__ = ("is_async", "pool", "until")

    def __init__(self, pool: Pool, until: float | None) -> None:
        self.pool, self.until = pool, until
        self.is_async = pool.executor == "tasks"


current: contextvars.ContextVar[Inside | None] = contextvars.ContextVar(
    "duly_background", default=None
)


@dataclass(frozen=True, slots=True, eq=False)
class Function:
    """A function and how it is run in the background; made by ``registry``."""

    name: str
    run: Callable[..., Any]
    on_full: str
    full_timeout_seconds: float
    timeout_seconds: float | None
    on_error: Tell | None
    failure_log: bool
    guard: bool
    retry: Retry
    form: StoredForm
    without: tuple[contextvars.ContextVar[Any], ...]


class Call(NamedTuple):
    """One call: what is called with what. Its arguments are nobody's to print."""

    function: Function
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    context: contextvars.Context

    def __repr__(self) -> str:
        return f"Call({self.function.name})"


class Task(Future[R]):
    """The handle of a call; also a ``concurrent.futures.Future``, and awaitable.

    Cancelling works until it begins. ``cancelled()`` is also what becomes of a call whose
    transaction was rolled back, that was discarded, or that a drain found waiting.
    """

    def __init__(self, call: Call, pool: Pool) -> None:
        super().__init__()
        self.call: Call | None = call
        self.function = call.function
        self.pool = pool
        self.submitted_at = 0.0
        self.began_at: float | None = None
        self.thread: int | None = None  # of the worker that runs it
        self.loop: asyncio.AbstractEventLoop | None = None
        self.commits_in: object = None  # the thread or asyncio task whose commit it waits for
        self._looked = False
        self._untold = False

    def __repr__(self) -> str:
        return f"<Task {self.function.name} {self._state.lower()}>"

    def result(self, timeout: float | None = None) -> R:
        """What the function returned, or what it raised. timeout: seconds.

        Raises TimeoutError, CancelledError; ConfigurationError where waiting would never end
        (WAITS_FOR_ITS_OWN_COMMIT, WAIT_CYCLE) or would block an event loop (INSIDE_EVENT_LOOP).
        """
        self._look()
        if not self.done():
            self._before_blocking(timeout)
        try:
            return super().result(timeout)
        finally:
            self = None  # type: ignore[assignment]  # noqa: PLW0642  # else the error's frames keep it alive

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What the function raised, None for nothing. Raises as ``result``."""
        self._look()
        if not self.done():
            self._before_blocking(timeout)
        return super().exception(timeout)

    def __await__(self) -> Generator[Any, None, R]:
        return self._wait().__await__()

    async def _wait(self) -> R:
        self._look()
        if self.commits_in is not None and self.commits_in is asyncio.current_task():
            raise self._own_commit()
        if not self.done():
            await self.pool.before_awaiting(self)
        return await asyncio.wrap_future(self)

    def _look(self) -> None:
        self._looked, self._untold = True, False

    def _before_blocking(self, timeout: float | None) -> None:
        if timeout is None and self.commits_in == threading.get_ident():
            raise self._own_commit()
        if in_event_loop():
            text = f"result() of {self.function.name} would block the event loop; await it"
            raise ConfigurationError(text, code="INSIDE_EVENT_LOOP")
        if timeout is None:  # a wait that ends by itself needs no help
            self.pool.before_waiting(self)

    def _own_commit(self) -> ConfigurationError:
        text = f"{self.function.name} begins after a commit that whoever waits has yet to make"
        return ConfigurationError(text, code="WAITS_FOR_ITS_OWN_COMMIT")

    def __del__(self) -> None:
        if getattr(self, "_untold", False):
            tell(self)


# --- the pool's side ------------------------------------------------------------------------------
def begin(task: Task[Any]) -> Call | None:
    """The call, to be run by whoever asked; None where another has it, or nobody may."""
    with task._condition:
        if task.commits_in is not None:  # not before that
            return None
        if task._state == PENDING:
            task._state = RUNNING
            call, task.call = task.call, None
            return call
        if task._state == CANCELLED:
            task.set_running_or_notify_cancel()
        return None


def hold(task: Task[Any]) -> bool:
    """Let nobody begin it from now on, for it is kept elsewhere; False where somebody has, or it
    was cancelled.
    """
    with task._condition:
        held = task._state == PENDING
        if held:
            task.commits_in = "elsewhere"
        return held


def settle(task: Task[Any], value: Any, error: BaseException | None) -> bool:
    """End it; False where its time was up before. Who waits is woken."""
    was, task._untold = task._untold, error is not None and not task._looked
    try:
        if error is None:
            task.set_result(value)
        else:
            task.set_exception(error)
    except InvalidStateError:
        task._untold = was
        return False
    if task._untold:
        task.pool.untold.add(task)
    return True


def tell(task: Task[Any]) -> None:
    """Tell of its failure where nobody has looked; once."""
    with task._condition:
        untold, task._untold = task._untold, False
    error = task._exception
    if untold and error is not None:
        task.pool.uncaught(task.function, error)


def interrupts(error: BaseException | None) -> bool:
    """Whether this is Ctrl-C, which is not the call's alone."""
    if not isinstance(error, KeyboardInterrupt):
        return False
    return threading.current_thread() is threading.main_thread()


def in_event_loop() -> bool:
    """Whether an event loop runs in this thread."""
    return asyncio._get_running_loop() is not None
