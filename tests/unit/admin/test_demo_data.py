"""The data set: read whole, cut into contiguous windows, refused when it looks otherwise."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from duly.admin.demo import data
from duly.admin.demo.data import FLIGHTS_LEAST, Flight, load
from duly.admin.demo.setup import stages
from duly.errors import ConfigurationError, MissingExtraError


def test_a_window_is_contiguous_and_starts_in_the_busy_week() -> None:
    few, more = load(FLIGHTS_LEAST), load(3 * FLIGHTS_LEAST)
    assert len(few) == FLIGHTS_LEAST
    assert few[0].day == "2013-06-24"
    assert more[: len(few)] == few
    assert [f.day for f in more] == sorted(f.day for f in more)


def test_the_smallest_window_holds_what_the_demo_needs() -> None:
    few = load(FLIGHTS_LEAST)
    first, second, _ = stages(len(few))
    assert sum(f.long_delayed for f in few[:first]) >= 4
    assert sum(f.long_delayed for f in few[first : first + second]) >= 40
    assert sum(f.cancelled for f in few) > 10
    assert len({f.dest for f in few}) > 50


def test_the_whole_year_has_every_line_once() -> None:
    year = load(None)
    assert len(year) == 336_776
    assert {f.id for f in year} == set(range(1, 336_777))
    assert sum(f.cancelled for f in year) == 8_255
    assert sum(f.long_delayed for f in year) == 9_888


def test_a_window_near_the_end_starts_earlier_instead_of_being_shorter(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(monkeypatch, tmp_path, [line(6, day, day) for day in range(20, 31)])
    assert [f.day[-2:] for f in load(3)] == ["24", "25", "26"]
    assert [f.day[-2:] for f in load(9)] == [str(day) for day in range(22, 31)]
    assert len(load(99)) == 11


def test_a_flight_is_its_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path, [line(1, 1, "NA"), line(1, 1, 119), line(1, 1, 120)])
    first = Flight(1, "2013-01-01", 515, None, "UA", 7, "EWR", "IAH")
    assert load(None) == [first, first._replace(id=2, delay=119), first._replace(id=3, delay=120)]
    assert [(f.cancelled, f.delayed, f.long_delayed) for f in load(None)] == [
        (True, False, False),
        (False, True, False),
        (False, True, True),
    ]


def test_another_table_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path, [], header="year,month,day")
    with pytest.raises(ConfigurationError, match="sched_dep_time"):
        load(1)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"duly\[demo\]"):
        load(1)


HEADER = "year,month,day,sched_dep_time,dep_delay,carrier,flight,origin,dest"


def line(month: int, day: int, delay: object) -> str:
    return f"2013,{month},{day},515,{delay},UA,7,EWR,IAH"


def install(
    monkeypatch: pytest.MonkeyPatch, folder: Path, lines: list[str], header: str = HEADER
) -> None:
    """Put a data set of these lines where the package would be."""
    path = folder / "flights.csv.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("flights.csv", "\n".join([header, *lines]) + "\n")
    monkeypatch.setattr(data, "_path", lambda: path)
