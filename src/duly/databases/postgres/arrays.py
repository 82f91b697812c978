"""Columns of text, of bytes and of whole numbers as PostgreSQL's binary arrays, for psycopg.

Owns the form of an array on the wire (PostgreSQL's ``array_send``): its dimensions, then each value
behind its length.  psycopg makes one value by value; here a column of one value many times over is
multiplied, and the others are put together in one pass.  A connection that was opened before these
were known to psycopg uses its own, which are slower and the same: every class here is a list.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import repeat
from struct import Struct
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from psycopg.abc import AdaptContext

__all__ = ["Numbers", "columns", "register"]

_HEAD: Final = Struct(">iiIii").pack  # dimensions, whether with NULL, type, how many, the first is
_LENGTH: Final = Struct(">i").pack
_NULL: Final = _LENGTH(-1)
_NUMBER: Final = Struct(">iq").pack
_NOTHING: Final = Struct(">iii").pack
_TEXT, _TEXTS, _BYTEA, _BYTEAS, _INT8, _INT8S = 25, 1009, 17, 1001, 20, 1016  # PostgreSQL's numbers


class Texts(list[Any]):
    """str or None, at least one."""


class Blobs(list[Any]):
    """bytes or None, at least one."""


class Numbers(list[Any]):
    """int, as ``bigint``; may be empty."""


def columns(rows: Sequence[Any]) -> dict[str, list[Any]]:
    """Rows with the same names, at least one, as a list for each name."""
    return {name: _column([row[name] for row in rows]) for name in rows[0]}


def _column(values: list[Any]) -> list[Any]:
    first = values[0]
    if first is None:
        first = next((one for one in values if one is not None), None)
    kind = _KINDS.get(type(first))
    if kind is None or (kind is Numbers and set(map(type, values)) != {int}):
        return values
    return kind(values)


@cache
def register() -> None:
    """Make the columns known to psycopg, for connections that are opened from now on."""
    from psycopg import adapters
    from psycopg.adapt import Dumper
    from psycopg.pq import Format

    class TextsDumper(Dumper):
        format = Format.BINARY
        oid = _TEXTS

        def __init__(self, cls: type, context: AdaptContext | None = None) -> None:
            super().__init__(cls, context)
            self._encoding = self.connection.info.encoding if self.connection else "utf-8"

        def dump(self, obj: Any) -> bytes:
            return _array(obj, _TEXT, lambda text: text.encode(self._encoding))

    class BlobsDumper(Dumper):
        format = Format.BINARY
        oid = _BYTEAS

        def dump(self, obj: Any) -> bytes:
            return _array(obj, _BYTEA, bytes)

    class NumbersDumper(Dumper):
        format = Format.BINARY
        oid = _INT8S

        def dump(self, obj: Any) -> bytes:
            if not obj:
                return _NOTHING(0, 0, _INT8)
            return _HEAD(1, 0, _INT8, len(obj), 1) + b"".join(map(_NUMBER, repeat(8), obj))

    adapters.register_dumper(Texts, TextsDumper)
    adapters.register_dumper(Numbers, NumbersDumper)
    adapters.register_dumper(Blobs, BlobsDumper)


def _array(values: Sequence[Any], kind: int, encode: Callable[[Any], bytes]) -> bytes:
    count, first = len(values), values[0]
    if first is not None and values.count(first) == count:
        data = encode(first)
        return _HEAD(1, 0, kind, count, 1) + (_LENGTH(len(data)) + data) * count
    parts = [b""]
    add = parts.append
    for value in values:
        if value is None:
            add(_NULL)
        else:
            data = encode(value)
            add(_LENGTH(len(data)))
            add(data)
    parts[0] = _HEAD(1, int(None in values), kind, count, 1)
    return b"".join(parts)


_KINDS: Final[dict[type, Callable[[list[Any]], list[Any]]]] = {
    str: Texts,
    bytes: Blobs,
    int: Numbers,
}
