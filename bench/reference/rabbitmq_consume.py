"""By hand: receive, dedupe insert, one effect row each, commit, ack; raw: only receive and ack."""

import json
import queue
import sys
import threading
import time

import pika
import psycopg

DEDUPE = "INSERT INTO plain_inbox SELECT unnest(%s::text[]) ON CONFLICT DO NOTHING RETURNING *"
EFFECT = "INSERT INTO effect (order_id, cents) SELECT * FROM unnest(%s::bigint[], %s::bigint[])"


class Consumer:
    def __init__(self, given):
        self.given, self.done, self.began, self.batch = given, 0, 0.0, []
        self.size, self.work, self.over = 1000 if given["batch"] else 1, queue.SimpleQueue(), False
        for _ in range(given["connections"]):
            threading.Thread(target=self.handle_all, daemon=True).start()
        opened = lambda connection: connection.channel(on_open_callback=self.opened)  # noqa: E731
        self.connection = pika.SelectConnection(pika.URLParameters(given["broker"]), opened)
        self.connection.ioloop.start()

    def opened(self, channel):
        self.channel = channel
        channel.basic_qos(prefetch_count=2000)
        channel.basic_consume(self.given["queue"], self.received)

    def received(self, _channel, *delivery):
        self.began = self.began or time.perf_counter()
        self.batch.append((delivery[0].delivery_tag, delivery[1].message_id, delivery[2]))
        if len(self.batch) == self.size:
            batch, self.batch = self.batch, []
            self.ack(batch) if self.given["raw"] else self.work.put(batch)

    def handle_all(self):
        with psycopg.connect(self.given["database"], autocommit=True) as db:
            while batch := self.work.get():
                with db.transaction():
                    fresh = {row[0] for row in db.execute(DEDUPE, ([i for _, i, _ in batch],))}
                    bodies = [json.loads(body) for _, i, body in batch if i in fresh]
                    columns = [b["order_id"] for b in bodies], [b["cents"] for b in bodies]
                    db.execute(EFFECT, columns)
                self.connection.ioloop.add_callback_threadsafe(lambda b=batch: self.ack(b))

    def ack(self, batch):
        self.channel.basic_ack(batch[-1][0], multiple=len(batch) > 1)
        self.done += len(batch)
        if self.done >= self.given["count"] and not self.over:
            self.over, self.seconds = True, time.perf_counter() - self.began
            self.connection.ioloop.stop()


consumer = Consumer(json.loads(sys.argv[1]))
with psycopg.connect(consumer.given["database"]) as db:
    facts = {n: db.execute(f"SHOW {n}").fetchone()[0] for n in ("synchronous_commit", "fsync")}
facts["messages"] = consumer.done
print(json.dumps({"figure": consumer.done / consumer.seconds, **facts}))
