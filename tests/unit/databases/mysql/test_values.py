"""How values become driver calls, and what is refused because the server would cut it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from duly.databases.mysql.values import (
    CHUNK_ROWS,
    check_lengths,
    claimed,
    expanded,
    in_chunks,
    listed,
    paired,
)
from duly.errors import PermanentError


def test_lists_stand_after_in_and_an_empty_one_holds_nothing() -> None:
    given = {"ids": [1, 2], "none": [], "pairs": ("a",), "text": "ab", "data": b"ab"}
    assert listed(given) == {
        "ids": (1, 2),
        "none": (None,),
        "pairs": ("a",),
        "text": "ab",
        "data": b"ab",
    }
    assert paired(["a", "b"], [1, 2]) == (("a", 1), ("b", 2))
    assert paired([], []) == ((None, None),)


def test_many_rows_stand_behind_one_values() -> None:
    text, values = expanded("INSERT INTO t (a) VALUES (%(a)s, 'x')", [{"a": 1}, {"a": 2}])
    assert text == "INSERT INTO t (a) VALUES (%(a_0)s, 'x'),(%(a_1)s, 'x')"
    assert values == {"a_0": 1, "a_1": 2}
    text, values = expanded("SELECT %(a)s", [{"a": 1}, {"a": 2}])
    assert text == "SELECT %(a_0)s UNION ALL SELECT %(a_1)s"


def test_chunks_are_bounded_by_rows_and_bytes_and_lose_nothing() -> None:
    rows: list[dict[str, Any]] = [{"n": n, "payload": b""} for n in range(CHUNK_ROWS + 1)]
    assert [len(chunk) for chunk in in_chunks(rows)] == [CHUNK_ROWS, 1]
    large = [{"n": n, "payload": b"x" * 600_000} for n in range(3)]
    assert [[row["n"] for row in chunk] for chunk in in_chunks(large)] == [[0], [1], [2]]
    assert list(in_chunks([])) == []


@pytest.mark.parametrize(
    ("row", "code"),
    [
        ({"dedupe_key": "x" * 1537}, "VALUE_TOO_LONG"),
        ({"dedupe_key": "\u00e4" * 769}, "VALUE_TOO_LONG"),
        ({"message_id": "x" * 256}, "VALUE_TOO_LONG"),
        ({"message_id": None}, "VALUE_MISSING"),
    ],
)
def test_what_would_be_cut_or_emptied_is_refused(row: dict[str, Any], code: str) -> None:
    with pytest.raises(PermanentError) as caught:
        check_lengths([{"dedupe_key": "fine"}, row])
    assert caught.value.code == code


def test_what_fits_passes() -> None:
    check_lengths([{"dedupe_key": "x" * 1536, "key": None, "message_id": "x" * 255}])


def test_the_rows_of_a_claim_have_what_they_share() -> None:
    rows = json.dumps([["d1", "m1", None], ["d2", "m2", "k"]])
    assert claimed({"group": "g", "rows": rows}) == [
        {"group": "g", "dedupe_key": "d1", "message_id": "m1", "key": None},
        {"group": "g", "dedupe_key": "d2", "message_id": "m2", "key": "k"},
    ]
