"""Values of the binlog: exact, or the server's own text, and never a guess."""

from __future__ import annotations

import datetime as dt
import math
from decimal import Decimal
from struct import pack, unpack
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duly.errors import UndecodableError
from duly.wire.binlog_table import Column, Kind
from duly.wire.binlog_values import (
    Layout,
    date_of,
    datetime_of,
    decimal_reader,
    layout_of,
    reader_of,
    shortest,
    time_of,
    timestamp_of,
)

UTC = dt.UTC
WRONG = (ValueError, ArithmeticError)
SPAN = dt.timedelta


def column(kind: Kind, size: int = 0, scale: int = 0, **more: Any) -> Column:
    return Column("c", kind, size, scale, **more)


def value(given: Column, data: bytes, declared: str = "") -> Any:
    """What a value's bytes become, without the length that stands before some."""
    layout, read = layout_of(given, declared), reader_of(given, declared)
    found = data if layout.prefix else unpack(f"<{layout.code}", data)[0]
    return read(found) if read else found


INTEGERS = [
    (kind, size, code) for kind, size, code in (
        (Kind.TINY, 1, "b"), (Kind.SHORT, 2, "h"), (Kind.INT24, 3, "3s"), (Kind.LONG, 4, "i"),
        (Kind.LONGLONG, 8, "q"),
    )
]  # fmt: skip


@pytest.mark.parametrize(("kind", "size", "code"), INTEGERS)
def test_integers_with_and_without_a_sign(kind: Kind, size: int, code: str) -> None:
    ones, lowest = b"\xff" * size, bytes(size - 1) + b"\x80"
    signed, unsigned = column(kind, unsigned=False), column(kind, unsigned=True)
    assert (value(signed, ones), value(signed, lowest)) == (-1, -(1 << 8 * size - 1))
    assert (value(unsigned, ones), value(unsigned, lowest)) == (
        (1 << 8 * size) - 1,
        1 << 8 * size - 1,
    )
    assert layout_of(signed, "") == Layout(code)
    with pytest.raises(UndecodableError) as caught:
        reader_of(column(kind), "")
    assert caught.value.code == "BINLOG_METADATA"


@pytest.mark.parametrize("number", [0.0, 1.0, -0.5, 1.1, 123456.7, 16777216.0, 3.4028234e38, 1e-45])
def test_a_float_has_the_digits_that_it_needs(number: float) -> None:
    data = pack("<f", number)
    found = value(column(Kind.FLOAT, 4), data)
    assert pack("<f", found) == data
    assert len(repr(found).strip("-0.")) <= len(repr(unpack("<f", data)[0]).strip("-0."))


def test_floats_that_are_known() -> None:
    assert value(column(Kind.FLOAT, 4), pack("<f", 1.1)) == 1.1
    assert value(column(Kind.DOUBLE, 8), pack("<d", 1.1)) == 1.1
    assert math.isnan(shortest(math.nan))
    assert shortest(math.inf) == math.inf


def test_years_bits_and_bytes_of_other_types() -> None:
    year = column(Kind.YEAR, unsigned=True)
    assert [value(year, bytes([n])) for n in (0, 1, 255)] == [0, 1901, 2155]
    assert value(column(Kind.BIT, 9), b"\1\xff") == b"\1\xff"
    assert layout_of(column(Kind.BIT, 64), "") == Layout("8s")
    for kind in (Kind.GEOMETRY, Kind.VECTOR, Kind.JSON):
        assert layout_of(column(kind, 4), "") == Layout("", 4)
        assert reader_of(column(kind, 4), "") is None
    for size in (0, 5):
        with pytest.raises(UndecodableError):
            layout_of(column(Kind.BLOB, size), "")


def decimal(digits: str, precision: int, scale: int) -> bytes:
    """A DECIMAL's bytes, of its digits without a point."""
    sign, digits = digits.startswith("-"), digits.lstrip("-").rjust(precision, "0")
    whole = precision - scale
    sizes = [whole % 9, *[9] * (whole // 9), *[9] * (scale // 9), scale % 9]
    data, at = b"", 0
    for size in filter(None, sizes):
        width = (0, 1, 1, 2, 2, 3, 3, 4, 4, 4)[size]
        data, at = data + int(digits[at : at + size]).to_bytes(width, "big"), at + size
    flipped = bytes(byte ^ 0xFF for byte in data) if sign else data
    return bytes([flipped[0] ^ 0x80]) + flipped[1:]


@given(st.data())
def test_a_decimal_comes_back_with_all_its_digits(data: st.DataObject) -> None:
    precision = data.draw(st.integers(1, 65))
    scale = data.draw(st.integers(0, min(precision, 38)))
    number = data.draw(st.integers(-(10**precision) + 1, 10**precision - 1))
    given = column(Kind.NEWDECIMAL, precision, scale)
    found = value(given, decimal(str(number), precision, scale))
    assert (str(found), found.as_tuple().exponent) == (str(Decimal(f"{number}E-{scale}")), -scale)


def test_decimals_that_are_none() -> None:
    money = column(Kind.NEWDECIMAL, 10, 2)
    assert str(value(money, decimal("-150", 10, 2))) == "-1.50"
    with pytest.raises(WRONG):
        decimal_reader(1, 0)(b"\xff")
    for precision, scale in ((0, 0), (2, 3)):
        with pytest.raises(UndecodableError):
            layout_of(column(Kind.NEWDECIMAL, precision, scale), "")


def day(year: int, month: int, number: int) -> bytes:
    return (year << 9 | month << 5 | number).to_bytes(3, "little")


def moment2(parts: tuple[int, ...], fraction: int, digits: int) -> bytes:
    year, month, number, hour, minute, second = parts
    days = (year * 13 + month) << 5 | number
    clock = days << 17 | hour << 12 | minute << 6 | second
    size = (digits + 1) // 2
    return ((0x8000000000 + clock << 8 * size) + fraction).to_bytes(5 + size, "big")


def time2(sign: int, parts: tuple[int, int, int], fraction: int, digits: int) -> bytes:
    hour, minute, second = parts
    size = (digits + 1) // 2
    number = (hour << 12 | minute << 6 | second) << 8 * size | fraction
    return ((0x800000 << 8 * size) + sign * number).to_bytes(3 + size, "big")


def test_dates_that_python_has_and_others() -> None:
    given = column(Kind.DATE)
    assert value(given, day(2024, 2, 29)) == dt.date(2024, 2, 29)
    assert value(given, day(0, 0, 0)) == "0000-00-00"
    assert value(given, day(2024, 2, 31)) == "2024-02-31"
    for wrong in (day(10_000, 1, 1), day(2024, 13, 1)):
        with pytest.raises(WRONG):
            value(given, wrong)


def test_datetimes_that_python_has_and_others() -> None:
    given = column(Kind.DATETIME2, 6)
    noon = (2024, 6, 15, 12, 0, 0)
    assert value(given, moment2(noon, 1, 6)) == dt.datetime(2024, 6, 15, 12, microsecond=1)  # noqa: DTZ001
    assert value(column(Kind.DATETIME2, 3), moment2(noon, 9870, 3)).microsecond == 987_000
    assert value(column(Kind.DATETIME2), moment2((0,) * 6, 0, 0)) == "0000-00-00 00:00:00"
    unreal = moment2((2024, 0, 10, 1, 2, 3), 50, 1)
    assert value(column(Kind.DATETIME2, 1), unreal) == "2024-00-10 01:02:03.5"
    for wrong in ((2024, 6, 15, 24, 0, 0), (2024, 6, 15, 12, 60, 0), (2024, 6, 15, 12, 0, 60)):
        with pytest.raises(WRONG):
            value(given, moment2(wrong, 0, 6))
    for data in (moment2(noon, 1_000_000, 6), b"\x7f" + bytes(7), b"\xff" * 8):
        with pytest.raises(WRONG):
            value(given, data)


def test_timestamps_are_in_utc() -> None:
    given = column(Kind.TIMESTAMP2, 2)
    assert value(given, b"\0\0\0\1\x05") == dt.datetime(1970, 1, 1, 0, 0, 1, 50_000, tzinfo=UTC)
    assert value(column(Kind.TIMESTAMP2), b"\xff" * 4).year == 2106
    assert value(given, bytes(5)) == "0000-00-00 00:00:00.00"
    assert value(column(Kind.TIMESTAMP2), bytes(4)) == "0000-00-00 00:00:00"
    with pytest.raises(WRONG):
        value(column(Kind.TIMESTAMP2, 6), b"\0\0\0\1\xff\xff\xff")


def test_times_of_both_signs() -> None:
    given = column(Kind.TIME2, 6)
    longest = SPAN(hours=838, minutes=59, seconds=59, microseconds=999_999)
    for sign in (1, -1):
        assert value(given, time2(sign, (838, 59, 59), 999_999, 6)) == sign * longest
        hundredth = time2(sign, (0, 0, 0), 1, 2)
        assert value(column(Kind.TIME2, 2), hundredth) == sign * SPAN(microseconds=10_000)
    for parts, fraction in (
        ((839, 0, 0), 0),
        ((0, 60, 0), 0),
        ((0, 0, 60), 0),
        ((0, 0, 0), 1 << 20),
    ):
        with pytest.raises(WRONG):
            value(given, time2(1, parts, fraction, 6))
    for kind in (Kind.TIME2, Kind.DATETIME2, Kind.TIMESTAMP2):
        with pytest.raises(UndecodableError):
            layout_of(column(kind, 7), "")


def test_moments_in_the_format_before_mysql_5_6() -> None:
    time, moment, stamp = column(Kind.TIME), column(Kind.DATETIME), column(Kind.TIMESTAMP)
    assert value(time, (-121314).to_bytes(3, "little", signed=True), "time") == -time_of("12:13:14")
    noon = (20240615123456).to_bytes(8, "little")
    assert value(moment, noon, "datetime") == dt.datetime(2024, 6, 15, 12, 34, 56)  # noqa: DTZ001
    assert value(stamp, pack("<I", 1), "timestamp") == dt.datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)
    for old, declared in ((time, "TIME"), (moment, "DATETIME"), (stamp, "timestamp")):
        assert value(old, bytes(layout_length(old, declared)), declared) in (
            SPAN(0), "0000-00-00 00:00:00",
        )  # fmt: skip
        with pytest.raises(UndecodableError) as caught:
            layout_of(old, "")
        assert caught.value.code == "BINLOG_METADATA"
        with pytest.raises(UndecodableError):
            layout_of(old, f"{declared}(7)")


def layout_length(given: Column, declared: str) -> int:
    return int(layout_of(given, declared).code[:-1])


def test_moments_with_the_fraction_that_only_mariadb_had() -> None:
    # Bytes as MariaDB wrote them with mysql56_temporal_format = OFF.
    time, moment, stamp = column(Kind.TIME), column(Kind.DATETIME), column(Kind.TIMESTAMP)
    assert value(time, bytes.fromhex("00b16857b9"), "time(3)") == -time_of("12:13:14.567")
    written = datetime_of("2024-01-02 03:04:05.123456")
    assert value(moment, bytes.fromhex("010276129951f580"), "datetime(6)") == written
    assert value(stamp, bytes.fromhex("65937d2563"), "timestamp(2)") == dt.datetime(
        2024, 1, 2, 3, 4, 5, 990_000, tzinfo=UTC
    )
    assert value(moment, bytes(8), "datetime(6)") == "0000-00-00 00:00:00.000000"
    with pytest.raises(WRONG):
        value(time, b"\xff" * 5, "time(3)")


def test_texts_and_bytes() -> None:
    assert value(column(Kind.VARCHAR, 40, collation=8), b"\xe9") == "é"
    assert value(column(Kind.BLOB, 2, collation=63), b"\xe9") == b"\xe9"
    assert value(column(Kind.STRING, 40, collation=45), b"a") == "a"
    assert value(column(Kind.STRING, 4, collation=63), b"\1") == b"\1\0\0\0"
    assert layout_of(column(Kind.STRING, 255), "") == Layout("", 1)
    assert layout_of(column(Kind.VARCHAR, 256), "") == Layout("", 2)
    for kind in (Kind.VARCHAR, Kind.VAR_STRING, Kind.BLOB, Kind.VARCHAR_COMPRESSED):
        with pytest.raises(UndecodableError) as caught:
            reader_of(column(kind, 2), "")
        assert caught.value.code == "BINLOG_METADATA"


IPV6 = [
    ("::", bytes(16)), ("::1", bytes(15) + b"\1"), ("::ffff", bytes(14) + b"\xff\xff"),
    ("::1.2.3.4", bytes(12) + b"\1\2\3\4"), ("::0.1.0.0", bytes(13) + b"\1\0\0"),
    ("::ffff:1.2.3.4", bytes(10) + b"\xff\xff\1\2\3\4"), ("1::2", b"\0\1" + bytes(13) + b"\2"),
    ("1::2:3:4:5:6:7", bytes.fromhex("00010000000200030004000500060007")),
    ("ffff:" * 7 + "ffff", b"\xff" * 16),
]  # fmt: skip


@pytest.mark.parametrize(("text", "data"), IPV6)
def test_types_that_are_bytes_to_the_log(text: str, data: bytes) -> None:
    given = column(Kind.STRING, 16, collation=63)
    assert value(given, data.rstrip(b"\0"), "INET6") == text
    assert value(given, data) == data
    shown = value(given, data, "uuid")
    assert (shown.replace("-", ""), shown.count("-")) == (data.hex(), 4)


def test_an_address_of_four_bytes() -> None:
    assert value(column(Kind.STRING, 4, collation=63), b"\x0a", "inet4") == "10.0.0.0"


def test_compressed_columns() -> None:
    text, data = (
        column(Kind.VARCHAR_COMPRESSED, 99, collation=8),
        column(Kind.BLOB_COMPRESSED, 2, collation=63),
    )
    assert (value(text, b""), value(text, b"\0\xe9"), value(data, b"\0\xe9")) == ("", "é", b"\xe9")
    # As MariaDB wrote them, without and with zlib's own frame.
    assert value(text, bytes.fromhex("89c84b4c1c1e0000")) == "a" * 200
    assert value(data, bytes.fromhex("81c8789c4b4c1c1e0000c27f4bc9")) == b"a" * 200
    with pytest.raises(WRONG):
        value(text, b"\x71\1x")
    with pytest.raises(UndecodableError):
        value(text, b"\x81\xc9\x78\x9c")


def test_labels() -> None:
    labels = (b"a", b"b,c", b"\xe9")
    enum = column(Kind.ENUM, 1, labels=labels, collation=8)
    assert [value(enum, bytes([n])) for n in range(4)] == ["", "a", "b,c", "é"]
    wide = column(Kind.ENUM, 2, labels=(b"x",), collation=63)
    assert value(wide, b"\1\0") == "x"
    given = column(Kind.SET, 1, labels=labels, collation=8)
    assert [value(given, bytes([n])) for n in (0, 1, 5)] == ["", "a", "a,é"]
    with pytest.raises(IndexError):
        value(enum, b"\4")
    with pytest.raises(WRONG):
        value(given, b"\x08")
    with pytest.raises(UndecodableError):
        layout_of(column(Kind.ENUM, 3), "")
    with pytest.raises(UndecodableError):
        reader_of(column(Kind.SET, 1, labels=labels, collation=45), "")
    for unsaid in (column(Kind.SET, 1, collation=8), column(Kind.ENUM, 1, labels=labels)):
        with pytest.raises(UndecodableError) as caught:
            reader_of(unsaid, "")
        assert caught.value.code == "BINLOG_METADATA"


def test_what_a_select_gives_is_read_by_the_same_rules() -> None:
    assert (date_of("2024-02-29"), date_of("2024-02-31")) == (dt.date(2024, 2, 29), "2024-02-31")
    assert datetime_of("2024-01-02 03:04:05.6").microsecond == 600_000  # type: ignore[union-attr]
    assert datetime_of("0000-00-00 00:00:00") == "0000-00-00 00:00:00"
    assert timestamp_of("1970-01-01 00:00:01") == dt.datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)
    assert timestamp_of("0000-00-00 00:00:00.0") == "0000-00-00 00:00:00.0"
    assert time_of("-838:59:59.5") == -SPAN(hours=838, minutes=59, seconds=59, milliseconds=500)
    assert time_of("00:00:01") == SPAN(seconds=1)
    with pytest.raises(WRONG):
        time_of("24 hours")
