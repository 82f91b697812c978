"""Publishing on PostgreSQL: a business insert and its messages in one transaction, one connection.

Both sides are plain psycopg.  Ours keeps the order of each key, which costs locks; the hand-written
insert does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import psycopg

from bench.load import fill_postgres, prepare_postgres
from bench.measure import Row, Sample, Scale, Sides
from bench.places import database
from bench.process import run_side

__all__ = ["ROWS"]

TRANSACTIONS = {1: 2_000, 100: 200}
WARM = 20


def _side(module: str, url: str, **arguments: Any) -> Sample:
    fill_postgres(url, 0, ours=True)
    broker = "embedded:///:memory:"
    sample = run_side(module, database=url, broker=broker, **arguments)
    wanted = (arguments["count"] + WARM) * arguments["each"]
    with psycopg.connect(url) as db:
        counts = db.execute(
            "SELECT (SELECT count(*) FROM duly_outbox), (SELECT count(*) FROM plain_outbox)"
        ).fetchone()
    if not arguments.get("raw") and counts is not None and sum(counts) != wanted:
        raise RuntimeError(f"{counts} messages are stored, not {wanted}")
    return sample


@contextmanager
def _publish(scale: Scale, *, each: int) -> Iterator[Sides]:
    with database() as url:
        prepare_postgres(url)
        given = {"count": scale.of(TRANSACTIONS[each], least=20), "each": each}
        yield Sides(
            ours=partial(_side, "ours.publish", url, **given),
            reference=partial(_side, "reference.postgres_publish", url, raw=False, **given),
            raw=partial(_side, "reference.postgres_publish", url, raw=True, **given),
            share_least=0.5,
        )


ROWS = (
    Row(
        "postgres publish 1",
        "messages/s",
        "one business insert + one hand-written outbox insert per transaction",
        partial(_publish, each=1),
    ),
    Row(
        "postgres publish 100",
        "messages/s",
        "one business insert + one hand-written multi-row insert of 100 per transaction",
        partial(_publish, each=100),
    ),
)
