"""The rows of one transaction, in the order in which they came: in memory, on disk when many.

Owns the rows until somebody walks them.  Few are kept as the values that they were read as; of many
the log's own bytes go to a file, and are read anew.  Invariant: a walk gives every row that was not
taken back, with the same ordinals each time.  The file has no name, so that nothing is left behind
by a process that dies; it is closed when the transaction is let go.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import islice
from typing import Final, NamedTuple, overload

from duly.errors import DatabaseUnavailableError, GapError, UndecodableError
from duly.kernel.changes import ABSENT, Change, Intent
from duly.wire.binlog_rows import RowChange, RowReader, Rows

__all__ = ["MEMORY_BYTES", "Changes", "Facts", "Gathered", "Reading", "unreadable"]

MEMORY_BYTES = 2 * 1024 * 1024  # of one transaction's rows, before they go to disk
_TRUNCATED: Final[RowChange] = ("truncate", {}, None, None)


class Reading(NamedTuple):
    """How the rows of a table are read. before: with the values before the change."""

    reader: RowReader
    before: bool

    def read(self, rows: Rows) -> Sequence[RowChange]:
        """The changes of an event. Raises UndecodableError."""
        found = self.reader.read(rows)
        return found if self.before or rows.op == "create" else [_bare(change) for change in found]


def _bare(change: RowChange) -> RowChange:
    """Without the values before it, but for the key where that is gone or another one now."""
    op, key, before, after = change
    assert before is not None, "updates and deletes come with the row before"
    old = {name: before[name] for name in key if name in before}
    if after is not None and all(key[name] == value for name, value in old.items()):
        return op, key, None, after
    return op, key, {**dict.fromkeys(before, ABSENT), **old}, after


class _Piece(NamedTuple):
    """The rows of one event. values: as they were read; None when the bytes of ``rows`` lie in the
    file, ``size`` of them at ``at``.
    """

    reading: Reading | None
    table: str
    total: int
    rows: Rows | None
    values: Sequence[RowChange] | None
    at: int = 0
    size: int = 0


class Gathered:
    """What a transaction did to captured rows, so far."""

    def __init__(self) -> None:
        self.count = 0
        self.memory_bytes = 0
        self._pieces: list[_Piece] = []
        self._spilled = 0  # how many of the pieces lie in the file
        self._file: int | None = None
        self._end = 0

    @property
    def on_disk(self) -> bool:
        """Whether a walk reads a file."""
        return self._file is not None

    @property
    def mark(self) -> int:
        """Where it is, for ``undo``."""
        return len(self._pieces)

    def append(self, reading: Reading, rows: Rows) -> None:
        """Add the rows of an event. Raises UndecodableError, and DatabaseUnavailableError (code
        CDC_SPOOL_FAILED) when the disk is full.
        """
        values = reading.read(rows)
        self._pieces.append(_Piece(reading, reading.reader.name, len(values), rows, values))
        self.count += len(values)
        self.memory_bytes += len(rows.raw) + 100 * len(values)
        if self.memory_bytes > MEMORY_BYTES:
            self._spill()

    def truncate(self, table: str) -> None:
        """All rows of a table went."""
        self._pieces.append(_Piece(None, table, 1, None, (_TRUNCATED,)))
        self.count += 1

    def undo(self, mark: int) -> None:
        """Take back what came since a mark."""
        self.count -= sum(piece.total for piece in self._pieces[mark:])
        del self._pieces[mark:]
        self._spilled = min(self._spilled, mark)

    def __iter__(self) -> Iterator[tuple[str, RowChange]]:
        """Table, and operation, key, before, after of each row."""
        for piece in self._pieces:
            for values in self._values(piece):
                yield piece.table, values

    def _values(self, piece: _Piece) -> Sequence[RowChange]:
        if piece.values is not None:
            return piece.values
        assert piece.reading is not None, "only rows of a table are spilled"
        assert piece.rows is not None, "and keep what they came with"
        return piece.reading.read(piece.rows._replace(raw=self._read(piece.at, piece.size)))

    def _spill(self) -> None:
        for place in range(self._spilled, len(self._pieces)):
            piece = self._pieces[place]
            if piece.rows is not None:
                raw = piece.rows.raw
                at, self._end = self._end, self._end + len(raw)
                self._write(raw, at)
                bare = piece.rows._replace(raw=b"")
                self._pieces[place] = piece._replace(rows=bare, values=None, at=at, size=len(raw))
        self._spilled = len(self._pieces)
        self.memory_bytes = 0

    def _write(self, data: bytes, at: int) -> None:
        try:
            if self._file is None:
                self._file, path = tempfile.mkstemp(prefix="duly-changes-")
                weakref.finalize(self, os.close, self._file)
                os.unlink(path)  # noqa: PTH108  # a name just given by mkstemp
            view = memoryview(data)
            while view:
                written = os.pwrite(self._file, view, at)
                at, view = at + written, view[written:]
        except OSError as error:
            text = f"a large transaction cannot be kept on disk: {error.strerror}"
            raise DatabaseUnavailableError(text, code="CDC_SPOOL_FAILED") from error

    def _read(self, at: int, size: int) -> bytes:
        assert self._file is not None, "what was spilled has a file"
        parts: list[bytes] = []
        while size > 0:
            data = os.pread(self._file, size, at)
            if not data:
                raise GapError("a spooled transaction ends too early", code="CDC_SPOOL_FAILED")
            parts.append(data)
            at, size = at + len(data), size - len(data)
        return b"".join(parts)


class Facts(NamedTuple):
    """What all changes of a transaction have in common."""

    source: str
    position: str
    xid: str
    committed_at: datetime | None
    intents: tuple[Intent, ...]


class Changes(Sequence[Change]):
    """The changes of a transaction. A walk of a large one reads the disk; what it cannot read is
    raised as GapError (code CDC_UNDECODABLE).
    """

    def __init__(self, rows: Gathered, facts: Facts) -> None:
        self._rows = rows
        self._facts = facts

    def __len__(self) -> int:
        return self._rows.count

    @overload
    def __getitem__(self, index: int) -> Change: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Change]: ...
    def __getitem__(self, index: int | slice) -> Change | Sequence[Change]:
        if isinstance(index, slice):
            return list(self)[index]
        place = range(len(self))[index]
        return next(islice(iter(self), place, None))

    def __iter__(self) -> Iterator[Change]:
        source, position, xid, committed_at, intents = self._facts
        try:
            for ordinal, (table, (op, key, before, after)) in enumerate(self._rows):
                yield Change(
                    source,
                    table,
                    op,
                    key,
                    before,
                    after,
                    position,
                    ordinal,
                    xid,
                    committed_at,
                    intents,
                )
        except UndecodableError as error:
            raise unreadable(error) from error


def unreadable(error: UndecodableError) -> GapError:
    """What the stream says of bytes that it cannot read."""
    return GapError(
        f"{error.detail}; update duly, or leave the table out and take a new snapshot",
        code="CDC_UNDECODABLE",
    )
