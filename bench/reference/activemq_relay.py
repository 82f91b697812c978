"""By hand: select 1000, send 500 in a transaction, read its receipt, delete; raw: no database."""

import json
import socket
import sys
import time
from urllib.parse import urlsplit

import psycopg

BATCH, CHUNK = 1000, 500
COLUMNS = "id, message_id, message_type, topic, key, payload"
SELECT = f"SELECT {COLUMNS} FROM plain_outbox ORDER BY id LIMIT %s"
DELETE = "DELETE FROM plain_outbox WHERE id = ANY(%s)"
RAW = [(n, f"id-{n}", "bench.placed", "orders", f"customer-{n}", b"x" * 1024) for n in range(BATCH)]
HEAD = "SEND\ndestination:%s\ndestination-type:MULTICAST\npersistent:true\ntransaction:t\n"
TAIL = "ce_id:%s\nce_type:%s\nce_partitionkey:%s\ncontent-length:%d\n\n"


def frame(server):
    """One frame of the server; it sends nothing with a body but an ERROR."""
    text = b""
    while b"\0" not in text:
        text += server.recv(65_536)
    return text.lstrip().decode()


def store(server, address, rows):
    pieces = [b"BEGIN\ntransaction:t\n\n\0"]
    for _, message_id, kind, _topic, key, payload in rows:
        head = (HEAD + TAIL) % (address, message_id, kind, key, len(payload))
        pieces += (head.encode(), payload, b"\0")
    name = str(rows[-1][1])
    server.sendall(b"".join(pieces) + f"COMMIT\ntransaction:t\nreceipt:{name}\n\n\0".encode())
    receipt = frame(server)
    assert receipt.startswith(f"RECEIPT\nreceipt-id:{name}\n"), receipt


def relay(given, db, server):
    done, began = 0, time.perf_counter()
    while done < given["count"]:
        rows = RAW if given["raw"] else db.execute(SELECT, (BATCH,), binary=True).fetchall()
        for start in range(0, len(rows), CHUNK):
            store(server, given["address"], rows[start : start + CHUNK])
        if not given["raw"]:
            db.execute(DELETE, ([row[0] for row in rows],))
        done += len(rows)
    return done, done / (time.perf_counter() - began)


given = json.loads(sys.argv[1])
url = urlsplit(given["broker"])
with psycopg.connect(given["database"], autocommit=True) as db:
    server = socket.create_connection((url.hostname, url.port or 61613), timeout=30)
    login = f"accept-version:1.2\nhost:/\nlogin:{url.username}\npasscode:{url.password}"
    server.sendall(f"CONNECT\n{login}\n\n\0".encode())
    assert frame(server).startswith("CONNECTED"), "refused"
    count, figure = relay(given, db, server)
    facts = {n: db.execute(f"SHOW {n}").fetchone()[0] for n in ("synchronous_commit", "fsync")}
print(json.dumps({"figure": figure, "messages": count, **facts}))
