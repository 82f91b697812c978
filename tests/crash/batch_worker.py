"""The children of the row "crash batch sftp": workers that die at their work, and who prepares it.

A worker plays the production role ``batch`` on a job that reads a part of a table and delivers it
over SFTP, in chunks and blocks that are small, so that there are many.  Its journal says which
attempts it has begun and ended, and counts the chunks that it wrote and those that were stored."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from duly import App, Event
from duly.batch import CsvFile, Query, Sftp
from duly.batch.job import Finished, Job
from duly.batch.runner import BatchRole
from duly.batch.send import SendStep
from duly.errors import DulyError
from duly.kernel import failpoints
from duly.kernel.backoff import Retry
from duly.observe.facts import BatchBegan, BatchEnded, Fact
from duly.outbox.operator import By
from duly.outbox.schema import Schema
from duly.running import batch_context
from duly.testing.failpoints import arm, parse
from duly.testing.journal import Journal

CHUNK_BYTES, BLOCK_BYTES = 1024, 12_288
COUNTED = (failpoints.BATCH_CHUNK_WRITTEN, failpoints.BATCH_CHECKPOINT_SAVED)
QUERY = "select id, part, amount, note from payout where part = :part"


class Delivered(Event, name="crash.delivered", topic="crash.files"):
    part: int
    rows: int


class SmallBlocks(Sftp):
    """Sends in blocks small enough that a file has several."""

    def step(self, job: Job) -> SendStep:
        made = super().step(job)
        made._policy = replace(made._policy, block_bytes=BLOCK_BYTES)
        return made


def make_app(config: dict[str, Any]) -> App:
    """The App of all children."""
    ttl = config["lease"]
    folder = config["folder"]
    app = App(
        "crash",
        database=config["database"],
        broker=f"embedded:///{folder}/broker.db",
        batch_spool=f"{folder}/spool",
        lease_ttl=f"{ttl}s",
        renew_every=f"{ttl * 0.3}s",
        send_timeout=f"{ttl * 0.6}s",
        poll_every="500ms" if config["what"] == "start" else "50ms",
        batch_runs=1,
    )

    class Settlement:
        read = Query(QUERY, key="id", chunk_bytes=CHUNK_BYTES)
        write = CsvFile("part-{part}.csv")
        send = SmallBlocks(
            config["sftp"],
            known_hosts=config["known_hosts"],
            key=config["key"],
            marker=".done",
            timeout="10s",
        )

        def done(self, run: Finished) -> Delivered:
            part = run.params["part"]
            assert isinstance(part, int)
            return Delivered(part=part, rows=run.rows)

    retry = Retry(attempts=50, base="50ms", max="200ms")
    app.batch("settlement", params={"part": int}, retry=retry)(Settlement)
    return app


class Teller:
    """What the process has open, on the disk."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.journal = Journal(Path(config["folder"]) / f"batch-{os.getpid()}.jsonl")
        self.open: dict[str, int] = {}
        self._counts: Counter[str] = Counter()

    def fact(self, fact: Fact) -> None:
        """An attempt begins or ends."""
        if isinstance(fact, BatchBegan):
            self.open[fact.instance] = fact.attempt
            self.journal.append("began", instance=fact.instance, attempt=fact.attempt)
        elif isinstance(fact, BatchEnded):
            self.open.pop(fact.instance, None)
            self.journal.append("ended", instance=fact.instance, status=fact.status)

    def every(self, point: str) -> None:
        """A failpoint was passed."""
        if point in COUNTED:
            self.journal.append(point, instances=sorted(self.open))

    def before(self, point: str) -> None:
        """A plan fires now."""
        self.journal.append("struck", point=point, instances=sorted(self.open))


def main(config: dict[str, Any]) -> int:
    """Start the parts that are asked for, or work until SIGTERM."""
    app = make_app(config)
    if config["what"] == "prepare":
        app.upgrade_tables()
        Schema(app.database, app.name).start()
        for part in config["parts"]:
            app.batches.start("settlement", {"part": part}, by=By("harness"))
        return 0
    teller = Teller(config)
    app.hooks.add(teller.fact)
    arm(*parse(config["plan"]), before=teller.before, every=teller.every)
    if config["what"] == "start":
        threading.Thread(target=start, args=(app, config), daemon=True).start()
    asyncio.run(work(app))
    return 0


def start(app: App, config: dict[str, Any]) -> None:
    """Start the instance of the hour, again and again."""
    path = Path(config["folder"]) / "part"
    while True:
        time.sleep(1.0)
        with suppress(DulyError, FileNotFoundError, ValueError):  # asked again in a moment
            part = int(path.read_text())
            app.batches.start("settlement", {"part": part}, by=By("harness"))


async def work(app: App) -> None:
    """The production role, alone."""
    role = BatchRole(batch_context(app))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, role.stop)
    await role.run()
