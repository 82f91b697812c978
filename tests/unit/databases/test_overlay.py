"""A chunk of rows under the changes of its time."""

from __future__ import annotations

from typing import Any

from duly.databases.overlay import Row, kept, laid_over
from duly.kernel.changes import ABSENT, Change
from duly.sources import TableSpec


def row(number: int, value: Any = 0, more: Any = "m") -> Row:
    return {"id": number}, {"id": number, "v": value, "more": more}


def change(op: Any, number: int, after: Any = None, *, old: int | None = None) -> Change:
    before = None if old is None else {"id": old, "v": ABSENT}
    return Change("s", "t", op, {"id": number}, before, after, "p", 0)


CHANGES = [
    change("update", 1, {"id": 1, "v": 5, "more": ABSENT}),
    change("delete", 2),
    change("create", 9, {"id": 9, "v": 0, "more": "m"}),
    change("update", 4, {"id": 4, "v": 1, "more": "k"}, old=3),
]


def test_rows_become_what_the_changes_made_of_them() -> None:
    rows = [row(1), row(2), row(3), row(5)]
    wanted = [row(5), row(1, 5), row(4, 1, "k")]
    assert laid_over(rows, CHANGES) == wanted


def test_changes_that_the_rows_have_already_change_nothing() -> None:
    once = laid_over([row(1), row(2), row(3), row(5)], CHANGES)
    again = laid_over(once, CHANGES)
    assert sorted(map(repr, again)) == sorted(map(repr, once))


def test_an_emptied_table_has_only_what_was_told_since() -> None:
    emptied = Change("s", "t", "truncate", {}, None, None, "p", 0)
    assert laid_over([row(1), row(2)], [emptied, change("create", 2, {"id": 2})]) == []


def test_columns_that_are_carried() -> None:
    assert kept(TableSpec("t"), ["a", "b"]) == ["a", "b"]
    assert kept(TableSpec("t", include=("b", "c"), exclude=("c",)), ["a", "b", "c"]) == ["b"]
