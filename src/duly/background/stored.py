"""A call as a command: what ``durable``, ``defer`` and the failure log store.

Owns the form - the arguments by the names of the parameters, as JSON - and the way back, by the
function's annotations.  The wire name and the queue are made of the App's name and the function's
registered name, so moving the code does not lose what is stored; renaming a parameter does what
renaming a field of a message does.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from functools import cached_property
from typing import Any

import msgspec

from duly.background.task import Call
from duly.errors import NotSerializableError, UndecodableError
from duly.message import Command, Registry

__all__ = ["FAILURE_SOURCE", "StoredForm", "queue_of"]

FAILURE_SOURCE = "background"  # of the entries in the failure log


def queue_of(app: str) -> str:
    """The queue of an App's stored calls."""
    return f"{app}.background"


class StoredForm:
    """How the calls of one function are stored. app: whose; name: of the function, in the App."""

    def __init__(self, run: Callable[..., Any], registry: Registry, *, app: str, name: str) -> None:
        self._run, self._name, self._registry = run, name, registry

        class StoredCall(Command, name=f"{app}.background.{name}", queue=queue_of(app)):
            arguments: dict[str, Any]

        self.type = StoredCall

    def command(self, call: Call) -> Command:
        """The command for a call. Raises TypeError where the arguments do not fit the function,
        NotSerializableError.
        """
        bound = self._signature.bind(*call.args, **call.kwargs)
        return self.type(arguments=dict(bound.arguments))

    def check(self, call: Call) -> None:
        """Raise NotSerializableError or PayloadTooLargeError where the call cannot be stored."""
        self._registry.encode(self.command(call))

    async def call_async(self, command: Any) -> Any:
        """As ``call``, for an async function."""
        return await self.call(command)

    def call(self, command: Any) -> Any:
        """Call the function as a stored command says. Raises UndecodableError, and what it
        raises.
        """
        args, kwargs = self._arguments(command.arguments)
        return self._run(*args, **kwargs)

    def _arguments(self, given: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        bound = self._signature.bind_partial()
        for name, value in given.items():
            parameter = self._signature.parameters.get(name)
            if parameter is None:
                text = f"{self._name} has no parameter {name!r:.80} any more"
                raise UndecodableError(text)
            bound.arguments[name] = self._converted(parameter, value)
        try:
            self._signature.bind(*bound.args, **bound.kwargs)
        except TypeError as error:
            raise UndecodableError(f"{self._name}: {error}") from None
        return bound.args, bound.kwargs

    def _converted(self, parameter: inspect.Parameter, value: Any) -> Any:
        hint = self._hints.get(parameter.name, Any)
        if parameter.kind is parameter.VAR_POSITIONAL:
            hint = list[hint]  # type: ignore[valid-type]
        elif parameter.kind is parameter.VAR_KEYWORD:
            hint = dict[str, hint]  # type: ignore[valid-type]
        validate = getattr(hint, "model_validate", None)  # pydantic
        try:
            converted = msgspec.convert(value, hint) if validate is None else validate(value)
        except (msgspec.MsgspecError, TypeError, ValueError):
            # Not `from error`: validators quote the values they refuse.
            text = f"{self._name}: {parameter.name} does not fit its annotation"
            raise UndecodableError(text) from None
        return tuple(converted) if parameter.kind is parameter.VAR_POSITIONAL else converted

    @cached_property
    def _signature(self) -> inspect.Signature:
        try:
            return inspect.signature(self._run)
        except ValueError:  # written in C
            text = f"{self._name} tells nobody its parameters"
            raise NotSerializableError(text) from None

    @cached_property
    def _hints(self) -> dict[str, Any]:
        """The annotations; none where one names what is only there for a type checker."""
        try:
            return typing.get_type_hints(inspect.unwrap(self._run))
        except (NameError, TypeError, AttributeError):
            return {}
