"""Looks for sessions and connections in what a call is given.

Owns the search: through containers, dataclasses, closures, defaults, partials, bound methods,
generators, one level of attributes of any other object, and the context variables.  What it looks
for is told by ``bound`` (``frameworks.threadbound``).  The invariant: it ends - a thousand things
at most, each once - and it touches nothing but what is in memory: no attribute is loaded.
"""

from __future__ import annotations

import contextvars
import dataclasses
import functools
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from duly.errors import CrossesThreadsError

__all__ = ["Bound", "check"]

LOOKED_AT_MAX = 1_000
Bound = Callable[[Any], str]
_PLAIN = "plain"  # what ``bound`` says of classes that hold nothing
_CONTAINERS = (list, tuple, set, frozenset, deque)
_FRAMES = {
    types.GeneratorType: "gi_frame",
    types.CoroutineType: "cr_frame",
    types.AsyncGeneratorType: "ag_frame",
}
_SIMPLE = frozenset({int, str, bool, float, bytes, type(None)})


def check(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    context: contextvars.Context,
    bound: Bound,
) -> None:
    """Raise CrossesThreadsError where the call would carry what belongs to its caller.

    context: the variables that go along.
    """
    todo: deque[tuple[str, Any]] = deque()
    for number, value in enumerate(args, 1):
        if type(value) not in _SIMPLE:
            todo.append((f"argument {number}", value))
    for name, value in kwargs.items():
        if type(value) not in _SIMPLE:
            todo.append((f"argument {name!r}", value))
    if getattr(function, "__closure__", True) or function.__defaults__ or function.__kwdefaults__:
        todo.append(("the function", function))
    if len(context):
        for variable, value in context.items():
            if type(value) not in _SIMPLE and type(value).__module__ != "duly.background.task":
                todo.append((f"the context variable {variable.name!r}", value))
    if todo:
        _search(todo, bound)


def _search(todo: deque[tuple[str, Any]], bound: Bound) -> None:
    seen: set[int] = set()
    kept: list[Any] = []  # so that no id is given out twice
    while todo and len(seen) < LOOKED_AT_MAX:
        where, value = todo.popleft()
        if id(value) in seen:
            continue
        seen.add(id(value))
        kept.append(value)
        found = bound(value)
        if found == _PLAIN:
            continue
        if found:
            raise CrossesThreadsError(f"{where} is or holds {found}")
        inner = _inside(value)
        if inner is not None:
            todo.extend((where, one) for one in inner)
        else:
            _attributes(where, value, bound)


def _attributes(where: str, value: Any, bound: Bound) -> None:
    """One level, and no further: pools and engines hold connections rightly."""
    if isinstance(value, type | types.ModuleType):
        return
    for one in _fields_of(value):
        found = bound(one)
        if found and found != _PLAIN:
            raise CrossesThreadsError(f"{where} is a {type(value).__qualname__} with {found}")


def _fields_of(value: Any) -> Iterator[Any]:
    with suppress(TypeError, RuntimeError):  # it has none; or a proxy without what it stands for
        yield from list(vars(value).values())
    for cls in type(value).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            member = cls.__dict__.get(name)
            if isinstance(member, types.MemberDescriptorType):
                try:
                    yield member.__get__(value, cls)
                except AttributeError:  # not set
                    continue


def _inside(value: Any) -> Iterable[Any] | None:
    """What is in there to be searched in its turn; None for an object like any other."""
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    if isinstance(value, _CONTAINERS):
        return list(value)
    if isinstance(value, types.FunctionType):
        cells = value.__closure__ or ()
        return [
            *(one for cell in cells if (one := _content(cell)) is not None),
            *(value.__defaults__ or ()),
            *(value.__kwdefaults__ or {}).values(),
        ]
    if isinstance(value, types.MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if (name := _FRAMES.get(type(value))) is not None:
        frame = getattr(value, name)
        return list(frame.f_locals.values()) if frame is not None else []
    if _is_record(type(value)):
        return list(_fields_of(value))
    return None


def _is_record(kind: type) -> bool:
    return (
        dataclasses.is_dataclass(kind)
        or hasattr(kind, "__attrs_attrs__")
        or hasattr(kind, "__struct_fields__")
        or hasattr(kind, "model_fields")
        or kind is types.SimpleNamespace
    )


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not set yet
        return None
