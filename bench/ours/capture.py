"""duly's whole path behind a slot: a rule makes an event of each change, stored in the outbox."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

from bench.ours.changes import TABLE
from bench.ours.shop import Placed, arguments, durability, make_app, tell
from duly import App, Change
from duly.observe.facts import Captured, Fact

LOOK_SECONDS = 0.01
NOTE = "x" * 100


class Counter:
    """When the first changes were stored, and how many have been."""

    def __init__(self) -> None:
        self.began = 0.0
        self.first = self.count = 0

    def __call__(self, fact: Fact) -> None:
        """Hear a fact."""
        if isinstance(fact, Captured):
            self.count += fact.changes
            if not self.began:
                self.began, self.first = time.perf_counter(), self.count


async def capture(app: App, count: int, seconds: float) -> tuple[float, int]:
    """Changes per second, and how many were stored."""
    counter = Counter()
    app.hooks.add(counter)
    async with asyncio.timeout(seconds), app.running(roles=["cdc"]):
        while counter.count < count:  # noqa: ASYNC110  # no event says so
            await asyncio.sleep(LOOK_SECONDS)
        took = time.perf_counter() - counter.began
    return (counter.count - counter.first) / took, counter.count


def main(given: dict[str, Any]) -> None:
    """Measure once."""
    app = make_app(given)

    @app.cdc(table=TABLE.name, before=False)
    def changed(change: Change) -> Iterator[Placed]:
        yield Placed(order_id=change.key["id"], cents=change.ordinal, note=NOTE)

    count = given["warm"] + given["count"]
    figure, stored = asyncio.run(capture(app, count, given["seconds"]))
    tell(figure, **durability(app), changes=stored)


if __name__ == "__main__":
    main(arguments())
