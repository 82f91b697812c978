from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from bench.measure import Measured, Row, Sample, Scale, Sides, measure


def in_turn(figures: list[float], log: list[str], name: str) -> Callable[[], Sample]:
    def side() -> Sample:
        log.append(name)
        return Sample(figures[log.count(name) - 1], {"of": name})

    return side


def row(*, falls: bool = False, share_least: float = 0.0, log: list[str], **figures: Any) -> Row:
    @contextmanager
    def opened(scale: Scale) -> Iterator[Sides]:
        sides = {name: in_turn(values, log, name) for name, values in figures.items()}
        yield Sides(share_least=share_least, **sides)
        log.append("closed")

    return Row("r", "messages/s", "by hand", opened, falls)


def measured(one: Row, repeats: int) -> tuple[Measured, list[str]]:
    lines: list[str] = []
    return measure(one, repeats=repeats, scale=Scale(), told=lines.append), lines


def test_the_ratio_is_the_median_of_the_pairs_and_not_of_the_medians():
    log: list[str] = []
    found, _ = measured(row(log=log, ours=[1.0, 20.0, 3.0], reference=[2.0, 10.0, 30.0]), 3)
    assert found.ratio == 0.5
    assert (found.figure, found.reference_figure) == (3.0, 10.0)
    assert found.spread == pytest.approx(19 / 3)


def test_sides_take_turns_and_the_order_is_turned_round():
    log: list[str] = []
    _, lines = measured(row(log=log, ours=[1.0, 1.0], reference=[1.0, 1.0], raw=[1.0, 1.0]), 2)
    assert log == ["raw", "reference", "ours", "ours", "reference", "raw", "closed"]
    assert len(lines) == 2


@pytest.mark.parametrize(
    ("falls", "reference", "raw", "share"), [(False, 50.0, 100.0, 0.5), (True, 100.0, 50.0, 0.5)]
)
def test_a_reference_far_from_the_raw_client_makes_the_row_void(
    falls: bool, reference: float, raw: float, share: float
):
    sides = {"ours": [1.0], "reference": [reference], "raw": [raw]}
    far, _ = measured(row(falls=falls, share_least=0.6, log=[], **sides), 1)
    near, _ = measured(row(falls=falls, share_least=0.5, log=[], **sides), 1)
    assert far.share == near.share == share
    assert "0.50" in far.void
    assert near.void == ""


def test_a_count_needs_no_reference():
    found, _ = measured(row(log=[], ours=[4.0, 2.0]), 2)
    assert (found.figure, found.ratio, found.reference_figure, found.void) == (3.0, None, None, "")


def test_a_scale_never_falls_below_the_least():
    assert Scale(0.01).of(50, least=20) == 20
    assert Scale(0.5).of(1000) == 500


def test_a_row_beyond_its_share_of_the_time_is_repeated_less_often():
    ones = [1.0] * 5
    one = row(log=[], ours=ones)
    short = measure(one, repeats=5, scale=Scale(), told=lambda _: None, seconds=0.0)
    assert len(short.ours) == one.repeats_least < 5
    whole = measure(row(log=[], ours=ones), repeats=5, scale=Scale(), told=lambda _: None)
    assert len(whole.ours) == 5


def test_ours_is_measured_once_where_there_is_nothing_to_compare_with():
    @contextmanager
    def opened(scale: Scale) -> Iterator[Sides]:
        yield Sides(ours=in_turn([7.0], [], "ours"), void="the peer cannot be installed")

    found, _ = measured(Row("r", "messages/s", "a peer", opened), 5)
    assert (found.figure, found.ratio, found.void) == (7.0, None, "the peer cannot be installed")
