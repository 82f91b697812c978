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

from duly.errors import AbsentValueError

__all__ = ["ABSENT", "Absent", "Change", "Intent", "Op", "SnapshotChunk", "Transaction"]

Op = Literal["create", "update", "delete", "truncate", "read"]


class Absent:
    """The log did not carry this value: it is neither NULL nor known to be unchanged."""

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


@dataclass(frozen=True, slots=True)
class Change:
    """One row that changed, or one table that was emptied.

    source: identity of the database, as text. table: as the source names it, with its schema where
    it has one. op: ``read`` is a row of a snapshot. key: the key columns after the change (before
    it, for a delete). before, after: the row's columns; None where there was no row or the log has
    no image of it; a value may be ABSENT. position: of the commit of its transaction. ordinal: its
    place in there, from 0. xid: the source's number of the transaction, as text.
    """

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


def _named(*parts: str) -> str:
    """A UUID of version 8 that these parts alone decide."""
    text = "".join(f"{len(part)}:{part}" for part in parts)
    digits = sha256(text.encode()).hexdigest()[:32]
    variant = "89ab"[int(digits[16], 16) % 4]
    return f"{digits[:8]}-{digits[8:12]}-8{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"


@dataclass(frozen=True, slots=True)
class Transaction:
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


@dataclass(frozen=True, slots=True)
class SnapshotChunk:
    """Rows of one table as they stood at a position of the stream, given in their place there.

    cursor: pass it to go on behind this chunk after a restart; done: it was the last one.
    """

    table: str
    position: str
    rows: Sequence[Change]
    cursor: str
    done: bool
    resumable: bool = True
    release: Callable[[], None] = field(default=lambda: None, compare=False, repr=False)
