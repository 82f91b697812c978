"""A call begins if and only if its root transaction committed, once, never before it can be seen.

Two thousand random histories over a Session, an AsyncSession and Django's ``atomic``; a hundred
thousand of them are a row of ``make crash``, where planted bugs must be found.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from tests.crash.histories import ENDS, KINDS, VERBS, History, Part, World

PARTS = st.builds(
    Part,
    st.lists(st.tuples(st.sampled_from(VERBS), st.integers(0, 3)), max_size=10),
    st.sampled_from(ENDS),
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(tmp_path_factory.mktemp("histories"))
    yield world
    world.close()


@pytest.mark.timeout(120)
@settings(
    max_examples=2_000,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.builds(History, st.sampled_from(KINDS), st.lists(PARTS, min_size=1, max_size=3)))
def test_runs_if_and_only_if_it_was_committed(world: World, history: History) -> None:
    found = world.play(history)
    event(f"{history.kind}: {'some' if found.kept else 'none'} kept")
    assert found.none, found
