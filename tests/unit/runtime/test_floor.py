"""The id floor: moves only over ids that no unfinished writer can fill in any more."""

from __future__ import annotations

from duly.runtime.floor import MARGIN_SECONDS, Floor, Writers

NOBODY = frozenset[str]()


def read(
    floor: Floor,
    highest: int | None,
    writers: Writers | None,
    *,
    now: float = 0.0,
    complete: bool = True,
    busy: int | None = None,
) -> None:
    floor.read(highest, writers, complete=complete, lowest_busy=busy, now=now)


def test_the_floor_moves_once_all_writers_of_then_have_ended() -> None:
    floor = Floor()
    read(floor, 100, None)
    read(floor, 120, Writers(NOBODY, 7, 9))
    assert floor.after == 0
    read(floor, 150, Writers(NOBODY, 9, 12))
    assert floor.after == 100


def test_a_flush_under_way_keeps_the_floor_however_long_it_takes() -> None:
    """It has drawn ids; a later message of its key must not be read without them."""
    floor = Floor()
    read(floor, 100, None)
    read(floor, 120, Writers(frozenset({"3/7"}), 7, 9))
    read(floor, 150, Writers(frozenset({"3/7", "4/1"}), 20, 30), now=1000.0)
    assert floor.after == 0
    read(floor, 160, Writers(frozenset({"4/1"}), 20, 30), now=1001.0)
    assert floor.after == 100


def test_a_foreign_writer_holds_it_up_for_the_margin_only() -> None:
    floor = Floor()
    read(floor, 100, None)
    read(floor, 120, Writers(NOBODY, 7, 9))
    read(floor, 150, Writers(NOBODY, 8, 20), now=MARGIN_SECONDS - 0.1)
    assert floor.after == 0
    read(floor, 150, Writers(NOBODY, 8, 20), now=MARGIN_SECONDS)
    assert floor.after == 100


def test_what_was_seen_in_the_same_read_is_no_candidate() -> None:
    """The writers were asked before the read: they say nothing of what it found."""
    floor = Floor()
    read(floor, 100, Writers(NOBODY, 9, 9))
    read(floor, 150, Writers(NOBODY, 9, 9))
    assert floor.after == 0


def test_the_floor_stays_below_what_is_not_settled() -> None:
    floor = Floor()
    read(floor, 100, None)
    read(floor, 120, Writers(NOBODY, 9, 9))
    read(floor, 150, Writers(NOBODY, 9, 9), busy=40)
    assert floor.after == 39


def test_a_read_that_did_not_come_as_far_as_the_candidate_moves_nothing() -> None:
    floor = Floor()
    read(floor, 100, None)
    read(floor, 120, Writers(NOBODY, 9, 9))
    read(floor, 60, Writers(NOBODY, 9, 9), complete=False)
    assert floor.after == 0


def test_a_reset_reads_once_from_the_beginning_and_goes_on_from_the_floor() -> None:
    floor = Floor()
    read(floor, 100, None)
    read(floor, 120, Writers(NOBODY, 9, 9))
    read(floor, 150, Writers(NOBODY, 9, 9))
    floor.reset()
    assert floor.after == 0
    read(floor, 50, None, complete=False)
    assert floor.after == 0
    read(floor, None, None)
    assert floor.after == 100


def test_forgetting_begins_anew() -> None:
    floor = Floor()
    read(floor, 100, None)
    read(floor, 120, Writers(NOBODY, 9, 9))
    read(floor, 150, Writers(NOBODY, 9, 9))
    floor.forget()
    assert floor.after == 0
    read(floor, None, None)
    assert floor.after == 0
