"""What a change of the source's data is, whichever log it was read from.

A source gives whole transactions, in commit order.  A change is named by the source, the position
where its transaction committed, and its ordinal in there: never by the place of a row in a log,
which rows share.  Three states of a value are kept apart: a value, NULL (``None``), and *absent* -
the log did not say (an unchanged large value, a column that is not captured).  Invariant: an absent
value is never taken for NULL or for the old value; asking for it raises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from typing import Any, Final, Literal

import msgspec

from duly.errors import AbsentValueError, UndecodableError

__all__ = ["ABSENT", "Absent", "Change", "Intent", "Op", "SnapshotChunk", "Transaction"]

Op = Literal["create", "update", "delete", "truncate", "read"]


class Absent:
    """The log did not carry this value: it is neither NULL nor known to be unchanged. Compare with
    ``is``; as a truth value it raises AbsentValueError.
    """

    def __repr__(self) -> str:
        return "ABSENT"

    def __bool__(self) -> bool:
        raise AbsentValueError("the log did not carry this value")


ABSENT: Final = Absent()


@dataclass(frozen=True, slots=True)
class Intent:
    """What the service said of its own transaction. name: as it wrote it; data: its payload."""

    name: str
    data: bytes = b""

    def json(self) -> Any:
        """The payload, read as JSON; None where there is none. Raises UndecodableError."""
        if not self.data:
            return None
        try:
            return msgspec.json.decode(self.data)
        except msgspec.DecodeError:  # its text may quote the payload
            raise UndecodableError(f"the data of intent {self.name!r:.80} is not JSON") from None


class Change(msgspec.Struct, frozen=True):
    """One row that changed, or one table that was emptied.

    source: identity of the database, as text. table: as the source names it, with its schema where
    it has one. op: ``read`` is a row of a snapshot. key: the key columns after the change (before
    it, for a delete). before, after: the row's columns; None where there was no row or the log has
    no image of it; a value may be ABSENT. position: of the commit of its transaction. ordinal: its
    place in there, from 0. xid: the source's number of the transaction, as text.
    """  # A Struct because every row passes here: making one takes a tenth of a dataclass's time.

    source: str
    table: str
    op: Op
    key: Mapping[str, Any]
    before: Mapping[str, Any] | None
    after: Mapping[str, Any] | None
    position: str
    ordinal: int
    xid: str = ""
    committed_at: datetime | None = None
    intents: tuple[Intent, ...] = ()

    @property
    def id(self) -> str:
        """The same for the same change however often it is read."""
        return _named(self.source, self.position, str(self.ordinal))

    def event_id(self, rule: str, number: int = 0) -> str:
        """The id of the event that a rule makes of this change, the same at every replay."""
        return _named(self.source, self.position, str(self.ordinal), rule, str(number))

    @property
    def created(self) -> bool:
        """The row is new."""
        return self.op == "create"

    @property
    def deleted(self) -> bool:
        """The row is gone; what it was is in ``before``."""
        return self.op == "delete"

    def changed(self, *columns: str) -> bool:
        """Whether an update gave one of these columns, or any where none is named, another value.

        Raises AbsentValueError when that hangs on a value that the log did not carry.
        """
        if self.op != "update":
            return False
        old, new = self._old(), self.after or {}
        unknown = ""
        for column in columns or new:
            before, after = _there(old, column, self.table), _there(new, column, self.table)
            if before is ABSENT or after is ABSENT:
                unknown = column
            elif before != after:
                return True
        if unknown:
            raise AbsentValueError(f"{self.table}.{unknown} of an update")
        return False

    def became(self, column: str, value: Any) -> bool:
        """Whether the column has this value now and had not before; a new row had none before.

        Raises AbsentValueError when that hangs on a value that the log did not carry.
        """
        if self.after is None or _known(self.after, column, self.table) != value:
            return False
        if self.op != "update":
            return True
        return bool(_known(self._old(), column, self.table) != value)

    def moved(self, column: str, old: Any, new: Any) -> bool:
        """Whether an update took the column from one value to the other. Raises
        AbsentValueError when that hangs on a value that the log did not carry.
        """
        if self.op != "update" or _known(self.after or {}, column, self.table) != new:
            return False
        return bool(_known(self._old(), column, self.table) == old)

    def intent(self, name: str) -> Intent | None:
        """What the service said of this name in the change's transaction; the first of several."""
        return next((intent for intent in self.intents if intent.name == name), None)

    def _old(self) -> Mapping[str, Any]:
        if self.before is None:
            raise AbsentValueError(f"{self.table}: the row before an update")
        return self.before


def _there(row: Mapping[str, Any], column: str, table: str) -> Any:
    """The value or ABSENT; a column that nobody knows is a slip of the pen."""
    if column not in row:
        raise AbsentValueError(f"{table} has no column {column!r:.80} here")
    return row[column]


def _known(row: Mapping[str, Any], column: str, table: str) -> Any:
    value = _there(row, column, table)
    if value is ABSENT:
        raise AbsentValueError(f"{table}.{column}")
    return value


def _named(*parts: str) -> str:
    """A UUID of version 8 that these parts alone decide."""
    text = "".join(f"{len(part)}:{part}" for part in parts)
    digits = sha256(text.encode()).hexdigest()[:32]
    variant = "89ab"[int(digits[16], 16) % 4]
    return f"{digits[:8]}-{digits[8:12]}-8{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"


class Transaction(msgspec.Struct, frozen=True):
    """One committed transaction of the source, whole.

    changes: in the order in which the source made them; may be walked more than once, and lies on
    disk when it is large. total: how many there are. commit: the position to go on behind.
    """

    source: str
    position: str
    commit: str
    xid: str
    committed_at: datetime | None
    changes: Sequence[Change]
    intents: tuple[Intent, ...] = ()

    def __iter__(self) -> Iterator[Change]:
        return iter(self.changes)

    def of(self, table: str) -> Iterator[Change]:
        """The changes of one table, in order; the name with or without its schema."""
        return (c for c in self.changes if table in (c.table, c.table.rpartition(".")[2]))

    def intent(self, name: str) -> Intent | None:
        """What the service said of this name in the transaction; the first of several."""
        return next((intent for intent in self.intents if intent.name == name), None)

    def event_id(self, rule: str, number: int = 0) -> str:
        """The id of the event that a rule makes of all of it, the same at every replay."""
        return _named(self.source, self.position, "transaction", rule, str(number))


@dataclass(frozen=True, slots=True)
class SnapshotChunk:
    """Rows of one table as they stood at a position of the stream, given in their place there.

    The rows' own positions name them and are none of the stream's: two chunks can stand at one.

    cursor: pass it to go on behind this chunk after a restart; done: it was the last one.
    """

    table: str
    position: str
    rows: Sequence[Change]
    cursor: str
    done: bool
    resumable: bool = True
    release: Callable[[], None] = field(default=lambda: None, compare=False, repr=False)
