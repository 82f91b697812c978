"""Waiting until a group has handled messages, and what it has yet to do."""

from __future__ import annotations

import asyncio

import pytest

from duly.errors import NotObservableError
from duly.inbox.observe_lag import IDS_MAX, lag_of, wait_for
from duly.kernel.backoff import Retry
from duly.runtime.clock import SystemClock
from tests.integration.inbox_world import (
    Charge,
    Placed,
    World,
    placed,
)


async def wait(
    world: World, ids: list[str], *, group: str = "g", timeout_seconds: float = 5.0
) -> None:
    await wait_for(
        ids,
        group=group,
        handlers=world.handlers,
        connection=world.connection,
        clock=SystemClock(),
        timeout_seconds=timeout_seconds,
    )


def register(world: World) -> None:
    @world.handlers.on(Placed, group="g", retry=Retry(attempts=1))
    def handler(event: Placed) -> None:
        if event.order_id == 1:
            raise ValueError


async def test_it_returns_when_all_are_handled_and_not_before(world: World) -> None:
    register(world)
    messages = [placed(n, id=f"m{n}", key=None) for n in (0, 2, 3)]
    waiting = asyncio.create_task(wait(world, [m.id for m in messages]))
    await world.feed(
        "g", messages[0], placed(5, id="m30")
    )  # no id is taken for another that it starts with
    await asyncio.sleep(0.15)
    assert not waiting.done()
    await world.feed("g", *messages[1:])
    await waiting


async def test_what_failed_is_not_handled_and_is_counted(world: World) -> None:
    register(world)
    bad = placed(1)
    await world.feed("g", bad)
    with pytest.raises(TimeoutError, match="1 failed, 1 not received"):
        await wait(world, [bad.id, "never"], timeout_seconds=0.1)


async def test_what_cannot_be_seen_is_refused(world: World) -> None:
    register(world)
    world.handlers.handle(Charge, dedupe=lambda c: c.order_id)(lambda command: None)
    for group, ids in [("nobody", ["a"]), ("billing", ["a"]), ("g", ["x"] * (IDS_MAX + 1))]:
        with pytest.raises(NotObservableError):
            await wait(world, ids, group=group)


async def test_lag_counts_by_status(world: World) -> None:
    register(world)
    await world.feed("g", placed(0), placed(1), placed(2), redelivered=False)
    await world.feed("g", placed(3), redelivered=True)
    lag = await lag_of(world.connection, "g")
    assert (lag.ready, lag.retry, lag.held, lag.failed) == (0, 1, 0, 1)
    assert 0 <= lag.oldest_seconds < 60
    assert await lag_of(world.connection, "empty") == (0, 0, 0, 0, 0.0)
