from __future__ import annotations

import gzip
import zlib
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest
import zstandard

from duly.batch.formats.csv_file import CsvFile
from duly.batch.formats.text import filled, shown
from duly.errors import ConfigurationError

DAY = {"day": date(2026, 1, 2), "n": 7}


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("T{rows:06d}|{day}", "T000012|2026-01-02"),
        ("{day:%d.%m.%Y} {n}", "02.01.2026 7"),
        ("{{{n}}}", "{7}"),
    ],
)
def test_a_line_is_filled_in(template: str, text: str):
    assert filled(template, {**DAY, "rows": 12}) == text


@pytest.mark.parametrize(
    "template", ["{nothing}", "{day.__class__}", "{day[0]}", "{}", "{", "{n!r}x{n.real}"]
)
def test_nothing_but_a_values_text_can_be_asked_for(template: str):
    with pytest.raises(ConfigurationError) as caught:
        filled(template, DAY)
    assert caught.value.code == "BATCH_FORMAT"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a", "a"),
        (True, "t"),
        (False, "f"),
        (12, "12"),
        (0.1, "0.1"),
        (b"\0\xff", "\\x00ff"),
        (Decimal("1E+3"), "1000"),
        (Decimal("12.50"), "12.50"),
        (date(2026, 1, 2), "2026-01-02"),
        (datetime(2026, 1, 2, 3, 4, tzinfo=UTC), "2026-01-02 03:04:00+00:00"),
        ({"a": [1, None]}, '{"a":[1,null]}'),
    ],
)
def test_the_text_of_a_value(value: Any, text: str):
    assert shown(value) == text


def test_a_frame_is_the_same_each_time_and_frames_can_follow_each_other():
    packed, squeezed = CsvFile("a", compress="gzip"), CsvFile("a", compress="zstd")
    one, two = (packed.framed(data) for data in (b"a" * 99, b"b" * 99))
    assert one == packed.framed(b"a" * 99)
    assert gzip.decompress(one + two) == b"a" * 99 + b"b" * 99
    assert zlib.decompress(one, wbits=31) == b"a" * 99
    frames = squeezed.framed(b"a" * 99) + squeezed.framed(b"b" * 99)
    with zstandard.ZstdDecompressor().stream_reader(frames, read_across_frames=True) as stream:
        assert stream.read() == b"a" * 99 + b"b" * 99
    assert packed.framed(b"") == b""


@pytest.mark.parametrize(
    "wrong",
    [{"compress": "rar"}, {"encoding": "nothing"}, {"line_end": "\r"}, {"delimiter": ";;"}]
    + [{"delimiter": mark} for mark in ('"', "\n", "ä", "a", ".", "\0", "")]
    + [{"quote": "some"}],
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any]):
    with pytest.raises(ConfigurationError, match="BATCH_FORMAT"):
        CsvFile("a.csv", **wrong)
