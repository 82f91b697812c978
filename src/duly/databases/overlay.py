"""Rows that were read beside a log of changes, and the changes that lie over them.

Owns what a chunk of a snapshot becomes when changes of its time are laid over it, and which columns
of a captured table are carried.  Invariants: a row that a change took away is not in the chunk; a
row that a change brought is left out, for the change itself tells it; laying changes over rows that
have them already, all of them and in order, changes nothing.  Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from duly.kernel.changes import ABSENT, Change
from duly.sources import TableSpec

__all__ = ["Row", "Values", "kept", "laid_over"]

Values = dict[str, Any]
Row = tuple[Values, Values]  # key, columns


def kept(spec: TableSpec, names: Sequence[str]) -> list[str]:
    """Those of the columns that are carried."""
    included = [name for name in names if not spec.include or name in spec.include]
    return [name for name in included if name not in spec.exclude]


def laid_over(rows: Iterable[Row], changes: Iterable[Change]) -> list[Row]:
    """The rows as these changes of their table left them."""
    state = {_named(key): (key, row) for key, row in rows}
    for change in changes:
        _lay_over(state, change)
    return list(state.values())


def _named(key: Values) -> str:
    return repr(list(key.values()))


def _lay_over(state: dict[str, Row], change: Change) -> None:
    """Apply a change to the rows that are here; others it tells itself, with all their values."""
    if change.op == "truncate":
        state.clear()
        return
    key, before = dict(change.key), change.before or {}
    old = {name: before.get(name, ABSENT) for name in key}
    if any(value is ABSENT for value in old.values()):
        old = key
    found = state.pop(_named(old), None)
    if found is None or change.after is None:
        return
    row = {n: found[1].get(n, v) if v is ABSENT else v for n, v in change.after.items()}
    state[_named(key)] = (key, row)
