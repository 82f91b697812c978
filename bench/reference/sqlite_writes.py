"""Plain writes of a service: transactions of one row, then as many rows in large ones.

The same program for a captured file: nothing in it knows.
"""

import json
import sqlite3
import sys
import time

TABLE = "CREATE TABLE orders (id INTEGER PRIMARY KEY, customer TEXT, status TEXT, cents INTEGER, "
INSERT = "INSERT INTO orders VALUES (?, ?, ?, ?, ?, ?)"
UPDATE = "UPDATE orders SET status = 'paid' WHERE id = ?"
DELETE = "DELETE FROM orders WHERE id = ?"
NOTE = "x" * 200


def rows(first, count):
    span = range(first, first + count)
    return [(n, f"customer-{n % 1000}", "placed", n * 7, f"no-{n}", NOTE) for n in span]


def write(db, count, size):
    """Insert, update, and delete the odd ones, in transactions of a size."""
    first = db.execute("SELECT coalesce(max(id), 0) + 1 FROM orders").fetchone()[0]
    began = time.perf_counter()
    for start in range(first, first + count, size):
        span = [(n,) for n in range(start, start + size)]
        odd = [(n,) for (n,) in span if n % 2]
        for text, values in ((INSERT, rows(start, size)), (UPDATE, span), (DELETE, odd)):
            if not values:
                continue
            db.execute("BEGIN IMMEDIATE")
            db.executemany(text, values)
            db.execute("COMMIT")
    return (time.perf_counter() - began) / count * 1e6


given = json.loads(sys.argv[1])
db = sqlite3.connect(given["path"], isolation_level=None)
db.execute("PRAGMA journal_mode = WAL")
db.execute("PRAGMA synchronous = NORMAL")  # no write waits for the disk, which would hide the rest
if given["make"]:
    db.execute(f"{TABLE}number TEXT UNIQUE, note TEXT)")
    print(json.dumps({"figure": 0.0}))
    raise SystemExit
write(db, 100, 1)
figure = write(db, given["count"], 1)
facts = {name: str(db.execute(f"PRAGMA {name}").fetchone()[0]) for name in ("journal_mode",)}
facts["synchronous"] = str(db.execute("PRAGMA synchronous").fetchone()[0])
facts["in transactions of 1000"] = round(write(db, given["count"], 1000), 2)
print(json.dumps({"figure": figure, **facts, "orders": given["count"]}))
