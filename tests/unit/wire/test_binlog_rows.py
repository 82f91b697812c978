"""Rows of the binlog: three states of a value kept apart, and any wrong byte refused."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from struct import pack
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duly.errors import UndecodableError
from duly.kernel.changes import ABSENT
from duly.wire.binlog import Decoder
from duly.wire.binlog_rows import RowChange, RowReader, Rows
from duly.wire.binlog_table import Column, Kind, Table
from duly.wire.binlog_values import date_of, datetime_of, time_of, timestamp_of
from tests.unit.wire.binlog_samples import (
    OLD_MOMENTS,
    document,
    events,
    packed,
    selected,
    sized,
)

DECLARED = {"u": "uuid", "i6": "inet6", "i4": "inet4"}


def columns_of(table: Table) -> list[str]:
    return [column.name for column in table.columns]


def reader(table: Table, **more: Any) -> RowReader:
    key = table.key or columns_of(table)[:1]
    return RowReader(table, table.name, **{"keep": columns_of(table), "key": key, **more})


def captured(part: str) -> Iterator[Rows]:
    decoder = Decoder()
    for data in events(part):
        yield from (event.body for event in decoder.feed(data) if isinstance(event.body, Rows))


def changes(part: str, table: str, **more: Any) -> list[RowChange]:
    """What MariaDB wrote of a table."""
    found = [rows for rows in captured(part) if rows.table.name == table]
    return [change for rows in found for change in reader(rows.table, **more).read(rows)]


# --- as MariaDB wrote them; what a SELECT of the same rows gave ---------------------------------
def test_integers_as_a_select_gives_them() -> None:
    rows = [list(after.values())[1:] for _, _, _, after in changes("numbers", "t") if after]
    top = [n for bits in (8, 16, 24, 32, 64) for n in ((1 << bits - 1) - 1, (1 << bits) - 1)]
    low = [n for bits in (8, 16, 24, 32, 64) for n in (-(1 << bits - 1), 1 << bits - 1)]
    assert rows == [[0] * 10, [-1, 1] * 5, top, low, [None] * 10]


def test_numbers_as_a_select_gives_them() -> None:
    first, second, third = (list(row[3].values())[1:] for row in changes("numbers", "n") if row[3])
    nines = Decimal("9" * 35 + "." + "9" * 30)
    money = [Decimal(99999), Decimal("-12345678.90"), Decimal("-0.000001"), nines]
    assert first == [1.1, 1.1, 2155, b"\1", b"\1\1", *money, Decimal("-0.999999999")]
    assert second[:5] == [-3.4028235e38, -1.7976931348623157e308, 0, b"\0", b"\0\0"]
    ones = Decimal("-" + "1" * 35 + "." + "0" * 29 + "1")
    assert second[5:] == [-1, 0, Decimal("12345678901234.567891"), ones, Decimal("0.1")]
    assert third == [16777216.0, 5e-324, 1901, None, None, 0, Decimal("0.01"), 0, 0, 0]


@pytest.mark.parametrize("table", ["t", "o"])
def test_moments_as_a_select_gives_them(table: str) -> None:
    read = [date_of, *[datetime_of, time_of, timestamp_of] * 4]
    expected = [
        [make(text) if text is not None else None for make, text in zip(read, row, strict=True)]
        for row in selected("moments")
    ]
    found = [row[3] for row in changes("moments", table, declared=OLD_MOMENTS)]
    assert [list(after.values())[1:] for after in found if after] == expected


def test_texts_bytes_and_labels_as_a_select_gives_them() -> None:
    first, second, third, fourth = (
        list(row[3].values())[1:] for row in changes("texts", "t", declared=DECLARED) if row[3]
    )
    assert first[:8] == ["é\U0001f600", "€é", "\u0395", "日", "日\\", "é", "x,ü", b"\1\0\0\0\0"]
    point = bytes(4) + b"\1" + pack("<Idd", 1, 1, 2)
    assert first[8:13] == [b"v" * 260, b"\0", b"l", "ä", point]
    uuid = "123e4567-e89b-12d3-a456-426655440000"
    assert first[13:] == ['{"a": 1}', uuid, "::ffff:1.2.3.4", "1.2.3.4", "ab" * 90, b"c" * 90]
    assert second[:12] == ["", "", "", "", "", "", "", bytes(5), b"", b"", b"", ""]
    assert second[13:] == ["[]", "00000000-0000-0000-0000-000000000001", "::", "0.0.0.0", "", b""]
    assert third[7:9] == [b"abcde", b"\0\xff\0"]
    assert (third[15], third[17]) == ("1::2:3:4:5:6:7", "a")
    assert fourth[17] == "xyz" * 40
    bare = changes("texts", "t")[0][3]
    assert bare is not None
    assert (bare["u"].hex(), bare["i4"]) == (uuid.replace("-", ""), b"\1\2\3\4")


def test_images_that_leave_columns_out() -> None:
    found = [(op, before, after) for op, _, before, after in changes("log", "x")]
    whole = {"id": 1, "v": "one", "b": None}
    assert found[0] == ("create", None, whole)
    assert found[4] == ("delete", whole, None)
    before = {"id": 1, "v": ABSENT, "b": ABSENT}
    assert found[5] == ("update", before, {"id": 1, "v": "uno", "b": ABSENT})
    assert found[6] == ("delete", {"id": 2, "v": ABSENT, "b": ABSENT}, None)
    assert found[7] == ("create", None, {"id": 5, "v": ABSENT, "b": ABSENT})
    blobless = {"id": 4, "v": "four", "b": ABSENT}
    assert found[8] == ("update", blobless, {"id": 4, "v": "dos", "b": ABSENT})
    large = {"id": 7, "v": "q" * 20, "b": b"z" * 60}
    assert found[9:] == [
        ("create", None, large),
        ("update", large, large | {"v": "u7"}),
        ("delete", large | {"v": "u7"}, None),
    ]


def test_columns_that_are_not_carried_name_the_row_all_the_same() -> None:
    found = changes("log", "x", keep=["v"])
    assert found[0] == ("create", {"id": 1}, None, {"v": "one"})
    assert found[4] == ("delete", {"id": 1}, {"v": "one"}, None)
    assert found[5] == ("update", {"id": 1}, {"v": ABSENT}, {"v": "uno"})
    two = changes("texts", "p")[0]
    assert two == ("create", {"b": 1, "a": "k"}, None, {"a": "k", "b": 1})


def test_a_table_that_the_log_does_not_describe() -> None:
    with pytest.raises(UndecodableError) as caught:
        changes("texts", "undescribed")
    assert caught.value.code == "BINLOG_METADATA"
    with pytest.raises(KeyError):
        changes("texts", "bare", key=["gone"])


def test_a_key_that_is_not_in_the_image() -> None:
    for part in (changes, lambda *_, **more: changes("log", "x", **more)):
        with pytest.raises(UndecodableError) as caught:
            part("log", "x", key=["b"])
        assert caught.value.code == "BINLOG_ROW_IMAGE"


# --- made by hand -------------------------------------------------------------------------------
ID = Column("id", Kind.LONG, 0, 0, unsigned=False)
NAME = Column("name", Kind.VARCHAR, 40, 0, collation=45)
FIRST, SECOND = Column("first", Kind.JSON, 4, 0), Column("second", Kind.JSON, 4, 0)
PEOPLE = Table("shop", "people", (ID, NAME), ("id",), True)
PAPERS = Table("shop", "papers", (ID, FIRST, NAME, SECOND), ("id",), True)
Operation = Literal["create", "update", "delete"]


def rows(
    op: Operation, raw: bytes, *images: bytes, table: Table = PEOPLE, partial: bool = False
) -> Rows:
    every = b"\xff" * ((len(table.columns) + 7) // 8)  # the bits behind the last mean nothing
    return Rows(op, table, images or (every, every), raw, partial=partial, last=True)


def person(number: int, name: str) -> bytes:
    return b"\0" + pack("<i", number) + sized(name.encode())


def test_rows_one_behind_the_other() -> None:
    raw = person(1, "a") + b"\xfe" + pack("<i", 2) + b"\xfd" + sized(b"c")
    found = [change[3] for change in reader(PEOPLE, key=["name"]).read(rows("create", raw))]
    assert found == [
        {"id": 1, "name": "a"},
        {"id": 2, "name": None},
        {"id": None, "name": "c"},
    ]


def test_lengths_of_every_size() -> None:
    kinds = [Column(f"c{n}", Kind.BLOB, n, 0, collation=63) for n in (1, 2, 3, 4)]
    table = Table("shop", "files", (ID, *kinds), ("id",), True)
    values = [bytes([n]) * n * 60 for n in range(4)]
    tail = b"".join(len(v).to_bytes(n + 1, "little") + v for n, v in enumerate(values))
    raw = b"\0" + pack("<i", 1) + tail
    made = reader(table).read(rows("create", raw, table=table))[0][3]
    assert made == {"id": 1, **{f"c{n + 1}": value for n, value in enumerate(values)}}
    partly = reader(table, keep=["c4"]).read(rows("create", raw, table=table))[0]
    assert partly == ("create", {"id": 1}, None, {"c4": values[3]})


def test_columns_that_nobody_wants_are_passed_over_unread() -> None:
    odd = Column("odd", Kind.VARCHAR, 9, 0, collation=9999)
    unsaid = Column("unsaid", Kind.SHORT, 0, 0)
    table = Table("shop", "t", (unsaid, ID, odd, NAME), ("id",), True)
    for nulls, name in ((b"\0", "n"), (b"\x08", None)):
        tail = sized(b"n") if name else b""
        raw = nulls + b"\1\2" + pack("<i", 5) + sized(b"\xff") + tail
        found = reader(table, keep=["id", "name"]).read(rows("create", raw, table=table))
        assert found == [("create", {"id": 5}, None, {"id": 5, "name": name})]


def test_the_widest_table() -> None:
    given = [Column(f"c{n}", Kind.LONG, 0, 0, unsigned=False) for n in range(4096)]
    table = Table("shop", "wide", tuple(given), ("c0",), True)
    raw = bytes(512) + b"".join(pack("<i", n) for n in range(4096))
    found = reader(table).read(rows("create", raw, table=table))[0][3]
    assert found == {f"c{n}": n for n in range(4096)}


def test_images_of_many_kinds_do_not_pile_up() -> None:
    given = [Column(f"c{n}", Kind.TINY, 0, 0, unsigned=False) for n in range(8)]
    table = Table("shop", "t", tuple(given), ("c0",), True)
    read = reader(table)
    for image in range(1, 256, 2):
        size = image.bit_count()
        made = read.read(rows("create", b"\0" + b"\7" * size, bytes([image]), table=table))[0][3]
        assert made == {f"c{n}": 7 if image >> n & 1 else ABSENT for n in range(8)}


@given(st.lists(st.text(min_size=1), min_size=1, max_size=6, unique=True))
def test_a_column_may_have_any_name(names: list[str]) -> None:
    every = list(dict.fromkeys([*names, "'); 1/0 #", 'at"\n', "data"]))
    given = [Column(name, Kind.TINY, 0, 0, unsigned=False) for name in every]
    table = Table("shop", "t", tuple(given), (every[0],), True)
    raw = bytes((len(every) + 7) // 8) + bytes(range(len(every)))
    made = reader(table).read(rows("create", raw, table=table))
    assert made[0][3] == {name: n for n, name in enumerate(every)}


def paper(nulls: int, number: int, *values: bytes) -> bytes:
    return bytes([nulls]) + pack("<i", number) + b"".join(values)


def long(data: bytes) -> bytes:
    return pack("<I", len(data)) + data


SET_A = b"\0" + sized(b"$.a") + sized(document(2))
BEFORE = paper(0, 1, long(document({"a": 1})), sized(b"n"), long(document([1])))


def test_documents_that_are_written_as_changes() -> None:
    options, bits = packed(1), b"\1"
    after = options + bits + paper(0, 1, long(SET_A), sized(b"m"), long(document([2])))
    found = reader(PAPERS).read(rows("update", BEFORE + after, table=PAPERS, partial=True))
    old = {"id": 1, "first": {"a": 1}, "name": "n", "second": [1]}
    assert found == [
        ("update", {"id": 1}, old, old | {"first": {"a": 2}, "name": "m", "second": [2]})
    ]
    plain = packed(0) + paper(0, 1, long(document(5)), sized(b"m"), long(document([2])))
    found = reader(PAPERS).read(rows("update", BEFORE + plain, table=PAPERS, partial=True))
    assert found[0][3] == {"id": 1, "first": 5, "name": "m", "second": [2]}


def test_a_document_whose_changes_hang_on_what_the_log_left_out() -> None:
    before = b"\0" + pack("<i", 1)
    after = packed(1) + b"\3" + b"\4" + long(SET_A) + sized(b"m")
    images = b"\1", b"\x0e"
    found = reader(PAPERS).read(rows("update", before + after, *images, table=PAPERS, partial=True))
    left_out = {"id": 1, "first": ABSENT, "name": ABSENT, "second": ABSENT}
    assert found[0][2] == left_out
    assert found[0][3] == left_out | {"name": "m", "second": None}
    only_name = reader(PAPERS, keep=["name"])
    carried = only_name.read(rows("update", before + after, *images, table=PAPERS, partial=True))
    assert carried[0][3] == {"name": "m"}
    without = packed(1) + b"\2" + b"\0" + sized(b"m")
    image = b"\1", b"\x04"
    partly = reader(PAPERS).read(
        rows("update", before + without, *image, table=PAPERS, partial=True)
    )
    assert partly[0][3] == left_out | {"name": "m"}


NO_CHANGE = b"\1\1" + paper(0, 1, long(b"\x09"), b"\0", long(b""))


@pytest.mark.parametrize(
    "given",
    [
        pytest.param(rows("create", person(1, "a") + b"\0"), id="longer"),
        pytest.param(rows("create", b"\0" + pack("<i", 1) + b"\xff" + b"a"), id="hostile length"),
        pytest.param(rows("create", person(1, "a")[:-2]), id="cut"),
        pytest.param(rows("create", b"\0" + pack("<i", 1) + b"\1\xff"), id="no text"),
        pytest.param(rows("create", b"x", b"\0"), id="no columns"),
        pytest.param(rows("update", person(1, "a")), id="no row behind"),
        pytest.param(rows("delete", person(1, "a") + b"\1"), id="longer delete"),
        pytest.param(rows("update", BEFORE + b"\2", table=PAPERS, partial=True), id="options"),
        pytest.param(rows("update", BEFORE + NO_CHANGE, table=PAPERS, partial=True), id="change"),
    ],
)  # fmt: skip
def test_wrong_bytes_are_refused(given: Rows) -> None:
    with pytest.raises(UndecodableError):
        reader(given.table).read(given)


def test_an_event_without_rows_has_no_changes() -> None:
    assert reader(PEOPLE).read(rows("create", b"")) == []
