"""MySQL's binary JSON: the same values as of its text, and changes applied as MySQL does.

No server here writes it: the bytes are made from the documented layout.
"""

from __future__ import annotations

from decimal import Decimal
from struct import error, pack
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from duly.errors import UndecodableError
from duly.wire.binlog_json import patched, read_json
from tests.unit.wire.binlog_samples import document, packed, sized, variable

WRONG = (ValueError, LookupError, TypeError, error, UndecodableError)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False) | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=50)
@given(values, st.booleans())
def test_a_document_comes_back_as_it_was(value: Any, large: bool) -> None:
    assert repr(sorted_keys(read_json(document(value, large=large)))) == repr(sorted_keys(value))


def sorted_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: sorted_keys(value[key]) for key in sorted(value)}
    return [sorted_keys(one) for one in value] if isinstance(value, list) else value


@pytest.mark.parametrize("large", [False, True])
def test_documents_of_every_kind_of_value(large: bool) -> None:
    numbers = [-(2**15), 2**16 - 1, -(2**31), 2**32 - 1, -(2**63), 2**64 - 1, 0.1, -0.0]
    value: Any = {"": None, "a": [True, False, numbers], "deep": [[{}], []], "long": "é" * 100}
    assert repr(read_json(document(value, large=large))) == repr(value)
    assert read_json(document("top", large=large)) == "top"
    assert read_json(b"") is None


def opaque(kind: int, data: bytes) -> bytes:
    return b"\x0f" + bytes([kind]) + variable(data)


def moment(clock: int, micros: int = 0, days: int = 0) -> bytes:
    return pack("<q", (days << 17 | clock) << 24 | micros)


NOON, DAY = 12 << 12 | 34 << 6 | 56, (2024 * 13 + 6) << 5 | 15


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (opaque(246, b"\x03\x02\x81\x32"), 1.5),
        (opaque(246, b"\x14\x12" + b"\x81" + b"\0\0\0\1" * 2), Decimal("1.000000001000000001")),
        (opaque(246, b"\x02\x00\x8c"), 12),
        (opaque(10, moment(0, 0, DAY)), "2024-06-15"),
        (opaque(12, moment(NOON, 789, DAY)), "2024-06-15 12:34:56.000789"),
        (opaque(7, moment(NOON, 0, DAY)), "2024-06-15 12:34:56.000000"),
        (opaque(11, moment(NOON, 5)), "12:34:56.000005"),
        (opaque(11, pack("<q", -(NOON << 24))), "-12:34:56.000000"),
        (opaque(15, b"\xff\0"), "base64:type15:/wA="),
    ],
)
def test_values_of_mysqls_own_are_what_their_text_says(data: bytes, value: Any) -> None:
    found = read_json(data)
    assert (found, type(found)) == (value, type(value))


SHARED = b"\x02" + pack("<HH", 4, 21) + b"\x0c\x10\0" * 4 + b"\4abcd"
ITSELF = b"\x02" + pack("<HH", 1, 7) + b"\x02\0\0"
DEEP = b"".join(b"\x02" * (n == 0) + pack("<HHBH", 1, 7 * (110 - n), 2, 7) for n in range(110))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\x0d", id="kind"),
        pytest.param(b"\x04\x03", id="literal"),
        pytest.param(b"\x04", id="nothing"),
        pytest.param(b"\x05\0", id="half a number"),
        pytest.param(b"\x0c\x05abcd", id="shorter than said"),
        pytest.param(b"\x0c\xff\xff\xff\xff\xff\x01", id="length of more than 5 bytes"),
        pytest.param(b"\x0c\x01\xff", id="not UTF-8"),
        pytest.param(b"\x00" + pack("<HH", 1, 99), id="larger than its bytes"),
        pytest.param(b"\x00" + pack("<HH", 0xFFFF, 4), id="more keys than bytes"),
        pytest.param(b"\x02" + pack("<HH", 0xFFFF, 4), id="more values than bytes"),
        pytest.param(b"\x02\1\0", id="no size"),
        pytest.param(SHARED, id="a text that is there twice"),
        pytest.param(ITSELF, id="a list that holds itself"),
        pytest.param(DEEP, id="deeper than MySQL's limit"),
        pytest.param(opaque(246, b"\0\0\x80"), id="decimal of no digits"),
        pytest.param(opaque(246, b"\x02\x03\x80"), id="decimal of a long fraction"),
        pytest.param(opaque(12, b"\0"), id="short moment"),
    ],
)
def test_bytes_that_are_no_document(data: bytes) -> None:
    with pytest.raises(WRONG):
        read_json(data)


@settings(max_examples=50)
@given(values, st.data())
def test_no_changed_byte_raises_anything_else(value: Any, data: st.DataObject) -> None:
    changed = bytearray(document([value, {"a": value}]))
    changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = read_json(bytes(changed))
    except WRONG:
        return
    assert len(repr(found)) < 100 * len(changed)


def diff(operation: int, path: str, *value: Any) -> bytes:
    """A change. 0: replace, 1: insert, 2: remove."""
    end = sized(document(value[0])) if value else b""
    return bytes([operation]) + sized(path.encode()) + end


BEFORE = {"a": 1, "b": [1, 2, {"c": "x"}], "sp ace": {"q": None}}


@pytest.mark.parametrize(
    ("diffs", "after"),
    [
        (b"", BEFORE),
        (diff(0, "$.a", 2), BEFORE | {"a": 2}),
        (diff(0, "$", [1]), [1]),
        (diff(1, "$.new", {"n": 1}), BEFORE | {"new": {"n": 1}}),
        (diff(2, "$.a"), {key: BEFORE[key] for key in ("b", "sp ace")}),
        (diff(1, "$.b[1]", "in"), BEFORE | {"b": [1, "in", 2, {"c": "x"}]}),
        (diff(1, "$.b[9]", "last"), BEFORE | {"b": [1, 2, {"c": "x"}, "last"]}),
        (diff(2, "$.b[0]"), BEFORE | {"b": [2, {"c": "x"}]}),
        (diff(0, "$.b[2].c", "y"), BEFORE | {"b": [1, 2, {"c": "y"}]}),
        (diff(0, '$."sp ace".q', 1), BEFORE | {"sp ace": {"q": 1}}),
        (diff(0, "$.a", 2) + diff(2, "$.b"), {"a": 2, "sp ace": {"q": None}}),
    ],
)
def test_changes_of_a_document(diffs: bytes, after: Any) -> None:
    whole = document(BEFORE)
    assert patched(read_json(whole), diffs) == after
    assert read_json(whole) == BEFORE


def test_the_document_before_is_left_as_it_was() -> None:
    before = read_json(document(BEFORE))
    patched(before, diff(2, "$.b[2].c"))
    assert before == BEFORE


@pytest.mark.parametrize(
    "diffs",
    [
        pytest.param(diff(0, "$.none", 1), id="replaced, not there"),
        pytest.param(diff(2, "$.none"), id="removed, not there"),
        pytest.param(diff(2, "$.b[3]"), id="removed behind the end"),
        pytest.param(diff(1, "$.a", 1), id="inserted, there already"),
        pytest.param(diff(1, "$.b.x", 1), id="member of a list"),
        pytest.param(diff(0, "$.a.x", 1), id="member of a number"),
        pytest.param(diff(1, "$.none[0]", 1), id="element of nothing"),
        pytest.param(diff(3, "$.a", 1), id="operation"),
        pytest.param(diff(0, "a", 1), id="path without its begin"),
        pytest.param(diff(0, "", 1), id="no path"),
        pytest.param(diff(0, "$..a", 1), id="path"),
        pytest.param(b"\0" + packed(9), id="cut"),
    ],
)
def test_changes_that_do_not_fit(diffs: bytes) -> None:
    with pytest.raises(WRONG):
        patched(read_json(document(BEFORE)), diffs)
