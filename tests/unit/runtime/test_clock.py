from __future__ import annotations

import asyncio
import time

from duly.runtime import clock as module
from duly.runtime.clock import SystemClock


def test_time_is_the_systems():
    assert abs(SystemClock().time() - time.time()) < 5


def test_monotonic_is_the_clock_that_goes_on_in_suspend():
    if module._BOOTTIME is None:
        expected = time.monotonic()
    else:
        expected = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert 0 <= SystemClock().monotonic() - expected < 5


def test_monotonic_without_boottime(monkeypatch):
    monkeypatch.setattr(module, "_BOOTTIME", None)
    before = time.monotonic()
    assert before <= SystemClock().monotonic() <= time.monotonic()


async def test_sleep_lets_others_run():
    clock = SystemClock()
    other = asyncio.create_task(asyncio.sleep(0, "ran"))
    before = clock.monotonic()
    await clock.sleep(0.01)
    assert other.done()
    assert clock.monotonic() - before >= 0.009
