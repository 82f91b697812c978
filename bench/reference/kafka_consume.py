"""By hand: consume, dedupe insert, one effect row each, commit both; raw: only consume."""

import json
import sys
import time

import psycopg
from confluent_kafka import Consumer

DEDUPE = "INSERT INTO plain_inbox SELECT unnest(%s::text[]) ON CONFLICT DO NOTHING RETURNING *"
EFFECT = "INSERT INTO effect (order_id, cents) SELECT * FROM unnest(%s::bigint[], %s::bigint[])"


def handle(db, batch):
    by_id = {dict(one.headers())["ce_id"].decode(): one.value() for one in batch}
    with db.transaction():
        fresh = [row[0] for row in db.execute(DEDUPE, (list(by_id),))]
        bodies = [json.loads(by_id[message_id]) for message_id in fresh]
        columns = [b["order_id"] for b in bodies], [b["cents"] for b in bodies]
        db.execute(EFFECT, columns)


def consume(given, db, consumer):
    done, began = 0, 0.0
    while done < given["count"]:
        batch = consumer.consume(1, 1.0)
        began = began or (time.perf_counter() if batch else 0.0)
        batch += consumer.consume(999, 0)
        assert not [one.error() for one in batch if one.error()]
        if batch:
            if not given["raw"]:
                handle(db, batch)
            consumer.commit(asynchronous=False)
        done += len(batch)
    return done, done / (time.perf_counter() - began)


given = json.loads(sys.argv[1])
settings = {"bootstrap.servers": given["servers"], "group.id": given["group"]}
settings |= {"enable.auto.commit": False, "auto.offset.reset": "earliest"}
consumer = Consumer(settings)
consumer.subscribe([given["topic"]])
with psycopg.connect(given["database"], autocommit=True) as db:
    count, figure = consume(given, db, consumer)
    facts = {n: db.execute(f"SHOW {n}").fetchone()[0] for n in ("synchronous_commit", "fsync")}
consumer.close()
print(json.dumps({"figure": figure, "messages": count, **facts}))
