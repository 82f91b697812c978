"""PgQueuer with a handler that does nothing, in its drain mode: until the queue is empty."""

import json
import sys
import time
from importlib.metadata import version

import asyncpg
import uvloop
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job
from pgqueuer.queries import Queries
from pgqueuer.types import QueueExecutionMode

TUNED = {"batch_size": 1000}
CHUNK, NOTE = 1000, "x" * 980
given = json.loads(sys.argv[1])


async def main():
    db = await asyncpg.connect(given["database"])
    queries = Queries(AsyncpgDriver(db))
    await queries.install()
    await queries.optimize_autovacuum()
    for at in range(0, given["count"], CHUNK):
        bodies = [{"order_id": at + n, "cents": 1250, "note": NOTE} for n in range(CHUNK)]
        payloads = [json.dumps(body).encode() for body in bodies]
        await queries.enqueue(["orders"] * CHUNK, payloads, [0] * CHUNK)
    for settle in ("VACUUM ANALYZE", "CHECKPOINT"):
        await db.execute(settle)
    facts = {n: await db.fetchval(f"SHOW {n}") for n in ("synchronous_commit", "fsync")}
    queue = PgQueuer.from_asyncpg_connection(db)
    seen = []

    @queue.entrypoint("orders")
    async def handle(job: Job) -> None:
        seen.append(time.perf_counter())

    await queue.run(mode=QueueExecutionMode.drain, **TUNED)
    figure = len(seen) / (time.perf_counter() - seen[0])
    await db.close()
    return {"figure": figure, "messages": len(seen), "peer": version("pgqueuer"), **facts}


print(json.dumps(uvloop.run(main()) | TUNED | {"processes": 1, "loop": "uvloop"}))
