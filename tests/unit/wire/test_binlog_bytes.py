"""Bytes of the binlog: read to the end and no further, and made larger within a limit only."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import pytest

from duly.errors import UndecodableError
from duly.wire.binlog_bytes import Bytes, inflated, undecodable, unzipped, uuid_text


def test_numbers_texts_and_what_is_left() -> None:
    read = Bytes(b"xx\1\2\3\xfa\xfc\1\2\xfd\1\2\3\xfe" + bytes(7) + b"\1abc\0rest", 2)
    assert (read.number(3), read.packed(), read.packed()) == (0x030201, 250, 0x0201)
    assert (read.packed(), read.packed()) == (0x030201, 1 << 56)
    assert (read.terminated(3), read.left, read.at) == ("abc", 4, 26)
    assert (read.rest(), read.left) == (b"rest", 0)
    read.end()


@pytest.mark.parametrize(
    "read",
    [
        pytest.param(lambda: Bytes(b"ab").take(3), id="too few"),
        pytest.param(lambda: Bytes(b"\xfc\1").packed(), id="half a number"),
        pytest.param(lambda: Bytes(b"\xfb\1").packed(), id="NULL"),
        pytest.param(lambda: Bytes(b"\xff\1").packed(), id="255"),
        pytest.param(lambda: Bytes(b"\xff").text(1), id="not UTF-8"),
        pytest.param(lambda: Bytes(b"ab").terminated(1), id="without its end"),
        pytest.param(lambda: Bytes(b"ab").end(), id="too many"),
        pytest.param(lambda: undecodable("so"), id="said"),
    ],
)
def test_what_does_not_fit_is_refused(read: Callable[[], object]) -> None:
    with pytest.raises(UndecodableError) as caught:
        read()
    assert caught.value.code == "BINLOG_UNDECODABLE"


def test_a_refusal_may_have_a_code_of_its_own() -> None:
    with pytest.raises(UndecodableError) as caught:
        undecodable("so", code="BINLOG_CHARSET")
    assert caught.value.code == "BINLOG_CHARSET"


def test_a_uuid_is_written_as_always() -> None:
    assert uuid_text(bytes(range(16))) == "00010203-0405-0607-0809-0a0b0c0d0e0f"
    with pytest.raises(ValueError, match="15 bytes"):
        uuid_text(bytes(15))


PLAIN = b"duly" * 500
SMALL = zlib.compress(PLAIN)


def test_what_was_compressed_comes_back() -> None:
    assert inflated(b"\x82" + (2000).to_bytes(2, "big") + SMALL, bytes_max=2000) == PLAIN
    bare = zlib.compressobj(wbits=-15)
    assert unzipped(bare.compress(PLAIN) + bare.flush(), 2000, bytes_max=2000, raw=True) == PLAIN


@pytest.mark.parametrize(
    ("data", "bytes_max"),
    [
        pytest.param(b"", 9999, id="nothing"),
        pytest.param(b"\x02\x07\xd0" + SMALL, 9999, id="no mark"),
        pytest.param(b"\x92\x07\xd0" + SMALL, 9999, id="another way"),
        pytest.param(b"\x82\x07\xd0" + SMALL, 1999, id="larger than allowed"),
        pytest.param(b"\x87" + b"\xff" * 7 + SMALL, 1 << 40, id="hostile length"),
        pytest.param(b"\x82\x07\xcf" + SMALL, 9999, id="longer than said"),
        pytest.param(b"\x82\x07\xd1" + SMALL, 9999, id="shorter than said"),
        pytest.param(b"\x82\x07\xd0" + SMALL[:-1], 9999, id="without its end"),
        pytest.param(b"\x82\x07\xd0" + SMALL + b"x", 9999, id="with more behind"),
        pytest.param(b"\x82\x07\xd0" + b"x" + SMALL, 9999, id="none of zlib's"),
    ],
)
def test_a_compressed_part_that_is_none_is_refused(data: bytes, bytes_max: int) -> None:
    with pytest.raises(UndecodableError):
        inflated(data, bytes_max=bytes_max)
