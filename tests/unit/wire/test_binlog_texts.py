"""Character sets: as the server reads them, byte by byte, or not at all."""

from __future__ import annotations

import pytest

from duly.errors import UndecodableError
from duly.wire.binlog_texts import decoder_of

# Collation, bytes, and what a server of MariaDB 10.11 makes of them in utf8mb4 (248, 255: MySQL).
SAMPLES = [
    (45, b"\xf0\x9f\x98\x80", "\U0001f600"),
    (33, "é".encode(), "é"),
    (255, "é".encode(), "é"),
    (2304, "é".encode(), "é"),
    (8, b"\x80\xe9\x81", "\u20ac\xe9\x81"),
    (11, b"plain", "plain"),
    (54, b"\xd8\x3d\xde\x00", "\U0001f600"),
    (35, b"\x20\xac", "\u20ac"),
    (56, b"\xac\x20", "\u20ac"),
    (60, b"\x00\x01\xf6\x00", "\U0001f600"),
    (1, b"\xa4\xa4", "中"),
    (26, b"\xb9", "ą"),
    (51, b"\xc6", "Ж"),
    (57, b"\xe1", "ل"),
    (59, b"\xe0", "ą"),
    (4, b"\x82", "é"),
    (40, b"\xa5", "ą"),
    (36, b"\x86\xfc\xfd", "Ж\u207f\xb2"),
    (95, b"\x93\xfa\x81\x5f", "日\uff3c"),
    (19, b"\x81\x41\xc7\xd1", "갂한"),
    (12, b"\xc6\xfc\xa1\xc0", "日\\"),
    (13, b"\x93\xfa\x81\x5f", "日\\"),
    (24, b"\xd6\xd0", "中"),
    (28, b"\xd6\xd0", "中"),
    (248, b"\x94\x39\xfc\x36", "\U0001f600"),
    (6, b"\xc5", "é"),
    (41, b"\xe0", "ą"),
    (9, b"\xb1", "ą"),
    (25, b"\xc5\xa1\xa2", "\u0395\u02bd\u02bc"),
    (16, b"\xf9\xaf", "ש\u203e"),
    (30, b"\xfd", "\u0131"),
    (7, b"\xf6", "Ж"),
    (22, b"\xf6\x95", "Ж\u2022"),
    (38, b"\x88", "ą"),
    (39, b"\x8e", "é"),
    (18, b"\xa1", "ก"),
]


@pytest.mark.parametrize(("collation", "data", "text"), SAMPLES)
def test_a_text_is_what_the_server_says(collation: int, data: bytes, text: str) -> None:
    assert decoder_of(collation)(data) == text


@pytest.mark.parametrize(
    ("collation", "data"),
    [(11, b"\x80"), (25, b"\xa4"), (57, b"\xff"), (16, b"\xa1"), (45, b"\xff"), (18, b"\xa0")],
)
def test_a_byte_that_means_nothing_is_an_error(collation: int, data: bytes) -> None:
    with pytest.raises(UnicodeError):
        decoder_of(collation)(data)


@pytest.mark.parametrize("collation", [0, 3, 10, 32, 37, 92, 97, 63, 9999])
def test_characters_that_are_not_known_are_refused(collation: int) -> None:
    with pytest.raises(UndecodableError) as caught:
        decoder_of(collation)
    assert caught.value.code == "BINLOG_CHARSET"
