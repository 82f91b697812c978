"""The clock that only a test moves."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta

import pytest

from duly.errors import ConfigurationError
from duly.ports import Clock
from duly.testing.clock import FakeClock


def test_it_stands_still_until_it_is_moved() -> None:
    clock: Clock = FakeClock(1000.0)
    assert (clock.time(), clock.monotonic()) == (1000.0, 0.0)
    time.sleep(0.01)  # real time passes
    assert (clock.time(), clock.monotonic()) == (1000.0, 0.0)


def test_it_starts_now_where_nothing_is_said() -> None:
    before = time.time()
    assert before <= FakeClock().time() <= time.time()


def test_both_times_move_together() -> None:
    clock = FakeClock(0.0)
    clock.advance("5m")
    clock.advance(timedelta(hours=1))
    clock.advance(0.5)
    assert clock.time() == clock.monotonic() == 3900.5
    assert clock.now() == datetime(1970, 1, 1, 1, 5, 0, 500_000, tzinfo=UTC)


@pytest.mark.parametrize("wrong", [-1, "soon", float("inf"), 0])
def test_it_never_goes_back(wrong: object) -> None:
    clock = FakeClock(10.0)
    with pytest.raises(ConfigurationError):
        clock.advance(wrong)  # type: ignore[arg-type]
    assert clock.time() == 10.0


async def test_whoever_sleeps_moves_it_and_lets_the_others_run() -> None:
    clock = FakeClock(0.0)
    order: list[str] = []

    async def other() -> None:
        order.append("other")

    task = asyncio.create_task(other())
    began = time.monotonic()
    await clock.sleep(3600)
    order.append("woken")
    await task
    assert order == ["other", "woken"]
    assert clock.monotonic() == 3600
    assert time.monotonic() - began < 1
