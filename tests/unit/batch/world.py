"""A job with steps made for tests: they write numbered lines and say when they stop."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from duly import App
from duly.batch.job import Job
from duly.batch.runner import BatchRole
from duly.batch.steps import StepContext, StopAtCheckpoint
from duly.kernel.backoff import Retry
from duly.outbox.operator import By
from duly.outbox.schema import Schema
from duly.running import batch_context

BY = By("tester", "why not")
LIMIT_SECONDS = 30.0


@dataclass
class Script:
    """What the steps do, and what they did."""

    lines: int = 5
    before: Callable[[str, int], Awaitable[None]] | None = None
    errors: list[Exception] = field(default_factory=list)
    wrote: list[tuple[int, int]] = field(default_factory=list)  # (attempt, line)
    sent: list[int] = field(default_factory=list)
    contexts: list[StepContext] = field(default_factory=list)


class LineStep:
    """Writes its lines one by one, with a checkpoint behind each."""

    name = "extract"

    def __init__(self, script: Script) -> None:
        self._script = script

    async def run(self, context: StepContext) -> None:
        script = self._script
        script.contexts.append(context)
        done = int(context.load() or b"0")
        file = context.spool / "lines"
        if done and context.previous_spool is not None:
            before = (context.previous_spool / "lines").read_text().splitlines(keepends=True)
            file.write_text("".join(before[:done]))  # behind that another attempt may have written
        elif done:
            context.fact("mode", "again")
            done = 0
        for line in range(done, script.lines):
            if context.stopping:
                raise StopAtCheckpoint
            if script.before is not None:
                await script.before("extract", line)
            if script.errors:
                raise script.errors.pop(0)
            with file.open("a") as opened:
                opened.write(f"{line}\n")
            script.wrote.append((context.attempt, line))
            context.fact("last", line)
            await context.save(b"%d" % (line + 1), rows=line + 1, size_bytes=2 * (line + 1))


class SendStep:
    """Notes what it would deliver."""

    name = "send"

    def __init__(self, script: Script) -> None:
        self._script = script

    async def run(self, context: StepContext) -> None:
        if context.load() == b"sent":
            return
        text = (context.spool / "lines").read_text()
        assert text == "".join(f"{n}\n" for n in range(self._script.lines))
        self._script.sent.append(context.attempt)
        await context.save(b"sent", rows=self._script.lines, size_bytes=len(text))

    async def verify(self, context: StepContext) -> list[str]:
        text = (context.spool / "lines").read_text()
        return [] if text.count("\n") == self._script.lines else ["lines are missing"]


class Declaration:
    """Declares one of these steps."""

    def __init__(self, kind: type, script: Script, mark: str = "") -> None:
        self._kind, self._script, self._mark = kind, script, mark

    def definition(self) -> str:
        return f"{self._kind.__name__}{self._mark}"

    def step(self, job: Job) -> Any:
        return self._kind(self._script)


def make_app(folder: Path, name: str = "shop", **settings: Any) -> App:
    """An App on a SQLite file of its own."""
    given: dict[str, Any] = {
        "database": f"sqlite:///{folder / 'duly.db'}",
        "broker": "embedded:///:memory:",
        "batch_spool": str(folder / "spool"),
        "poll_every": "50ms",
        **settings,
    }
    app = App(name, **given)
    Schema(app.database, app.name).start()
    return app


def add_job(
    app: App, script: Script, *, mark: str = "", name: str = "lines", **options: Any
) -> str:
    """Register the job."""
    options.setdefault("params", {"day": date})
    options.setdefault("retry", Retry(attempts=3, base="10ms", max="20ms"))

    class Lines:
        read = Declaration(LineStep, script, mark)
        send = Declaration(SendStep, script)

    app.batch(name, **options)(Lines)
    return name


@contextlib.asynccontextmanager
async def working(app: App) -> AsyncIterator[BatchRole]:
    """The role runs inside the block."""
    role = BatchRole(batch_context(app))
    task = asyncio.create_task(role.run())
    try:
        yield role
    finally:
        role.stop()
        await asyncio.wait_for(task, LIMIT_SECONDS)


async def until(found: Callable[[], bool]) -> None:
    """Wait for a condition."""
    end = time.monotonic() + LIMIT_SECONDS
    while not await asyncio.to_thread(found):
        assert time.monotonic() < end, "it does not come"
        await asyncio.sleep(0.02)


async def until_status(app: App, instance: str, *statuses: str) -> None:
    """Wait until a run is in one of these statuses."""
    await until(lambda: app.batches.show(instance).row.status in statuses)
