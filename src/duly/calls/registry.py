"""The calls of one App: registration, and what they show of themselves.

A call stays a callable of its type.  The invariants: within an App a call's name is unique, because
facts, health and the type of its stored command go by it; a call that can be deferred has its
handler from the moment it is declared, in every process that imports the program, so that what one
process stores another one can do.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine
from typing import Any, Literal, ParamSpec, Protocol, TypedDict, TypeVar, Unpack, overload

from duly.calls.call import AsyncCall, Call, CallContext
from duly.calls.core import CallCore
from duly.calls.deferral import Plan
from duly.calls.policy import CallPolicy, once
from duly.errors import ConfigurationError
from duly.kernel.backoff import Retry
from duly.kernel.breaker import Breaker, State
from duly.kernel.budget import Budget
from duly.kernel.bulkhead import Bulkhead
from duly.kernel.durations import Duration, seconds
from duly.kernel.names import check_name
from duly.observe.facts import BreakerMoved
from duly.observe.health import CallHealth, Health

__all__ = ["CallOptions", "CallRegistry", "Decorate"]

P = ParamSpec("P")
T = TypeVar("T")
LATER = Retry(attempts=20, base="1s", max="10m")


class CallOptions(TypedDict, total=False):
    """How a call is made.

    name: stable for ever, part of the type of its stored command; default the name of the function.
    deadline: for all attempts together. retry: how often, and on which errors (``Retry(on=...)``),
    which must mean that nothing was done. breaker: when to stop asking; counts what ``retry.on``
    names and unknown outcomes. bulkhead: how many at once; for a plain function with a deadline 16.
    budget: how many retries there may be for so many calls. key_as: the parameter that takes the
    key by which the peer recognises a repetition. repeatable: making it twice does no harm.
    unknown: errors that mean that it may have been done. reconcile: asked with the key whether it
    was; gives the result or ``NotFound``. defer: how often and when a stored call is tried, False
    to make none of it; by default what says how it can be repeated can be deferred.
    """

    name: str | None
    deadline: Duration | None
    retry: Retry | None
    breaker: Breaker | None
    bulkhead: Bulkhead | None
    budget: Budget | None
    key_as: str | None
    repeatable: bool
    unknown: tuple[type[Exception], ...]
    reconcile: Callable[[str], Any] | None
    defer: Retry | bool | None


_KNOWN = frozenset(CallOptions.__annotations__)


class Decorate(Protocol):
    """What ``app.call(...)`` gives: a decorator of a plain or an async function."""

    @overload
    def __call__(  # type: ignore[overload-overlap]  # the first that fits is meant
        self, function: Callable[P, Coroutine[Any, Any, T]]
    ) -> AsyncCall[P, T]: ...
    @overload
    def __call__(self, function: Callable[P, T]) -> Call[P, T]: ...
    def __call__(self, function: Callable[P, Any]) -> Any:
        """The call."""
        ...


class HandleCommand(Protocol):
    """As ``HandlerRegistry.handle``."""

    def __call__(self, command_type: type, /, *, retry: Retry) -> Callable[[Any], Any]:
        """A decorator that registers the one handler of a command."""
        ...


class CallRegistry:
    """The calls of one App. app: its name, which the queue of stored calls is named after.

    context: what the calls share. handle: registers the handler of a command. now: seconds since
    1970.
    """

    def __init__(
        self,
        app: str,
        context: CallContext,
        *,
        health: Health,
        handle: HandleCommand,
        now: Callable[[], float],
    ) -> None:
        self._app, self._context = app, context
        self._health, self._handle, self._now = health, handle, now
        self._calls: dict[str, Call[Any, Any] | AsyncCall[Any, Any]] = {}

    def call(self, **options: Unpack[CallOptions]) -> Decorate:
        """Make a function a call; see ``App.call``."""
        unknown = sorted(set(options) - _KNOWN)
        if unknown:
            raise ConfigurationError(f"app.call takes no {', '.join(unknown)}")

        def decorate(function: Callable[..., Any]) -> Any:
            call = self._make(function, options)
            if call.name in self._calls:
                raise ConfigurationError(f"two calls are named {call.name!r}; give one name=")
            self._calls[call.name] = call
            self._health.watch_call(lambda: _health(call))
            return call

        return decorate

    def _make(
        self, function: Callable[..., Any], options: CallOptions
    ) -> Call[Any, Any] | AsyncCall[Any, Any]:
        given: object = function
        if not callable(given) or inspect.isasyncgenfunction(given):
            raise ConfigurationError("app.call decorates a plain or an async function")
        is_async = inspect.iscoroutinefunction(function)
        policy = _policy(function, options)
        policy.check(function)
        context = self._context

        def moved(state: State) -> None:
            context.hooks.emit(BreakerMoved(call=policy.name, state=state.value))

        core = CallCore(function, policy, moved)
        plan = None
        if policy.defer:
            plan = Plan(core, f"{self._app}.calls", now=self._now)
            self._handle(plan.command, retry=policy.defer)(plan.handler(is_async=is_async))
        return (AsyncCall if is_async else Call)(core, plan, context)


def _policy(function: Callable[..., Any], options: CallOptions) -> CallPolicy:
    name = check_name(str(options.get("name") or getattr(function, "__name__", "")), "call")
    deadline = options.get("deadline")
    bulkhead = options.get("bulkhead")
    if bulkhead is None and deadline is not None and not inspect.iscoroutinefunction(function):
        bulkhead = Bulkhead()  # its threads are bounded
    return CallPolicy(
        name=name,
        deadline_seconds=None if deadline is None else seconds(deadline, f"call {name}: deadline"),
        retry=options.get("retry") or once,
        breaker=options.get("breaker"),
        bulkhead=bulkhead,
        budget=options.get("budget") or Budget(),
        key_as=options.get("key_as"),
        repeatable=options.get("repeatable", False),
        unknown=tuple(options.get("unknown", ())),
        reconcile=options.get("reconcile"),
        defer=_defer(options),
    )


def _defer(options: CallOptions) -> Retry | Literal[False]:
    given = options.get("defer")
    if given is None:
        given = bool(options.get("key_as") or options.get("repeatable"))
    if isinstance(given, bool):
        return LATER if given else False
    given.refuse_on("defer=")
    return given


def _health(call: Call[Any, Any] | AsyncCall[Any, Any]) -> CallHealth:
    guard, threads = call.core.guard, call.core.threads
    state = guard.state
    return CallHealth(
        call.name, "" if state is None else state.value, guard.in_use, threads.overrunning
    )
