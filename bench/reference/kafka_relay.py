"""By hand: select 1000, produce all, wait for every delivery report, delete; raw: only produce."""

import json
import sys
import time

import psycopg
from confluent_kafka import Producer

BATCH = 1000
COLUMNS = "id, message_id, message_type, topic, key, payload"
SELECT = f"SELECT {COLUMNS} FROM plain_outbox ORDER BY id LIMIT %s"
DELETE = "DELETE FROM plain_outbox WHERE id = ANY(%s)"
RAW = [(n, f"id-{n}", "bench.placed", "orders", f"customer-{n}", b"x" * 1024) for n in range(BATCH)]


class Relay:
    def __init__(self, given):
        settings = {"bootstrap.servers": given["servers"], "linger.ms": 1}
        self.producer = Producer(settings | {"acks": "all", "enable.idempotence": True})
        self.given, self.confirmed = given, 0

    def reported(self, error, _record):
        assert error is None, error
        self.confirmed += 1

    def run(self, db):
        self.producer.list_topics(self.given["topic"], timeout=30)
        done, began = 0, time.perf_counter()
        while done < self.given["count"]:
            raw = self.given["raw"]
            rows = RAW if raw else db.execute(SELECT, (BATCH,), binary=True).fetchall()
            for _, message_id, kind, _topic, key, payload in rows:
                self.producer.produce(
                    self.given["topic"],
                    payload,
                    key,
                    headers=[("ce_id", message_id), ("ce_type", kind)],
                    on_delivery=self.reported,
                )
            done += len(rows)
            while self.confirmed < done:
                self.producer.poll(1.0)
            if not raw:
                db.execute(DELETE, ([row[0] for row in rows],))
        return done / (time.perf_counter() - began)


relay = Relay(json.loads(sys.argv[1]))
with psycopg.connect(relay.given["database"], autocommit=True) as db:
    figure = relay.run(db)
    facts = {n: db.execute(f"SHOW {n}").fetchone()[0] for n in ("synchronous_commit", "fsync")}
print(json.dumps({"figure": figure, "messages": relay.confirmed, **facts}))
