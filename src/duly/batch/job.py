"""A job as it is declared, and the hash that tells whether it is still the same.

Owns the declaration and the order of its steps.  The invariant: a run goes on from a checkpoint
only under the definition that wrote it - what the job reads, how it changes and writes it and where
it sends it - because half a file of the old form and half of the new one is a wrong file.
"""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from datetime import datetime
from functools import cached_property
from hashlib import sha256
from types import FunctionType, MethodType
from typing import Any, Literal, NamedTuple, Protocol

from duly.batch.schedule import Schedule
from duly.batch.steps import Step
from duly.errors import ConfigurationError
from duly.kernel.backoff import Retry

__all__ = ["Declared", "Finished", "Job", "Places"]


class Declared(Protocol):
    """What a job is put together from: Query, CsvFile, Sftp ..."""

    def step(self, job: Job) -> Step | None:
        """The step of this declaration; None where another one's does its work."""
        ...


class Places(Protocol):
    """How a step gets at the outside."""

    def row_source(self, url: str | None, **options: Any) -> Any:
        """A ``RowSource``; None: of the App's own database. Raises ConfigurationError."""
        ...

    def file_target(self, url: str, **options: Any) -> Any:
        """A ``FileTarget``. Raises ConfigurationError."""
        ...


class Finished(NamedTuple):
    """A run whose steps have all ended. rows, size_bytes: of the last step that counted them."""

    job: str
    instance: str
    params: Mapping[str, object]
    attempt: int
    rows: int
    size_bytes: int
    facts: Mapping[str, Mapping[str, object]]
    scheduled_for: datetime | None


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job of an App. params: name to type. read, process, write, send: as declared, None where
    not. done: makes the event that is published with the mark that the run is done. on_change: what
    becomes of a run that had begun under another definition.
    """

    name: str
    places: Places
    params: Mapping[str, type]
    read: Any = None
    process: Any = None
    write: Any = None
    send: Any = None
    done: Callable[[Finished], object] | None = None
    schedule: Schedule | None = None
    retry: Retry = Retry(attempts=5, base="10s", max="10m")
    on_change: Literal["refuse", "fork"] = "refuse"

    def steps(self) -> list[Step]:
        """Its steps in order, made anew. Raises ConfigurationError."""
        declared = (self.read, self.process, self.write, self.send)
        made = [one.step(self) for one in declared if hasattr(one, "step")]
        found = [step for step in made if step is not None]
        names = [step.name for step in found]
        if not found or len(set(names)) != len(names):
            text = f"job {self.name} has the steps {', '.join(names) or '(none)'}"
            raise ConfigurationError(text, code="BATCH_JOB")
        return found

    @cached_property
    def step_names(self) -> Sequence[str]:
        """Of its steps, in order."""
        return tuple(step.name for step in self.steps())

    @cached_property
    def definition(self) -> str:
        """The hash of everything that shapes what a run delivers."""
        kinds = {name: kind.__name__ for name, kind in self.params.items()}
        parts = [self.name, kinds, *(_described(one) for one in self._shaping())]
        return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]

    def verify(self) -> None:
        """Raise ConfigurationError where its steps or its definition cannot be made."""
        assert self.step_names
        assert self.definition

    def _shaping(self) -> tuple[Any, ...]:
        return (self.read, self.process, self.write, self.send)


def _described(value: Any) -> Any:
    """A value as JSON that is the same in every process that runs the same code."""
    if hasattr(value, "definition") and not isinstance(value, type):
        return value.definition()
    if isinstance(value, MethodType | FunctionType):
        return _source(value)
    if is_dataclass(value) and not isinstance(value, type):
        shown = {f.name: _described(getattr(value, f.name)) for f in fields(value) if f.repr}
        return [type(value).__qualname__, shown]
    if isinstance(value, Mapping):
        return {str(name): _described(one) for name, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        items = [_described(one) for one in value]
        return sorted(items, key=repr) if isinstance(value, set | frozenset) else items
    text = repr(value)
    if " at 0x" in text:
        what = f"{type(value).__qualname__} does not tell its definition; give it definition()"
        raise ConfigurationError(what, code="BATCH_JOB")
    return text


def _source(function: MethodType | FunctionType) -> str:
    """What a function does, without its comments and layout."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):  # typed in, or a lambda in the middle of a line
        code = function.__code__
        return f"{function.__qualname__} {code.co_code.hex()} {code.co_names}"
    return ast.dump(tree)
