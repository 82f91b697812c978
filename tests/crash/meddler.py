"""An operator who edits what is not theirs to edit: rows that are in flight.  Every try must be
refused."""

from __future__ import annotations

import random
import time
from typing import Any

from duly.errors import DulyError, OperatorError
from duly.outbox.operator import By, Operator
from duly.testing.journal import Journal
from tests.crash.shop import make_app
from tests.crash.stop import Stop

TRY_EVERY_SECONDS = 0.02


def main(config: dict[str, Any]) -> int:
    """Try until SIGTERM; the exit code."""
    stop = Stop()
    app = make_app(config)
    operator = Operator(app.database.connect)
    journal = Journal(f"{config['folder']}/meddler.jsonl")
    plain = app.database.connect()
    chance = random.Random(config["seed"])
    tried = accepted = 0
    while not stop.is_set():
        for row_id, payload in _in_flight(plain, chance):
            tried += 1
            try:
                operator.edit("outbox", row_id, payload, by=By("crash", "meddling"))
                accepted += 1
            except OperatorError:
                pass  # as it should be
            except DulyError as error:
                journal.append("error", code=error.code)
        time.sleep(TRY_EVERY_SECONDS)
    journal.append("meddled", tried=tried, accepted=accepted)
    return 0


def _in_flight(connection: Any, chance: random.Random) -> list[tuple[int, bytes]]:
    """A few ready rows without a key, by duly's own read: what a relay has in hand now."""
    from duly.ports import Statement

    values = {
        "scope": "outbox",
        "group": "",
        "after": 0,
        "lanes": list(range(64)),
        "busy": [],
        "aside": [],
        "limit": 50,
    }
    rows = [row for row in connection.ask(Statement("outbox.read", values)).rows if row[5] is None]
    return [(row[0], bytes(row[7])) for row in chance.sample(rows, min(2, len(rows)))]
