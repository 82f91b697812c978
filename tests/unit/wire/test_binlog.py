"""The binlog: checksums, compression, tables of the statement under way, and nothing unknown."""

from __future__ import annotations

import zlib
from struct import pack
from typing import Any

import pytest

from duly.errors import UndecodableError
from duly.wire import binlog as wire
from duly.wire import binlog_events as said
from duly.wire.binlog_rows import RowReader
from duly.wire.binlog_table import Table
from tests.unit.wire.binlog_samples import (
    described,
    events,
    framed,
    layout,
    names,
    packed,
    sized,
)

UNDECODABLE = "BINLOG_UNDECODABLE"
PARTS = ("log", "numbers", "moments", "texts")


def read(*data: bytes, **options: Any) -> list[wire.Event]:
    decoder = wire.Decoder(**options)
    return [event for one in data for event in decoder.feed(one)]


def refusal(*data: bytes, **options: Any) -> str:
    """The code with which it stops."""
    with pytest.raises(UndecodableError) as caught:
        read(*data, **options)
    return caught.value.code


# --- as MariaDB wrote them ----------------------------------------------------------------------
@pytest.mark.parametrize("part", PARTS)
def test_a_file_is_read_to_its_end(part: str) -> None:
    found = read(*events(part))
    assert isinstance(found[0].body, said.FormatDescription)
    assert found[0].body == said.FormatDescription("10.11.19-MariaDB-0+deb12u1-log", True, True)
    assert isinstance(found[-1].body, said.Rotate)
    assert [event.header.size for event in found] == [len(data) for data in events(part)]
    assert not [event for event in found if isinstance(event.body, said.Ignored)]


def test_a_file_is_cut_into_its_events() -> None:
    data = b"\xfebin" + b"".join(events("log"))
    assert list(wire.split(data)) == events("log")
    assert list(wire.split(b"", 0)) == []
    for wrong in (data[:-1], data + bytes(18), data + bytes(19)):
        with pytest.raises(UndecodableError):
            list(wire.split(wrong))


def test_compressed_events_say_the_same_as_plain_ones() -> None:
    found = read(*events("log"))
    packed_ones = [event for event in found if event.header.kind in (166, 167, 168)]
    assert [event.body.op for event in packed_ones] == ["create", "update", "delete"]  # type: ignore[union-attr]
    statement = next(event.body for event in found if event.header.kind == 165)
    assert statement.text == "create table x2 (a int /* long enough to be compressed */)"  # type: ignore[union-attr]
    assert refusal(*events("log"), inflated_bytes_max=50) == UNDECODABLE


def test_a_table_of_the_same_layout_is_the_same_object() -> None:
    found = read(*events("log"))
    tables = {event.body for event in found if isinstance(event.body, Table)}
    assert sorted(table.name for table in tables) == ["m", "x"]


# --- made from MySQL's documented layouts -------------------------------------------------------
NUMBER = (7).to_bytes(6, "little")
PLACE = layout(b"\3", b"", names("id"), schema="shop")
TABLE = framed(19, NUMBER + PLACE)
ROW = b"\1\xff\0" + pack("<i", 5)  # columns, image, NULLs, value
CREATED = framed(30, NUMBER + b"\1\0\2\0" + ROW)


def values(event: wire.Event) -> list[Any]:
    assert isinstance(event.body, wire.Rows)
    read = RowReader(event.body.table, "t", keep=["id"], key=["id"])
    return [(op, before, after) for op, _, before, after in read.read(event.body)]


def unsigned(data: bytes) -> bytes:
    """A TABLE_MAP with the sign of its only column."""
    return framed(19, NUMBER + PLACE + data)


SIGNED = unsigned(b"\1\1\0")


def test_rows_of_both_versions() -> None:
    row = {"id": 5}
    for kind, extra, change in (
        (30, b"\2\0", ("create", None, row)),
        (30, b"\5\0abc", ("create", None, row)),
        (23, b"", ("create", None, row)),
        (25, b"", ("delete", row, None)),
        (32, b"\2\0", ("delete", row, None)),
    ):
        body = NUMBER + b"\1\0" + extra + ROW
        found = read(described(), SIGNED, framed(kind, body))
        assert values(found[2]) == [change]
    moved = NUMBER + b"\0\0\2\0\1\xff\xff" + b"\0" + pack("<i", 5) + b"\0" + pack("<i", 6)
    found = read(described(), SIGNED, framed(31, moved), CREATED)
    assert values(found[2]) == [("update", row, {"id": 6})]
    assert [event.body.last for event in found[2:]] == [False, True]  # type: ignore[union-attr]
    partial = read(described(), SIGNED, framed(39, moved))[2].body
    assert partial.partial  # type: ignore[union-attr]


def test_a_table_is_described_anew_for_each_statement() -> None:
    assert refusal(described(), SIGNED, CREATED, CREATED) == UNDECODABLE
    assert refusal(described(), CREATED) == UNDECODABLE
    assert (
        refusal(described(), SIGNED, framed(30, NUMBER + b"\1\0\2\0\2\3\0" + bytes(8)))
        == UNDECODABLE
    )
    assert refusal(described(), SIGNED, described(), CREATED) == UNDECODABLE


@pytest.mark.parametrize("number", [0xFFFFFF, 0xFFFFFFFF])
def test_an_event_that_only_ends_a_statement(number: int) -> None:
    ends = framed(30, number.to_bytes(6, "little") + b"\1\0\2\0\0")
    assert read(described(), SIGNED, ends)[2].body == said.Context(30)
    assert refusal(described(), SIGNED, ends, CREATED) == UNDECODABLE
    assert (
        refusal(described(), framed(30, number.to_bytes(6, "little") + b"\0\0\2\0\0"))
        == UNDECODABLE
    )


def test_many_tables_do_not_pile_up() -> None:
    decoder = wire.Decoder()
    decoder.feed(described())
    for n in range(1100):
        found = decoder.feed(framed(19, NUMBER + layout(b"\3", b"", names(f"c{n}"))))
        assert found[0].body.columns[0].name == f"c{n}"  # type: ignore[union-attr]


def test_checksums() -> None:
    plain = framed(16, pack("<Q", 9), checksum=False)
    bare = read(described(algorithm=0), plain)
    assert bare[1].body == said.Commit(9)
    assert bare[0].body == said.FormatDescription("8.4.3", False, False)
    commit = framed(16, pack("<Q", 9))
    assert read(described(), commit)[1].body == said.Commit(9)
    wrong = commit[:-1] + bytes([commit[-1] ^ 1])
    assert refusal(described(), wrong) == "BINLOG_CHECKSUM"
    assert refusal(described(), plain) == "BINLOG_CHECKSUM"
    assert refusal(described(), framed(3, b"", checksum=False)) == "BINLOG_CHECKSUM"
    begun = bytearray(described())
    begun[17] |= 1  # the server still writes it
    assert isinstance(read(bytes(begun))[0].body, said.FormatDescription)
    begun[30] ^= 1
    assert refusal(bytes(begun)) == "BINLOG_CHECKSUM"


def test_what_comes_before_the_format_of_the_file() -> None:
    turn = pack("<Q", 4) + b"log.000001"
    for checksum in (True, False):
        data = framed(4, turn, flags=0x20, checksum=checksum)
        event = read(data)[0]
        assert event.body == said.Rotate("log.000001", 4)
        assert event.header.artificial
    assert refusal(framed(16, pack("<Q", 9))) == UNDECODABLE


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(described(algorithm=2), id="checksum"),
        pytest.param(described(version=3), id="version"),
        pytest.param(described(lengths=bytes(42)), id="lengths"),
        pytest.param(described(lengths=b""), id="no lengths"),
        pytest.param(framed(15, bytes(20)), id="short"),
        pytest.param(described()[:-1], id="size"),
        pytest.param(described()[:18], id="half a header"),
    ],
)
def test_a_format_that_is_not_known(data: bytes) -> None:
    assert refusal(data) == UNDECODABLE


def test_an_unknown_event_stops_it() -> None:
    assert refusal(described(), framed(172, b"what")) == "BINLOG_UNKNOWN_EVENT"
    found = read(described(), framed(172, b"what", flags=0x80))
    assert found[1].body == said.Ignored(172)


def transaction(*fields: tuple[int, bytes], data: bytes) -> bytes:
    body = b"".join(packed(kind) + sized(value) for kind, value in fields)
    return framed(40, body + b"\0" + data)


INNER = b"".join(
    (
        framed(19, NUMBER + PLACE + b"\1\1\0", checksum=False, end=0),
        framed(30, NUMBER + b"\1\0\2\0" + ROW, checksum=False, end=0),
        framed(16, pack("<Q", 9), checksum=False, end=0),
    )
)
SIZE = (3, packed(len(INNER)))
ZIPPED = transaction((1, packed(9)), (2, packed(0)), SIZE, data=zlib.compress(INNER))


def unzip(data: bytes, size: int) -> bytes:
    """In place of zstd."""
    try:
        return zlib.decompressobj().decompress(data, size)
    except zlib.error as problem:
        raise ValueError(str(problem)) from None


def test_a_compressed_transaction_is_its_events() -> None:
    for data in (ZIPPED, transaction((2, packed(255)), SIZE, data=INNER)):
        found = read(described(), data, unzstd=unzip)
        assert [type(event.body).__name__ for event in found[1:]] == ["Table", "Rows", "Commit"]
        assert values(found[2]) == [("create", None, {"id": 5})]


def test_a_compressed_transaction_that_cannot_be_read() -> None:
    assert refusal(described(), ZIPPED) == "BINLOG_ZSTD"
    assert (
        refusal(described(), ZIPPED, unzstd=unzip, inflated_bytes_max=len(INNER) - 1) == UNDECODABLE
    )
    assert (
        refusal(described(), transaction((2, packed(0)), SIZE, data=b"none"), unzstd=unzip)
        == UNDECODABLE
    )
    assert (
        refusal(described(), transaction((2, packed(255)), SIZE, data=INNER + b"x")) == UNDECODABLE
    )
    assert refusal(described(), transaction((2, packed(7)), SIZE, data=INNER)) == UNDECODABLE
    assert refusal(described(), transaction(SIZE, data=INNER)) == UNDECODABLE
    assert refusal(described(), transaction((2, packed(255)), data=INNER)) == UNDECODABLE
    nested = framed(40, b"\0", checksum=False)
    size = (3, packed(len(nested)))
    nested = transaction((2, packed(255)), size, data=nested)
    assert refusal(described(), nested) == "BINLOG_UNKNOWN_EVENT"
