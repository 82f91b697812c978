"""Rows of ``pgoutput``: compiled once for each version of a relation, then read column by column.

Owns what the log says of a row before and after a change.  Invariant: the three states of a value
stay apart.  A large value that did not change is taken from the old row where that has it, else it
is ABSENT; a tuple that holds the old key only says nothing of the other columns, though it carries
NULL for them.  Bytes that do not fit are an UndecodableError, never another exception.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from struct import Struct, error
from types import CodeType
from typing import Any, Final, NoReturn

from duly.kernel.changes import ABSENT, Op
from duly.wire.pgoutput import (
    DELETE,
    HEADER_BYTES,
    INSERT,
    TRUNCATE,
    UPDATE,
    Relation,
    undecodable,
)
from duly.wire.pgvalues import Read, reader_of

__all__ = ["RowChange", "RowReader"]

_NULL, _UNCHANGED, _TEXT = b"nut"
_NEW, _KEY, _OLD = b"NKO"
_LENGTH = Struct(">I").unpack_from
_READ_ERRORS: Final = (ValueError, ArithmeticError, IndexError, RecursionError, error)
Values = dict[str, Any]
ReadRow = Callable[[bytes, int], tuple[Values, int]]


# Operation, key, the row before and after, None where the log has no image; a plain tuple, for one
# is made for every row of the database.
RowChange = tuple[Op, Values, Values | None, Values | None]


class RowReader:
    """Reads the rows of one relation as it was described.

    table: how the source's user calls it. keep: the columns that are carried. key: what names a
    row; columns it needs are read though they are not carried. Raises KeyError for a key column
    that the relation does not have.
    """

    __slots__ = ("_dropped", "_identity", "_key", "_one", "_row", "table")

    def __init__(
        self, relation: Relation, table: str, *, keep: Collection[str], key: Sequence[str]
    ) -> None:
        self.table = table
        self._key = tuple(key)
        self._identity = {column.name for column in relation.columns if column.key}
        self._dropped = tuple(name for name in self._key if name not in keep)
        self._one = self._key[0] if len(self._key) == 1 and not self._dropped else None
        wanted = {*keep, *key}
        names = {column.name for column in relation.columns}
        for name in self._key:
            if name not in names:
                raise KeyError(name)
        self._row = _row_reader(
            [
                (column.name, reader_of(column.oid) if column.name in wanted else None)
                for column in relation.columns
            ]
        )

    def read(self, frame: bytes, *, streaming: bool) -> RowChange:
        """A frame of kind ``w`` with an insert, update, delete or truncate of this relation.

        streaming: it came in a stream block. Raises UndecodableError.
        """
        at = HEADER_BYTES + (9 if streaming else 5)
        one = self._one
        try:
            if frame[HEADER_BYTES] == INSERT and frame[at] == _NEW and one is not None:
                after, end = self._row(frame, at + 1)  # the most of all, so with the fewest calls
                if end == len(frame):
                    return "create", {one: after[one]}, None, after
            return self._read(frame, at)
        except _READ_ERRORS as problem:
            undecodable(f"a row of {self.table}: {type(problem).__name__}: {str(problem)[:100]}")

    def _read(self, frame: bytes, at: int) -> RowChange:
        kind = frame[HEADER_BYTES]
        if kind == INSERT:
            return self._carried("create", None, self._last(frame, at, _NEW))
        if kind == UPDATE:
            return self._update(frame, at)
        if kind == DELETE:
            mark = frame[at]
            if mark not in (_KEY, _OLD):
                raise ValueError(f"the mark {mark} of an old row")
            before = self._last(frame, at, mark)
            if mark == _KEY:
                self._only_key(before)
            return self._carried("delete", before, None)
        if kind == TRUNCATE:
            return "truncate", {}, None, None
        raise ValueError(f"the kind {kind}")

    def _update(self, frame: bytes, at: int) -> RowChange:
        mark = frame[at]
        if mark == _NEW:
            after = self._last(frame, at, _NEW)
            return self._carried("update", None, after)
        if mark not in (_KEY, _OLD):
            raise ValueError(f"the mark {mark} of an old row")
        before, at = self._row(frame, at + 1)
        if mark == _KEY:
            self._only_key(before)
        after = self._last(frame, at, _NEW)
        for name, value in after.items():
            if value is ABSENT:
                after[name] = before[name]
        return self._carried("update", before, after)

    def _carried(self, op: Op, before: Values | None, after: Values | None) -> RowChange:
        """The change without the columns that were read for the key only."""
        row = before if after is None else after
        assert row is not None, "a change of no row"
        if self._one is not None:
            return op, {self._one: row[self._one]}, before, after
        key = {name: row[name] for name in self._key}
        for name in self._dropped:
            for image in (before, after):
                if image is not None:
                    image.pop(name, None)
        return op, key, before, after

    def _only_key(self, row: Values) -> None:
        for name in row:
            if name not in self._identity:
                row[name] = ABSENT

    def _last(self, frame: bytes, at: int, mark: int) -> Values:
        """The row at the end of a message."""
        if frame[at] != mark:
            raise ValueError(f"the mark {frame[at]} of a row")
        row, at = self._row(frame, at + 1)
        if at != len(frame):
            raise ValueError(f"it ends at byte {at} of {len(frame)}")
        return row


def _row_reader(columns: Sequence[tuple[str, Read | None]]) -> ReadRow:
    """What reads a row that begins at a place of a frame, and says where it ends.

    columns: name and reader of each in its order; without a reader it is passed over.
    """
    kept = tuple(read is not None for _, read in columns)
    known: dict[str, Any] = {
        "count": len(columns).to_bytes(2, "big"),
        "length": _LENGTH,
        "no_text": _no_text,
        "wrong_count": _wrong_count,
    }
    for number, (name, read) in enumerate(columns):
        known |= {f"name{number}": name, f"read{number}": read}
    exec(_row_code(kept), known)  # noqa: S102  # our own text below; nothing of the log is in it
    made: ReadRow = known["row"]
    return made


@lru_cache(maxsize=256)
def _row_code(kept: tuple[bool, ...]) -> CodeType:
    """The function with its loop over the columns unrolled: that halves the time of a row, and it
    is where the time goes. kept: whether each column has a reader.
    """
    lines = ["def row(frame, at):"]
    lines += [" if frame[at : at + 2] != count: wrong_count()", " at += 2"]
    for number, wanted in enumerate(kept):
        lines += [f" if frame[at] == {_TEXT}:", "  start = at + 5"]
        lines += ["  at = start + length(frame, at + 1)[0]"]
        lines += [f"  value{number} = read{number}(frame[start:at])"] if wanted else []
        lines += [" else:", f"  value{number} = no_text(frame[at])", "  at += 1"]
    pairs = ", ".join(f"name{n}: value{n}" for n, wanted in enumerate(kept) if wanted)
    return compile("\n".join([*lines, f" return {{{pairs}}}, at"]), "<row>", "exec")


def _no_text(kind: int) -> Any:
    """A value that is not written out."""
    if kind == _NULL:
        return None
    if kind == _UNCHANGED:
        return ABSENT
    raise ValueError(f"the kind {kind} of a value")


def _wrong_count() -> NoReturn:
    raise ValueError("another number of columns than was described")
