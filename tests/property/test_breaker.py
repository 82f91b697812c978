"""Every sequence of calls, answers, cancellations and ticks up to a depth, for 1 to 3 probes."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy

import pytest

from duly.kernel.breaker import Breaker, BreakerState, Permit, State

DEPTH = 12
World = tuple[BreakerState, tuple[Permit, ...], int]


def steps(state: BreakerState, under_way: tuple[Permit, ...], now: int) -> Iterator[World]:
    """Everything that may happen next; of the calls under way the oldest and the newest may end."""
    yield state, under_way, now + 2
    asked = deepcopy(state)
    permit = asked.allow(now)
    if permit:
        yield asked, (*under_way, permit), now
    for place in {0, len(under_way) - 1} if under_way else ():
        rest = under_way[:place] + under_way[place + 1 :]
        for answer in ("succeeded", "failed", "returned"):
            after = deepcopy(state)
            arguments = (under_way[place], now) if answer == "failed" else (under_way[place],)
            getattr(after, answer)(*arguments)
            yield after, rest, now


def admitted(state: BreakerState, under_way: tuple[Permit, ...]) -> int:
    """Probes of this round under way, counted from outside."""
    return sum(p.round == state._round and p.serial > 0 for p in under_way)


@pytest.mark.parametrize("probes", [1, 2, 3])
def test_half_open_never_has_more_probes_than_allowed(probes):
    worlds: list[World] = [(BreakerState(Breaker(failures=2, open_for=2, probes=probes)), (), 0)]
    states: set[State] = set()
    for _ in range(DEPTH):
        following: dict[str, World] = {}
        for state, under_way, now in worlds:
            states.add(state.state)
            if state.state is State.HALF_OPEN:
                under_way_now = admitted(state, under_way)
                assert under_way_now + state._passed <= probes
                assert under_way_now == len(state._probing)
            for world in steps(state, under_way, now):
                following[f"{vars(world[0])}{world[1:]}"] = world
        worlds = list(following.values())
    assert len(worlds) > 100
    assert states == set(State)


@pytest.mark.parametrize("probes", [1, 2, 5])
def test_it_is_never_stuck(probes):
    """When every permit is ended and time passes, probes that succeed close it, whatever went
    before.
    """
    state = BreakerState(Breaker(failures=1, open_for=1, probes=probes))
    for history in range(3**6):
        now = float(history * 10)
        for digit in range(6):
            permit = state.allow(now + digit)
            if permit is None:
                continue
            answer = history // 3**digit % 3
            if answer == 0:
                state.succeeded(permit)
            elif answer == 1:
                state.failed(permit, now + digit)
            else:
                state.returned(permit)
        for _ in range(probes + 1):
            permit = state.allow(now + 8)
            assert permit
            state.succeeded(permit)
        assert state.state is State.CLOSED
