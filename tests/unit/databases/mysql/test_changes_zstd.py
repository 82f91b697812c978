"""Transactions that zstd compressed. No server here writes them: the event is made from the format
that MySQL documents (TRANSACTION_PAYLOAD_EVENT), its frame by zstd itself.
"""

from __future__ import annotations

import os
import sys
from struct import pack

import pytest
import zstandard

from duly.databases.mysql.changes_assembly import Assembly, Captured
from duly.databases.mysql.changes_place import Place, Position
from duly.databases.mysql.changes_zstd import unzstd
from duly.errors import MissingExtraError, UndecodableError
from duly.kernel.changes import Transaction
from duly.sources import TableSpec
from tests.unit.wire.binlog_samples import described, field, framed, layout, names, packed, sized

PLAIN = os.urandom(100) * 50
NUMBER = (7).to_bytes(6, "little")
COUNT = 500


def frame(data: bytes, *, told: bool = True) -> bytes:
    return zstandard.ZstdCompressor(write_content_size=told).compress(data)


@pytest.mark.parametrize("told", [True, False], ids=["its size told", "its size not told"])
def test_what_was_compressed(told: bool) -> None:
    packed_once = frame(PLAIN, told=told)
    assert len(packed_once) < len(PLAIN) / 10
    assert unzstd(packed_once, len(PLAIN)) == PLAIN
    both = frame(PLAIN[:9], told=told) + frame(PLAIN[9:], told=told)
    assert unzstd(both, len(PLAIN)) == PLAIN


def test_more_than_was_said_is_not_made() -> None:
    bomb = frame(bytes(50_000_000))
    assert unzstd(bomb, 10) == bytes(11)


def test_damaged_bytes() -> None:
    with pytest.raises(ValueError, match=r"."):
        unzstd(b"none", 4)
    assert len(unzstd(frame(PLAIN)[:-20], len(PLAIN))) < len(PLAIN)


def payload(inner: bytes, *, said: int | None = None, data: bytes | None = None) -> bytes:
    fields = {1: len(inner), 2: 0, 3: len(inner) if said is None else said}
    body = b"".join(packed(kind) + sized(packed(value)) for kind, value in fields.items())
    return framed(40, body + b"\0" + (frame(inner) if data is None else data))


def group() -> bytes:
    """What MySQL puts into one: BEGIN, the table, its rows, XID; without checksums."""
    columns = layout(b"\3", b"", field(1, b"\0"), names("id"), field(8, b"\0"))
    rows = b"".join(b"\0" + pack("<I", n) for n in range(COUNT))
    begin = bytes(8) + b"\4" + bytes(2) + bytes(2) + b"shop\0BEGIN"
    inner = (2, begin), (19, NUMBER + columns), (30, NUMBER + b"\1\0\2\0\1\1" + rows)
    last = framed(16, pack("<Q", 9), checksum=False, end=0)
    return b"".join(framed(kind, one, checksum=False, end=0) for kind, one in inner) + last


def read(*events: bytes) -> list[Transaction]:
    given: list[Transaction] = []
    captured = {("shop", "orders"): Captured(TableSpec("orders"), ("id",), {}, frozenset())}
    assembly = Assembly(
        "s",
        captured,
        intents=("shop", "duly_intent"),
        position=Position(Place(1, 4)),
        give=lambda transaction, size: given.append(transaction),
    )
    for event in (described(), framed(34, b"\1" + bytes(16) + bytes(8)), *events):
        assembly.feed(event)
    return given


def test_a_compressed_transaction_is_given_as_any_other() -> None:
    inner = group()
    (given,) = read(payload(inner))
    assert [change.key["id"] for change in given] == list(range(COUNT))
    assert len(payload(inner)) < len(inner) / 2


def test_one_that_is_not_what_it_says_stops_the_stream() -> None:
    inner = group()
    for wrong in (
        payload(inner, said=len(inner) + 1),
        payload(inner, said=len(inner) - 1),
        payload(inner, data=b"none"),
        payload(inner, data=frame(inner)[:-9]),
    ):
        with pytest.raises(UndecodableError):
            read(wrong)


def test_without_the_package_it_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'duly\[mysql,zstd\]'"):
        read(payload(group()))
