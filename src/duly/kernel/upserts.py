"""What a change of a row means for a copy of it: put it, remove it, or clear the table.

Owns the way from a change and its projection to operations on a target that is keyed by the row's
key: an update that changes the key removes the old one, a row without a projection is not in the
target, an emptied table clears it.  The invariants: applied in order, the operations leave the
target as the source stood there, also when they are applied again from any earlier place in order;
and a value that the log did not carry is left as it is, never taken for NULL.  What a target makes
of them is its own business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import msgspec

from duly.errors import PermanentError
from duly.kernel.changes import ABSENT, Change

__all__ = [
    "Clear",
    "Operation",
    "Project",
    "Put",
    "Remove",
    "fold",
    "key_text",
    "operations",
    "pieces",
]

Project = Callable[[Change], Mapping[str, Any] | None]


class Put(msgspec.Struct, frozen=True):
    """The row of this key is so. key: the values of the source's key columns. row: what was
    projected; a value may be ABSENT where the log did not carry it.
    """

    key: Mapping[str, Any]
    row: Mapping[str, Any]

    @property
    def whole(self) -> bool:
        """Whether every value is there."""
        return not any(value is ABSENT for value in self.row.values())

    @property
    def known(self) -> dict[str, Any]:
        """The values that are there."""
        return {name: value for name, value in self.row.items() if value is not ABSENT}


class Remove(msgspec.Struct, frozen=True):
    """There is no row of this key."""

    key: Mapping[str, Any]


class Clear(msgspec.Struct, frozen=True):
    """There is no row at all."""


Operation = Put | Remove | Clear


def operations(changes: Iterable[Change], project: Project) -> Iterator[Operation]:
    """What the changes of one table mean for its copy. project: the row as the target has it, None
    where it has none.

    Raises PermanentError (NO_KEY) for a row that nothing names, and what ``project`` raises.
    """
    for change in changes:
        if change.op == "truncate":
            yield Clear()
            continue
        key = change.key
        if not key or any(value is ABSENT for value in key.values()):
            text = f"a row of {change.table} has no key to be found by; give the rule key="
            raise PermanentError(text, code="NO_KEY")
        old = _old_key(change)
        if old != key:
            yield Remove(old)
        row = None if change.op == "delete" else project(change)
        yield Remove(key) if row is None else Put(key, row)


def _old_key(change: Change) -> Mapping[str, Any]:
    """The key before an update; the present one where the log says of no other."""
    if change.op != "update" or change.before is None:
        return change.key
    told = {name: change.before.get(name, ABSENT) for name in change.key}
    return change.key if any(value is ABSENT for value in told.values()) else told


def fold(given: Iterable[Operation]) -> list[Operation]:
    """The same with each key once, in the place of its last operation, and nothing before the last
    clearing but that.
    """
    clear: list[Operation] = []
    last: dict[str, Put | Remove] = {}
    for operation in given:
        if isinstance(operation, Clear):
            clear = [operation]
            last.clear()
            continue
        name = repr(list(operation.key.values()))
        before = last.pop(name, None)
        last[name] = _laid_over(before, operation)
    return [*clear, *last.values()]


def _laid_over(before: Operation | None, now: Put | Remove) -> Put | Remove:
    """What both leave: what was not carried now is as it was before, where that is known."""
    if isinstance(before, Put) and isinstance(now, Put) and not now.whole:
        return msgspec.structs.replace(now, row={**before.row, **now.known})
    return now


def pieces(given: Iterable[Operation], *, count: int, size_bytes: int) -> Iterator[list[Operation]]:
    """The same in lists of up to ``count``, that end as well when so many bytes of text are in."""
    piece: list[Operation] = []
    size = 0
    for operation in given:
        piece.append(operation)
        row = operation.row if isinstance(operation, Put) else {}
        size += sum([len(v) for v in row.values() if v.__class__ is str or v.__class__ is bytes])
        if len(piece) >= count or size >= size_bytes:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece


def key_text(key: Mapping[str, Any]) -> str:
    """A key as text: the value itself where it is one column of text or numbers, else its parts
    with their lengths. Different keys of one table have different texts.
    """
    parts = [part.hex() if isinstance(part, bytes) else str(part) for part in key.values()]
    return parts[0] if len(parts) == 1 else "".join(f"{len(part)}:{part}" for part in parts)
