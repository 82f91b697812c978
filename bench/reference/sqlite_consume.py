"""By hand: read from the log, dedupe insert, one effect row each, commit; raw: only the effects."""

import json
import sqlite3
import sys
import time

READ = "SELECT id, message_id, payload FROM log WHERE id > ? ORDER BY id LIMIT 1000"
KNOWN = "SELECT message_id FROM plain_inbox WHERE message_id IN (SELECT value FROM json_each(?))"
DEDUPE = "INSERT INTO plain_inbox VALUES (?) ON CONFLICT DO NOTHING"
EFFECT = "INSERT INTO effect (order_id, cents) VALUES (?, ?)"


def connect(path):
    db = sqlite3.connect(path, isolation_level=None)
    db.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL")
    return db


def dedupe(db, rows):
    if len(rows) == 1:
        return rows if db.execute(DEDUPE, rows[0][1:2]).rowcount else []
    known = {i for (i,) in db.execute(KNOWN, (json.dumps([row[1] for row in rows]),))}
    db.executemany(DEDUPE, [row[1:2] for row in rows if row[1] not in known])
    return [row for row in rows if row[1] not in known]


def handle(db, rows):
    db.execute("BEGIN IMMEDIATE")
    bodies = [json.loads(row[2]) for row in dedupe(db, rows)]
    db.executemany(EFFECT, [(body["order_id"], body["cents"]) for body in bodies])
    db.execute("UPDATE plain_position SET value = ?", (rows[-1][0],))
    db.execute("COMMIT")


def consume(db, log, *, count, size):
    done = position = 0
    while done < count and (rows := log.execute(READ, (position,)).fetchall()):
        position = rows[-1][0]
        for start in range(0, len(rows), size):
            handle(db, rows[start : start + size])
        done += len(rows)
    return done


def raw(db, count, size):
    for start in range(0, count, size):
        db.execute("BEGIN IMMEDIATE")
        db.executemany(EFFECT, [(n, 1250) for n in range(start, start + size)])
        db.execute("COMMIT")
    return count


given = json.loads(sys.argv[1])
db, log = connect(given["path"]), connect(given["log"])
count, size, began = given["count"], 1000 if given["batch"] else 1, time.perf_counter()
done = raw(db, count, size) if given["raw"] else consume(db, log, count=count, size=size)
seconds = time.perf_counter() - began
facts = {n: str(db.execute(f"PRAGMA {n}").fetchone()[0]) for n in ("journal_mode", "synchronous")}
print(json.dumps({"figure": done / seconds, **facts, "messages": done, "connections": 1}))
