"""The id floor: moves only over ids that no unfinished writer can fill in any more."""

from __future__ import annotations

from duly.runtime.floor import MARGIN_SECONDS, Floor


def read_all(
    floor: Floor, highest: int, *, oldest: int, following: int, now: float, busy: int | None = None
) -> None:
    floor.rewind()
    floor.read(highest)
    floor.observe(oldest, following, now=now, reached=None, lowest_busy=busy)


def test_the_floor_moves_after_the_margin_when_all_writers_of_then_have_ended() -> None:
    floor = Floor()
    read_all(floor, 100, oldest=7, following=9, now=0.0)
    assert floor.floor == 0
    read_all(floor, 150, oldest=9, following=12, now=MARGIN_SECONDS)
    assert floor.floor == 100


def test_an_old_writer_keeps_the_floor_where_it_is() -> None:
    floor = Floor()
    read_all(floor, 100, oldest=7, following=9, now=0.0)
    read_all(floor, 150, oldest=8, following=20, now=100.0)
    assert floor.floor == 0


def test_the_margin_covers_a_writer_that_has_an_id_but_no_number_yet() -> None:
    floor = Floor()
    read_all(floor, 100, oldest=9, following=9, now=0.0)
    read_all(floor, 150, oldest=9, following=9, now=MARGIN_SECONDS - 0.1)
    assert floor.floor == 0


def test_the_floor_stays_below_what_is_not_settled() -> None:
    floor = Floor()
    read_all(floor, 100, oldest=9, following=9, now=0.0)
    read_all(floor, 150, oldest=9, following=9, now=10.0, busy=40)
    assert floor.floor == 39


def test_a_read_that_did_not_come_as_far_as_the_candidate_moves_nothing() -> None:
    floor = Floor()
    read_all(floor, 100, oldest=9, following=9, now=0.0)
    floor.rewind()
    floor.observe(9, 9, now=10.0, reached=60, lowest_busy=None)
    assert floor.floor == 0


def test_reset_goes_back_to_the_beginning() -> None:
    floor = Floor()
    read_all(floor, 100, oldest=9, following=9, now=0.0)
    read_all(floor, 150, oldest=9, following=9, now=10.0)
    floor.reset()
    assert (floor.cursor, floor.floor) == (0, 0)
