from __future__ import annotations

import time

import pytest

from duly.kernel.watermark import Watermark


def test_the_value_is_the_highest_with_nothing_unsettled_below():
    mark = Watermark(10)
    for position in (11, 15, 20):
        mark.enter(position)
    assert mark.value == 10
    assert mark.settle(20)
    assert mark.settle(15)
    assert mark.value == 10
    assert mark.unsettled == 1
    assert mark.settle(11)
    assert mark.value == 20
    assert mark.unsettled == 0


def test_it_stops_before_the_oldest_unsettled_even_across_a_gap():
    mark = Watermark(0)
    mark.enter(5)
    mark.enter(100)
    mark.settle(5)
    assert mark.value == 5  # not 99: nothing is known about what lies in the gap


def test_settling_twice_or_in_a_gap_changes_nothing():
    mark = Watermark(0)
    mark.enter(1)
    mark.enter(5)
    assert mark.settle(1)
    assert not mark.settle(1)
    assert not mark.settle(3)
    assert not mark.settle(0)
    assert mark.value == 1


def test_settling_what_never_entered_is_an_error():
    mark = Watermark(7)
    with pytest.raises(ValueError, match="only 7 has entered"):
        mark.settle(8)


@pytest.mark.parametrize("position", [7, 6, -1])
def test_positions_enter_in_order(position):
    with pytest.raises(ValueError, match="entered after 7"):
        Watermark(7).enter(position)


def test_one_stuck_position_costs_one_entry():
    mark = Watermark(0)
    mark.enter(1)
    for position in range(2, 100_002):
        mark.enter(position)
        mark.settle(position)
    assert mark.unsettled == 1
    assert mark.value == 0
    mark.settle(1)
    assert mark.value == 100_001


def test_reading_the_value_stays_cheap_as_old_positions_go():
    """100,000 settles in order, each followed by a read: seconds on a structure that rescans."""
    mark = Watermark(0)
    for position in range(1, 100_001):
        mark.enter(position)
    began = time.process_time()
    for position in range(1, 100_001):
        mark.settle(position)
        assert mark.value == position
    assert time.process_time() - began < 2.0


def test_many_enter_and_settle_as_they_would_one_by_one():
    mark = Watermark(10)
    mark.enter_all([11, 15, 20])
    assert (mark.value, mark.unsettled) == (10, 3)
    assert mark.settle_all([20, 15, 15, 13]) == 2
    assert mark.value == 10
    assert mark.settle_all([11]) == 1
    assert (mark.value, mark.unsettled) == (20, 0)
    mark.enter_all([])
    assert mark.settle_all([]) == 0


def test_those_in_front_of_a_position_that_is_not_above_have_entered():
    mark = Watermark(0)
    with pytest.raises(ValueError, match="position 2 entered after 2"):
        mark.enter_all([1, 2, 2, 3])
    assert mark.unsettled == 2
    mark.enter(3)
    assert mark.settle_all([1, 2]) == 2
    assert mark.value == 2


def test_none_is_settled_when_one_was_never_given_out():
    mark = Watermark(0)
    mark.enter_all([1, 2])
    with pytest.raises(ValueError, match="position 3 settled, but only 2 has entered"):
        mark.settle_all([1, 3])
    assert mark.unsettled == 2
