"""An idle node with the relay role: says when it is ready, then waits for the end of its input."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from bench.ours.shop import GROUP, Placed, arguments, make_app
from duly import App

SETTLE_SECONDS = 0.05


async def live(app: App) -> None:
    """Until the other end closes our input."""
    async with app.running(roles=["relay"]) as running:
        while not running.idle:  # noqa: ASYNC110  # there is nothing to be woken by
            await asyncio.sleep(SETTLE_SECONDS)
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)


def main(given: dict[str, Any]) -> None:
    """Be idle."""
    app = make_app(given)

    @app.on(Placed, group=GROUP)
    def declared(event: Placed) -> None:
        """Only so that the queue is there."""

    asyncio.run(live(app))


if __name__ == "__main__":
    main(arguments())
