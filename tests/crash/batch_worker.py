"""The children of the row "crash batch sftp": workers that die at their work, and who prepares it.

A worker plays the production role ``batch`` on a job that reads a part of a table and delivers it
over SFTP, in chunks and blocks that are small, so that there are many.  Its journal says which
attempts it has begun and ended, and counts the chunks that it wrote and those that were stored."""

from __future__ import annotations

import asyncio
import os
import random
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
from tests.crash.batch_disk import Disk

CHUNK_BYTES, BLOCK_BYTES = 1024, 12_288
COUNTED = (
    failpoints.BATCH_CHUNK_WRITTEN,
    failpoints.BATCH_CHECKPOINT_SAVED,
    failpoints.BATCH_PARTITION_CLAIMED,
)
DAY_SECONDS = 86_400.0
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
        read = Query(
            QUERY, key="id", chunk_bytes=CHUNK_BYTES, partitions=config.get("partitions", 1)
        )
        write = CsvFile("part-{part}.csv")
        send = SmallBlocks(
            config["sftp"],
            known_hosts=config["known_hosts"],
            key=config["key"],
            marker=".done",
            timeout=config.get("timeout", "10s"),
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

    def __init__(self, config: dict[str, Any], disk: Disk) -> None:
        self._disk = disk
        self._tears = config.get("twist") == "torn" and config["plan"].endswith("=kill")
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
        torn = self._disk.tear() if self._tears else 0
        self.journal.append("struck", point=point, instances=sorted(self.open), torn=torn)


def main(config: dict[str, Any]) -> int:
    """Start the parts that are asked for, or work until SIGTERM."""
    app = make_app(config)
    if config["what"] == "prepare":
        app.upgrade_tables()
        Schema(app.database, app.name).start()
        for part in config["parts"]:
            app.batches.start("settlement", {"part": part}, by=By("harness"))
        return 0
    disk = Disk(Path(config["folder"]), os.getpid())
    if config.get("twist") in ("torn", "full"):
        disk.install()
    if config.get("twist") == "clock":
        threading.Thread(target=jump, daemon=True).start()
    teller = Teller(config, disk)
    app.hooks.add(teller.fact)
    arm(*parse(config["plan"]), before=teller.before, every=teller.every)
    if config["what"] == "start":
        threading.Thread(target=start, args=(app, config), daemon=True).start()
    asyncio.run(work(app))
    teller.journal.append("worked", refused=disk.refused)
    return 0


def jump() -> None:
    """The clock on the wall is another one every moment."""
    right = time.time
    chance = random.Random(os.getpid())
    offset = 0.0
    time.time = lambda: right() + offset
    while True:
        offset = chance.uniform(-DAY_SECONDS, DAY_SECONDS)
        time.sleep(0.05)


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
