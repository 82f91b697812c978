"""What the histories count becomes a verdict that is red for each kind of violation."""

from __future__ import annotations

import pytest

from tests.crash.aftercommit import judge

CLEAN = {
    "units": 10, "kept": 4, "lost": 0, "unexpected": 0, "duplicated": 0, "dangling": 0,
    "example": "",
}  # fmt: skip


def test_clean() -> None:
    verdict = judge(CLEAN)
    assert verdict.problems == []
    assert (verdict.attempted, verdict.acknowledged, verdict.delivered) == (10, 4, 4)


@pytest.mark.parametrize("what", ["lost", "unexpected", "duplicated", "dangling"])
def test_each_kind_is_a_problem(what: str) -> None:
    (problem,) = judge({**CLEAN, what: 2, "example": "History(...)"}).problems
    assert problem.startswith(("lost", "unexpected"))  # what a planted bug is expected to show
    assert "History(...)" in problem


@pytest.mark.parametrize("kept", [0, 10])
def test_histories_that_show_nothing(kept: int) -> None:
    assert judge({**CLEAN, "kept": kept}).problems
