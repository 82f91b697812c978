"""The handlers of one App: registration, and what is wrong with it.

A handler stays a plain function.  What can be seen when it is decorated - parameter names, options
- is refused there; what needs the types (is it a batch handler? ``Tx`` or ``AsyncTx``?) is looked
at when the App starts, because with ``from __future__ import annotations`` the names may not exist
yet.  The invariants: within a group one handler per event type and version, and one order mode; a
handler's name is written down or made of group and wire name, never of the function's path, because
it is part of every dedupe record.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, TypedDict, TypeVar, Unpack

from duly.errors import ConfigurationError
from duly.kernel.backoff import Retry
from duly.kernel.names import check_name
from duly.message import Message, MessageType, Registry
from duly.outbox.after_commit import is_async
from duly.ports import Finding, Severity, SubscriptionSpec, TopicSpec

__all__ = ["BATCH_DEFAULT", "Handler", "HandlerOptions", "HandlerRegistry"]

F = TypeVar("F", bound=Callable[..., Any])
Order = Literal["none", "key"]
Exhausted = Literal["skip", "block"]

BATCH_DEFAULT = 1000
_BATCH_MAX = 10_000
_CONCURRENCY_MAX = 1_000
_RESERVED = {"tx", "msg", "msgs"}


@dataclass(frozen=True, eq=False)
class Handler:
    """One function and how it is run. batch: messages at once, None for one by one. concurrency:
    threads or tasks.
    """

    function: Callable[..., Any]
    type: MessageType
    group: str
    name: str
    retry: Retry
    order: Order
    on_exhausted: Exhausted
    dedupe: Callable[[Any], Any] | None
    batch_given: int | None
    concurrency: int | None
    wants: frozenset[str] = field(init=False)
    is_async: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "wants", frozenset(_parameters(self.function)[1:]))
        object.__setattr__(self, "is_async", is_async(self.function))

    @property
    def label(self) -> str:
        """How it is named in errors and dumps."""
        return f"{self.group}/{self.name}"

    @cached_property
    def batch(self) -> int | None:
        """How many messages it takes at once; None for a handler of single messages."""
        if self.batch_given is not None or "msgs" in self.wants or self._takes_list():
            return self.batch_given or BATCH_DEFAULT
        return None

    def problems(self) -> Iterable[str]:
        """What its annotations contradict."""
        hint = _hints(self.function).get("tx")
        if hint is not None:
            text = hint if isinstance(hint, str) else getattr(hint, "__name__", "")
            if text.rpartition(".")[2] == ("Tx" if self.is_async else "AsyncTx"):
                right, colour = ("AsyncTx", "async") if self.is_async else ("Tx", "plain")
                yield f"{self.label}: a handler that is {colour} gets an {right}, not a {text}"
        if (
            self.batch_given is not None
            and not self._takes_list()
            and _first_hint(self.function) is not None
        ):
            yield f"{self.label}: batch= is set, but the first parameter is not a list[...]"
        if self.batch is not None and "msg" in self.wants:
            yield f"{self.label}: a batch handler takes msgs, not msg"

    def _takes_list(self) -> bool:
        hint = _first_hint(self.function)
        if isinstance(hint, str):
            return hint.replace(" ", "").startswith(("list[", "List[", "typing.List["))
        return hint is list or typing.get_origin(hint) is list

    def arguments(self, *, tx: Any, messages: Sequence[Message]) -> dict[str, Any]:
        """The reserved arguments that it asks for."""
        wants = self.wants
        if not wants:
            return {}
        found = {"tx": tx} if "tx" in wants else {}
        if "msg" in wants:
            found["msg"] = messages[0]
        if "msgs" in wants:
            found["msgs"] = list(messages)
        return found


class HandlerOptions(TypedDict, total=False):
    """How a handler is run.

    name: stable for ever, part of the dedupe record; default the group and the wire name. retry:
    how often and when a failed message is tried again. order: ``key`` runs the messages of one key
    one after the other. dedupe: gives a business key instead of the message's id. batch: how many
    messages a handler of ``list[...]`` gets at once. concurrency: threads or tasks. on_exhausted:
    whether a key goes on behind a message that has failed for good.
    """

    name: str | None
    retry: Retry | None
    order: Order
    dedupe: Callable[[Any], Any] | None
    batch: int | None
    concurrency: int | None
    on_exhausted: Exhausted


_DEFAULTS = HandlerOptions(
    name=None,
    retry=None,
    order="none",
    dedupe=None,
    batch=None,
    concurrency=None,
    on_exhausted="skip",
)


class HandlerRegistry:
    """The handlers of one App, by group and wire name."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._groups: dict[str, dict[tuple[str, int], Handler]] = {}
        self._doubles: list[Handler] = []

    def on(
        self, event_type: type, *, group: str, **options: Unpack[HandlerOptions]
    ) -> Callable[[F], F]:
        """Register a handler of an event for a group; see ``HandlerOptions``.

        Raises ConfigurationError.
        """
        spec = self._registry.of(event_type)
        if spec.kind != "event":
            raise ConfigurationError(f"{spec.name} is a command: use handle")
        check_name(group, "group")
        chosen = _chosen(options)

        def register(function: F) -> F:
            handler = _handler(function, spec, group=group, **chosen)
            if (spec.name, spec.version) in self._groups.get(group, {}):
                raise ConfigurationError(
                    f"group {group} has two handlers of {spec.name}", code="TWO_HANDLERS"
                )
            self._add(handler)
            return function

        return register

    def handle(self, command_type: type, **options: Unpack[HandlerOptions]) -> Callable[[F], F]:
        """Register the handler of a command; its group is the command's queue. Errors as ``on``."""
        spec = self._registry.of(command_type)
        if spec.kind != "command":
            raise ConfigurationError(f"{spec.name} is an event: use on(..., group=...)")
        chosen = _chosen(options)

        def register(function: F) -> F:
            handler = _handler(function, spec, group=spec.topic, **chosen)
            if (spec.name, spec.version) in self._groups.get(spec.topic, {}):
                self._doubles.append(handler)  # told at the start, with all else that is wrong
            else:
                self._add(handler)
            return function

        return register

    @property
    def groups(self) -> list[str]:
        """The names of all groups."""
        return sorted(self._groups)

    def order_of(self, group: str) -> Order:
        """The order mode of a group."""
        return next(iter(self._groups[group].values())).order

    def of_group(self, group: str) -> list[Handler]:
        """The handlers of a group."""
        return list(self._groups.get(group, {}).values())

    def find(self, group: str, name: str, version: int) -> Handler | None:
        """The handler of a wire name and version in a group."""
        return self._groups.get(group, {}).get((name, version))

    def named(self, group: str, handler: str) -> list[Handler]:
        """The handlers (one per version) under the name of an inbox row."""
        return [h for h in self.of_group(group) if h.name == handler]

    def handles(self, group: str, name: str) -> bool:
        """Whether a group handles any version of a wire name."""
        return any(known == name for known, _ in self._groups.get(group, {}))

    def subscription(
        self, group: str, *, prefetch: int, from_start: bool = True
    ) -> SubscriptionSpec:
        """What a group reads. prefetch: at least twice the largest batch, so that the next one has
        arrived when a handler comes back.
        """
        batch = max((h.batch or 0 for h in self.of_group(group)), default=0)
        prefetch = max(prefetch, 2 * batch)
        topics = sorted(
            {TopicSpec(h.type.topic, h.type.kind) for h in self.of_group(group)},
            key=lambda t: t.name,
        )
        ordered = self.order_of(group) == "key"
        return SubscriptionSpec(group, tuple(topics), ordered, prefetch, from_start)

    def check(self) -> list[Finding]:
        """Everything that is wrong with the handlers, for the App's ``check``."""
        found = [
            Finding(
                "TWO_HANDLERS",
                Severity.RED,
                f"{h.type.name} has two handlers",
                "A command has exactly one.",
            )
            for h in self._doubles
        ]
        handlers = [h for group in self.groups for h in self.of_group(group)]
        found += [
            Finding(
                "HANDLER_SIGNATURE", Severity.RED, problem, "Change the annotation or the option."
            )
            for handler in handlers
            for problem in handler.problems()
        ]
        for spec in self._registry.names():
            if (
                spec.kind == "command"
                and spec.handled_by is None
                and not self.handles(spec.topic, spec.name)
            ):
                text = f"{spec.name} has no handler"
                fix = f"Register one, or declare handled_by= on {spec.cls.__qualname__}."
                found.append(Finding("NO_HANDLER", Severity.RED, text, fix))
        return found

    def _add(self, handler: Handler) -> None:
        members = self._groups.setdefault(handler.group, {})
        if any(h.order != handler.order for h in members.values()):
            raise ConfigurationError(
                f"group {handler.group}: all handlers need the same order=", code="MIXED_ORDER"
            )
        for other in members.values():
            if other.name == handler.name and other.type.name != handler.type.name:
                raise ConfigurationError(
                    f"group {handler.group} has two handlers named {handler.name}"
                )
        members[handler.type.name, handler.type.version] = handler


def _chosen(options: HandlerOptions) -> HandlerOptions:
    unknown = sorted(options.keys() - _DEFAULTS.keys())
    if unknown:
        known = ", ".join(sorted(_DEFAULTS))
        raise ConfigurationError(f"no handler option {unknown[0]!r}; there are {known}")
    return {**_DEFAULTS, **options}


def _handler(function: Any, spec: MessageType, **options: Any) -> Handler:
    """Check what can be checked now."""
    group, name, retry = options["group"], options["name"], options["retry"]
    if not callable(function):
        raise ConfigurationError(f"{spec.name}: {type(function).__qualname__} is not a function")
    _check_parameters(function)
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ConfigurationError(f"{_shown(function)} is a generator; a handler returns nothing")
    _choice(options["order"], ("none", "key"), "order")
    _choice(options["on_exhausted"], ("skip", "block"), "on_exhausted")
    _whole(options["batch"], _BATCH_MAX, "batch")
    _whole(options["concurrency"], _CONCURRENCY_MAX, "concurrency")
    if options["batch"] is not None and options["order"] == "key":
        raise ConfigurationError(f"{_shown(function)}: batch= and order='key' exclude each other")
    if options["dedupe"] is not None and not callable(options["dedupe"]):
        raise ConfigurationError(f"{_shown(function)}: dedupe must be a function of the message")
    if retry is not None and not isinstance(retry, Retry):
        raise ConfigurationError(f"{_shown(function)}: retry must be a Retry(...)")
    if retry is not None:
        retry.refuse_on(_shown(function))
    return Handler(
        function=function,
        type=spec,
        group=group,
        name=check_name(name, "handler") if name is not None else f"{group}.{spec.name}",
        retry=retry or Retry(),
        order=options["order"],
        on_exhausted=options["on_exhausted"],
        dedupe=options["dedupe"],
        batch_given=options["batch"],
        concurrency=options["concurrency"],
    )


def _check_parameters(function: Any) -> None:
    parameters = inspect.signature(function).parameters.values()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    first = next(iter(parameters), None)
    if first is None or first.kind not in positional or first.name in _RESERVED:
        raise ConfigurationError(
            f"{_shown(function)}: the first parameter is the message", code="HANDLER_SIGNATURE"
        )
    for parameter in list(parameters)[1:]:
        if parameter.name not in _RESERVED or parameter.kind in (
            inspect.Parameter.VAR_POSITIONAL,
            inspect.Parameter.VAR_KEYWORD,
            inspect.Parameter.POSITIONAL_ONLY,
        ):
            raise ConfigurationError(
                f"{_shown(function)}: parameter {parameter.name!r}; after the message only "
                "tx, msg and msgs are given",
                code="HANDLER_SIGNATURE",
            )


def _parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


def _first_hint(function: Any) -> Any:
    return _hints(function).get(_parameters(function)[0])


def _hints(function: Any) -> dict[str, Any]:
    """The resolved annotations; where a name cannot be resolved, the text as it was written."""
    target = function if inspect.isroutine(function) else type(function).__call__
    try:
        return typing.get_type_hints(target)
    except (NameError, TypeError, AttributeError):
        return dict(getattr(target, "__annotations__", {}))


def _choice(value: object, choices: tuple[str, ...], what: str) -> None:
    if value not in choices:
        raise ConfigurationError(
            f"{what} must be one of {', '.join(choices)}, not {ascii(value)[:60]}"
        )


def _whole(value: object, most: int, what: str) -> None:
    if value is not None and (type(value) is not int or not 1 <= value <= most):
        raise ConfigurationError(f"{what} must be a whole number from 1 to {most}")


def _shown(function: Any) -> str:
    return str(getattr(function, "__qualname__", type(function).__qualname__))
