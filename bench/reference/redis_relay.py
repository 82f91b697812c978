"""By hand: select 1000, add all in one pipeline, check the ids, delete; raw: only that."""

import json
import sys
import time

import psycopg
import redis

BATCH = 1000
COLUMNS = "id, message_id, message_type, topic, key, payload"
SELECT = f"SELECT {COLUMNS} FROM plain_outbox ORDER BY id LIMIT %s"
DELETE = "DELETE FROM plain_outbox WHERE id = ANY(%s)"
RAW = [(n, f"id-{n}", "bench.placed", "orders", f"customer-{n}", b"x" * 1024) for n in range(BATCH)]


def relay(given, db, client):
    done, began = 0, time.perf_counter()
    while done < given["count"]:
        rows = RAW if given["raw"] else db.execute(SELECT, (BATCH,), binary=True).fetchall()
        pipeline = client.pipeline(transaction=given["transaction"])
        for _, message_id, kind, _topic, key, payload in rows:
            fields = {"ce_id": message_id, "ce_type": kind, "ce_partitionkey": key}
            pipeline.xadd(given["stream"], fields | {"ce_data": payload})
        assert all(pipeline.execute()), "not confirmed"
        if not given["raw"]:
            db.execute(DELETE, ([row[0] for row in rows],))
        done += len(rows)
    return done, done / (time.perf_counter() - began)


given = json.loads(sys.argv[1])
client = redis.Redis.from_url(given["broker"].partition("?")[0])
with psycopg.connect(given["database"], autocommit=True) as db:
    client.ping()
    count, figure = relay(given, db, client)
    facts = {n: db.execute(f"SHOW {n}").fetchone()[0] for n in ("synchronous_commit", "fsync")}
print(json.dumps({"figure": figure, "messages": count, **facts}))
