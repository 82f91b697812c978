"""By hand: LISTEN, and on a notification select, publish with a confirm, delete; one at a time."""

import json
import os
import sys
import threading

import pika
import psycopg

given = json.loads(sys.argv[1])
db = psycopg.connect(given["database"], autocommit=True)
channel = pika.BlockingConnection(pika.URLParameters(given["broker"])).channel()
channel.confirm_delivery()
db.execute("LISTEN plain_wake")


def end_with_input():
    sys.stdin.read()
    os._exit(0)


def relay():
    rows = db.execute(
        "SELECT id, message_id, message_type, topic, payload FROM plain_outbox ORDER BY id"
    )
    for number, message_id, kind, topic, payload in rows.fetchall():
        properties = pika.BasicProperties(
            "application/json", delivery_mode=2, message_id=message_id
        )
        channel.basic_publish(topic, kind, payload, properties, mandatory=True)
        db.execute("DELETE FROM plain_outbox WHERE id = %s", (number,))


threading.Thread(target=end_with_input, daemon=True).start()
print("ready", flush=True)
while True:
    if list(db.notifies(timeout=5.0, stop_after=1)):
        relay()
