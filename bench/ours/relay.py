"""duly's relay draining a backlog: from holding its lanes to the last row settled."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from bench.ours.shop import GROUP, Counter, Placed, arguments, durability, make_app, tell
from duly import App
from duly.observe.facts import LeaseTaken, Relayed
from duly.ports import Statement

LOOK_SECONDS = 0.01  # looking itself must not be what is measured
STALLED_SECONDS = 150.0


async def drain(app: App, count: int) -> float:
    """Messages per second, until ``count`` are gone from the outbox."""
    counter = Counter(LeaseTaken, Relayed)
    app.hooks.add(counter)
    async with asyncio.timeout(STALLED_SECONDS), app.running(roles=["relay"]) as running:
        while counter.count < count or not running.idle:  # noqa: ASYNC110  # no event says so
            await asyncio.sleep(LOOK_SECONDS)
        seconds = time.perf_counter() - counter.began
    return counter.count / seconds


def left(app: App) -> int:
    """How many rows the outbox still holds."""
    connection = app.database.connect()
    try:
        return int(connection.ask(Statement("meta.unfinished")).rows[0][0])
    finally:
        connection.close()


def main(given: dict[str, Any]) -> None:
    """Measure once."""
    app = make_app(given)

    @app.on(Placed, group=GROUP)
    def declared(event: Placed) -> None:
        """Only so that the queue is there."""

    figure = asyncio.run(drain(app, given["count"]))
    if left(app):
        raise RuntimeError(f"{left(app)} messages are still in the outbox")
    tell(figure, **durability(app), messages=given["count"])


if __name__ == "__main__":
    main(arguments())
