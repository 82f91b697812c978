from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duly.errors import ConfigurationError
from duly.kernel.budget import Budget, BudgetState


@given(
    share=st.floats(0, 2),
    reserve=st.integers(1, 20),
    history=st.lists(st.booleans(), max_size=300),
)
def test_retries_stay_below_the_reserve_plus_a_share_of_the_calls(share, reserve, history):
    """Of every stretch of the history, not only of the whole."""
    state = BudgetState(Budget(share=share, reserve=reserve))
    events = []
    for is_call in history:
        if is_call:
            state.called()
        events.append((is_call, not is_call and state.spend()))
    for begin in range(0, len(events), 7):
        calls = sum(is_call for is_call, _ in events[begin:])
        retries = sum(spent for _, spent in events[begin:])
        assert retries <= reserve + share * calls + 1e-6


def test_begins_full_runs_dry_and_fills_by_calls():
    state = BudgetState(Budget(share=0.5, reserve=2))
    assert [state.spend() for _ in range(3)] == [True, True, False]
    state.called()
    assert not state.spend()
    state.called()
    assert state.spend()
    assert not state.spend()


def test_never_holds_more_than_the_reserve():
    state = BudgetState(Budget(share=1, reserve=1))
    for _ in range(10):
        state.called()
    assert [state.spend(), state.spend()] == [True, False]


@pytest.mark.parametrize(
    "wrong",
    [{"share": -0.1}, {"share": 11}, {"share": float("nan")}, {"share": True}, {"share": "1"},
     {"reserve": 0}, {"reserve": 10_001}, {"reserve": 1.0}, {"reserve": True}],
)  # fmt: skip
def test_refuses_what_is_outside_its_limits(wrong):
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        Budget(**wrong)
