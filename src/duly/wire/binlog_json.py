"""MySQL's binary JSON as Python values, and the changes that PARTIAL_UPDATE_ROWS writes of it.

Invariant: the value is the one that the same document's text gives, so that a row of the log equals
a row that was selected: numbers and moments of MySQL's own become what their text says.  Bytes that
do not fit, and a document whose parts are pointed to more than once, are a ValueError.
"""

from __future__ import annotations

import re
from base64 import encodebytes
from collections.abc import Callable
from copy import deepcopy
from struct import Struct
from typing import Any, Final

from duly.wire.binlog_bytes import Bytes
from duly.wire.binlog_table import Kind
from duly.wire.binlog_values import decimal_reader
from duly.wire.pgvalues import reader_of

__all__ = ["patched", "read_json"]

_DEPTH_MAX: Final = 100  # MySQL's own limit
_SMALL_OBJECT, _LARGE_OBJECT, _SMALL_ARRAY, _LARGE_ARRAY, _LITERAL = range(5)
_STRING, _OPAQUE = 12, 15
_LITERALS: Final = {0: None, 1: True, 2: False}
_NUMBERS: Final = {
    5: Struct("<h"), 6: Struct("<H"), 7: Struct("<i"), 8: Struct("<I"), 9: Struct("<q"),
    10: Struct("<Q"), 11: Struct("<d"),
}  # fmt: skip
_INLINE_SMALL: Final = (_LITERAL, 5, 6)
_INLINE_LARGE: Final = (*_INLINE_SMALL, 7, 8)
_INSERT, _REMOVE = 1, 2  # 0: replace
_LEG: Final = re.compile(r'\.([^\W\d][\w$]*)|\.("(?:[^"\\]|\\.)*")|\[(\d{1,9})\]')
_of_text: Final = reader_of(114)  # JSON's text, whoever wrote it


def read_json(data: bytes) -> Any:
    """A document. Raises ValueError, IndexError or struct.error where the bytes are none."""
    if not data:
        return None  # what MySQL itself reads of a column that was never given a value
    return _Document(data).value(data[0], 1, 0)


class _Document:
    """One document on its way. Places are of the whole of it; those in a container are counted from
    where it begins.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._left = len(data)

    def value(self, kind: int, at: int, depth: int) -> Any:
        """The value of a kind that begins at a place."""
        if kind in _NUMBERS:
            return _NUMBERS[kind].unpack_from(self._data, at)[0]
        if kind == _LITERAL:
            return _literal(self._data[at])
        if kind == _STRING:
            return self._sized(at).decode()
        if kind == _OPAQUE:
            return _opaque(self._data[at], self._sized(at + 1))
        if kind > _LARGE_ARRAY or depth == _DEPTH_MAX:
            raise ValueError(f"the kind {kind} of a value")
        return self._container(kind, at, depth)

    def _container(self, kind: int, base: int, depth: int) -> Any:
        width = 4 if kind in (_LARGE_OBJECT, _LARGE_ARRAY) else 2
        count, size = self._number(base, width), self._number(base + width, width)
        if base + size > len(self._data):
            raise ValueError(f"{size} bytes of {len(self._data) - base}")
        at = base + 2 * width
        if kind in (_SMALL_ARRAY, _LARGE_ARRAY):
            return self._values(count, at, base=base, width=width, depth=depth)
        self._spend(count * (width + 2))
        keys = [self._key(base, at + n * (width + 2), width) for n in range(count)]
        behind = at + count * (width + 2)
        values = self._values(count, behind, base=base, width=width, depth=depth)
        return dict(zip(keys, values, strict=True))

    def _values(self, count: int, at: int, *, base: int, width: int, depth: int) -> list[Any]:
        inline = _INLINE_LARGE if width == 4 else _INLINE_SMALL
        self._spend(count * (width + 1))
        found = []
        for _ in range(count):
            kind, place = self._data[at], at + 1
            if kind not in inline:
                place = base + self._number(place, width)
            found.append(self.value(kind, place, depth + 1))
            at += width + 1
        return found

    def _key(self, base: int, entry: int, width: int) -> str:
        place, size = self._number(entry, width), self._number(entry + width, 2)
        return self._part(base + place, size).decode()

    def _sized(self, at: int) -> bytes:
        """Bytes behind their length: seven bits in each byte, the last one without the eighth."""
        size = 0
        for n in range(5):
            byte = self._data[at + n]
            size |= (byte & 0x7F) << (7 * n)
            if byte < 0x80:
                return self._part(at + n + 1, size)
        raise ValueError("a length of more than 5 bytes")

    def _part(self, at: int, size: int) -> bytes:
        self._spend(size)
        return _exactly(self._data[at : at + size], size)

    def _number(self, at: int, size: int) -> int:
        return int.from_bytes(_exactly(self._data[at : at + size], size), "little")

    def _spend(self, count: int) -> None:
        """All parts together cannot be longer than the document, unless some are there twice."""
        self._left -= count
        if self._left < 0:
            raise ValueError("a document that is longer than its bytes")


def _exactly(found: bytes, size: int) -> bytes:
    if len(found) != size:
        raise ValueError(f"{size} bytes wanted, {len(found)} left")
    return found


def _literal(number: int) -> bool | None:
    if number not in _LITERALS:
        raise ValueError(f"the literal {number}")
    return _LITERALS[number]


def _opaque(kind: int, data: bytes) -> Any:
    """A value of a type of MySQL, as its text in the document gives it."""
    if kind == Kind.NEWDECIMAL:
        precision, scale = data[0], data[1]
        if not 0 < precision >= scale:
            raise ValueError("a decimal of no digits")
        return _of_text(format(decimal_reader(precision, scale)(data[2:]), "f").encode())
    if kind in _MOMENTS:
        number = int.from_bytes(_exactly(data, 8), "little", signed=True)
        return _MOMENTS[kind](number)
    text = encodebytes(data).decode().rstrip("\n")
    return f"base64:type{kind}:{text}"


def _time(number: int) -> str:
    size = abs(number)
    clock, micros = size >> 24, size & 0xFFFFFF
    sign = "-" if number < 0 else ""
    return f"{sign}{clock >> 12:02}:{clock >> 6 & 63:02}:{clock & 63:02}.{micros:06}"


def _date(number: int) -> str:
    days = number >> 41
    year, month = divmod(days >> 5, 13)
    return f"{year:04}-{month:02}-{days & 31:02}"


def _datetime(number: int) -> str:
    return f"{_date(number)} {_time(number & (1 << 41) - 1)}"


_MOMENTS: Final[dict[int, Callable[[int], str]]] = {
    Kind.TIME: _time,
    Kind.DATE: _date,
    Kind.DATETIME: _datetime,
    Kind.TIMESTAMP: _datetime,
}


def patched(document: Any, diffs: bytes) -> Any:
    """A document after the changes that the log has of it; the one given is left as it is.

    Raises ValueError, LookupError, TypeError or UndecodableError where they do not fit it.
    """
    read = Bytes(diffs)
    root = [deepcopy(document)]
    while read.left:
        operation, path = read.number(1), read.text(read.packed())
        if operation > _REMOVE:
            raise ValueError(f"the change {operation} of a document")
        value = None if operation == _REMOVE else read_json(read.take(read.packed()))
        _change(root, path, operation=operation, value=value)
    return root[0]


def _change(root: list[Any], path: str, *, operation: int, value: Any) -> None:
    *way, last = _legs(path)
    inside: Any = root
    for leg in way:
        inside = inside[leg]
    there = last in inside if isinstance(inside, dict) else last in range(len(inside))
    if operation == _INSERT and isinstance(inside, list) and isinstance(last, int):
        inside.insert(last, value)
    elif there == (operation == _INSERT):
        raise ValueError("a change that does not fit its document")
    elif operation == _REMOVE:
        del inside[last]
    else:
        inside[last] = value


def _legs(path: str) -> list[str | int]:
    """The way to a value, the document itself being the only element of a list."""
    legs: list[str | int] = [0]
    at = 1
    while at < len(path):
        leg = _LEG.match(path, at)
        if leg is None:
            raise ValueError("a path that is none")
        name, quoted, index = leg.groups()
        legs.append(int(index) if index else name or _of_text(quoted.encode()))
        at = leg.end()
    if path[:1] != "$":
        raise ValueError("a path that does not begin with $")
    return legs
