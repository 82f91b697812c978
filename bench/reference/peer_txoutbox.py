"""txoutbox's relay with its own storage for PostgreSQL: one XADD per message, 50 groups at once."""

import json
import sys
import time
from importlib.metadata import version

import redis.asyncio as redis
import uvloop
from txoutbox import Relay, RelayConfig
from txoutbox.adapters.postgres import PostgresStorage

TUNED = {"batch_size": 500, "concurrency": 50}
KEYS, NOTE = 1000, "x" * 980
given = json.loads(sys.argv[1])
INSERT = "INSERT INTO outbox (topic, key, payload) VALUES ('orders', $1, $2)"


def row(number):
    body = {"order_id": number, "cents": 1250, "note": NOTE}
    return f"customer-{number % KEYS}", json.dumps(body).encode()


async def main():
    storage = await PostgresStorage.connect(given["database"], delete_on_ack=True)
    await storage.create_schema()
    async with storage.pool.acquire() as db:
        await db.executemany(INSERT, [row(number) for number in range(given["count"])])
        for settle in ("VACUUM ANALYZE", "CHECKPOINT"):
            await db.execute(settle)
        facts = {n: await db.fetchval(f"SHOW {n}") for n in ("synchronous_commit", "fsync")}
    client = redis.Redis.from_url(given["redis"])
    began, done = 0.0, 0

    async def publish(message):
        nonlocal began
        began = began or time.perf_counter()
        fields = {"id": message.id, "key": message.key, "data": message.payload}
        await client.xadd(given["stream"], fields)

    relay = Relay(storage, publish, config=RelayConfig(**TUNED))
    while done < given["count"]:  # what its run() repeats as long as batches are full
        done += (await relay.run_once()).published
    figure = done / (time.perf_counter() - began)
    await client.aclose()
    await storage.close()
    return {"figure": figure, "messages": done, "peer": version("txoutbox"), **facts}


print(json.dumps(uvloop.run(main()) | TUNED | {"processes": 1, "loop": "uvloop"}))
