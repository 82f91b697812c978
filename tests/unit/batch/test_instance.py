from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from duly.batch.instance import (
    KINDS,
    Window,
    canonical,
    check_params,
    file_name,
    instance_id,
    parse_params,
    text_of,
    values_of,
)
from duly.errors import ConfigurationError

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
VALUES: dict[type, Any] = {
    str: "north",
    int: -7,
    date: date(2026, 11, 22),
    datetime: NOON,
    Decimal: Decimal("1.50"),
    UUID: UUID(int=7),
    Window: Window(NOON, NOON + timedelta(hours=1)),
}


def test_the_id_of_an_instance_never_changes() -> None:
    assert instance_id("settlement", {"day": date(2026, 11, 22)}) == "settlement-fce4bb9e012c"


def test_every_kind_comes_back_from_its_text() -> None:
    assert set(VALUES) == set(KINDS)
    kinds = {f"p{n}": kind for n, kind in enumerate(KINDS)}
    values = {f"p{n}": VALUES[kind] for n, kind in enumerate(KINDS)}
    assert values_of(kinds, canonical(values)) == values
    assert parse_params(kinds, {n: text_of(v) for n, v in values.items()}) == values


def test_one_moment_has_one_text_in_every_zone() -> None:
    east = NOON.astimezone(timezone(timedelta(hours=9)))
    assert canonical({"at": NOON}) == canonical({"at": east}) == '{"at":"2026-11-22T12:00:00Z"}'
    assert text_of(Decimal("1.500")) == text_of(Decimal("1.5")) == "1.5"
    assert text_of(Decimal("0.00")) == "0"
    assert canonical({"b": 1, "a": 2}) == canonical({"a": 2, "b": 1})


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"day": "2026-11-22"},
        {"day": datetime(2026, 11, 22, tzinfo=UTC)},
        {"day": date(2026, 11, 22), "more": 1},
    ],
)
def test_parameters_of_another_shape_are_refused(params: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError) as refused:
        check_params({"day": date}, params)
    assert refused.value.code == "BATCH_PARAMS"


@pytest.mark.parametrize("text", ["", "line\nbreak", "x" * 201, "\udc80"])
def test_texts_that_are_no_parameter(text: str) -> None:
    with pytest.raises(ConfigurationError):
        check_params({"branch": str}, {"branch": text})


@pytest.mark.parametrize(
    ("kind", "text"),
    [(int, "1_0"), (int, "٣"), (date, "22.11."), (Decimal, "x"), (UUID, "1"), (Window, "a/b")],
)
def test_text_of_another_kind(kind: type, text: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        parse_params({"p": kind}, {"p": text})
    assert refused.value.code == "BATCH_PARAMS"


def test_a_time_without_a_zone_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="time zone"):
        check_params({"at": datetime}, {"at": datetime(2026, 11, 22)})  # noqa: DTZ001  # that is the point


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("settlement-{day}.csv", "settlement-2026-11-22.csv"),
        ("{day:%Y%m%d}.{branch}.csv", "20261122.north.csv"),
        ("{at}.csv", "2026-11-22T12_00_00Z.csv"),
        ("{span}.csv", "2026-11-22T12_00_00Z_2026-11-22T13_00_00Z.csv"),
        ("{{}}.csv", "{}.csv"),
        ("{count:05d}", "00007"),
    ],
)
def test_names_of_files(template: str, name: str) -> None:
    params = {
        "day": date(2026, 11, 22),
        "branch": "north",
        "at": NOON,
        "span": Window(NOON, NOON + timedelta(hours=1)),
        "count": 7,
    }
    assert file_name(template, params) == name


@pytest.mark.parametrize(
    ("template", "branch"),
    [
        ("{branch}.csv", "../etc"),
        ("{branch}.csv", "a/b"),
        ("{branch}.csv", "a\\b"),
        ("{branch}", ".."),
        (".{branch}", "hidden"),
        ("sub/{branch}.csv", "x"),
        ("", "x"),
        ("{branch}" * 2, "y" * 150),
        ("{other}.csv", "x"),
        ("{branch.__class__}.csv", "x"),
        ("{branch!r}.csv", "x"),
        ("{branch:d}.csv", "x"),
        ("{0}.csv", "x"),
        ("{branch.csv", "x"),
        ("\udc80{branch}", "x"),
        ("{branch}\n", "x"),
    ],
)
def test_names_that_leave_their_folder_or_are_none(template: str, branch: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        file_name(template, {"branch": branch})
    assert refused.value.code == "BATCH_NAME"
