"""faststream-outbox's relay by two decorators, tuned for throughput as its documentation says."""

import asyncio
import json
import sys
import time
from importlib.metadata import version

import uvloop
from faststream.redis import RedisBroker
from faststream_outbox import OutboxBroker, make_outbox_table, outbox_autovacuum_ddl
from sqlalchemy import MetaData, text
from sqlalchemy.ext.asyncio import create_async_engine

TUNED = {"max_workers": 8, "fetch_batch_size": 500, "terminal_flush_batch_size": 100}
given = json.loads(sys.argv[1])
metadata = MetaData()
table = make_outbox_table(metadata)
address = given["database"].replace("postgresql:", "postgresql+asyncpg:", 1)
engine = create_async_engine(address, pool_size=10)
outbox = OutboxBroker(engine, outbox_table=table, logger=None)
target = RedisBroker(given["redis"], logger=None)
seen, all_seen = [], asyncio.Event()
LEFT = text(f"SELECT count(*) FROM {table.name}")


@target.publisher(stream=given["stream"])
@outbox.subscriber("orders", min_fetch_interval=0.05, **TUNED)
async def relay(body: dict) -> dict:
    seen.append(time.perf_counter())
    if len(seen) == given["count"]:
        all_seen.set()
    return body


async def main():
    async with engine.begin() as db:
        await db.run_sync(metadata.create_all)
        await db.execute(text(outbox_autovacuum_ddl(table.name)))
        for at in range(0, given["count"], 1000):
            bodies = [{"order_id": at + n, "cents": 1250, "note": "x" * 980} for n in range(1000)]
            await outbox.publish_batch(*bodies, queue="orders", session=db)
    async with engine.connect() as db:
        await db.execution_options(isolation_level="AUTOCOMMIT")
        for settle in ("VACUUM ANALYZE", "CHECKPOINT"):
            await db.execute(text(settle))
        ask = {n: text(f"SHOW {n}") for n in ("synchronous_commit", "fsync")}
        facts = {n: (await db.execute(said)).scalar_one() for n, said in ask.items()}
        await target.start()
        await outbox.start()
        await all_seen.wait()
        while (await db.execute(LEFT)).scalar_one():  # noqa: ASYNC110  # nothing tells of it
            await asyncio.sleep(0.002)
        figure = len(seen) / (time.perf_counter() - seen[0])
    await outbox.stop()
    return {"figure": figure, "messages": len(seen), "peer": version("faststream-outbox"), **facts}


print(json.dumps(uvloop.run(main()) | TUNED | {"processes": 1, "loop": "uvloop"}))
