"""By hand: a business insert and one insert of all outbox rows in a transaction; raw: one of them.

With one message the raw client does only the business insert, with more only the outbox insert.
"""

import json
import sys
import time
import uuid

import psycopg

BUSINESS = "INSERT INTO business (customer, cents) VALUES (%s, %s)"
OUTBOX = (
    "INSERT INTO plain_outbox (message_id, message_type, topic, key, payload) "
    "SELECT * FROM unnest(%s::text[], %s::text[], %s::text[], %s::text[], %b::bytea[])"
)
NOTE = "x" * 960


def outbox(connection, number, each):
    orders = range(number * each, number * each + each)
    bodies = [{"order_id": n, "cents": 1250, "note": NOTE} for n in orders]
    columns = (
        [str(uuid.uuid4()) for _ in orders],
        ["bench.placed"] * each,
        ["orders"] * each,
        [f"customer-{n % 1000}" for n in orders],
        [json.dumps(body).encode() for body in bodies],
    )
    connection.execute(OUTBOX, columns)


def run(connection, given, transactions):
    raw, each = given["raw"], given["each"]
    for number in range(transactions):
        with connection.transaction():
            if not raw or each == 1:
                connection.execute(BUSINESS, (f"customer-{number % 1000}", 1250))
            if not raw or each > 1:
                outbox(connection, number, each)


given = json.loads(sys.argv[1])
with psycopg.connect(given["database"], autocommit=True) as connection:
    run(connection, given, 20)
    began = time.perf_counter()
    run(connection, given, given["count"])
    seconds = time.perf_counter() - began
    names = ("synchronous_commit", "fsync")
    facts = {name: connection.execute(f"SHOW {name}").fetchone()[0] for name in names}
print(json.dumps({"figure": given["count"] * given["each"] / seconds, **facts, "connections": 1}))
