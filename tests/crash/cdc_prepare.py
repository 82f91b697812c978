"""Makes duly's tables, the broker's topics and what capturing needs, once per run.

From then on every commit is told: the writer starts after this."""

from __future__ import annotations

import asyncio
from contextlib import closing
from typing import Any

from duly.cdc.offsets import forget, read
from duly.outbox.schema import Schema
from duly.ports import Statement, Steps
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
        position = await app.make_change_source(stream).prepare(stream.tables())
        if app.database.dialect == "mysql":  # nothing there remembers it
            with closing(app.database.connect()) as plain:
                plain.run(_begin(stream.name, position))


def _begin(stream: str, position: str) -> Steps[None]:
    yield Statement("offset.add", {"stream": stream})
    offset = yield from read(stream)
    assert (yield from forget(stream, offset._replace(position=position)))
