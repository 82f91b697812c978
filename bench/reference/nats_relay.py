"""By hand: select 1000, publish, one reply inbox, count the answers, delete; raw: no database."""

import asyncio
import json
import sys
import time
from urllib.parse import urlsplit

import nats
import psycopg

BATCH = 1000
COLUMNS = "id, message_id, message_type, topic, key, payload"
SELECT = f"SELECT {COLUMNS} FROM plain_outbox ORDER BY id LIMIT %s"
DELETE = "DELETE FROM plain_outbox WHERE id = ANY(%s)"
RAW = [("bench.placed", "orders", f"customer-{n}", b"x" * 1024) for n in range(BATCH)]


async def relay(given, db):
    url = urlsplit(given["broker"])
    client = await nats.connect(url._replace(path="").geturl(), pending_size=16_000_000)
    subject, done, stored = f"{url.path[1:]}.event.orders.0", 0, 0
    everything = asyncio.Event()

    async def answered(message):
        nonlocal stored
        assert b'"stream"' in message.data, message.data
        stored += 1
        if stored == done:
            everything.set()

    began = time.perf_counter()
    while True:
        if given["raw"]:
            rows = [(0, f"{began}-{done + n}", *row) for n, row in enumerate(RAW)]
        else:
            rows = db.execute(SELECT, (BATCH,), binary=True).fetchall()
        if not rows or done >= given["count"]:
            break
        inbox = client.new_inbox()
        subscription = await client.subscribe(inbox, cb=answered)
        everything.clear()
        done += len(rows)
        for _, message_id, kind, _topic, key, payload in rows:
            headers = {"Nats-Msg-Id": message_id, "type": kind, "key": key}
            await client.publish(subject, payload, reply=inbox, headers=headers)
        await asyncio.wait_for(everything.wait(), 30)
        await subscription.unsubscribe()
        if not given["raw"]:
            db.execute(DELETE, ([row[0] for row in rows],))
    seconds = time.perf_counter() - began
    await client.close()
    return done, stored, seconds


given = json.loads(sys.argv[1])
db = psycopg.connect(given["database"], autocommit=True)
done, stored, seconds = asyncio.run(relay(given, db))
facts = {n: db.execute(f"SHOW {n}").fetchone()[0] for n in ("synchronous_commit", "fsync")}
print(json.dumps({"figure": done / seconds, **facts, "messages": done, "confirms": stored}))
