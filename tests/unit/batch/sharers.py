"""Several readers of one run's partitions, each as a process of its own would be."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from secrets import token_hex
from typing import Any

import msgspec

from duly import App
from duly.batch.extract import Query
from duly.batch.extraction import Extraction
from duly.batch.partitions import Leasing, Partitions
from duly.batch.parts import PartReading, Recipe
from duly.batch.plan import Part, Plan
from duly.batch.sharing import Sharing
from duly.batch.steps import StopAtCheckpoint
from duly.ports import Statement
from duly.runtime.connection import ConnectionThread
from tests.unit.batch.spooling import Context

INSTANCE = "job-0123"


class Lead(Context):
    """Stores in the database, too, where others look for the plan."""

    app: Any = None

    async def save(self, checkpoint: bytes, *, rows: int = 0, size_bytes: int = 0) -> None:
        await super().save(checkpoint, rows=rows, size_bytes=size_bytes)
        if self.step == "extract":
            await asyncio.to_thread(store, self.app, checkpoint)


def store(app: App, checkpoint: bytes) -> None:
    """The checkpoint of the step extract."""
    values = {
        "instance": INSTANCE,
        "step": "extract",
        "attempt": 1,
        "status": "open",
        "data": checkpoint,
        "row_count": 0,
        "size_bytes": 0,
        "facts": "{}",
    }
    with closing(app.database.connect()) as connection:
        connection.ask(Statement("checkpoint.put", values))


class Readers:
    """Of the partitions of one run. lead: the run's own attempt, as a context with a spool."""

    def __init__(self, app: App, job: Any) -> None:
        self.app, self.job = app, job
        self.leasing = Leasing(
            database=app.database, clock=app.clock, ttl_seconds=60.0, renew_seconds=15.0
        )
        self.lead = self.context()

    def context(self) -> Context:
        """A context with a folder of its own."""
        folder = self.app.batch_folders.path(INSTANCE, token_hex(8))
        made = Lead(folder, instance=INSTANCE)
        made.app = self.app
        return made

    async def in_force(self, mark: str) -> None:
        """A plan of this mark, of nothing."""
        plan = Plan("live", [], [Part()], mark=mark)
        await asyncio.to_thread(store, self.app, msgspec.json.encode(plan))

    @asynccontextmanager
    async def partitions(self) -> AsyncIterator[Partitions]:
        """As one process sees them."""
        connection = ConnectionThread(self.app.database, "test")
        made = Partitions(
            INSTANCE,
            self.leasing,
            attempt=1,
            connection=connection,
            folders=self.app.batch_folders,
        )
        try:
            yield made
        finally:
            await made.close()
            await asyncio.to_thread(connection.close)

    async def plan(self) -> Plan:
        """The plan is made and stored; nothing is read yet."""
        self.lead.stopping = True
        await self.extract()
        self.lead.stopping = False
        stored = self.lead.load()
        assert stored is not None
        return msgspec.json.decode(stored, type=Plan)

    async def extract(self) -> None:
        """The run's own attempt."""
        async with self.partitions() as mine:
            self.lead.partitions = mine
            try:
                with suppress(StopAtCheckpoint):
                    await Extraction(self.job, self.lead).run()
            finally:
                self.lead.partitions = None

    async def help(self) -> str:
        """Another process; the name of the folder that it read into."""
        stored = self.lead.load()
        assert stored is not None
        plan = msgspec.json.decode(stored, type=Plan)
        folder = self.app.batch_folders.path(INSTANCE, token_hex(8))
        async with self.partitions() as mine:
            sharing = Sharing(plan, mine, leads=False)
            reading = PartReading(
                Recipe.of(self.job, {}),
                plan,
                spool=folder,
                stopping=lambda: False,
                skipped=lambda: sharing.skipped,
            )
            await sharing.work(reading, stopping=lambda: False)
        return folder.name

    def folder(self, name: str) -> Path:
        """Of a helper."""
        return self.app.batch_folders.path(INSTANCE, name)


def spoil(path: Path) -> None:
    """One byte is another."""
    with path.open("r+b") as file:
        file.seek(-3, os.SEEK_END)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


def in_partitions(world: Any, **given: Any) -> Any:
    """The world's job, in partitions."""
    job = world.job(**given)
    job.read = Query("SELECT * FROM payout", key="id", chunk_bytes=4096, partitions=5)
    return job
