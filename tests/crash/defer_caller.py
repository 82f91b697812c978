"""A process that makes calls in business transactions, to be killed between any two steps of one.

An operation that was begun and not committed is begun again by the next process, under the same
key, as a client that repeats its request would; one without a key is not.  Some are rolled back on
purpose.  What it does is in its journal, with fsync: ``begin`` before the call, ``ack`` after the
commit, ``back`` after a rollback."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from duly.calls import Deferred
from duly.errors import OutcomeUnknownError, RetryableError
from duly.testing.failpoints import arm, parse
from duly.testing.journal import Journal
from tests.crash.defer_shop import DownError, make_app
from tests.crash.stop import Stop

FIND = text("SELECT 1 FROM crash_op WHERE op = :op")
STORE = text("INSERT INTO crash_op (op, deferred, message_id) VALUES (:op, :deferred, :message_id)")


def is_keyed(op: int) -> bool:
    """Two of three operations have a key."""
    return op % 3 != 0


def goes_back(op: int) -> bool:
    """One of eleven operations is rolled back."""
    return op % 11 == 5


def main(config: dict[str, Any]) -> int:
    """Call until SIGTERM; the exit code."""
    logging.basicConfig(level=logging.WARNING)
    stop = Stop()
    app, charge, push = make_app(config)
    journal, op = Journal(f"{config['folder']}/ops.jsonl"), config["first"]
    arm(*parse(config.get("plan", "")))
    while not stop.wait(_pace(config)):
        try:
            done = _operate(app, charge, push, op=op, journal=journal)
        except RetryableError:  # another writer was in the way
            continue
        op += done
    app.close()
    return 0


def _pace(config: dict[str, Any]) -> float:
    return float(Path(config["folder"], "pace").read_text())


def _operate(app: Any, charge: Any, push: Any, *, op: int, journal: Journal) -> bool:
    """One operation; whether it is over."""
    engine = app.database.engine()
    with engine.connect() as connection:
        if connection.execute(FIND, {"op": op}).one_or_none():
            return True
    journal.append("begin", op=op, keyed=is_keyed(op), back=goes_back(op))
    with Session(engine) as session:
        try:
            if is_keyed(op):
                found = charge.deferrable(session)(op, key=f"op-{op}")
            else:
                found = asyncio.run(push.deferrable(session)(op))
        except (DownError, OutcomeUnknownError):
            journal.append("back", op=op)
            return True
        deferred = isinstance(found, Deferred)
        message_id = found.message_id if isinstance(found, Deferred) else ""
        row = {"op": op, "deferred": int(deferred), "message_id": message_id}
        session.execute(STORE, row)
        if goes_back(op):
            session.rollback()
            journal.append("back", op=op)
            return True
        session.commit()
    journal.append("ack", op=op)
    return True
