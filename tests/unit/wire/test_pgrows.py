"""Rows: three states of a value kept apart, and any wrong byte refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duly.errors import UndecodableError
from duly.kernel.changes import ABSENT
from duly.wire.pgoutput import Column, Relation
from duly.wire.pgrows import RowReader

HEAD = b"w" + bytes(24)
OID = (9).to_bytes(4, "big")
XID = (77).to_bytes(4, "big")


def relation(*columns: tuple[str, int, bool], identity: str = "d") -> Relation:
    return Relation(9, "public", "t", identity, tuple(Column(n, o, -1, k) for n, o, k in columns))


ORDERS = relation(("id", 23, True), ("status", 25, False), ("big", 25, False))


def value(item: Any) -> bytes:
    if item is None:
        return b"n"
    if item is ABSENT:
        return b"u"
    text = str(item).encode()
    return b"t" + len(text).to_bytes(4, "big") + text


def row(*values: Any) -> bytes:
    return len(values).to_bytes(2, "big") + b"".join(map(value, values))


def frame(body: bytes, *, streaming: bool = False) -> bytes:
    return HEAD + body[:1] + (XID if streaming else b"") + OID + body[1:]


def reader(described: Relation = ORDERS, **given: Any) -> RowReader:
    names = [column.name for column in described.columns]
    return RowReader(described, "orders", **{"keep": names, "key": ["id"], **given})


def test_an_insert_has_no_row_before() -> None:
    for streaming in (False, True):
        body = frame(b"IN" + row(1, "new", None), streaming=streaming)
        after = {"id": 1, "status": "new", "big": None}
        assert reader().read(body, streaming=streaming) == ("create", {"id": 1}, None, after)


def test_an_unchanged_large_value_is_absent_unless_the_old_row_has_it() -> None:
    bare = reader().read(frame(b"UN" + row(1, "paid", ABSENT)), streaming=False)
    assert bare == ("update", {"id": 1}, None, {"id": 1, "status": "paid", "big": ABSENT})
    old, new = row(1, "new", "x" * 9), row(1, "paid", ABSENT)
    full = reader(relation(("id", 23, True), ("status", 25, True), ("big", 25, True), identity="f"))
    op, key, before, after = full.read(frame(b"UO" + old + b"N" + new), streaming=False)
    assert (op, key) == ("update", {"id": 1})
    assert before == {"id": 1, "status": "new", "big": "x" * 9}
    assert after == {"id": 1, "status": "paid", "big": "x" * 9}


def test_the_nulls_of_an_old_key_are_never_values() -> None:
    body = frame(b"UK" + row(1, None, None) + b"N" + row(2, None, ABSENT))
    op, key, before, after = reader().read(body, streaming=False)
    assert (op, key) == ("update", {"id": 2})
    assert before == {"id": 1, "status": ABSENT, "big": ABSENT}
    assert after == {"id": 2, "status": None, "big": ABSENT}
    gone = reader().read(frame(b"DK" + row(1, None, None)), streaming=False)
    assert gone == ("delete", {"id": 1}, {"id": 1, "status": ABSENT, "big": ABSENT}, None)


def test_a_delete_with_its_whole_row() -> None:
    gone = reader().read(frame(b"DO" + row(1, None, "b")), streaming=False)
    assert gone == ("delete", {"id": 1}, {"id": 1, "status": None, "big": "b"}, None)


def test_a_truncate_says_nothing_of_rows() -> None:
    body = HEAD + b"T" + (1).to_bytes(4, "big") + b"\0" + OID
    assert reader().read(body, streaming=False) == ("truncate", {}, None, None)


def test_columns_that_are_not_carried_name_the_row_all_the_same() -> None:
    partly = reader(keep=["status"])
    body = frame(b"UK" + row(1, None, None) + b"N" + row(2, "x", "y"))
    assert partly.read(body, streaming=False) == (
        "update", {"id": 2}, {"status": ABSENT}, {"status": "x"},
    )  # fmt: skip
    made = partly.read(frame(b"IN" + row(2, None, "y")), streaming=False)
    assert made == ("create", {"id": 2}, None, {"status": None})
    unsent = reader(keep=["id"]).read(frame(b"IN" + row(2, ABSENT, None)), streaming=False)
    assert unsent[3] == {"id": 2}


def test_a_key_column_that_is_not_there_is_said_at_once() -> None:
    with pytest.raises(KeyError):
        reader(key=["gone"])


@given(st.lists(st.text(min_size=1), min_size=1, max_size=6, unique=True))
def test_a_column_may_have_any_name(names: list[str]) -> None:
    every = dict.fromkeys([*names, "'); 1/0 #", 'at"\n', "frame"])
    described = relation(*((name, 25, True) for name in every))
    read = reader(described, key=[names[0]])
    values = [f"value {n}" for n in range(len(described.columns))]
    after = dict(zip(every, values, strict=True))
    made = read.read(frame(b"IN" + row(*values)), streaming=False)
    assert made == ("create", {names[0]: "value 0"}, None, after)


def test_the_widest_table() -> None:
    names = [f"c{n}" for n in range(1600)]
    wide = reader(relation(*((name, 23, name == "c0") for name in names)), key=["c0"])
    numbers = [None if n % 7 == 3 else n for n in range(1600)]
    made = wide.read(frame(b"IN" + row(*numbers)), streaming=False)
    assert made == ("create", {"c0": 0}, None, dict(zip(names, numbers, strict=True)))


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"IK" + row(1, "a", "b"), id="insert of an old key"),
        pytest.param(b"UX" + row(1, "a", "b"), id="update of an unknown mark"),
        pytest.param(b"DN" + row(1, "a", "b"), id="delete of a new row"),
        pytest.param(b"UK" + row(1, None, None), id="update without a new row"),
        pytest.param(b"ZN" + row(1, "a", "b"), id="kind"),
        pytest.param(b"IN" + row(1, "a"), id="columns"),
        pytest.param(b"IN" + row("x", "a", "b"), id="no number"),
        pytest.param(b"IN" + row(1, "a", "b") + b"\0", id="longer"),
        pytest.param(b"IN\0\3b" + row(1, "a", "b")[2:], id="binary value"),
        pytest.param(b"IN\0\3t\xff\xff\xff\xff1", id="hostile length"),
        pytest.param(b"IN\0\3" + value(1) + b"n" + b"t\0\0\0\5abc", id="longer than the message"),
    ],
)
def test_wrong_bytes_are_refused(body: bytes) -> None:
    with pytest.raises(UndecodableError) as caught:
        reader().read(frame(body), streaming=False)
    assert caught.value.code == "PGOUTPUT_UNDECODABLE"


@pytest.mark.parametrize("streaming", [False, True])
def test_a_row_cut_at_any_byte_is_refused(streaming: bool) -> None:
    whole = frame(b"UO" + row(1, "new", None) + b"N" + row(1, "x", ABSENT), streaming=streaming)
    for length in range(len(HEAD), len(whole)):
        with pytest.raises(UndecodableError):
            reader().read(whole[:length], streaming=streaming)


@given(st.data(), st.booleans())
def test_no_changed_byte_raises_anything_else(data: st.DataObject, streaming: bool) -> None:
    body = bytearray(frame(b"UK" + row(1, None, None) + b"N" + row(2, "é", ABSENT)))
    body[data.draw(st.integers(25, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        read = reader().read(bytes(body), streaming=streaming)
    except UndecodableError:
        return
    assert read[0] in ("create", "update", "delete", "truncate")
