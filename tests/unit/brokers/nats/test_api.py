"""Making a stream: nothing is published until it has its groups."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

from duly.brokers.nats.api import Api


def make_api() -> Api:
    return Api(SimpleNamespace(inbox="in", users=[]))  # type: ignore[arg-type]


async def test_a_stream_is_made_when_nothing_published_is_unanswered() -> None:
    api, under_way, told = make_api(), [1, 2], []
    api.under_way.append(lambda: bool(under_way))
    api.finished.append(lambda: told.append(api.unfinished))
    with api.making() as begin:
        waiting = asyncio.ensure_future(begin())
        await asyncio.sleep(0.01)  # several looks
        assert api.unfinished == 1
        assert not waiting.done()
        under_way.clear()
        await waiting
        assert not told
    assert told == [0]


async def test_where_nothing_is_made_nobody_waits() -> None:
    api, told = make_api(), []
    api.finished.append(lambda: told.append(1))
    with api.making():
        assert api.unfinished == 0
    assert not told
