"""What ``@app.call`` makes of a function: a callable of the same type, and its caller's choices.

Owns what a caller can say besides calling: ``using`` (what a failure means to the transaction
around), ``deferrable`` (store it and do it later) and ``done`` (who gets the answer then).  The
invariant: whatever a caller chooses, the attempts, the deadline and the guard are those of the
call, and a failure that is not raised is told as a fact.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Generic, Literal, ParamSpec, TypeVar, overload

from duly.calls.core import CallCore
from duly.calls.deferral import Answer, Deferral, Deferred, Plan
from duly.calls.policy import CallPolicy, Fail, Fallback, OnFailure
from duly.errors import ConfigurationError, error_code
from duly.kernel import failpoints
from duly.message import new_id
from duly.observe.facts import CallDeferred, Called, CallFailed, CallInTransaction
from duly.observe.hooks import Hooks
from duly.outbox.after_commit import Ignore

__all__ = ["AsyncCall", "Call", "CallContext", "OpenSeconds"]

P = ParamSpec("P")
T = TypeVar("T")
U = TypeVar("U")
OpenSeconds = Callable[[float], float]
_FAIL = Fail()


class CallContext:
    """What the calls of one App share.

    store: sends a command with a caller's transaction and returns its id. encode: the bytes of one,
    as ``Registry.encode``. open_seconds: how long the transaction around a call that began then is
    open, 0 without one. transaction_seconds: how long it may be before that is told.
    """

    def __init__(
        self,
        *,
        hooks: Hooks,
        store: Callable[[Any, Deferral], str],
        encode: Callable[[Deferral], bytes],
        open_seconds: OpenSeconds,
        transaction_seconds: Callable[[], float],
    ) -> None:
        self.hooks, self.store, self.encode = hooks, store, encode
        self.open_seconds = open_seconds
        self.transaction_seconds = transaction_seconds


class _Face(Generic[P, T]):
    """What both colours have in common."""

    def __init__(self, core: CallCore, plan: Plan | None, context: CallContext) -> None:
        self._core, self._plan, self._context = core, plan, context
        self._policy: CallPolicy = core.policy
        self._key_place = _place(core.function, core.policy.key_as)
        for name in ("__module__", "__name__", "__qualname__", "__doc__", "__annotations__"):
            setattr(self, name, getattr(core.function, name, ""))
        self.__wrapped__ = core.function  # how inspect.signature and frameworks see through it

    @property
    def name(self) -> str:
        """Of the call: in facts, metrics, health and the type of its command."""
        return self._policy.name

    @property
    def core(self) -> CallCore:
        """Its policy and its guard."""
        return self._core

    @property
    def plan(self) -> Plan:
        """How it is deferred. Raises ConfigurationError (CALL_NOT_DEFERRABLE)."""
        if self._plan is None:
            text = f"call {self.name} says nothing of a repetition: key_as=, repeatable=True"
            raise ConfigurationError(f"{text} or defer=True", code="CALL_NOT_DEFERRABLE")
        return self._plan

    def _choose(self, on_failure: OnFailure) -> OnFailure:
        given: object = on_failure
        if not isinstance(given, Fail | Ignore | Fallback):
            raise ConfigurationError(
                f"call {self.name}: on_failure is Fail(), Ignore() or Fallback(...)"
            )
        return on_failure

    def _keyed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The keyword arguments with an idempotency key, one for all attempts of this call."""
        key_as = self._policy.key_as
        if key_as is not None and len(args) <= self._key_place and not kwargs.get(key_as):
            return {**kwargs, key_as: new_id()}
        return kwargs

    # --- what is told -----------------------------------------------------------------------------
    def _answered(self, began: float) -> None:
        context = self._context
        if context.hooks.listening:
            context.hooks.emit(Called(call=self.name, seconds=time.monotonic() - began))
        if open_seconds := context.open_seconds(began):
            self._in_transaction(open_seconds)

    def _failed(self, error: Exception, began: float, choice: str) -> None:
        context = self._context
        fact = CallFailed(
            call=self.name,
            code=error_code(error),
            outcome=self._policy.meaning(error).value,
            choice=choice,
            seconds=time.monotonic() - began,
        )
        context.hooks.emit(fact)
        if open_seconds := context.open_seconds(began):
            self._in_transaction(open_seconds)

    def _in_transaction(self, open_seconds: float) -> None:
        if open_seconds > self._context.transaction_seconds():
            self._context.hooks.emit(CallInTransaction(call=self.name, seconds=open_seconds))

    def _storable(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The same. Raises, before there is a call to store, what storing it would."""
        self._context.encode(self.plan.make(arguments))
        return arguments

    def _defer(
        self, session: Any, arguments: dict[str, Any], error: Exception, *, began: float
    ) -> Deferred[T]:
        """Store the call. Raises the error where it may not be made later, and what ``send``
        raises.
        """
        if not self._policy.may_defer(error):
            self._failed(error, began, "fail")
            raise error
        command = self.plan.make(arguments, error)
        message_id = self._context.store(session, command)
        failpoints.hit(failpoints.CALL_DEFERRED)
        self._failed(error, began, "defer")
        self._context.hooks.emit(CallDeferred(call=self.name, message_id=message_id))
        return Deferred(message_id, command.key, error_code(error))


class Call(_Face[P, T]):
    """A plain function as a call to another system."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call it; a failure raises."""
        return self._run(args, kwargs, _FAIL)  # type: ignore[no-any-return]

    @overload
    def using(self, *, on_failure: Fail) -> Callable[P, T]: ...
    @overload
    def using(self, *, on_failure: Ignore) -> Callable[P, T | None]: ...
    @overload
    def using(self, *, on_failure: Fallback) -> Callable[P, T | Any]: ...
    def using(self, *, on_failure: OnFailure) -> Callable[P, T | Any]:
        """The same call with another meaning of a failure: ``Fail()``, ``Ignore()`` (None is
        returned) or ``Fallback(...)``.
        """
        choice = self._choose(on_failure)
        return lambda *args, **kwargs: self._run(args, kwargs, choice)

    def deferrable(self, session: Any) -> Callable[P, T | Deferred[T]]:
        """The same call, stored with the transaction of ``session`` when it cannot be made now.

        session: as for ``app.publish``. Guarantee: when that transaction commits, the call was made
        or will be; a repetition has the same key. On failure: raises where it may have been made
        and could not be repeated. Raises ConfigurationError (CALL_NOT_DEFERRABLE), and as
        ``app.send``; NotSerializableError and PayloadTooLargeError before the call.
        """
        plan = self.plan

        def run(*args: P.args, **kwargs: P.kwargs) -> T | Deferred[T]:
            began, keyed = time.monotonic(), self._keyed(args, kwargs)
            arguments = self._storable(plan.arguments(args, keyed))
            try:
                value: T = self._core.run(args, keyed)
            except Exception as error:  # noqa: BLE001  # judged there, and raised where it must be
                return self._defer(session, arguments, error, began=began)
            self._answered(began)
            return value

        return run

    def done(self, function: Callable[[Answer[T], Any], None]) -> Callable[[Answer[T], Any], None]:
        """Register who gets the answers of deferred calls: ``@rate.done``, a function of (answer,
        tx), in the transaction that records the call.
        """
        self.plan.done = _of_colour(function, is_async=False)
        return function

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any], choice: OnFailure) -> Any:
        began = time.monotonic()
        try:
            value = self._core.run(args, self._keyed(args, kwargs))
        except Exception as error:
            covered = self._policy.covers(choice, error)
            self._failed(error, began, _word(choice) if covered else "fail")
            if not covered:
                raise
            return _instead(choice, args, kwargs)
        self._answered(began)
        return value


class AsyncCall(_Face[P, T]):
    """An async function as a call to another system."""

    def __init__(self, core: CallCore, plan: Plan | None, context: CallContext) -> None:
        super().__init__(core, plan, context)
        if mark := getattr(inspect, "markcoroutinefunction", None):  # since Python 3.12
            mark(self)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, T]:
        """Call it; a failure raises."""
        return self._run(args, kwargs, _FAIL)

    @overload
    def using(self, *, on_failure: Fail) -> Callable[P, Awaitable[T]]: ...
    @overload
    def using(self, *, on_failure: Ignore) -> Callable[P, Awaitable[T | None]]: ...
    @overload
    def using(self, *, on_failure: Fallback) -> Callable[P, Awaitable[T | Any]]: ...
    def using(self, *, on_failure: OnFailure) -> Callable[P, Awaitable[T | Any]]:
        """As ``Call.using``; the function of a ``Fallback`` may be async."""
        choice = self._choose(on_failure)
        return lambda *args, **kwargs: self._run(args, kwargs, choice)

    def deferrable(self, session: Any) -> Callable[P, Awaitable[T | Deferred[T]]]:
        """As ``Call.deferrable``."""
        plan = self.plan

        async def run(*args: P.args, **kwargs: P.kwargs) -> T | Deferred[T]:
            began, keyed = time.monotonic(), self._keyed(args, kwargs)
            arguments = self._storable(plan.arguments(args, keyed))
            try:
                value: T = await self._core.run_async(args, keyed)
            except Exception as error:  # noqa: BLE001  # judged there, and raised where it must be
                return self._defer(session, arguments, error, began=began)
            self._answered(began)
            return value

        return run

    def done(
        self, function: Callable[[Answer[T], Any], Awaitable[None]]
    ) -> Callable[[Answer[T], Any], Awaitable[None]]:
        """As ``Call.done``, for an async function."""
        self.plan.done = _of_colour(function, is_async=True)
        return function

    async def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any], choice: OnFailure) -> Any:
        began = time.monotonic()
        try:
            value = await self._core.run_async(args, self._keyed(args, kwargs))
        except Exception as error:
            covered = self._policy.covers(choice, error)
            self._failed(error, began, _word(choice) if covered else "fail")
            if not covered:
                raise
            value = _instead(choice, args, kwargs)
            return await value if inspect.isawaitable(value) else value
        self._answered(began)
        return value


def _instead(choice: OnFailure, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if not isinstance(choice, Fallback):
        return None
    return choice.value(*args, **kwargs) if callable(choice.value) else choice.value


def _word(choice: OnFailure) -> Literal["fail", "ignore", "fallback"]:
    if isinstance(choice, Fallback):
        return "fallback"
    return "ignore" if isinstance(choice, Ignore) else "fail"


def _place(function: Callable[..., Any], key_as: str | None) -> int:
    """The place of the key's parameter among the positional ones; behind them all without one."""
    for place, parameter in enumerate(inspect.signature(function).parameters.values()):
        if parameter.name == key_as and parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
            return place
    return 1_000_000


def _of_colour(function: Callable[..., Any], *, is_async: bool) -> Callable[..., Any]:
    if inspect.iscoroutinefunction(function) is not is_async:
        right = "an async function" if is_async else "a plain function"
        raise ConfigurationError(f"{function.__qualname__}: this call is answered to {right}")
    return function
