"""The watermark against a model that keeps everything, and every order of five positions."""

from __future__ import annotations

from itertools import permutations

from hypothesis import given
from hypothesis import strategies as st

from duly.kernel.watermark import Watermark


class Naive:
    """Remembers every position: what the kernel's must agree with."""

    def __init__(self, start: int) -> None:
        self.start, self.entered, self.done = start, [], set()

    @property
    def value(self) -> int:
        value = self.start
        for position in self.entered:
            if position not in self.done:
                break
            value = position
        return value


@given(
    start=st.integers(-5, 5),
    moves=st.lists(st.tuples(st.booleans(), st.integers(1, 30)), max_size=60),
)
def test_agrees_with_the_model(start, moves):
    mark, model = Watermark(start), Naive(start)
    highest, last = start, start
    for enters, number in moves:
        if enters:
            highest += number
            mark.enter(highest)
            model.entered.append(highest)
        elif start + number <= highest:
            known = start + number in model.entered and start + number not in model.done
            assert mark.settle(start + number) is known
            if known:
                model.done.add(start + number)
        assert mark.value == model.value
        assert mark.value >= last
        assert mark.unsettled == len(set(model.entered) - model.done)
        last = mark.value


def skipped_by(value_after: list[list[int]]) -> bool:
    """Whether some stored value passes a position that was not settled when it was stored."""
    return any(value >= p for value, *unsettled in value_after for p in unsettled)


def test_no_stored_value_ever_passes_an_unsettled_position():
    """All 120 orders of settling 5 positions; a crash may come after any step, so every value is a
    stored one.
    """
    mistakes = {"highest": 0, "latest": 0}
    for order in permutations((2, 4, 5, 8, 9)):
        mark = Watermark(0)
        for position in sorted(order):
            mark.enter(position)
        right, highest, latest = [], [], []
        for done, position in enumerate(order, 1):
            mark.settle(position)
            rest = list(order[done:])
            right.append([mark.value, *rest])
            highest.append([max(order[:done]), *rest])
            latest.append([position, *rest])
        assert not skipped_by(right)
        assert mark.value == 9
        mistakes["highest"] += skipped_by(highest)
        mistakes["latest"] += skipped_by(latest)
    assert min(mistakes.values()) > 100  # the check sees what it is there to see
