"""Makes duly's tables, the broker's topics and what capturing needs, once per run.

From then on every commit is told: the writer starts after this."""

from __future__ import annotations

import asyncio
from typing import Any

from duly.outbox.schema import Schema
from tests.crash.cdc_shop import make_app
from tests.crash.prepare import declare


def main(config: dict[str, Any]) -> int:
    """Make them; the exit code."""
    app = make_app(config, broker=config["broker"])
    Schema(app.database, app.name).upgrade()
    asyncio.run(_prepare(app))
    return 0


async def _prepare(app: Any) -> None:
    await declare(app)
    for stream in app.captures.streams:
        await app.make_change_source(stream).prepare(stream.tables())
