"""Changes in Debezium's form. That it is Debezium's is shown beside what Debezium itself emitted,
in ``tests/integration/test_debezium.py``.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest

from duly.errors import ConfigurationError
from duly.kernel.changes import ABSENT, Change
from duly.wire.debezium import UNAVAILABLE, Envelope, Form, Told, json_text, told

NAIVE = datetime(2013, 1, 1, 5, 15, 0, 250000)  # noqa: DTZ001  # a timestamp without a zone


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (True, True),
        (7, 7),
        (0.5, 0.5),
        ("text", "text"),
        (ABSENT, UNAVAILABLE),
        (b"\x00\xff", "AP8="),
        ({"b": [1, None], "a": "ü"}, '{"b": [1, null], "a": "ü"}'),
        ([1, Decimal("0.1")], [1, "AQ=="]),
        (date(1970, 1, 3), 2),
        (date(1969, 12, 31), -1),
        (time(23, 59, 59, 500000), 86_399_500_000),
        (timedelta(seconds=-1), -1_000_000),
        (NAIVE, 1_357_017_300_250_000),
        (NAIVE.replace(tzinfo=timezone(timedelta(hours=2))), "2013-01-01T03:15:00.25Z"),
        (datetime(2013, 1, 1, 0, 0, 10, tzinfo=UTC), "2013-01-01T00:00:10Z"),
        (datetime(2013, 1, 1, tzinfo=UTC), "2013-01-01T00:00:00Z"),
        (Decimal("12.50"), "BOI="),
        (Decimal("-0.01"), "/w=="),
        (Decimal("1.27"), "fw=="),
        (Decimal("1.28"), "AIA="),
        (Decimal("-1.28"), "gA=="),
        (Decimal(0), "AA=="),
        (Decimal("1E+2"), "ZA=="),
        (Decimal("NaN"), "NaN"),
    ],
)
def test_values(value: Any, expected: Any) -> None:
    assert value_of(Form(), value) == expected


def value_of(form: Form, value: Any) -> Any:
    return form.row({"column": value})["column"]


def test_decimals_as_they_are_asked_for() -> None:
    assert value_of(Form(decimals="string"), Decimal("1E+2")) == "100"
    assert value_of(Form(decimals="double"), Decimal("12.50")) == 12.5
    assert value_of(Form(decimals="double"), Decimal("NaN")) == "NaN"


# --- of a binlog ----------------------------------------------------------------------------------
IN_UTC = NAIVE.replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("declared", "value", "expected"),
    [
        ("datetime", NAIVE, 1_357_017_300_250),
        ("datetime(3)", NAIVE, 1_357_017_300_250),
        ("DATETIME(6)", NAIVE, 1_357_017_300_250_000),
        ("datetime(4)", None, None),
        ("timestamp", IN_UTC.replace(microsecond=0), "2013-01-01T05:15:00Z"),
        ("timestamp(2)", IN_UTC, "2013-01-01T05:15:00.25Z"),
        ("timestamp(6)", IN_UTC, "2013-01-01T05:15:00.250000Z"),
        (
            "timestamp(6)",
            NAIVE.replace(tzinfo=timezone(timedelta(hours=2))),
            "2013-01-01T03:15:00.250000Z",
        ),
        ("bit", b"\1", True),
        ("bit(1)", b"\0", False),
        ("bit(12)", b"\1\2", "AgE="),
        ("bit(12)", ABSENT, UNAVAILABLE),
        ("date", date(1970, 1, 3), 2),
        ("date", "0000-00-00", None),
        ("datetime(6)", "0000-00-00 00:00:00.000000", None),
        ("timestamp", "0000-00-00 00:00:00", None),
    ],
)
def test_values_that_the_type_of_a_column_tells(declared: str, value: Any, expected: Any) -> None:
    assert value_of(Form(binlog=True, types={"column": declared}), value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (NAIVE, 1_357_017_300_250),
        (IN_UTC.replace(microsecond=0), "2013-01-01T05:15:00Z"),
        (timedelta(hours=-1), -3_600_000_000),
        ({"b": [1, None], "a": Decimal("1.10")}, '{"b":[1,null],"a":1.10}'),
        ([1, {"a": "ü"}], '[1,{"a":"ü"}]'),
        (b"\x00\xff", "AP8="),
        (Decimal("12.50"), "BOI="),
    ],
)
def test_values_of_columns_without_a_type(value: Any, expected: Any) -> None:
    assert value_of(Form(binlog=True), value) == expected


@pytest.mark.parametrize(
    ("declared", "value"),
    [
        ("datetime", NAIVE.replace(microsecond=1)),
        ("timestamp", IN_UTC),
        ("timestamp(1)", IN_UTC),
    ],
)
def test_a_moment_finer_than_its_type_is_not_cut(declared: str, value: datetime) -> None:
    with pytest.raises(ConfigurationError, match=r"types="):
        value_of(Form(binlog=True, types={"column": declared}), value)


@pytest.mark.parametrize(
    "declared",
    ["int", "datetime(0)", "datetime(7)", "timestamp(12)", "bit(65)", "bit(0)", "date(3)", ""],
)
def test_a_type_that_tells_nothing_is_refused(declared: str) -> None:
    with pytest.raises(ConfigurationError, match="'column'"):
        Form(binlog=True, types={"column": declared})


# --- events ---------------------------------------------------------------------------------------


def test_json_text_has_blanks_where_postgresql_has_them() -> None:
    assert json_text({"a": {}, "b": []}) == '{"a": {}, "b": []}'


def change(op: Any, before: Any, after: Any) -> Change:
    row = before if after is None else after
    return Change("s", "t", op, {"id": row["id"]} if row else {}, before, after, "1", 0)


def events(one: Change, *, tombstones: bool = True) -> list[Told]:
    return list(told(one, Form(), tombstones=tombstones))


KEY, OLD, NEW = '{"id": 1}', {"id": 1, "n": 1}, {"id": 1, "n": 2}


def test_a_new_row_and_one_of_a_snapshot() -> None:
    assert events(change("create", None, NEW)) == [Told(KEY, Envelope(None, NEW, "c"))]
    assert events(change("read", None, NEW)) == [Told(KEY, Envelope(None, NEW, "r"))]


def test_an_update_with_and_without_the_whole_old_row() -> None:
    assert events(change("update", OLD, NEW)) == [Told(KEY, Envelope(OLD, NEW, "u"))]
    for before in (None, {"id": 1, "n": ABSENT}):
        assert events(change("update", before, NEW)) == [Told(KEY, Envelope(None, NEW, "u"))]
    partial = {"id": 1, "n": ABSENT}
    (only,) = events(change("update", OLD, partial))
    assert only.envelope == Envelope(OLD, {"id": 1, "n": UNAVAILABLE}, "u")


def test_a_row_that_is_gone_leaves_a_tombstone() -> None:
    gone = Told(KEY, Envelope({"id": 1, "n": None}, None, "d"))
    known = {"id": 1, "n": ABSENT}
    assert events(change("delete", known, None)) == [gone, Told(KEY, None)]
    assert events(change("delete", known, None), tombstones=False) == [gone]
    unknown = Change("s", "t", "delete", {"id": 1}, None, None, "1", 0)
    assert events(unknown) == [Told(KEY, Envelope(None, None, "d")), Told(KEY, None)]


def test_a_changed_key_is_a_row_gone_and_a_new_one() -> None:
    other = {"id": 2, "n": 1}
    assert events(change("update", OLD, other)) == [
        Told(KEY, Envelope(OLD, None, "d")),
        Told(KEY, None),
        Told('{"id": 2}', Envelope(None, other, "c")),
    ]


def test_a_key_of_which_the_log_does_not_say_what_it_was_has_not_changed() -> None:
    before = {"id": ABSENT, "n": 1}
    assert events(change("update", before, NEW)) == [Told(KEY, Envelope(None, NEW, "u"))]


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ({"id": 7}, '{"id": 7}'),
        ({'n"o': -1}, '{"n\\"o": -1}'),
        ({"id": "a"}, '{"id": "a"}'),
        ({"paid": True}, '{"paid": true}'),
        ({"day": date(1970, 1, 3)}, '{"day": 2}'),
        ({"shop": 1, "no": 2}, '{"shop": 1, "no": 2}'),
    ],
    ids=str,
)
def test_keys_of_one_and_of_several_columns(key: dict[str, Any], expected: str) -> None:
    row = {**key, "x": 1}
    made = Change("s", "t", "create", key, None, row, "1", 0)
    gone = Change("s", "t", "delete", key, row, None, "1", 0)
    assert {one.key for change in (made, gone) for one in events(change)} == {expected}


def test_an_emptied_table_is_left_out() -> None:
    assert events(change("truncate", None, None)) == []
