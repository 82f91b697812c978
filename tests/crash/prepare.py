"""Makes duly's tables and the broker's queues, once per run."""

from __future__ import annotations

import asyncio
from typing import Any

from duly.outbox.schema import Schema
from tests.crash.shop import Gateway, make_app


def main(config: dict[str, Any]) -> int:
    """Make them; the exit code."""
    gateway = Gateway(f"{config['folder']}/gateway.jsonl", config["database"])
    app = make_app(config, broker=config["broker"], gateway=gateway)
    Schema(app.database, app.name).upgrade()
    asyncio.run(declare(app))
    return 0


async def declare(app: Any) -> None:
    """Declare topics and groups at the broker."""
    broker = app.make_broker()
    await broker.start()
    try:
        specs = [app.handlers.subscription(group, prefetch=100) for group in app.handlers.groups]
        topics = sorted({topic for spec in specs for topic in spec.topics}, key=lambda t: t.name)
        for attempt in range(20):
            try:
                await broker.declare(topics, specs)
                return
            except Exception:
                if attempt == 19:
                    raise
                await asyncio.sleep(0.25)
    finally:
        await broker.close()
