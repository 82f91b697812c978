"""By hand: select 1000, insert into the log, commit, delete, commit; raw: only the inserts."""

import json
import sqlite3
import sys
import time

BATCH = 1000
COLUMNS = "message_id, message_type, topic, key, payload"
SELECT = f"SELECT id, {COLUMNS} FROM plain_outbox ORDER BY id LIMIT ?"
INSERT = f"INSERT INTO log ({COLUMNS}) VALUES (?, ?, ?, ?, ?)"


def connect(path):
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    return db


def relay(outbox, log):
    moved = 0
    while rows := outbox.execute(SELECT, (BATCH,)).fetchall():
        log.execute("BEGIN IMMEDIATE")
        log.executemany(INSERT, [row[1:] for row in rows])
        log.execute("COMMIT")
        outbox.execute("BEGIN IMMEDIATE")
        outbox.executemany("DELETE FROM plain_outbox WHERE id = ?", [row[:1] for row in rows])
        outbox.execute("COMMIT")
        moved += len(rows)
    return moved


def raw(log, count):
    body = b"x" * 1024
    rows = [(f"id-{n}", "bench.placed", "orders", f"customer-{n}", body) for n in range(BATCH)]
    for _ in range(count // BATCH):
        log.execute("BEGIN IMMEDIATE")
        log.executemany(INSERT, rows)
        log.execute("COMMIT")
    return count // BATCH * BATCH


given = json.loads(sys.argv[1])
outbox, log = connect(given["path"]), connect(given["log"])
began = time.perf_counter()
done = raw(log, given["count"]) if given["raw"] else relay(outbox, log)
seconds = time.perf_counter() - began
names = ("journal_mode", "synchronous")
facts = {name: str(log.execute(f"PRAGMA {name}").fetchone()[0]) for name in names}
assert log.execute("SELECT count(*) FROM log").fetchone()[0] == done
print(json.dumps({"figure": done / seconds, **facts, "messages": done}))
