"""Places of a binary log as text, and positions that are read again from an earlier place."""

from __future__ import annotations

import pytest

from duly.databases.mysql.changes_place import Place, Position, file_name, file_number
from duly.errors import PermanentError


def test_text_compares_like_places() -> None:
    places = [Place(1, 4), Place(1, 668, 9), Place(2, 4, 1), Place(2, 0xFFFFFFFF), Place(70_000, 4)]
    texts = [place.text for place in places]
    assert texts == sorted(texts)
    assert {len(text) for text in texts} == {22}
    assert all(text.isalnum() for text in texts)
    assert texts[1] == "0000010000029C00000009"


def test_what_ends_behind_four_gigabytes_stands_at_the_last_offset() -> None:
    assert Place(1, 5 << 30).text == Place(1, 0xFFFFFFFF).text
    assert Place(1, 5 << 30).order == (1, 0xFFFFFFFF)


def test_a_position_is_read_as_it_was_written() -> None:
    plain = Position(Place(7, 1000, 1_700_000_000))
    held = Position(Place(8, 4, 5), Place(7, 900, 3))
    for position in (plain, held):
        assert Position.parse(position.text) == position
    assert (plain.start, held.start) == (plain.place, held.again)
    assert (len(plain.text), len(held.text)) == (22, 44)


@pytest.mark.parametrize("text", ["", "0000010000029C", "x" * 22, "0" * 43])
def test_what_is_no_position_is_refused(text: str) -> None:
    with pytest.raises(PermanentError) as caught:
        Position.parse(text)
    assert caught.value.code == "CDC_POSITION"


def test_a_file_number_without_room_is_refused() -> None:
    with pytest.raises(PermanentError):
        _ = Place(1 << 24, 4).text


def test_names_of_log_files() -> None:
    assert file_number("db.host-bin.000123") == 123
    assert file_name("db.host-bin", 123) == "db.host-bin.000123"
    assert file_name("mysql-bin", 1_234_567) == "mysql-bin.1234567"
    for name in ("mysql-bin", ".000001", "binlog-000001.ibb"):
        with pytest.raises(ValueError, match=r".*"):
            file_number(name)
