"""By hand: select 1000, publish all, wait for every confirm, delete; raw: only the publishes."""

import json
import sys
import time

import pika
import psycopg

BATCH = 1000
COLUMNS = "id, message_id, message_type, topic, key, payload"
SELECT = f"SELECT {COLUMNS} FROM plain_outbox ORDER BY id LIMIT %s"
DELETE = "DELETE FROM plain_outbox WHERE id = ANY(%s)"
RAW = [(n, f"id-{n}", "bench.placed", "orders", f"customer-{n}", b"x" * 1024) for n in range(BATCH)]


class Relay:
    def __init__(self, given):
        self.given, self.done, self.tag, self.rows = given, 0, 0, []
        self.low, self.above = 0, set()  # every tag up to low is confirmed, and those above
        self.db = psycopg.connect(given["database"], autocommit=True)
        self.connection = pika.SelectConnection(pika.URLParameters(given["broker"]), self.opened)
        self.connection.ioloop.start()

    def opened(self, connection):
        self.channel = connection.channel(on_open_callback=self.channel_opened)

    def channel_opened(self, channel):
        channel.confirm_delivery(self.answered, callback=lambda _: self.next())

    def next(self):
        self.began = self.began if self.done else time.perf_counter()
        raw = self.given["raw"]
        self.rows = RAW if raw else self.db.execute(SELECT, (BATCH,), binary=True).fetchall()
        if not self.rows or self.done >= self.given["count"]:
            self.seconds = time.perf_counter() - self.began
            self.rows = self.connection.ioloop.stop() or []
        for _, message_id, kind, topic, key, payload in self.rows:
            its = pika.BasicProperties("application/json", None, {"key": key}, 2)
            its.message_id = message_id
            self.channel.basic_publish(topic, kind, payload, its, mandatory=True)
        self.tag += len(self.rows)

    def answered(self, frame):
        assert isinstance(frame.method, pika.spec.Basic.Ack), frame
        self.above.add(tag := frame.method.delivery_tag)
        if frame.method.multiple:
            self.low, self.above = max(self.low, tag), {t for t in self.above if t > tag}
        if self.low + len(self.above) == self.tag:
            if not self.given["raw"]:
                self.db.execute(DELETE, ([row[0] for row in self.rows],))
            self.done += len(self.rows)
            self.next()


relay = Relay(json.loads(sys.argv[1]))
facts = {n: relay.db.execute(f"SHOW {n}").fetchone()[0] for n in ("synchronous_commit", "fsync")}
facts |= {"messages": relay.done, "confirms": relay.low + len(relay.above)}
print(json.dumps({"figure": relay.done / relay.seconds, **facts}))
