"""Values of the binlog by the types of their columns: how many bytes, and which Python value.

Owns every type of MySQL and MariaDB but JSON.  Invariant: nothing is lost, and the value is the one
that a SELECT of the same row gives, in UTC and with its moments read by the functions below.  What
Python cannot hold exactly (dates with zeros in them, days that no month has) stays the server's own
text; bytes that are none of the type's values are a ValueError.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from struct import Struct
from typing import Any, Final, NamedTuple, NoReturn

from duly.wire.binlog_bytes import undecodable, unzipped, uuid_text
from duly.wire.binlog_table import Column, Kind
from duly.wire.binlog_texts import BINARY, decoder_of

__all__ = [
    "Layout",
    "Read",
    "date_of",
    "datetime_of",
    "decimal_reader",
    "layout_of",
    "reader_of",
    "shortest",
    "time_of",
    "timestamp_of",
]

Read = Callable[[Any], Any]
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_COLUMN_BYTES_MAX: Final = 1 << 30  # of one compressed value; the server's own limit for a packet
_FLOAT: Final = Struct("<f")
_DIGIT_BYTES: Final = (0, 1, 1, 2, 2, 3, 3, 4, 4, 4)  # of a group of a decimal by its digits
_TIME_SECONDS_MAX: Final = 838 * 3600 + 59 * 60 + 59
_TIME: Final = re.compile(r"(-?)(\d{2,3}):(\d\d):(\d\d)(?:\.(\d{1,6}))?", re.ASCII)
_DIGITS: Final = re.compile(r"\((\d)\)", re.ASCII)


class Layout(NamedTuple):
    """How a value stands in a row: ``code`` of the module struct, or behind a length of ``prefix``
    bytes where that is not 0.
    """

    code: str
    prefix: int = 0


def date_of(text: str) -> date | str:
    """A DATE as a SELECT gives it, as a Python value; its own text where there is none."""
    try:
        return date.fromisoformat(text)
    except ValueError:
        return text


def datetime_of(text: str) -> datetime | str:
    """As ``date_of``, for a DATETIME."""
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return text


def timestamp_of(text: str) -> datetime | str:
    """As ``date_of``, for a TIMESTAMP that was read in UTC."""
    found = datetime_of(text)
    return found.replace(tzinfo=UTC) if isinstance(found, datetime) else found


def time_of(text: str) -> timedelta:
    """A TIME as a SELECT gives it. Raises ValueError."""
    found = _TIME.fullmatch(text)
    if found is None:
        raise ValueError("no time")
    sign, hours, minutes, seconds, fraction = found.groups(default="")
    micros = int(fraction.ljust(6, "0"))
    size = timedelta(
        hours=int(hours), minutes=int(minutes), seconds=int(seconds), microseconds=micros
    )
    return -size if sign else size


def shortest(value: float) -> float:
    """The float of six to nine digits, no more than are needed, that is the same FLOAT.

    value: of a FLOAT column, exactly; ``CAST(... AS DOUBLE)`` gives it, a plain SELECT does not.
    """
    if value.is_integer() and abs(value) < 1e6:
        return value
    for digits in (6, 7, 8, 9):
        found = float(f"{value:.{digits}g}")
        if _FLOAT.unpack(_FLOAT.pack(found))[0] == value:
            return found
    return value  # not a number


def layout_of(column: Column, declared: str) -> Layout:
    """How the values of a column stand in a row. declared: its type as the database's catalog tells
    it, or empty; of moments in the format before MySQL 5.6 the log does not say how long they are.

    Raises UndecodableError.
    """
    kind = column.kind
    if kind in _MOMENT_BYTES:
        return Layout(f"{_MOMENT_BYTES[kind] + (_digits(column.size) + 1) // 2}s")
    if kind in _OLD_MOMENT_BYTES:
        return Layout(f"{_OLD_MOMENT_BYTES[kind][_old_digits(column, declared)]}s")
    if kind in _BY_LENGTH:
        return Layout("", 2 if column.size > 255 else 1)
    if kind in _BY_SIZE:
        return Layout(_BY_SIZE[kind](column))
    if not 1 <= column.size <= 4:
        undecodable(f"a length of {column.size} bytes")
    return Layout("", column.size)


def reader_of(column: Column, declared: str) -> Read | None:
    """What makes a Python value of what stands in the row; None where it is one already. declared:
    as of ``layout_of``; "uuid", "inet6" and "inet4" are bytes to the log.

    Raises UndecodableError (BINLOG_METADATA: the log does not say what is needed; BINLOG_CHARSET).
    """
    kind = column.kind
    if kind in _INTEGERS or kind is Kind.INT24:
        return _integer(column)
    if kind in _MOMENT_READERS:
        return _MOMENT_READERS[kind](column.size)
    if kind in _OLD_MOMENT_READERS:
        return _OLD_MOMENT_READERS[kind](_old_digits(column, declared))
    if kind is Kind.NEWDECIMAL:
        return decimal_reader(column.size, column.scale)
    if kind in (Kind.ENUM, Kind.SET):
        return _labels(column)
    if kind in (Kind.BLOB_COMPRESSED, Kind.VARCHAR_COMPRESSED):
        return _compressed(_text(column))
    if kind is Kind.STRING and column.collation == BINARY:
        return _fixed_bytes(column.size, declared)
    if kind in _TEXTS:
        return _text(column)
    return _READERS.get(kind)


def _enum_code(column: Column) -> str:
    if column.size not in (1, 2):
        undecodable(f"an ENUM of {column.size} bytes")
    return "B" if column.size == 1 else "H"


def _integer_code(column: Column) -> str:
    code = _INTEGERS[column.kind]
    return code.upper() if column.unsigned else code


def _digits(digits: int) -> int:
    if digits > 6:
        undecodable(f"a fraction of {digits} digits")
    return digits


def _unsaid(column: Column, what: str) -> NoReturn:
    undecodable(
        f"{what} of column {column.name!r}; run: SET GLOBAL binlog_row_metadata = FULL",
        code="BINLOG_METADATA",
    )


def _integer(column: Column) -> Read | None:
    if column.unsigned is None:
        _unsaid(column, "no sign")
    if column.kind is not Kind.INT24:
        return None
    signed = not column.unsigned
    return lambda data: int.from_bytes(data, "little", signed=signed)


def _old_digits(column: Column, declared: str) -> int:
    if not declared:
        undecodable(
            f"column {column.name!r} is stored in the format before MySQL 5.6, whose length the log"
            " does not say; run: ALTER TABLE ... FORCE",
            code="BINLOG_METADATA",
        )
    found = _DIGITS.search(declared)
    return _digits(int(found[1])) if found else 0


def _text(column: Column) -> Read | None:
    if column.collation is None:
        _unsaid(column, "no collation")
    return None if column.collation == BINARY else decoder_of(column.collation)


def _fixed_bytes(size: int, declared: str) -> Read:
    """BINARY: the log leaves out the zeros at its end."""
    read = _DECLARED.get(declared.lower())
    if read is None:
        return lambda data: data.ljust(size, b"\0")
    return lambda data: read(data.ljust(size, b"\0"))


def _compressed(read: Read | None) -> Read:
    def value(data: bytes) -> Any:
        found = _decompressed(data) if data else data
        return read(found) if read else found

    return value


def _decompressed(data: bytes) -> bytes:
    """A value of a COMPRESSED column: how, the length, and zlib's bytes; or as it is, behind 0."""
    first = data[0]
    if not first:
        return data[1:]
    count = first & 7
    if first & 0xF0 != 0x80:
        raise ValueError(f"a compressed value that begins with {first}")
    size = int.from_bytes(data[1 : 1 + count], "big")
    raw = bool(first & 8)
    return unzipped(data[1 + count :], size, bytes_max=_COLUMN_BYTES_MAX, raw=raw)


def _labels(column: Column) -> Read:
    if column.labels is None or column.collation is None:
        _unsaid(column, "no labels")
    decode = bytes.decode if column.collation == BINARY else decoder_of(column.collation)
    try:
        labels = [decode(label) for label in column.labels]
    except ValueError:
        undecodable(f"a label of column {column.name!r}, which is not in its character set")
    if column.kind is Kind.ENUM:
        texts = ["", *labels]  # 0 is what strict mode refuses
        return texts.__getitem__
    return lambda data: _set(labels, int.from_bytes(data, "little"))


def _set(labels: list[str], bits: int) -> str:
    if bits >> len(labels):
        raise ValueError("a label of a set that is not there")
    return ",".join(label for n, label in enumerate(labels) if bits >> n & 1)


def _decimal_code(column: Column) -> str:
    if not 0 <= column.scale <= column.size or not column.size:
        undecodable(f"a decimal of {column.size} digits, {column.scale} of them a fraction")
    return f"{sum(_DIGIT_BYTES[n] for n in _groups(column.size, column.scale))}s"


def _groups(precision: int, scale: int) -> list[int]:
    """How many digits each group has: 9, but for the first and the last."""
    whole = precision - scale
    return [whole % 9, *[9] * (whole // 9), *[9] * (scale // 9), scale % 9]


@lru_cache(maxsize=256)
def decimal_reader(precision: int, scale: int) -> Read:
    """What reads a DECIMAL: groups of digits as big-endian numbers, all bits flipped where it is
    negative, and the first bit flipped. Its loop over the groups is unrolled, as those over columns
    are: amounts are what costs most of a row.
    """
    lines, sum_of, too_many = [], [], []
    shift, weight = 0, 1
    for digits in filter(None, reversed(_groups(precision, scale))):
        bits, limit, group = 8 * _DIGIT_BYTES[digits], 10**digits, f"group{shift}"
        lines += [f" {group} = number >> {shift} & {(1 << bits) - 1}"]
        sum_of += [f"{group} * {weight}"]
        too_many += [f"{group} >= {limit}"]
        shift, weight = shift + bits, weight * limit
    every, sign = (1 << shift) - 1, 1 << (shift - 1)
    lines = [
        "def read(data):",
        f' number, mark = from_bytes(data, "big") ^ {sign}, ""',
        f" if number & {sign}:",
        f'  number, mark = number ^ {every}, "-"',
        *lines,
        f" if {' or '.join(too_many)}:",
        '  raise ValueError("a decimal of too many digits")',
        f' return Decimal(f"{{mark}}{{{" + ".join(sum_of)}}}E-{scale}")',
    ]
    known: dict[str, Any] = {"from_bytes": int.from_bytes, "Decimal": Decimal}
    exec("\n".join(lines), known)  # noqa: S102  # our own text; of the log only two numbers
    made: Read = known["read"]
    return made


def _time2(digits: int) -> Read:
    bits = 8 * ((digits + 1) // 2)
    unit = 10 ** (6 - bits // 4)

    def read(data: bytes) -> timedelta:
        number = int.from_bytes(data, "big") - (0x800000 << bits)
        size = abs(number)
        clock, micros = size >> bits, (size & ((1 << bits) - 1)) * unit
        return _span(number < 0, (clock >> 12, clock >> 6 & 63, clock & 63), micros)

    return read


def _span(negative: bool, clock: tuple[int, int, int], micros: int) -> timedelta:
    hours, minutes, seconds = clock
    if hours > 838 or minutes > 59 or seconds > 59 or micros > 999_999:
        raise ValueError("no time")
    size = timedelta(0, hours * 3600 + minutes * 60 + seconds, micros)
    return -size if negative else size


def _datetime2(digits: int) -> Read:
    bits = 8 * ((digits + 1) // 2)
    unit = 10 ** (6 - bits // 4)
    offset, mask = 0x8000000000 << bits, (1 << bits) - 1

    def read(data: bytes) -> datetime | str:
        number = int.from_bytes(data, "big") - offset
        clock = number >> bits
        days = clock >> 17
        year, month = divmod(days >> 5, 13)
        parts = (year, month, days & 31, clock >> 12 & 31, clock >> 6 & 63, clock & 63)
        return _moment(parts, (number & mask) * unit, digits)

    return read


def _moment(parts: tuple[int, ...], micros: int, digits: int) -> datetime | str:
    year, month, day, hour, minute, second = parts
    try:
        return datetime(year, month, day, hour, minute, second, micros)  # noqa: DTZ001  # it has none
    except ValueError:
        if hour > 23 or minute > 59 or second > 59 or micros > 999_999:
            raise
    fraction = f".{micros:06}"[: digits + 1] if digits else ""
    return f"{_unreal_date(year, month, day)} {hour:02}:{minute:02}:{second:02}{fraction}"


def _unreal_date(year: int, month: int, day: int) -> str:
    if not 0 <= year <= 9999 or month > 12 or day > 31:
        raise ValueError("no date")
    return f"{year:04}-{month:02}-{day:02}"


def _timestamp2(digits: int) -> Read:
    bits = 8 * ((digits + 1) // 2)
    unit = 10 ** (6 - bits // 4)

    def read(data: bytes) -> datetime | str:
        number = int.from_bytes(data, "big")
        return _instant(number >> bits, (number & ((1 << bits) - 1)) * unit, digits)

    return read


def _instant(seconds: int, micros: int, digits: int) -> datetime | str:
    if micros > 999_999:
        raise ValueError("no moment")
    if not seconds:  # 1970 begins with 1
        return "0000-00-00 00:00:00" + (f".{micros:06}"[: digits + 1] if digits else "")
    return EPOCH + timedelta(0, seconds, micros)


@lru_cache(maxsize=8192)
def _date(data: bytes) -> date | str:
    number = int.from_bytes(data, "little")
    year, month, day = number >> 9, number >> 5 & 15, number & 31
    try:
        return date(year, month, day)
    except ValueError:
        return _unreal_date(year, month, day)


def _old_time(digits: int) -> Read:
    if digits:
        return lambda data: _old_span(int.from_bytes(data, "big"), 10**digits)
    return lambda data: _by_pairs(int.from_bytes(data, "little", signed=True))


def _old_span(number: int, per_second: int) -> timedelta:
    """MariaDB's times with a fraction before MySQL's: counted from below the lowest."""
    number -= (_TIME_SECONDS_MAX + 1) * per_second
    seconds, fraction = divmod(abs(number), per_second)
    if seconds > _TIME_SECONDS_MAX:
        raise ValueError("no time")
    size = timedelta(0, seconds, fraction * (1_000_000 // per_second))
    return -size if number < 0 else size


def _by_pairs(number: int) -> timedelta:
    size = abs(number)
    return _span(number < 0, (size // 10_000, size // 100 % 100, size % 100), 0)


def _old_datetime(digits: int) -> Read:
    """Digits of a date and a time as one number; with a fraction, everything counted in it."""
    if not digits:

        def read(data: bytes) -> datetime | str:
            number = int.from_bytes(data, "little")
            parts: list[int] = []
            for _ in range(5):
                number, part = divmod(number, 100)
                parts.insert(0, part)
            return _moment((number, *parts), 0, 0)

        return read

    def read_fraction(data: bytes) -> datetime | str:
        number, fraction = divmod(int.from_bytes(data, "big"), 10**digits)
        parts: list[int] = []
        for size in (60, 60, 24, 32, 13):
            number, part = divmod(number, size)
            parts.insert(0, part)
        return _moment((number, *parts), fraction * 10 ** (6 - digits), digits)

    return read_fraction


def _old_timestamp(digits: int) -> Read:
    if not digits:
        return lambda data: _instant(int.from_bytes(data, "little"), 0, 0)

    def read(data: bytes) -> datetime | str:
        fraction = int.from_bytes(data[4:], "big")
        micros = fraction * 10 ** (6 - digits)
        return _instant(int.from_bytes(data[:4], "big"), micros, digits)

    return read


def _inet6(data: bytes) -> str:
    """As MariaDB writes it: the last four bytes as IPv4 where the first say so, and a zero that is
    alone left out, too.
    """
    address = IPv6Address(data)
    number = int(address)
    if address.ipv4_mapped is not None:
        return f"::ffff:{address.ipv4_mapped}"
    if 0xFFFF < number < 1 << 32:
        return f"::{IPv4Address(number)}"
    text = str(address)
    parts = text.split(":")
    if "::" in text or "0" not in parts:
        return text
    zero = parts.index("0")
    return f"{':'.join(parts[:zero])}::{':'.join(parts[zero + 1 :])}"


_DECLARED: Final[dict[str, Read]] = {
    "uuid": uuid_text,
    "inet6": _inet6,
    "inet4": lambda data: str(IPv4Address(data)),
}
_INTEGERS: Final = {Kind.TINY: "b", Kind.SHORT: "h", Kind.LONG: "i", Kind.LONGLONG: "q"}
_BY_SIZE: Final[dict[Kind, Callable[[Column], str]]] = {
    **dict.fromkeys(_INTEGERS, _integer_code),
    Kind.INT24: lambda column: "3s",
    Kind.FLOAT: lambda column: "f",
    Kind.DOUBLE: lambda column: "d",
    Kind.YEAR: lambda column: "B",
    Kind.DATE: lambda column: "3s",
    Kind.BIT: lambda column: f"{(column.size + 7) // 8}s",
    Kind.SET: lambda column: f"{column.size}s",
    Kind.ENUM: _enum_code,
    Kind.NEWDECIMAL: _decimal_code,
}
_MOMENT_BYTES: Final = {Kind.TIME2: 3, Kind.DATETIME2: 5, Kind.TIMESTAMP2: 4}
_MOMENT_READERS: Final = {
    Kind.TIME2: _time2, Kind.DATETIME2: _datetime2, Kind.TIMESTAMP2: _timestamp2,
}  # fmt: skip
_OLD_MOMENT_BYTES: Final = {  # by the digits of the fraction, which only MariaDB had
    Kind.TIME: (3, 4, 4, 5, 5, 5, 6),
    Kind.DATETIME: (8, 6, 6, 7, 7, 7, 8),
    Kind.TIMESTAMP: (4, 5, 5, 6, 6, 7, 7),
}
_OLD_MOMENT_READERS: Final = {
    Kind.TIME: _old_time, Kind.DATETIME: _old_datetime, Kind.TIMESTAMP: _old_timestamp,
}  # fmt: skip
_BY_LENGTH: Final = (Kind.STRING, Kind.VAR_STRING, Kind.VARCHAR, Kind.VARCHAR_COMPRESSED)
_TEXTS: Final = (Kind.STRING, Kind.VAR_STRING, Kind.VARCHAR, Kind.BLOB)
_READERS: Final[dict[Kind, Read]] = {
    Kind.FLOAT: shortest,
    Kind.YEAR: lambda years: years and 1900 + years,
    Kind.DATE: _date,
}  # the others are Python's own already: DOUBLE, BIT, GEOMETRY, VECTOR
