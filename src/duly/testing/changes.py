"""Changes for tests of rules, without a database.

Owns how a test says "this row changed": whole rows before and after, as a source gives them.  What
a test does not say is what a source with full images would: nothing is ABSENT unless it is given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from msgspec.structs import replace

from duly.kernel.changes import Change, Intent, Op, Transaction

__all__ = ["created", "deleted", "emptied", "snapshot_row", "transaction_of", "updated"]

Row = Mapping[str, Any]
Key = str | Sequence[str]

_SOURCE = "test"
_COMMITTED_AT = datetime(2026, 1, 1, tzinfo=UTC)


def created(table: str, row: Row, *, key: Key = "id") -> Change:
    """A new row. key: the columns that name it."""
    return _change(table, "create", key, after=row)


def updated(table: str, before: Row, after: Row, *, key: Key = "id") -> Change:
    """A row before and after. Columns that ``after`` does not name keep their value."""
    return _change(table, "update", key, before=before, after={**before, **after})


def deleted(table: str, row: Row, *, key: Key = "id") -> Change:
    """A row that is gone."""
    return _change(table, "delete", key, before=row)


def emptied(table: str) -> Change:
    """A table that lost all its rows at once."""
    return _change(table, "truncate", ())


def snapshot_row(table: str, row: Row, *, key: Key = "id") -> Change:
    """A row of a snapshot, for rules with ``on_snapshot``."""
    return _change(table, "read", key, after=row)


def transaction_of(
    changes: Sequence[Change], *, position: str = "1", intents: Sequence[Intent] = ()
) -> Transaction:
    """A committed transaction of these changes, in this order."""
    placed = [
        replace(
            change,
            position=position,
            ordinal=ordinal,
            committed_at=_COMMITTED_AT,
            intents=tuple(intents),
        )
        for ordinal, change in enumerate(changes)
    ]
    return Transaction(
        _SOURCE,
        position,
        position,
        xid=position,
        committed_at=_COMMITTED_AT,
        changes=placed,
        intents=tuple(intents),
    )


def _change(
    table: str, op: Op, key: Key, *, before: Row | None = None, after: Row | None = None
) -> Change:
    row = after if after is not None else before or {}
    names = [key] if isinstance(key, str) else list(key)
    named = {name: row[name] for name in names}
    return Change(_SOURCE, table, op, named, before, after, position="", ordinal=0)
