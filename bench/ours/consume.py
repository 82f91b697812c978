"""duly's consumer of one group, in batches or one message per transaction: from its first batch on.

Each message has one effect row, written by plain SQL on the handler's own connection, in one commit
with the record that it was handled.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from bench.ours.shop import GROUP, Counter, Placed, arguments, durability, make_app, tell
from duly import App, Tx
from duly.observe.facts import Handled, Received

LOOK_SECONDS = 0.002
STALLED_SECONDS = 150.0
ARRAYS = "INSERT INTO effect (order_id, cents) SELECT * FROM unnest(%s::bigint[], %s::bigint[])"


def add_batch(app: App, insert: str) -> None:
    """Register a handler of 1,000 messages per transaction, on one connection."""

    @app.on(Placed, group=GROUP, batch=1000, concurrency=1)
    def count_orders(events: list[Placed], tx: Tx) -> None:
        if app.database.dialect == "sqlite":
            rows = [(event.order_id, event.cents) for event in events]
            tx.connection.executemany(insert, rows)
        else:
            columns = [event.order_id for event in events], [event.cents for event in events]
            tx.connection.execute(ARRAYS, columns)


def add_single(app: App, insert: str, connections: int) -> None:
    """Register a handler of one message per transaction."""

    @app.on(Placed, group=GROUP, concurrency=connections)
    def count_order(event: Placed, tx: Tx) -> None:
        tx.connection.execute(insert, (event.order_id, event.cents))


async def consume(app: App, count: int) -> float:
    """Messages per second, until at least ``count`` are handled."""
    counter = Counter(Received, Handled)
    app.hooks.add(counter)
    async with asyncio.timeout(STALLED_SECONDS), app.running(roles=["consumer"]):
        while counter.count < count:  # noqa: ASYNC110  # facts come from threads
            await asyncio.sleep(LOOK_SECONDS)
        done, seconds = counter.count, time.perf_counter() - counter.began
    return done / seconds


def main(given: dict[str, Any]) -> None:
    """Measure once."""
    app = make_app(given, workers=given["connections"])
    mark = "?" if app.database.dialect == "sqlite" else "%s"
    insert = f"INSERT INTO effect (order_id, cents) VALUES ({mark}, {mark})"
    if given["batch"]:
        add_batch(app, insert)
    else:
        add_single(app, insert, given["connections"])
    figure = asyncio.run(consume(app, given["count"]))
    tell(figure, **durability(app), messages=given["count"], connections=given["connections"])


if __name__ == "__main__":
    main(arguments())
