"""The background functions of one App, and their pools.

Owns registration: what can be seen when a function is decorated - names, options, an async function
in a pool of threads - is refused there.  A pool is made at its first use, of what its functions say
of it; two may not contradict each other.  Every function is also a command of the App's queue
``<app>.background``, so that a stored call finds it wherever the App runs.  Left out: running
(``threads``, ``tasks``), and the ways in (``function``).
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import traceback
import weakref
from collections.abc import Callable, Coroutine, Sequence
from contextlib import closing
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal, ParamSpec, Protocol, TypedDict, TypeVar, Unpack, overload

from duly.background.drain import Drained, drain
from duly.background.function import Background
from duly.background.guard import Bound
from duly.background.pool import Pool, PoolContext, PoolStatus
from duly.background.stored import FAILURE_SOURCE, StoredForm
from duly.background.task import Call, Function, Tell, current
from duly.background.tasks import TaskPool
from duly.background.threads import ThreadPool
from duly.errors import ConfigurationError, DulyError, error_code
from duly.kernel.backoff import Retry
from duly.kernel.durations import Duration, seconds
from duly.kernel.names import check_name
from duly.message import Command, Message, Registry
from duly.observe.hooks import Hooks
from duly.outbox.after_commit import is_async
from duly.outbox.failure_log import add_failure
from duly.outbox.publish import MessageOutlet, PendingMessage
from duly.ports import Database, Join, Steps

__all__ = [
    "BackgroundOptions",
    "BackgroundRegistry",
    "Decorator",
    "Host",
    "Surface",
]

WORKERS = {"threads": 8, "tasks": 100}
QUEUE = 1000
_WORKERS_MAX = 1_000
_QUEUE_MAX = 1_000_000
_POLICIES = ("raise", "block", "caller_runs", "discard", "defer")
_EXIT_SECONDS = 10.0  # where the settings cannot be read
P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
_log = logging.getLogger("duly.background")
_registries: weakref.WeakSet[BackgroundRegistry] = weakref.WeakSet()


class BackgroundOptions(TypedDict, total=False):
    """How a function is run in the background.

    pool: its name, by default ``threads`` or ``tasks``; functions of one pool share its threads and
    its queue. workers: how many calls of the pool run at once (8 threads, 100 tasks). queue: how
    many may wait besides (1,000). on_full: what happens then - ``raise``, ``block`` (up to
    ``full_timeout``), ``caller_runs``, ``discard`` (counted), ``defer`` (stored as a command).
    executor: ``threads`` for plain functions, ``tasks`` for async ones. timeout: of one call; a
    thread runs on past it. name: in logs, metrics and stored calls; default the function's.
    on_error: called with the name and the exception where nobody looked at the handle. failure_log:
    whether failed calls are written there. retry: of stored calls. guard: whether arguments are
    searched for sessions. without: context variables that do not go along.
    """

    pool: str
    workers: int
    queue: int
    on_full: Literal["raise", "block", "caller_runs", "discard", "defer"]
    full_timeout: Duration
    executor: Literal["threads", "tasks"]
    timeout: Duration | None
    name: str
    on_error: Tell | None
    failure_log: bool
    retry: Retry
    guard: bool
    without: Sequence[ContextVar[Any]]


_KNOWN = frozenset(BackgroundOptions.__annotations__)


class Decorator(Protocol):
    """What ``@app.background(...)`` makes of a function."""

    @overload
    def __call__(
        self, function: Callable[P, Coroutine[Any, Any, T]], /
    ) -> Background[P, Coroutine[Any, Any, T], T]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Background[P, R, R]: ...


class Host(Protocol):
    """The App that the functions belong to."""

    name: str
    hooks: Hooks
    registry: Registry

    @property
    def database(self) -> Database:
        """Where stored calls go."""
        ...

    @property
    def outlet(self) -> MessageOutlet:
        """What makes messages."""
        ...

    @property
    def settings(self) -> Any:
        """Its ``drain_timeout``. Raises ConfigurationError."""
        ...

    def send(self, target: Any, message: Any) -> str:
        """As ``App.send``."""
        ...

    @property
    def handle(self) -> Callable[..., Callable[[Any], Any]]:
        """As ``App.handle``."""
        ...

    def _report(self, name: str, error: Exception) -> None: ...


@dataclass(frozen=True)
class Surface:
    """How frameworks are touched. watch: begins to look for sessions that come by a global."""

    join_of: Callable[[Any], Join]
    bound: Bound
    release: Callable[[], None]
    watch: Callable[[Callable[[], Any]], None]


class BackgroundRegistry:
    """The background functions of one App."""

    def __init__(self, host: Host, surface: Surface) -> None:
        self._host, self._surface = host, surface
        self.bound = surface.bound
        self.join_of = surface.join_of
        self._lock = threading.Lock()
        self._wanted: dict[str, dict[str, Any]] = {}
        self._pools: dict[str, Pool] = {}
        self._functions: dict[str, Function] = {}
        self.context = PoolContext(host.hooks, surface.release, self._log_failure)

    # --- registration -----------------------------------------------------------------------------
    def register(self, **options: Unpack[BackgroundOptions]) -> Decorator:
        """Make functions background functions; see ``App.background``."""
        unknown = sorted(options.keys() - _KNOWN)
        if unknown:
            known = ", ".join(sorted(_KNOWN))
            raise ConfigurationError(f"no background option {unknown[0]!r}; there are {known}")

        def decorate(function: Any) -> Any:
            return self._add(function, options)

        return decorate

    def _add(
        self, run: Callable[..., Any], options: BackgroundOptions
    ) -> Background[..., Any, Any]:
        function = self._function(run, options)
        wanted = _pool_of(run, options)
        pool = check_name(options.get("pool", wanted["executor"]), "pool")
        if function.name in self._functions:
            text = f"two background functions are named {function.name!r}; give one of them name="
            raise ConfigurationError(text)
        self._want(pool, function.name, wanted)
        self._functions[function.name] = function
        form = function.form
        stored = self._host.handle(
            form.type, name=f"background.{function.name}", retry=function.retry
        )
        stored(form.call_async if is_async(run) else form.call)
        return Background(function, lambda: self.pool(pool), around=self)

    def _function(self, run: Callable[..., Any], options: BackgroundOptions) -> Function:
        """Check what can be checked now."""
        if not callable(run):
            raise ConfigurationError(f"a {type(run).__qualname__} is not a function")
        policy, timeout = options.get("on_full", "raise"), options.get("timeout")
        if policy not in _POLICIES:
            text = f"on_full must be one of {', '.join(_POLICIES)}, not {ascii(policy)[:60]}"
            raise ConfigurationError(text)
        given = str(options.get("name") or getattr(run, "__name__", ""))
        name = check_name(given, "background function")
        if is_async(run) and policy == "caller_runs":
            text = f"{name} is async and runs on no caller; choose another on_full"
            raise ConfigurationError(text, code="BACKGROUND_EXECUTOR")
        return Function(
            name=name,
            run=run,
            on_full=policy,
            full_timeout_seconds=seconds(options.get("full_timeout", "30s"), "full_timeout"),
            timeout_seconds=None if timeout is None else seconds(timeout, "timeout"),
            on_error=options.get("on_error"),
            failure_log=options.get("failure_log", False),
            guard=options.get("guard", True),
            retry=options.get("retry") or Retry(),
            form=StoredForm(run, self._host.registry, app=self._host.name, name=name),
            without=tuple(options.get("without", ())),
        )

    def _want(self, pool: str, function: str, wanted: dict[str, Any]) -> None:
        known = self._wanted.setdefault(pool, {})
        for key, value in wanted.items():
            if value is None:
                continue
            if known.setdefault(key, value) != value:
                text = f"pool {pool} has {key}={known[key]!r}, and {function} says {value!r}"
                raise ConfigurationError(text, code="BACKGROUND_POOL")
            if pool in self._pools and getattr(self._pools[pool], key) != value:
                raise ConfigurationError(f"pool {pool} is in use already", code="BACKGROUND_POOL")

    def pool(self, name: str) -> Pool:
        """A pool, made now where it is not there yet."""
        with self._lock:
            found = self._pools.get(name)
            if found is None:
                wanted = self._wanted[name]
                executor: str = wanted["executor"]
                kind = ThreadPool if executor == "threads" else TaskPool
                found = self._pools[name] = kind(
                    name,
                    self.context,
                    workers=wanted.get("workers", WORKERS[executor]),
                    queue=wanted.get("queue", QUEUE),
                )
                self._surface.watch(current.get)
                _registries.add(self)
            return found

    # --- looking and ending -----------------------------------------------------------------------
    @property
    def logs_failures(self) -> bool:
        """Whether any function writes its failures to the failure log."""
        return any(function.failure_log for function in self._functions.values())

    def status(self) -> list[PoolStatus]:
        """The pools in use, by name."""
        with self._lock:
            pools = sorted(self._pools.items())
        return [pool.status() for _, pool in pools]

    def drain(self, *, last: bool = False, timeout: Duration | None = None) -> Drained:
        """Let every pool end what it has; what has not begun in time is cancelled, or stored where
        ``on_full`` is ``defer``, and where the rest is goes to the log.

        last: take nothing new afterwards. timeout: for all of it; default ``drain_timeout``.
        Guarantee: returns by its deadline (a second more where a worker is slow to end). On an
        event loop call it by ``asyncio.to_thread``: calls of a loop that waits cannot end, and are
        cancelled.
        """
        with self._lock:
            pools = list(self._pools.values())
        if not pools:
            return Drained(0, 0, 0)
        limit = self._seconds() if timeout is None else seconds(timeout, "timeout")
        return drain(pools, limit, store=self._store_call, last=last)

    def forget(self) -> None:
        """In the child of a fork: as if nothing had been submitted."""
        self._lock = threading.Lock()
        self.context.lock = threading.Lock()
        for pool in self._pools.values():
            pool.forget()

    def _seconds(self) -> float:
        try:
            return float(self._host.settings.drain_timeout)
        except ConfigurationError:
            return _EXIT_SECONDS

    # --- what functions need of the App -----------------------------------------------------------
    def send(self, target: Any, command: Command) -> str:
        """As ``App.send``."""
        return self._host.send(target, command)

    def store(self, command: Command) -> str:
        """Store a command in a transaction of its own; its message id."""
        entry = PendingMessage(self._host.outlet, command, kind="command")
        with closing(self._host.database.connect()) as connection:
            connection.run(self._host.outlet.write([entry], last=True))
        self._host.outlet.committed([entry])
        return entry.id

    def report(self, name: str, error: Exception) -> None:
        """Something after a commit failed."""
        self._host._report(name, error)

    def _store_call(self, call: Call) -> bool:
        try:
            self.store(call.function.form.command(call))
        except (DulyError, TypeError) as error:
            code = error_code(error)
            text = "background %s was not stored at the drain: %s"
            _log.error(text, call.function.name, error, extra={"code": code})
            return False
        return True

    def _log_failure(self, call: Call, error: BaseException) -> None:
        try:
            command = call.function.form.command(call)
            message = PendingMessage(self._host.outlet, command, kind="command").message
            with closing(self._host.database.connect()) as connection:
                connection.run(_failure(message, error))
        except Exception as lost:  # noqa: BLE001  # the call's own failure must still be told
            text = "the failure of background %s is not in the failure log: %s"
            _log.error(text, call.function.name, lost, extra={"code": error_code(lost)})


def _failure(message: Message, error: BaseException) -> Steps[int]:
    where = traceback.extract_tb(error.__traceback__)
    at = f" at {where[-1].filename}:{where[-1].lineno}" if where else ""
    return add_failure(FAILURE_SOURCE, message, f"{error_code(error)}{at}", delay_seconds=None)


def _pool_of(run: Callable[..., Any], options: BackgroundOptions) -> dict[str, Any]:
    right = "tasks" if is_async(run) else "threads"
    executor = options.get("executor", right)
    if executor not in WORKERS:
        raise ConfigurationError(f"executor is threads or tasks, not {ascii(executor)[:60]}")
    if executor != right:
        colour, why = (
            ("async", "a thread has no event loop")
            if right == "tasks"
            else ("plain", "it would block the event loop")
        )
        text = f"a {colour} function needs executor={right!r}: {why}"
        raise ConfigurationError(text, code="BACKGROUND_EXECUTOR")
    workers, queue = options.get("workers"), options.get("queue")
    for what, value, least, most in (
        ("workers", workers, 1, _WORKERS_MAX),
        ("queue", queue, 0, _QUEUE_MAX),
    ):
        if value is not None and (type(value) is not int or not least <= value <= most):
            raise ConfigurationError(f"{what} must be a whole number from {least} to {most}")
    return {"executor": executor, "workers": workers, "queue": queue}


def _at_exit() -> None:
    for registry in list(_registries):
        registry.drain(last=True)


def _after_fork() -> None:
    for registry in list(_registries):
        registry.forget()


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)
