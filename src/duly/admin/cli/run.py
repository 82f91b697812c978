"""``duly run``: the roles of an App, in this process or in several.

Owns what signals mean to one process: the first SIGTERM or SIGINT drains - nothing new is begun,
what is under way ends and is settled - and the second ends the process at once; what was in hand is
found again in the tables.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import click

from duly.admin.cli.arguments import app_argument
from duly.admin.cli.output import EXIT_OK, note
from duly.admin.cli.target import require_app
from duly.config import chosen_app
from duly.observe.logging import log_fact
from duly.running import ROLES, Running

if TYPE_CHECKING:
    from duly.app import App

__all__ = ["run"]

WORKERS_MAX = 64
_DRAIN_MORE_SECONDS = 10.0  # above the App's own drain, before the parent kills


@click.command()
@app_argument
@click.option("--roles", help="Only these, with commas: batch, cdc, consumer, relay, upkeep.")
@click.option("--workers", type=click.IntRange(1, WORKERS_MAX), default=1, show_default=True)
@click.option("--log-level", type=click.Choice(["debug", "info", "warning"]), default="info")
@click.option("--heartbeat-fd", type=int, hidden=True)
def run(
    *,
    app: str | None,
    roles: str | None,
    workers: int,
    log_level: str,
    heartbeat_fd: int | None,
) -> int:
    """Run the roles of an App until SIGTERM or Ctrl-C; a second one ends it at once."""
    wanted = [role.strip() for role in roles.split(",")] if roles is not None else None
    if wanted is not None and not ROLES.issuperset(wanted):
        raise click.UsageError(f"--roles are some of {', '.join(sorted(ROLES))}")
    logging.basicConfig(
        level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    found = require_app(app)
    if workers > 1:
        options = ["--log-level", log_level, *(["--roles", roles] if roles is not None else [])]
        return _run_workers(found, app or chosen_app() or "", workers, options=options)
    asyncio.run(_serve(found, wanted, heartbeat_fd))
    return EXIT_OK


def _run_workers(app: App, spec: str, count: int, *, options: Sequence[str]) -> int:
    from duly.admin.cli.workers import Workers

    def command(pipe: int) -> list[str]:
        mine = [sys.executable, "-m", "duly", "run", spec, *options]
        return [*mine, "--heartbeat-fd", str(pipe)]

    return Workers(
        command,
        count,
        kill_silent=app.database.dialect == "sqlite",
        drain_seconds=app.settings.drain_timeout + _DRAIN_MORE_SECONDS,
    ).run()


async def _serve(app: App, roles: Sequence[str] | None, heartbeat_fd: int | None) -> None:
    loop = asyncio.get_running_loop()
    app.hooks.add(log_fact)  # what fails for good leaves a line, whatever logging is set up
    async with app.running(roles) as running:
        for which in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(which, partial(_on_signal, which, running, []))
        note(f"{app.name} runs")
        if heartbeat_fd is not None:
            from duly.admin.cli.workers import Heart

            Heart(heartbeat_fd, partial(_stop_from_thread, loop, running)).start()
        await running.wait()


def _stop_from_thread(loop: asyncio.AbstractEventLoop, running: Running) -> None:
    loop.call_soon_threadsafe(running.stop)


def _on_signal(which: int, running: Running, seen: list[int]) -> None:
    if seen:
        os._exit(128 + which)
    seen.append(which)
    note("draining; the same again ends it at once")
    running.stop()
