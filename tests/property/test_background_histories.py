"""A call begins if and only if its root transaction committed, once, never before it can be seen.

Two thousand histories by chance, over a Session, an AsyncSession and Django's ``atomic``; the seed
is fixed, so that they take as long every time.  A hundred thousand others are a row of ``make
crash``, where planted bugs must be found.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.crash.histories import KINDS, World, made

HISTORIES, SEED = 2_000, 20_260


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(tmp_path_factory.mktemp("histories"))
    yield world
    world.close()


@pytest.mark.timeout(120)
def test_runs_if_and_only_if_it_was_committed(world: World) -> None:
    chance, kept = random.Random(SEED), Counter[tuple[str, bool]]()
    for n in range(HISTORIES):
        history = made(chance, steps_max=8)
        found = world.play(history)
        assert found.none, f"history {n}: {found}, {history}"
        kept[history.kind, found.kept > 0] += 1
    assert all(kept[kind, some] > HISTORIES // 20 for kind in KINDS for some in (True, False))
