"""The Protocols of a source of changes, and the values that cross them; part of ``ports``.

A *source* is the change log of one database as one named reader sees it; an open *stream* gives
whole transactions in commit order.  What a change is belongs to ``kernel.changes``.  Positions are
opaque text that grows: two of one source may be compared, nothing else is known of them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from duly.kernel.changes import SnapshotChunk, Transaction

if TYPE_CHECKING:
    from duly.ports import Finding

__all__ = ["ChangeFeatures", "ChangeSource", "ChangeStream", "SourceStatus", "TableSpec"]


@dataclass(frozen=True, slots=True)
class ChangeFeatures:
    """What a change source declares; the conformance suite asserts it, and the absence of the rest.

    native_log: the database's own log is read, its schema is not touched. foreign_writers: changes
    of any program are seen. transactions: changes are grouped as they were committed. intents: a
    transaction can carry words of its own. online_snapshot: rows of a table can be read beside the
    stream. truncates: emptying a table is one change.
    """

    native_log: bool = False
    foreign_writers: bool = False
    transactions: bool = False
    intents: bool = False
    online_snapshot: bool = False
    truncates: bool = False


@dataclass(frozen=True, slots=True)
class TableSpec:
    """A table that is captured. name: as the source names it, with its schema where it has one.

    include: the only columns carried, all where empty. exclude: columns never carried. key: what
    names a row; the primary key where empty. before_image: whether a rule needs old values.
    """

    name: str
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    key: tuple[str, ...] = ()
    before_image: bool = False


@dataclass(frozen=True, slots=True)
class SourceStatus:
    """How far a stream is behind its source. lag_bytes, lag_transactions: None where the source
    cannot tell; kept_bytes: of log that the source keeps for us; active: somebody reads it now.
    """

    position: str
    end: str
    lag_bytes: int | None
    lag_transactions: int | None
    kept_bytes: int | None
    active: bool
    detail: str = ""


class ChangeStream(Protocol):
    """An open stream: one reader, whole transactions, in commit order."""

    def items(self) -> AsyncIterator[Transaction | SnapshotChunk | str]:
        """What was committed behind the place where the stream was opened, and the chunks of the
        snapshots that were asked for, each in its place; a plain string is a position that was
        reached with nothing to tell, to be stored and confirmed like any other.

        Ends never by itself. Raises GapError (history is lost or unreadable; never goes on),
        StaleLeaseError (another reader took the source over), DatabaseUnavailableError (open it
        again at the stored position).
        """
        ...

    async def snapshot(self, table: TableSpec, *, cursor: str = "") -> None:
        """Read the rows of a table beside the stream; cursor: go on behind that chunk.

        Guarantee: with the changes around them the rows give the table, without gap or overlap.
        """
        ...

    async def confirm(self, position: str) -> None:
        """Everything up to here is stored: the source may forget it. Never before the store."""
        ...

    async def close(self) -> None:
        """Let go of the source. Idempotent."""
        ...


class ChangeSource(Protocol):
    """The change log of one database, as one named reader sees it."""

    features: ChangeFeatures

    async def identity(self) -> str:
        """Which database this is, the same as long as its positions mean the same."""
        ...

    async def prepare(self, tables: Sequence[TableSpec]) -> str:
        """Make what capturing needs (slot and publication, or triggers) where it is not there;
        gives the position at which a new reader begins. Idempotent.

        Raises ConfigurationError (what is missing, with the statement that mends it).
        """
        ...

    async def inspect(self, tables: Sequence[TableSpec]) -> Sequence[Finding]:
        """What ``check`` and ``doctor`` say: log level, rights, keys, images, retention."""
        ...

    async def open(self, tables: Sequence[TableSpec], *, position: str, token: int) -> ChangeStream:
        """Read on behind a position. token: the fencing token; an older reader is put out.

        Raises GapError when the source no longer has what follows the position.
        """
        ...

    async def status(self, position: str) -> SourceStatus:
        """How far a reader at this position is behind. Raises DatabaseUnavailableError."""
        ...

    async def peek(
        self, tables: Sequence[TableSpec], *, position: str, limit: int
    ) -> Sequence[Transaction]:
        """Up to ``limit`` whole transactions behind a position, the oldest that is kept where it is
        empty; nothing is moved, confirmed or fenced.

        Raises OperatorError (code PEEK_UNSUPPORTED) where that cannot be done now.
        """
        ...

    async def drop(self) -> None:
        """Remove what ``prepare`` made. Idempotent."""
        ...
