"""PostgreSQL's text as Python values: exact, or left as it is."""

from __future__ import annotations

import datetime as dt
import json
import math
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duly.wire.pgvalues import reader_of

UTC = dt.UTC
BIG = 2**80
CASES: list[tuple[int, str, Any]] = [
    (16, "t", True),
    (16, "f", False),
    (17, "\\x00ff", b"\0\xff"),
    (17, "\\x", b""),
    (20, "-9223372036854775808", -(2**63)),
    (21, "-32768", -32768),
    (23, "2147483647", 2147483647),
    (26, "4294967295", 4294967295),
    (700, "1.1", 1.1),
    (701, "5e-324", 5e-324),
    (701, "-Infinity", -math.inf),
    (1700, "131072.00", Decimal("131072.00")),
    (1700, "-Infinity", Decimal("-Infinity")),
    (1082, "2024-02-29", dt.date(2024, 2, 29)),
    (1082, "infinity", "infinity"),
    (1082, "4713-01-01 BC", "4713-01-01 BC"),
    (1082, "5874897-12-31", "5874897-12-31"),
    (1083, "23:59:59.999999", dt.time(23, 59, 59, 999999)),
    (1083, "24:00:00", "24:00:00"),
    (1266, "24:00:00-15:59:59", "24:00:00-15:59:59"),
    (1266, "04:05:06.7+05:30", None),
    (1083, "nonsense", "nonsense"),
    (1114, "0001-01-01 00:00:00", dt.datetime(1, 1, 1)),  # noqa: DTZ001
    (1114, "2024-01-02 03:04:05.6", dt.datetime(2024, 1, 2, 3, 4, 5, 600000)),  # noqa: DTZ001
    (1184, "2024-01-02 03:04:05+00", dt.datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC)),
    (1184, "-infinity", "-infinity"),
    (1184, "294276-12-31 23:59:59.999999+00", "294276-12-31 23:59:59.999999+00"),
    (1114, "0044-03-15 12:00:00 BC", "0044-03-15 12:00:00 BC"),
    (3802, '{"a": [1, null, "ü"]}', {"a": [1, None, "ü"]}),
    (3802, str(BIG), BIG),
    (114, '{"f": 0.1, "d": 0.1000000000000000055511151231257827}', {
        "f": 0.1, "d": Decimal("0.1000000000000000055511151231257827"),
    }),
    (114, "1e400", Decimal("1e400")),
    (3802, "[1, -0.5]", [1, -0.5]),
    (3802, "7" * 5000, Decimal("7" * 5000)),
    (114, '"\\ud800"', "\ud800"),
    (25, "NULL", "NULL"),
    (25, "", ""),
    (2950, "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
    (99_999, "of a type of its own", "of a type of its own"),
    (1007, "{}", []),
    (1007, "{1,NULL,-3}", [1, None, -3]),
    (1007, "{{1,2},{3,4}}", [[1, 2], [3, 4]]),
    (1007, "[0:1]={1,2}", "[0:1]={1,2}"),
    (1009, '{a,"NULL",NULL,""}', ["a", "NULL", None, ""]),
    (1009, '{"b\\"c\\\\d","e,f{}",ü}', ['b"c\\d', "e,f{}", "ü"]),
    (1115, '{"2024-01-02 03:04:05",infinity}', [dt.datetime(2024, 1, 2, 3, 4, 5), "infinity"]),  # noqa: DTZ001
    (1231, "{1.50,NaN}", None),
    (3807, '{"{\\"a\\": 1}"}', [{"a": 1}]),
]  # fmt: skip
WRONG = [
    (16, b"true"), (17, b"00"), (17, b"\\x0"), (20, b""), (23, b"1.5"), (701, b"x"),
    (1700, b"1,5"), (114, b"{"), (25, b"\xff"), (1007, b"{1"), (1007, b"{1}}"), (1007, b"{1}2"),
    (1009, b'{"a'), (1009, b'{"a\\'), (1007, b"{1}{2}"), (1007, b"{x}"),
]  # fmt: skip


@pytest.mark.parametrize(("oid", "text", "value"), [c for c in CASES if c[2] is not None])
def test_a_value_is_exact_or_its_own_text(oid: int, text: str, value: Any) -> None:
    read = reader_of(oid)(text.encode())
    assert (read, type(read)) == (value, type(value))


def test_values_that_differ_from_themselves() -> None:
    assert math.isnan(reader_of(701)(b"NaN"))
    assert reader_of(1700)(b"NaN").is_nan()
    assert reader_of(1231)(b"{1.50,NaN}")[1].is_nan()
    at = reader_of(1266)(b"04:05:06.7+05:30")
    assert (at.isoformat(), at.utcoffset()) == ("04:05:06.700000+05:30", dt.timedelta(minutes=330))


def test_json_that_is_nested_too_deep_stays_text() -> None:
    deep = "[" * 100_000 + "]" * 100_000
    assert reader_of(114)(deep.encode()) == deep


@pytest.mark.parametrize(("oid", "data"), WRONG)
def test_text_of_another_type_is_an_error(oid: int, data: bytes) -> None:
    with pytest.raises((ValueError, ArithmeticError)):
        reader_of(oid)(data)


@given(st.sampled_from([case[0] for case in CASES]), st.binary(max_size=40))
def test_no_bytes_raise_anything_else(oid: int, data: bytes) -> None:
    try:
        reader_of(oid)(data)
    except (ValueError, ArithmeticError):
        return
    assert reader_of(oid)(data) is not None or data.strip() == b"null"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(codec="utf-8"))
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(json_values)
def test_json_comes_back_as_it_was(value: Any) -> None:
    assert reader_of(3802)(json.dumps(value).encode()) == value


def quoted(value: str | None) -> str:
    if value is None:
        return "NULL"
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


@given(st.lists(st.none() | st.text(st.characters(codec="utf-8"))))
def test_an_array_of_text_comes_back_as_it_was(values: list[str | None]) -> None:
    text = "{" + ",".join(map(quoted, values)) + "}"
    assert reader_of(1009)(text.encode()) == values
