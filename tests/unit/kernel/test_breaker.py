from __future__ import annotations

import pytest

from duly.errors import ConfigurationError
from duly.kernel import breaker as module
from duly.kernel.breaker import Breaker, BreakerState, Permit, State


def opened(policy: Breaker, at: float = 0.0) -> BreakerState:
    state = BreakerState(policy)
    for _ in range(policy.failures):
        permit = state.allow(at)
        assert permit
        state.failed(permit, at)
    assert state.state is State.OPEN
    return state


def test_the_table_in_the_docstring_is_the_table_in_force():
    drawn = {}
    for line in (module.__doc__ or "").splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) == 3 and cells[0] != "state":
            drawn[cells[0], cells[1].upper().replace(" ", "_")] = cells[2]
    real = {(s.value, signal.name): n.value for (s, signal), n in module._NEXT.items()}
    assert drawn == real


def test_opens_after_failures_in_a_row():
    state = BreakerState(Breaker(failures=3, open_for="10s"))
    for _ in range(2):
        state.failed(state.allow(0), 0)
    state.succeeded(state.allow(0))  # a success in between starts the count again
    for _ in range(2):
        state.failed(state.allow(0), 0)
    assert state.state is State.CLOSED
    state.failed(state.allow(0), 0)
    assert state.state is State.OPEN
    assert state.allow(9.999) is None
    assert state.wait_seconds(4) == 6


def test_half_open_admits_exactly_the_probes():
    state = opened(Breaker(failures=1, open_for=10, probes=2))
    first, second = state.allow(10), state.allow(10)
    assert first
    assert second
    assert first != second
    assert state.allow(10) is None
    assert state.state is State.HALF_OPEN
    assert state.wait_seconds(10) == 0
    state.succeeded(first)
    assert state.allow(10) is None  # passed and under way are together two
    state.succeeded(second)
    assert state.state is State.CLOSED
    assert state.allow(10)


def test_one_failed_probe_opens_again_for_the_whole_time():
    state = opened(Breaker(failures=1, open_for=10, probes=2))
    first, second = state.allow(10), state.allow(10)
    state.succeeded(first)
    state.failed(second, 15)
    assert state.state is State.OPEN
    assert state.allow(24.9) is None
    assert state.allow(25)


def test_a_cancelled_probe_gives_its_place_back():
    state = opened(Breaker(failures=1, open_for=10))
    probe = state.allow(10)
    assert state.allow(10) is None
    state.returned(probe)
    again = state.allow(10)
    assert again
    assert again != probe
    state.returned(probe)  # ending it twice frees nothing
    assert state.allow(10) is None
    state.succeeded(again)
    assert state.state is State.CLOSED


def test_a_probe_ends_once():
    state = opened(Breaker(failures=1, open_for=10, probes=2))
    probe = state.allow(10)
    state.succeeded(probe)
    state.succeeded(probe)
    state.failed(probe, 10)
    assert state.state is State.HALF_OPEN


def test_answers_of_earlier_rounds_change_nothing():
    policy = Breaker(failures=1, open_for=10)
    state = BreakerState(policy)
    slow, slower = state.allow(0), state.allow(0)
    state.failed(state.allow(0), 0)
    state.succeeded(slow)
    assert state.state is State.OPEN
    probe = state.allow(10)
    state.failed(slow, 10)
    state.returned(slower)
    assert state.state is State.HALF_OPEN
    assert state.allow(10) is None  # the late return did not free the probe's place
    state.succeeded(probe)
    state.failed(slower, 11)
    assert state.state is State.CLOSED


def test_returning_an_ordinary_permit_changes_nothing():
    state = BreakerState(Breaker(failures=2))
    state.failed(state.allow(0), 0)
    state.returned(state.allow(0))
    state.failed(state.allow(0), 0)
    assert state.state is State.OPEN


@pytest.mark.parametrize(
    "bad",
    [
        {"failures": 0},
        {"failures": True},
        {"failures": 1.5},
        {"failures": 10_001},
        {"probes": 0},
        {"probes": 1_001},
        {"open_for": "30"},
        {"open_for": 0},
    ],
)
def test_refused_at_construction(bad):
    with pytest.raises(ConfigurationError, match="Breaker"):
        Breaker(**bad)


def test_a_permit_is_true():
    assert Permit(0, 0)  # `if not state.allow(now): ...` must mean what it says


def test_a_late_success_of_an_earlier_round_hides_no_failure():
    state = BreakerState(Breaker(failures=2, open_for=10))
    late = state.allow(0)
    for _ in range(2):
        state.failed(state.allow(0), 0)
    state.succeeded(state.allow(10))
    state.failed(state.allow(10), 10)
    state.succeeded(late)
    state.failed(state.allow(10), 10)
    assert state.state is State.OPEN
