"""The binlog's decoder where one byte is another, or the rest is missing, at every place of a log.

A checksum would find each of them, so it is made anew: what is damaged reaches the readers of
events, tables and rows.  A decoder may say that it cannot read that, or read something else; any
other error would end a reader without a word of what to do, and a value out of thin air must not
cost memory beyond what the event can hold.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from zlib import crc32

import pytest

from duly.errors import UndecodableError
from duly.wire.binlog import Decoder
from duly.wire.binlog_rows import RowReader, Rows
from tests.unit.wire.binlog_samples import OLD_MOMENTS, events

TABLE_MAP, FORMAT, CHECKSUM = 19, 15, 4
PARTS = ("log", "numbers", "moments", "texts")


def sealed(data: bytes) -> bytes:
    """An event with the size and the checksum that its bytes would have."""
    whole = data[:9] + (len(data) + CHECKSUM).to_bytes(4, "little") + data[13:]
    return whole + crc32(whole).to_bytes(CHECKSUM, "little")


def cases(part: str) -> Iterator[tuple[list[bytes], bytes]]:
    """Every event but the first one, and what must be known to read it."""
    log = events(part)
    assert log[0][4] == FORMAT
    tables: list[bytes] = []
    for before, data in pairwise(log):
        if before[4] == TABLE_MAP:
            tables.append(before)
        yield [log[0], *tables[-2:]], data[:-CHECKSUM]


def read(known: list[bytes], data: bytes) -> int:
    """How many rows are read; refused are none."""
    decoder, count = Decoder(inflated_bytes_max=1 << 20), 0
    for one in known:
        decoder.feed(one)
    try:
        for event in decoder.feed(sealed(data)):
            if isinstance(event.body, Rows):
                table = event.body.table
                names = [column.name for column in table.columns]
                reader = RowReader(table, "t", keep=names, key=(), declared=OLD_MOMENTS)
                count += len(reader.read(event.body))
    except UndecodableError:
        return -1
    return count


@pytest.mark.parametrize("part", PARTS)
def test_a_byte_that_is_another_is_read_or_refused(part: str) -> None:
    refused = rows = 0
    for number, (known, data) in enumerate(cases(part)):
        for place in range(len(data)):
            other = data[place] ^ (1 << (number + place) % 8)
            found = read(known, data[:place] + bytes([other]) + data[place + 1 :])
            refused, rows = refused + (found < 0), rows + max(0, found)
    assert refused > 100, "nothing was damaged so that it shows"
    assert rows > 100, "nothing came as far as the rows"


@pytest.mark.parametrize("part", PARTS)
def test_an_event_that_ends_early_is_read_or_refused(part: str) -> None:
    every = list(cases(part))
    whole = [(known, data) for known, data in every if read(known, data) >= 0]
    assert len(whole) >= len(every) - 1, "but for a table that the log does not describe"
    refused = sum(
        read(known, data[:size]) < 0 for known, data in whole for size in range(len(data))
    )
    assert refused > 100
