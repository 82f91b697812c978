"""What changes mean for a copy of their table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from msgspec.structs import replace

from duly.errors import PermanentError
from duly.kernel.changes import ABSENT, Change
from duly.kernel.upserts import Clear, Put, Remove, fold, key_text, operations, pieces

ROW = {"id": 1, "name": "a"}


def change(op: Any, before: Any = None, after: Any = None, **rest: Any) -> Change:
    row = after or before or {}
    key = rest.get("key", {"id": row["id"]} if row else {})
    return Change("s", "t", op, key, before, after, "1", 0)


def same(one: Change) -> Mapping[str, Any] | None:
    return one.after


def made(*changes: Change) -> list[Any]:
    return list(operations(changes, same))


def test_new_read_and_changed_rows_are_put() -> None:
    for op in ("create", "read", "update"):
        assert made(change(op, None, ROW)) == [Put({"id": 1}, ROW)]


def test_a_row_that_is_gone_is_removed_without_asking_the_projection() -> None:
    def never(one: Change) -> None:
        raise AssertionError(one)

    assert list(operations([change("delete", ROW)], never)) == [Remove({"id": 1})]


def test_a_row_without_a_projection_is_removed() -> None:
    assert list(operations([change("update", ROW, ROW)], lambda _: None)) == [Remove({"id": 1})]


def test_an_emptied_table_is_cleared() -> None:
    assert made(change("truncate")) == [Clear()]


def test_a_changed_key_removes_the_old_one_first() -> None:
    new = {"id": 2, "name": "a"}
    assert made(change("update", ROW, new)) == [Remove({"id": 1}), Put({"id": 2}, new)]
    gone = operations([change("update", ROW, new)], lambda _: None)
    assert list(gone) == [Remove({"id": 1}), Remove({"id": 2})]


@pytest.mark.parametrize("before", [{"id": ABSENT, "name": "a"}, {"name": "a"}, None])
def test_a_key_that_the_log_does_not_tell_has_not_changed(before: Any) -> None:
    assert made(change("update", before, ROW)) == [Put({"id": 1}, ROW)]


@pytest.mark.parametrize("key", [{}, {"id": ABSENT}])
def test_a_row_that_nothing_names_is_refused(key: dict[str, Any]) -> None:
    with pytest.raises(PermanentError) as refused:
        made(replace(change("create", None, ROW), key=key))
    assert refused.value.code == "NO_KEY"


def test_folded_is_each_key_once_in_the_place_of_its_last() -> None:
    one, two = {"id": 1}, {"id": 2}
    assert fold([Put(one, {"n": 1}), Put(two, {"n": 2}), Remove(one)]) == [
        Put(two, {"n": 2}),
        Remove(one),
    ]
    assert fold([Remove(one), Put(one, {"n": 1})]) == [Put(one, {"n": 1})]


def test_folded_begins_with_the_last_clearing() -> None:
    one, two = Put({"id": 1}, {}), Put({"id": 2}, {})
    assert fold([one, Clear(), two, Clear(), one]) == [Clear(), one]


def test_a_value_that_was_not_carried_is_what_it_was_before() -> None:
    key, partial = {"id": 1}, {"a": ABSENT, "b": 2}
    assert fold([Put(key, {"a": 1, "b": 1}), Put(key, partial)]) == [Put(key, {"a": 1, "b": 2})]
    (alone,) = fold([Put(key, partial)])
    assert isinstance(alone, Put)
    assert not alone.whole
    assert alone.known == {"b": 2}
    (both,) = fold([Put(key, partial), Put(key, {"a": ABSENT, "b": 3})])
    assert isinstance(both, Put)
    assert both.known == {"b": 3}
    assert fold([Put(key, {"a": 1, "c": 1}), Put(key, {"a": 2})]) == [Put(key, {"a": 2})]


def test_pieces_end_by_count_and_by_size() -> None:
    many = [Put({"id": n}, {"t": "x" * 4, "b": b"yy", "n": 1}) for n in range(5)]
    assert [len(one) for one in pieces(many, count=2, size_bytes=100)] == [2, 2, 1]
    assert [len(one) for one in pieces(many, count=9, size_bytes=12)] == [2, 2, 1]
    assert [len(one) for one in pieces([Clear(), Remove({})], count=2, size_bytes=1)] == [2]
    assert list(pieces([], count=1, size_bytes=1)) == []


def test_keys_as_text() -> None:
    assert key_text({"id": 7}) == "7"
    assert key_text({"id": "ü:1"}) == "ü:1"
    assert key_text({"id": b"\x00\xff"}) == "00ff"
    assert key_text({"a": "1", "b": "23"}) == "1:12:23"
    assert key_text({"a": "12", "b": "3"}) == "2:121:3"
