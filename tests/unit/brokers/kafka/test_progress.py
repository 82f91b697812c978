from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from duly.brokers.kafka.progress import LEFT, Progress


def admitted(progress: Progress, offsets: range) -> list[int]:
    return [offset for offset in offsets if progress.admit(offset)]


def test_only_what_is_done_without_a_gap_is_committed() -> None:
    progress = Progress("orders", 0)
    assert admitted(progress, range(10, 15)) == [10, 11, 12, 13, 14]
    assert progress.to_commit is None or progress.to_commit <= 10
    for offset in (11, 12, 14):
        progress.settle(offset)
    assert progress.to_commit == 10
    progress.settle(10)
    assert progress.to_commit == 13
    progress.told(13)
    assert progress.to_commit is None
    progress.settle(13)
    assert progress.to_commit == 15
    assert progress.under_way == 0


def test_a_commit_that_was_not_taken_is_told_again() -> None:
    progress = Progress("orders", 0)
    progress.admit(5)
    progress.settle(5)
    progress.told(6)
    assert progress.to_commit is None
    progress.told(0)
    assert progress.to_commit == 6


def test_offsets_may_have_gaps() -> None:
    progress = Progress("orders", 0)
    for offset in (3, 7, 100):
        assert progress.admit(offset)
        progress.settle(offset)
    assert progress.to_commit == 101


def test_what_is_given_back_comes_again_and_nothing_else_does() -> None:
    progress = Progress("orders", 0)
    admitted(progress, range(6))
    progress.settle(3)
    assert progress.release([2, 4])
    assert progress.under_way == 3
    assert not progress.admit(6), "order is kept: nothing new before it is read again"
    assert progress.rewind() == 2
    assert admitted(progress, range(2, 8)) == [2, 4, 6, 7]
    for offset in (0, 1, 2, 5, 4, 6, 7):
        progress.settle(offset)
    assert progress.to_commit == 8


def test_what_was_given_back_cannot_be_settled() -> None:
    progress = Progress("orders", 0)
    admitted(progress, range(3))
    progress.release([1])
    for offset in range(3):
        progress.settle(offset)
    assert progress.to_commit == 1
    assert not progress.release([0, 1, 2])


def test_a_partition_that_has_moved_takes_nothing() -> None:
    progress = Progress("orders", 0)
    admitted(progress, range(3))
    progress.settle(0)
    progress.live = False
    progress.settle(1)
    assert progress.to_commit is None
    assert not progress.admit(3)
    assert not progress.release([2])


def test_what_another_may_have_had_is_doubtful() -> None:
    progress = Progress("orders", 0)
    assert all(progress.admit(offset) for offset in range(7, 207))
    assert [offset for offset in range(7, 207) if progress.doubtful(offset)] == [*range(7, 107)]
    progress.release([150])
    assert progress.rewind() == 150
    assert progress.admit(150)
    assert progress.doubtful(150)


def test_what_was_written_after_the_assignment_nobody_had_before() -> None:
    progress = Progress("orders", 0)
    assert not progress.begun
    assert progress.admit(7)
    assert progress.begun
    progress.know_end(9)
    assert all(progress.admit(offset) for offset in (8, 9, 10))
    assert [offset for offset in range(7, 11) if progress.doubtful(offset)] == [7, 8]
    progress.release([10])
    assert progress.rewind() == 10
    assert progress.admit(10)
    assert progress.doubtful(10), "it was given back"


def test_after_who_left_in_good_order_only_what_is_given_back_is_doubtful() -> None:
    progress = Progress("orders", 0, trusted=True)
    assert progress.unsaid
    assert all(progress.admit(offset) for offset in range(7, 20))
    assert not any(progress.doubtful(offset) for offset in range(7, 20))
    progress.release([9])
    assert progress.rewind() == 9
    assert progress.admit(9)
    assert progress.doubtful(9)


def test_a_word_that_could_not_be_taken_back_is_worth_nothing() -> None:
    progress = Progress("orders", 0, trusted=True)
    progress.unsaid = progress.trusted = False
    assert progress.admit(7)
    assert progress.doubtful(7)


def test_good_order_is_said_only_of_what_nobody_has() -> None:
    progress = Progress("orders", 0)
    assert progress.last is None, "what was said of it before still holds"
    admitted(progress, range(5, 9))
    assert progress.last == (5, "")
    for offset in (5, 7):
        progress.settle(offset)
    assert progress.last == (6, "")
    progress.release([6, 8])
    assert progress.last == (6, LEFT)
    progress.live = False
    assert progress.last is None


@given(st.lists(st.tuples(st.sampled_from("asrw"), st.integers(0, 30)), max_size=80))
def test_nothing_undone_is_ever_below_the_commit(steps: list[tuple[str, int]]) -> None:
    progress = Progress("orders", 0)
    done: set[int] = set()
    out: set[int] = set()
    at = 0
    for step, number in steps:
        if step == "a":
            if progress.admit(at):
                assert at not in out | done, "twice at a time, or again after it was done"
                out.add(at)
            at += 0 if progress.halted else 1
        elif step == "s" and number in out:
            progress.settle(number)
            out.discard(number)
            done.add(number)
        elif step == "r" and number in out:
            progress.release([number])
            out.discard(number)
        elif step == "w" and progress.halted:
            at = progress.rewind()
        commit = progress.to_commit
        assert commit is None or set(range(commit)) <= done
