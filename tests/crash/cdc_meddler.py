"""An operator who has tables read anew, one snapshot after the other, while everything runs.

What it asked for and when it was done is in its journal, by the stream's position: a snapshot lies
whole between the two, and the next one behind it."""

from __future__ import annotations

import random
from contextlib import closing
from pathlib import Path
from typing import Any

from duly.cdc.offsets import read, requests
from duly.errors import DulyError
from duly.outbox.operator import By
from duly.testing.journal import Journal
from tests.crash.cdc_shop import make_app
from tests.crash.cdc_stage import STREAM
from tests.crash.stop import Stop

LOOK_SECONDS = 0.05
TABLES = ("item", "item", "small")  # as often as they stand here


def main(config: dict[str, Any]) -> int:
    """Ask until SIGTERM; the exit code."""
    stop = Stop()
    app = make_app(config)
    streams = app.streams()
    if once := config.get("ask"):
        streams.snapshot(once, by=By("crash", "a repair"), stream=STREAM)
        return 0
    journal = Journal(f"{config['folder']}/meddler.jsonl")
    chance = random.Random(config["seed"])
    while not stop.wait(LOOK_SECONDS):
        try:
            if not _all_done(app):
                continue
            done = streams.offset(STREAM).position
            journal.append("done", position=done)
            while streams.offset(STREAM).position == done and not stop.wait(LOOK_SECONDS):
                pass
            if stop.wait(chance.random()) or _is_held(config):
                continue
            table = chance.choice(TABLES)
            here = streams.offset(STREAM).position
            streams.snapshot(table, by=By("crash", "meddling"), stream=STREAM)
            journal.append("asked", table=table, position=here)
        except DulyError as error:
            journal.append("error", code=error.code)
    journal.append("end")
    return 0


def _is_held(config: dict[str, Any]) -> bool:
    """Whether the driver wants nothing new for now: a snapshot is many messages."""
    try:
        return float((Path(config["folder"]) / "pace").read_text() or 0) >= 1
    except (OSError, ValueError):
        return False


def _all_done(app: Any) -> bool:
    """Whether a reader has begun, no snapshot is under way, and none is asked for."""
    with closing(app.database.connect()) as plain:
        asked, offset = plain.run(requests(STREAM)), plain.run(read(STREAM))
    snapshots = offset.state.tables.values()
    return bool(offset.state.identity and not asked and all(one.done for one in snapshots))
