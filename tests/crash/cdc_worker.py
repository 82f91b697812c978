"""A process of the App under test: it captures, relays and consumes, and is to be killed.

Runs until SIGTERM or until its armed failpoint ends it.  ``arm_at`` in its config names a file that
must be there before its plan counts.  What it had open is in ``worker-PID.jsonl``."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
from pathlib import Path
from typing import Any

from duly.brokers.embedded.broker import EmbeddedBroker
from duly.kernel import failpoints
from duly.observe.facts import Captured, CaptureStopped, Fact
from duly.testing.failpoints import arm, parse
from duly.testing.journal import Journal
from tests.crash.cdc_shop import make_app
from tests.crash.stage import now
from tests.crash.watched import Watch, WatchedBroker
from tests.crash.worker import heard


class CdcWatch(Watch):
    """What this process has open; a claim of the stream is written down before anything is read,
    and when the first event made of it is committed.
    """

    claimed_at: float | None = None

    def passed(self, name: str) -> None:
        """As ``Watch.passed``."""
        super().passed(name)
        if name == failpoints.CDC_CLAIMED:
            self.journal.append("claimed")
            self.claimed_at = now()

    def stored(self) -> None:
        """Events were stored; the first ones behind a claim are written down."""
        if self.claimed_at is not None:
            self.journal.append("first", seconds=round(now() - self.claimed_at, 3))
            self.claimed_at = None


def main(config: dict[str, Any]) -> int:
    """Be a worker until stopped; the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(relativeCreated)d %(name)s %(message)s")
    random.seed(config["seed"])
    journal = Journal(f"{config['folder']}/worker-{os.getpid()}.jsonl")
    watch = CdcWatch(journal)
    journal.append("start", plan=config.get("plan", ""), lease=config["lease"])
    asyncio.run(_serve(config, watch))
    journal.append("end")
    return 0


async def _serve(config: dict[str, Any], watch: CdcWatch) -> None:
    inner = EmbeddedBroker(config["broker"], lease_seconds=config["broker_lease"])
    healed = Path(config["folder"]) / "healed"
    app = make_app(config, broker=WatchedBroker(inner, watch, healed=healed, chance=0.0))
    app.hooks.add(lambda fact: _heard(fact, watch))
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    plans = parse(config.get("plan", ""))
    place = config.get("arm_at")
    arm(*(() if place else plans), before=watch.dying, every=watch.passed)
    async with app.running(roles=config.get("roles")):
        watch.journal.append("ready")
        while place and not Path(place).exists() and not stop.is_set():
            await asyncio.sleep(0.02)
        if place:
            arm(*plans, before=watch.dying, every=watch.passed)
        await stop.wait()
        watch.journal.append("stopping")


def _heard(fact: Fact, watch: CdcWatch) -> None:
    heard(fact, watch)
    if isinstance(fact, Captured) and fact.messages:
        watch.stored()
    if isinstance(fact, CaptureStopped):
        watch.journal.append("stopped", code=fact.code)
