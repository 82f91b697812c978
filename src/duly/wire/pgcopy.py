"""The answer to ``COPY ... TO STDOUT``: messages of the server's protocol, and the rows in them.

PostgreSQL sends one row in each CopyData message, so any message's end is a place to cut.
Invariant: a block ends with the first row that reaches its size, counted from the block's begin,
however the bytes came in.  Leaves out the socket, and everything that is not part of this answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from struct import error as TooShort  # noqa: N812  # no error of ours: the message is not all there
from typing import NamedTuple

__all__ = ["CopyAnswer", "CopyBlock", "csv_fields", "text_fields"]

_HEAD = Struct(">cI").unpack_from
_HEAD_BYTES = 5
_ESCAPES = {
    ord("b"): b"\b",
    ord("f"): b"\f",
    ord("n"): b"\n",
    ord("r"): b"\r",
    ord("t"): b"\t",
    ord("v"): b"\v",
}


class CopyBlock(NamedTuple):
    """Rows, with their line ends. first, last: of them. pieces: all of them, one by one or in
    longer pieces.
    """

    rows: int
    first: bytes
    last: bytes
    pieces: Sequence[bytes]


class CopyAnswer:
    """Takes the bytes of an answer and gives blocks of rows.

    block_bytes: a block ends with the row that reaches this, its 5 bytes of message counted.
    piece_bytes: nobody asks for single rows, so they are joined to about this much; 0: they stay
    as they are. done: the server is ready for the next command. refusal: what its error says, by
    field, empty without one.
    """

    def __init__(self, block_bytes: int, *, piece_bytes: int = 0) -> None:
        self._size = block_bytes
        self._left = block_bytes
        self._piece = piece_bytes
        self._loose = 0
        self._rest = b""
        self._rows: list[bytes] = []
        self._before: list[CopyBlock] = []
        self.done = False
        self.refusal: dict[str, str] = {}

    def feed(self, data: bytes) -> list[CopyBlock]:
        """The blocks that are whole now."""
        data = self._rest + data if self._rest else data
        blocks: list[CopyBlock] = []
        rows, head = self._rows, _HEAD
        at, end, cut = 0, len(data), self._left
        try:
            # A loop of its own for the one message that comes by the million.
            while True:
                kind, size = head(data, at)
                following = at + size + 1
                if following > end:
                    break
                if kind == b"d":
                    rows.append(data[at + _HEAD_BYTES : following])
                    if following >= cut:
                        blocks.append(self._block(rows))
                        rows = []
                        cut = following + self._size
                else:
                    self._other(kind, data[at + _HEAD_BYTES : following])
                    cut += size + 1
                at = following
        except TooShort:
            pass
        self._rows, self._rest, self._left = rows, data[at:], cut - at
        if self._piece and rows:
            self._join(at)
        return blocks

    def last(self) -> CopyBlock | None:
        """The rows behind the last whole block, once it is done."""
        rows, self._rows = self._rows, []
        return self._block(rows) if rows or self._before else None

    def _join(self, size: int) -> None:
        """Rows become a piece when there are enough of them. size: what came just now."""
        self._loose += size
        if self._loose >= self._piece:
            self._before.append(_joined(self._rows))
            self._rows, self._loose = [], 0

    def _block(self, rows: list[bytes]) -> CopyBlock:
        """What was joined before, and these rows."""
        if not self._piece:
            return CopyBlock(len(rows), rows[0], rows[-1], rows)
        parts = [*self._before, _joined(rows)] if rows else self._before
        self._before, self._loose = [], 0
        pieces = [part.pieces[0] for part in parts]
        count = sum(part.rows for part in parts)
        return CopyBlock(count, parts[0].first, parts[-1].last, pieces)

    def _other(self, kind: bytes, body: bytes) -> None:
        if kind == b"Z":
            self.done = True
        elif kind == b"E":
            fields = [part.decode(errors="replace") for part in body.split(b"\0") if part]
            self.refusal = {field[0]: field[1:] for field in fields}


def _joined(rows: list[bytes]) -> CopyBlock:
    return CopyBlock(len(rows), rows[0], rows[-1], [b"".join(rows)])


def csv_fields(row: bytes, delimiter: bytes) -> list[bytes | None]:
    """The fields of one row of COPY's CSV with its line end; None for what is NULL.

    Raises ValueError for what is not one whole row.
    """
    if not row.endswith(b"\n"):
        raise ValueError("a row without its end")
    found: list[bytes | None] = []
    at, end = 0, len(row) - 1
    while True:
        if row[at : at + 1] == b'"':
            stop = _closing(row, at)
            found.append(row[at + 1 : stop].replace(b'""', b'"'))
            stop += 1
        else:
            stop = row.find(delimiter, at, end)
            stop = end if stop < 0 else stop
            found.append(row[at:stop] or None)
        if stop == end:
            return found
        if row[stop : stop + 1] != delimiter:
            raise ValueError("something behind quotes")
        at = stop + 1


def _closing(row: bytes, begin: int) -> int:
    """Where the quotes that begin there end."""
    at = begin + 1
    while True:
        at = row.find(b'"', at)
        if at < 0:
            raise ValueError("quotes without their end")
        if row[at + 1 : at + 2] != b'"':
            return at
        at += 2


def text_fields(row: bytes) -> list[bytes | None]:
    """The fields of one row of COPY's text with its line end; None for what is NULL."""
    fields: list[bytes | None] = []
    for field in row[:-1].split(b"\t"):
        if b"\\" not in field:
            fields.append(field)
        else:
            fields.append(None if field == b"\\N" else _unescaped(field))
    return fields


def _unescaped(field: bytes) -> bytes:
    first, *rest = field.split(b"\\")
    found = [first]
    at = 0
    while at < len(rest):
        piece = rest[at]
        if not piece:  # two backslashes stand for one; what follows them is plain
            found += [b"\\", rest[at + 1]]
            at += 2
        else:
            found.append(_ESCAPES.get(piece[0], piece[:1]) + piece[1:])
            at += 1
    return b"".join(found)
