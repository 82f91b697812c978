"""What the rules would make of recent changes, and why: a dry run that moves nothing.

Owns the record of what a rule asks of a change - ``became``, ``moved``, ``changed`` - and what it
was answered: that is the why of a rule that fired and of one that did not.  The invariant: nothing
is stored, confirmed or fenced, and no value of a row is shown, only names and what the rule itself
asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from msgspec import structs

from duly.cdc.registry import StreamRules
from duly.errors import DulyError, error_code
from duly.kernel.changes import Change, Intent, Transaction
from duly.kernel.rules import Emit, Emitted, Naming, Rule, evaluate
from duly.message import Registry

__all__ = ["Explained", "explain"]


class Explained(NamedTuple):
    """What one rule made of one change, or of one transaction (ordinal -1). asked: what it asked,
    with the answers; emitted: wire name and id of each result; error: the code where it raised;
    ran: False for a rule that writes, which a dry run has no transaction for.
    """

    position: str
    ordinal: int
    table: str
    op: str
    rule: str
    emitted: tuple[tuple[str, str], ...]
    asked: tuple[str, ...]
    error: str
    ran: bool = True


def explain(
    stream: StreamRules, transactions: Sequence[Transaction], registry: Registry
) -> Iterator[Explained]:
    """One line for each rule and each change that it is asked about."""
    naming = stream.naming
    for transaction in transactions:
        for rule in stream.rules:
            fed = stream.sink is not None
            yield from _explain(rule, transaction, naming, registry=registry, fed=fed)


def _explain(
    rule: Rule, transaction: Transaction, naming: Naming, *, registry: Registry, fed: bool
) -> Iterator[Explained]:
    seen: list[tuple[Change | None, list[str]]] = []
    function = _feeding(rule.function) if fed else rule.function
    look = _unasked(seen) if rule.writes else _watching(function, seen)
    watched = replace(rule, function=look)
    emitted: list[Emitted] = []
    error = ""
    try:
        emitted.extend(evaluate([watched], transaction, naming))
    except DulyError as problem:
        error = getattr(problem, "cause", error_code(problem))
    for place, (change, asked) in enumerate(seen):
        ordinal = -1 if change is None else change.ordinal
        mine = [e for e in emitted if (-1 if e.change is None else e.change.ordinal) == ordinal]
        yield Explained(
            transaction.position,
            ordinal,
            "" if change is None else change.table,
            "" if change is None else change.op,
            rule.name,
            tuple((_wire_name(e.emit.message, registry), e.id) for e in mine),
            tuple(asked),
            error if place == len(seen) - 1 else "",
            ran=not rule.writes,
        )


def _watching(
    function: Callable[[Any], Any], seen: list[tuple[Change | None, list[str]]]
) -> Callable[[Any], Any]:
    def watched(given: Any) -> Any:
        asked: list[str] = []
        seen.append((given if isinstance(given, Change) else None, asked))
        return function(_watched(given, asked) if isinstance(given, Change) else given)

    return watched


def _feeding(project: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """What the sink of a rule is told: a row, or that there is none."""

    def fed(given: Change) -> Emit:
        row = None if given.op in ("delete", "truncate") else project(given)
        return Emit("no row" if row is None else "a row")

    return fed


def _unasked(seen: list[tuple[Change | None, list[str]]]) -> Callable[[Any], None]:
    """In the place of a rule that writes: says only that it would be run."""

    def unasked(given: Any) -> None:
        seen.append((given if isinstance(given, Change) else None, ["it writes (tx)"]))

    return unasked


def _watched(change: Change, asked: list[str]) -> Change:
    return _Watched(**structs.asdict(change), asked=asked)


class _Watched(Change, frozen=True):
    """A change that writes down what it is asked."""

    asked: list[str] | None = None

    @property
    def created(self) -> bool:
        return self._note("created", self.op == "create")

    @property
    def deleted(self) -> bool:
        return self._note("deleted", self.op == "delete")

    def changed(self, *columns: str) -> bool:
        return self._note(f"changed({_listed(columns)})", Change.changed(self, *columns))

    def became(self, column: str, value: Any) -> bool:
        return self._note(f"became({column!r}, {value!r})", Change.became(self, column, value))

    def moved(self, column: str, old: Any, new: Any) -> bool:
        answer = Change.moved(self, column, old, new)
        return self._note(f"moved({column!r}, {old!r}, {new!r})", answer)

    def intent(self, name: str) -> Intent | None:
        found = Change.intent(self, name)
        self._note(f"intent({name!r})", found is not None)
        return found

    def _note(self, question: str, answer: bool) -> bool:
        if self.asked is not None:
            self.asked.append(f"{question} = {answer}")
        return answer


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))


def _wire_name(message: Any, registry: Registry) -> str:
    if isinstance(message, str):  # what a sink is told
        return message
    try:
        return registry.of(type(message)).name
    except DulyError:
        return f"{type(message).__qualname__} (no event or command)"
