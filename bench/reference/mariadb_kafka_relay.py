"""By hand: select 1000, produce all, wait for every delivery report, delete; raw: only produce."""

import json
import sys
import time
from urllib.parse import unquote, urlsplit

import pymysql
from confluent_kafka import Producer

BATCH = 1000
COLUMNS = "id, message_id, message_type, topic, `key`, payload"
SELECT = f"SELECT {COLUMNS} FROM plain_outbox ORDER BY id LIMIT %s"
DELETE = "DELETE FROM plain_outbox WHERE id IN %s"
RAW = [(n, f"id-{n}", "bench.placed", "orders", f"customer-{n}", b"x" * 1024) for n in range(BATCH)]
FACTS = ("innodb_flush_log_at_trx_commit", "sync_binlog", "innodb_doublewrite")


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
            rows = RAW if raw or not db.execute(SELECT, (BATCH,)) else db.fetchall()
            for _, message_id, kind, _topic, key, payload in rows:
                headers = [("ce_id", message_id), ("ce_type", kind)]
                self.producer.produce(
                    self.given["topic"], payload, key, headers=headers, on_delivery=self.reported
                )
            done += len(rows)
            while self.confirmed < done:
                self.producer.poll(1.0)
            if not raw:
                db.execute(DELETE, ([row[0] for row in rows],))
        return done / (time.perf_counter() - began)


relay, at = Relay(json.loads(sys.argv[1])), urlsplit(json.loads(sys.argv[1])["database"])
login = {"user": unquote(at.username or "root"), "password": unquote(at.password or "")}
where = {"host": at.hostname, "port": at.port, "database": at.path[1:]}
with pymysql.connect(**login, **where, autocommit=True) as connection, connection.cursor() as db:
    figure = relay.run(db)
    db.execute("SELECT " + ", ".join(f"@@{name}" for name in FACTS))
    facts = dict(zip(FACTS, map(str, db.fetchone()), strict=True))
print(json.dumps({"figure": figure, "messages": relay.confirmed, **facts}))
