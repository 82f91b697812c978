"""A process that runs the App of the deferred calls, to be killed; until SIGTERM, exit 0."""

from __future__ import annotations

import asyncio
import logging
import signal
from typing import Any

from duly.testing.failpoints import arm, parse
from duly.testing.journal import Journal
from tests.crash.defer_shop import make_app


def main(config: dict[str, Any]) -> int:
    """Run until stopped; the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(relativeCreated)d %(name)s %(message)s")
    asyncio.run(_serve(config))
    return 0


async def _serve(config: dict[str, Any]) -> None:
    app, _, _ = make_app(config)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    arm(*parse(config.get("plan", "")))
    async with app.running():
        Journal(f"{config['folder']}/ready.jsonl").append("ready")
        await stop.wait()
