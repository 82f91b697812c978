"""Any bytes in place of a binlog: read, or refused by our own error, in little memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from duly.errors import UndecodableError
from duly.wire.binlog import Decoder
from duly.wire.binlog_rows import RowReader, Rows
from duly.wire.binlog_table import Column, Table
from tests.unit.wire.binlog_samples import described, events, framed

PARTS = {part: events(part) for part in ("log", "numbers", "moments", "texts")}
DECLARED = {"u": "uuid", "i6": "inet6", "i4": "inet4"} | {
    f"{name}{digits}": f"{kind}({digits})"
    for name, kind in (("d", "datetime"), ("i", "time"), ("s", "timestamp"))
    for digits in (0, 1, 3, 6)
}
OTHER_KINDS = {18, 29, 33, 39, 40, 41, 42}
KINDS = sorted(OTHER_KINDS.union(event[4] for part in PARTS.values() for event in part))
TABLE_MAP = 19
READ = "read"
REFUSALS = {
    "BINLOG_UNDECODABLE", "BINLOG_CHECKSUM", "BINLOG_UNKNOWN_EVENT", "BINLOG_ZSTD",
    "BINLOG_METADATA", "BINLOG_CHARSET", "BINLOG_ROW_IMAGE",
}  # fmt: skip
MEMORY_BYTES_MAX = 8 * 1024 * 1024


def outcome(data: Sequence[bytes]) -> str:
    """READ, or the code of the refusal."""
    decoder = Decoder(inflated_bytes_max=1 << 20)
    try:
        for one in data:
            for event in decoder.feed(one):
                if isinstance(event.body, Rows):
                    table = event.body.table
                    reader(table.columns, table.key, table.described).read(event.body)
    except UndecodableError as refusal:
        return refusal.code
    return READ


@lru_cache(maxsize=256)
def reader(columns: tuple[Column, ...], key: tuple[str, ...], described: bool) -> RowReader:
    """What reads all columns; made once for each layout."""
    names = [column.name for column in columns]
    table = Table("shop", "t", columns, key, described)
    return RowReader(table, "t", keep=names, key=key or names[:1], declared=DECLARED)


def again(event: bytes, body: bytes) -> bytes:
    """An event with another body, and a checksum that fits it: else nothing else would be tried."""
    return framed(event[4], body, flags=int.from_bytes(event[17:19], "little"))


def sequences(part: str) -> list[list[bytes]]:
    """One event of each kind, behind what it needs to be read: its format, and its table."""
    whole = PARTS[part]
    found: dict[int, list[bytes]] = {}
    for before, event in pairwise(whole):
        needed = [whole[0], before] if before[4] == TABLE_MAP else [whole[0]]
        found.setdefault(event[4], [*needed, event])
    return list(found.values())


@pytest.mark.parametrize("part", list(PARTS))
def test_an_event_that_was_cut_at_any_byte_is_refused_or_shorter(part: str) -> None:
    refused = 0
    for *before, event in sequences(part):
        assert outcome([*before, event]) == READ
        for length in range(len(event) - 23):
            found = outcome([*before, again(event, event[19 : 19 + length])])
            assert found == READ or found in REFUSALS
            refused += found != READ
            assert outcome([*before, event[: 19 + length]]) == "BINLOG_UNDECODABLE"
    assert refused > 300  # what is left are texts that go to the end, and rows that end with one


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_changed_bytes_are_refused_or_read(data: st.DataObject) -> None:
    whole = PARTS[data.draw(st.sampled_from(list(PARTS)))]
    place = data.draw(st.integers(1, len(whole) - 1))
    body = bytearray(whole[place][19:-4])
    for _ in range(data.draw(st.integers(1, 4)) if body else 0):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    changed = again(whole[place], bytes(body))
    found = outcome([whole[0], *whole[max(1, place - 1) : place], changed, *whole[place + 1 :][:2]])
    assert found == READ or found in REFUSALS


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(KINDS), st.binary(max_size=120), st.integers(0, 0xFFFF))
def test_any_bytes_are_refused_or_read(kind: int, body: bytes, flags: int) -> None:
    found = outcome([described(), framed(kind, body, flags=flags)])
    assert found == READ or found in REFUSALS


@pytest.mark.parametrize("kind", [19, 35, 163, 40])
def test_hostile_lengths_take_no_memory(kind: int) -> None:
    tracemalloc.start()
    try:
        for fill in (b"\xff", b"\xfe" + b"\x7f" * 8, b"\x82\xff\xff", b"\xfd\xff\xff\xff"):
            assert outcome([described(), framed(kind, fill * 40)]) == "BINLOG_UNDECODABLE"
        assert tracemalloc.get_traced_memory()[1] < MEMORY_BYTES_MAX
    finally:
        tracemalloc.stop()
