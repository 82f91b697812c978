from __future__ import annotations

import asyncio
import threading
import time

import pytest

from duly.brokers.iothread import IoThread


async def _name() -> str:
    return threading.current_thread().name


async def test_it_runs_answers_and_stops() -> None:
    io = IoThread("duly-test")
    assert not io.alive
    with pytest.raises(TimeoutError):
        await io.ask(_name(), 1.0)
    io.start()
    assert await io.ask(_name(), 5.0) == "duly-test"
    heard: list[int] = []
    io.post(heard.append, 1)
    io.post(lambda: 1 // 0)  # logged by its loop, and no end of it
    assert await io.ask(_name(), 5.0) == "duly-test"
    assert heard == [1]
    io.stop(5.0)
    io.stop(5.0)
    assert not io.alive
    io.post(heard.append, 2)
    assert heard == [1]


async def test_nobody_waits_longer_than_they_said_and_the_question_is_cancelled() -> None:
    io = IoThread("duly-test")
    io.start()
    ended = threading.Event()

    async def never() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    began = time.monotonic()
    with pytest.raises(TimeoutError):
        await io.ask(never(), 0.1)
    assert time.monotonic() - began < 5.0
    assert await asyncio.to_thread(ended.wait, 5.0)
    io.stop(5.0)


async def test_what_still_runs_at_the_stop_is_cancelled() -> None:
    io = IoThread("duly-test")
    io.start()
    cancelled = threading.Event()

    async def busy() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    asking = asyncio.create_task(io.ask(busy(), 30.0))
    await asyncio.sleep(0.1)
    io.stop(5.0)
    assert cancelled.wait(5.0)
    with pytest.raises(asyncio.CancelledError):
        await asking
