"""Calls that could not be made now: stored with the caller's transaction, made later.

Owns the command that such a call becomes, and its handler.  The command carries the arguments and
with them the idempotency key of the first try, so that however often the call is made, the peer
knows it for the same.

    failed now      | is stored when                          | later
    ----------------+-----------------------------------------+------------------------------------
    refused, failed | always (failed: by a named error)       | made, under ``tx.effect``
    unknown         | keyed without reconcile, or repeatable  | made again, with the same key
    unknown         | reconcile is there                      | asked first; made when not found,
                    |                                         | one deadline later at the earliest
    unknown         | else: never, it raises                  |

The invariants: a call whose transaction commits is made or waits to be, whatever dies in between;
one whose transaction does not commit leaves no command; no call is made twice under two keys.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import msgspec

from duly.calls.policy import CallPolicy, Meaning
from duly.errors import CallRefusedError, ConfigurationError
from duly.kernel.outcomes import NotFound
from duly.message import Command

if TYPE_CHECKING:
    from duly.calls.core import CallCore  # brings asyncio, which `import duly` does without

__all__ = ["Answer", "Deferral", "Deferred", "Plan"]

T = TypeVar("T")


@dataclass(frozen=True)
class Deferred(Generic[T]):
    """A call that will be made when the transaction around it has been committed.

    message_id: of the stored command. key: the call's idempotency key, empty without one. code: of
    what stood in the way.
    """

    message_id: str
    key: str
    code: str


@dataclass(frozen=True)
class Answer(Generic[T]):
    """What a deferred call brought, for its handler (``@call.done``). key: as in ``Deferred``."""

    value: T
    key: str
    arguments: Mapping[str, Any]


class EffectTx(Protocol):
    """What the handler of a deferred call needs of its transaction: the guard of outside calls."""

    def effect(self, step: str, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """As ``Tx.effect`` and ``AsyncTx.effect``."""
        ...


class Deferral(Command, name="duly.call", queue="duly.calls"):
    """What every stored call carries; each has a type of its own, made by ``command_of``.

    arguments: by the names of the function's parameters. in_doubt: the first try may have been
    done. not_before: seconds since 1970; a call in doubt is not made again sooner.
    """

    arguments: dict[str, Any]
    key: str = ""
    in_doubt: bool = False
    not_before: float = 0.0


def command_of(call: str, queue: str) -> type[Deferral]:
    """The command of one call."""

    class DeferredCall(Deferral, name=f"{queue}.{call}", queue=queue):
        pass

    return DeferredCall


class Plan:
    """How one call is deferred. now: seconds since 1970."""

    def __init__(self, core: CallCore, queue: str, *, now: Callable[[], float]) -> None:
        self._core, self._now = core, now
        self._policy: CallPolicy = core.policy
        self.command = command_of(self._policy.name, queue)
        self.done: Callable[..., Any] | None = None
        self._signature = inspect.signature(core.function)
        for parameter in self._signature.parameters.values():
            if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
                text = f"call {self._policy.name}: *{parameter.name} cannot be stored"
                raise ConfigurationError(f"{text}; name the parameters, or say defer=False")

    # --- storing ----------------------------------------------------------------------------------
    def arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of one call by name. Raises TypeError as the call would."""
        found: dict[str, Any] = {}
        for name, value in self._signature.bind(*args, **kwargs).arguments.items():
            if self._signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
                found.update(value)
            else:
                found[name] = value
        return found

    def make(self, arguments: dict[str, Any], error: Exception | None = None) -> Deferral:
        """The command that stands for a call. error: what came of the first try."""
        in_doubt = error is not None and self._policy.meaning(error) is Meaning.UNKNOWN
        pause = (self._policy.deadline_seconds or 0.0) if in_doubt else 0.0
        return self.command(
            arguments=arguments,
            key=self._key(arguments),
            in_doubt=in_doubt,
            not_before=self._now() + pause if in_doubt else 0.0,
        )

    def _key(self, arguments: Mapping[str, Any]) -> str:
        return "" if self._policy.key_as is None else str(arguments[self._policy.key_as])

    # --- making -----------------------------------------------------------------------------------
    def handler(self, *, is_async: bool) -> Callable[..., Any]:
        """The handler of the command."""
        return self._handle_async if is_async else self._handle

    def _handle(self, command: Deferral, tx: Any) -> None:
        def invoke(arguments: dict[str, Any]) -> Any:
            if command.in_doubt and self._policy.reconcile is not None:
                found = self._policy.reconcile(command.key)
                if not _is_missing(found):
                    return found
                self._check_early(command)
            return self._core.run((), self._typed(arguments))

        value = tx.effect("call", invoke, command.arguments, **self._options(command))
        if self.done is not None:
            self.done(self._answer(value, command), tx)

    async def _handle_async(self, command: Deferral, tx: Any) -> None:
        async def invoke(arguments: dict[str, Any]) -> Any:
            if command.in_doubt and self._policy.reconcile is not None:
                found = self._policy.reconcile(command.key)
                found = await found if inspect.isawaitable(found) else found
                if not _is_missing(found):
                    return found
                self._check_early(command)
            return await self._core.run_async((), self._typed(arguments))

        value = await tx.effect("call", invoke, command.arguments, **self._options(command))
        if self.done is not None:
            await self.done(self._answer(value, command), tx)

    def _options(self, command: Deferral) -> dict[str, Any]:
        reconcile = self._policy.reconcile
        hints = _hints(self._core.function)
        result = hints.get("return", Any)
        return {
            "repeatable": self._policy.harmless,
            "reconcile": None if reconcile is None else lambda _: reconcile(command.key),
            "not_done": (CallRefusedError, *self._policy.retry.on),
            "result": type(None) if result is None else result,
        }

    def _check_early(self, command: Deferral) -> None:
        if self._now() < command.not_before:
            text = f"{self._policy.name}: not found, and it may still be under way"
            raise CallRefusedError(text, code="CALL_IN_DOUBT")

    def _answer(self, value: Any, command: Deferral) -> Answer[Any]:
        return Answer(value, command.key, self._typed(command.arguments))

    def _typed(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments as the function's annotations have them."""
        hints = _hints(self._core.function)
        return {name: _converted(value, hints.get(name, Any)) for name, value in arguments.items()}


def _is_missing(found: Any) -> bool:
    return found is NotFound or isinstance(found, NotFound)


def _converted(value: Any, wanted: Any) -> Any:
    validate = getattr(wanted, "model_validate", None)  # a pydantic model
    return validate(value) if validate is not None else msgspec.convert(value, wanted)


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    return typing.get_type_hints(function)
