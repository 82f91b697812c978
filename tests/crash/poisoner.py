"""Publishes one message that the broker will not take, and ten thousand behind it on the same key.

With ``retry`` in its config, it is the operator instead, who puts the failed one back to work.
"""

from __future__ import annotations

import os
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from duly.outbox.operator import By, Operator
from duly.testing.journal import Journal
from tests.crash.shop import Noted, make_app
from tests.crash.stage import KEYS

KEY = f"k{KEYS:03}"  # nobody else's
PART = 500


def main(config: dict[str, Any]) -> int:
    """Publish, or retry; the exit code."""
    app = make_app(config)
    if config.get("retry"):
        Operator(app.database.connect).act(
            "retry", "outbox", config["retry"], by=By("crash", "healed")
        )
        return 0
    journal = Journal(f"{config['folder']}/acks-{os.getpid()}.jsonl")
    seq = 0
    for part in range(config["followers"] // PART + 1):
        txn = f"poison-{part}"
        with Session(app.database.engine()) as session, session.begin():
            ids = []
            for _ in range(PART if part else 1):
                seq += 1
                message = Noted(n=8 * seq + 1, key=KEY, poison=seq == 1)
                ids.append(app.publish(session, message, key=KEY))
            rows = [
                {"id": m, "key": KEY, "seq": seq - len(ids) + n + 1, "txn": txn}
                for n, m in enumerate(ids)
            ]
            insert = (
                "INSERT INTO crash_sent (message_id, kind, key, seq, txn) "
                "VALUES (:id, 'event', :key, :seq, :txn)"
            )
            session.execute(text(insert), rows)
            journal.append("try", txn=txn, ids=ids, back=False)
        journal.append("ack", txn=txn)
    return 0
