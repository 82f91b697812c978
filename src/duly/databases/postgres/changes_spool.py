"""The rows of one transaction, in the order in which they came: in memory, on disk when many.

Owns the frames until somebody walks them; they become values only then.  Invariant: a walk gives
every row that was not taken back, with the same ordinals each time.  The file has no name, so that
nothing is left behind by a process that dies; it is closed when the transaction is let go.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import chain, islice
from struct import Struct
from typing import NamedTuple, overload

from duly.errors import DatabaseUnavailableError, GapError, UndecodableError
from duly.kernel.changes import Change, Intent
from duly.wire.pgrows import RowReader

__all__ = ["MEMORY_BYTES", "Changes", "Facts", "Rows", "unreadable"]

MEMORY_BYTES = 2 * 1024 * 1024  # of one transaction's rows, before they go to disk
_READ_BYTES = 1024 * 1024
_RECORD = Struct(">III")  # bytes of the frame, place of its reader, subtransaction
Row = tuple[RowReader | None, bytes, int]


class Rows:
    """Frames of rows with what reads them. streaming: they came in stream blocks."""

    def __init__(self, *, streaming: bool) -> None:
        self.streaming = streaming
        self.memory_bytes = 0
        # Three lists, and not one of tuples: those would keep the garbage collector busy.
        self._by: list[RowReader | None] = []
        self._frames: list[bytes] = []
        self._subxids: list[int] = []
        self._file: int | None = None
        self._end = 0
        self._readers: list[RowReader | None] = []
        self._places: dict[RowReader | None, int] = {}
        self._counts: defaultdict[int, int] = defaultdict(int)
        self._undone: set[int] = set()

    @property
    def on_disk(self) -> bool:
        """Whether a walk reads a file."""
        return self._file is not None

    def append(self, reader: RowReader | None, frame: bytes, subxid: int) -> None:
        """Add a row. reader: None for a table that is not captured. Raises
        DatabaseUnavailableError (code CDC_SPOOL_FAILED) when the disk is full.
        """
        self._by.append(reader)
        self._frames.append(frame)
        self._subxids.append(subxid)
        if reader is not None:
            self._counts[subxid] += 1
        self.memory_bytes += len(frame) + 100
        if self.memory_bytes > MEMORY_BYTES:
            self._spill()

    def undo(self, subxid: int) -> None:
        """Take back what a subtransaction did."""
        self._undone.add(subxid)
        self._counts.pop(subxid, None)

    def __len__(self) -> int:
        return sum(self._counts.values())

    def __iter__(self) -> Iterator[tuple[RowReader | None, bytes]]:
        if not self._undone and self._file is None:
            return zip(self._by, self._frames, strict=True)
        return self._kept()

    def _kept(self) -> Iterator[tuple[RowReader | None, bytes]]:
        for reader, frame, subxid in chain(self._spilled(), self._tail()):
            if subxid not in self._undone:
                yield reader, frame

    def _tail(self) -> Iterator[Row]:
        return zip(self._by, self._frames, self._subxids, strict=True)

    def _spill(self) -> None:
        parts: list[bytes] = []
        for reader, frame, subxid in self._tail():
            place = self._places.get(reader)
            if place is None:
                place = self._places[reader] = len(self._readers)
                self._readers.append(reader)
            parts += (_RECORD.pack(len(frame), place, subxid), frame)
        self._write(b"".join(parts))
        for rows in (self._by, self._frames, self._subxids):
            rows.clear()
        self.memory_bytes = 0

    def _write(self, data: bytes) -> None:
        try:
            if self._file is None:
                self._file, path = tempfile.mkstemp(prefix="duly-changes-")
                weakref.finalize(self, os.close, self._file)
                os.unlink(path)  # noqa: PTH108  # a name just given by mkstemp
            view = memoryview(data)
            while view:
                written = os.pwrite(self._file, view, self._end)
                self._end += written
                view = view[written:]
        except OSError as error:
            text = f"a large transaction cannot be kept on disk: {error.strerror}"
            raise DatabaseUnavailableError(text, code="CDC_SPOOL_FAILED") from error

    def _spilled(self) -> Iterator[Row]:
        at, data, used = 0, b"", 0
        while at < self._end or used < len(data):
            wanted = _RECORD.size
            if len(data) - used >= wanted:
                length, place, subxid = _RECORD.unpack_from(data, used)
                wanted += length
                if len(data) - used >= wanted:
                    start, used = used + _RECORD.size, used + wanted
                    yield self._readers[place], data[start:used], subxid
                    continue
            more = self._more(at, max(_READ_BYTES, wanted))
            data, used, at = data[used:] + more, 0, at + len(more)

    def _more(self, at: int, count: int) -> bytes:
        data = b"" if self._file is None else os.pread(self._file, count, at)
        if not data:
            raise GapError("a spooled transaction ends too early", code="CDC_SPOOL_FAILED")
        return data


class Facts(NamedTuple):
    """What all changes of a transaction have in common."""

    source: str
    position: str
    xid: str
    committed_at: datetime | None
    intents: tuple[Intent, ...]


class Changes(Sequence[Change]):
    """The changes of a transaction, decoded anew whenever they are walked.

    A walk raises GapError (code CDC_UNDECODABLE) at a row that cannot be read.
    """

    def __init__(self, rows: Rows, facts: Facts) -> None:
        self._rows = rows
        self._facts = facts
        self._total = len(rows)

    def __len__(self) -> int:
        return self._total

    @overload
    def __getitem__(self, index: int) -> Change: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Change]: ...
    def __getitem__(self, index: int | slice) -> Change | Sequence[Change]:
        if isinstance(index, slice):
            return list(self)[index]
        place = range(self._total)[index]
        return next(islice(iter(self), place, None))

    def __iter__(self) -> Iterator[Change]:
        source, position, xid, committed_at, intents = self._facts
        streaming = self._rows.streaming
        try:
            for ordinal, (reader, frame) in enumerate(self._rows):
                if reader is not None:
                    op, key, before, after = reader.read(frame, streaming=streaming)
                    yield Change(
                        source,
                        reader.table,
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
