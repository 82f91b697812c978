"""PostgreSQL's text of a value, made a Python value by the type's number.

Expects the output of a session with UTF-8, ISO dates in UTC, hexadecimal bytea and shortest floats.
Invariant: nothing is lost.  What Python cannot hold exactly - infinite dates, years before 1 or
after 9999, 24:00:00, arrays with bounds of their own, JSON nested too deep - and every type that is
not known stays PostgreSQL's own text; the same text gives the same value wherever it was read.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any, Final

import msgspec

__all__ = ["reader_of"]

Read = Callable[[bytes], Any]


def reader_of(oid: int) -> Read:
    """What reads the texts of a type. oid: of the type; others than the built-in give str.

    The reader raises ValueError or ArithmeticError for a text that is none of its type.
    """
    return _READERS.get(oid, _text)


_text: Final[Read] = bytes.decode


def _bool(data: bytes) -> bool:
    if data not in (b"t", b"f"):
        raise ValueError(f"no boolean: {data[:20]!r}")
    return data == b"t"


def _bytea(data: bytes) -> bytes:
    if data[:2] != b"\\x":
        raise ValueError("bytea not in hexadecimal form")
    return bytes.fromhex(data[2:].decode())


def _decimal(data: bytes) -> Decimal:
    return Decimal(data.decode())


def _date(data: bytes) -> date | str:
    text = data.decode()
    try:
        return date.fromisoformat(text)
    except ValueError:  # infinity, before the year 1, after 9999
        return text


def _timestamp(data: bytes) -> datetime | str:
    text = data.decode()
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return text


def _time(data: bytes) -> time | str:
    text = data.decode()
    if text[:2] == "24":  # some versions of Python read it as 00:00
        return text
    try:
        return time.fromisoformat(text)
    except ValueError:
        return text


def _json(data: bytes) -> Any:
    try:
        return _read_json(data)
    except (msgspec.DecodeError, RecursionError):
        pass  # it is stricter, of lone surrogates for one; the reader below decides
    text = data.decode()
    try:
        return _read_any_json(text)
    except RecursionError:
        return text


def _exact(text: str) -> float | Decimal:
    """A number with a fraction or exponent, as a float only where that is the same number."""
    number = float(text)
    exact = Decimal(text)
    return number if Decimal(repr(number)) == exact else exact


def _whole(text: str) -> int | Decimal:
    """A number without a fraction; Python makes no int of thousands of digits."""
    try:
        return int(text)
    except ValueError:
        return Decimal(text)


_read_json: Final = msgspec.json.Decoder(float_hook=_exact).decode
_read_any_json: Final = json.JSONDecoder(parse_float=_exact, parse_int=_whole).decode


class _Array:
    """Reads ``{1,NULL,{...}}``; text and back again would be the same, but for spelling."""

    def __init__(self, element: Read) -> None:
        self._element = element

    def __call__(self, data: bytes) -> Any:
        text = data.decode()
        if not text.startswith("{"):  # bounds of its own, [0:1]={...}: a list would lose them
            return text
        stack: list[list[Any]] = [[]]
        at = 0
        while at < len(text):
            at = self._step(text, at, stack)
        if len(stack) != 1 or len(stack[0]) != 1:
            raise ValueError("an array without its end")
        return stack[0][0]

    def _step(self, text: str, at: int, stack: list[list[Any]]) -> int:
        character = text[at]
        if character == "{":
            inner: list[Any] = []
            stack[-1].append(inner)
            stack.append(inner)
        elif character == "}":
            if len(stack) < 2:
                raise ValueError("an array that ends twice")
            stack.pop()
        elif character != ",":
            word, quoted, at = _word(text, at)
            if len(stack) < 2:
                raise ValueError("something behind an array")
            null = word == "NULL" and not quoted
            stack[-1].append(None if null else self._element(word.encode()))
            return at
        return at + 1


def _word(text: str, at: int) -> tuple[str, bool, int]:
    """The element at a place, whether it is in quotes, and where it ends."""
    if text[at] != '"':
        end = at
        while end < len(text) and text[end] not in ",{}":
            end += 1
        return text[at:end], False, end
    found: list[str] = []
    at += 1
    while at < len(text) and text[at] != '"':
        at += text[at] == "\\"
        found.append(text[at : at + 1])
        at += 1
    if at >= len(text):
        raise ValueError("quotes without their end")
    return "".join(found), True, at + 1


_SCALARS: Final[tuple[tuple[Read, tuple[tuple[int, int], ...]], ...]] = (
    # reader, then the numbers of a type and of its array
    (_bool, ((16, 1000),)),
    (_bytea, ((17, 1001),)),
    (int, ((20, 1016), (21, 1005), (23, 1007), (26, 1028), (5069, 271))),
    (float, ((700, 1021), (701, 1022))),
    (_decimal, ((1700, 1231),)),
    (_date, ((1082, 1182),)),
    (_time, ((1083, 1183), (1266, 1270))),
    (_timestamp, ((1114, 1115), (1184, 1185))),
    (_json, ((114, 199), (3802, 3807))),
    # char, name, text, bpchar, varchar, uuid, inet, cidr, macaddr, macaddr8, interval, bit, varbit
    (_text, ((18, 1002), (19, 1003), (25, 1009), (1042, 1014), (1043, 1015), (2950, 2951))),
    (_text, ((869, 1041), (650, 651), (829, 1040), (774, 775), (1186, 1187))),
    (_text, ((1560, 1561), (1562, 1563))),
)
_READERS: Final[dict[int, Read]] = {
    **{oid: read for read, oids in _SCALARS for oid, _ in oids},
    **{array: _Array(read) for read, oids in _SCALARS for _, array in oids},
}
