"""The stream of a slot, read by hand and not decoded: frames are counted by their kind, no more.

The socket wakes us for 64 KB at a time: woken for each piece, the server sends half as fast.
"""

import json
import os
import select
import socket
import struct
import sys
import time

import psycopg

LOW_WATER, LOOK_MS = 65_536, 100  # the second for what is less than the first, at the end
DATA, ROWS = ord("w"), frozenset(b"IUD")


def start(database, slot):
    """A connection in which the stream runs."""
    db = psycopg.connect(database, autocommit=True, replication="database")
    options = f"proto_version '3', publication_names '\"{slot}\"', messages 'true', streaming 'on'"
    wanted = f'START_REPLICATION SLOT "{slot}" LOGICAL 0/0 ({options})'
    if db.pgconn.exec_(wanted.encode()).status != psycopg.pq.ExecStatus.COPY_BOTH:
        raise RuntimeError(db.pgconn.error_message.decode())
    with socket.socket(fileno=os.dup(db.pgconn.socket)) as same:
        same.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, LOW_WATER)
    return db


def read(pg, warm, count):
    """Changes per second behind the warm-up, and the bytes of all of them."""
    get, seen, size, began, last = pg.get_copy_data, 0, 0, 0.0, warm + count
    ready = select.poll()
    ready.register(pg.socket, select.POLLIN)
    while seen < last:
        got, view = get(1)
        if got == 0:
            ready.poll(LOOK_MS)
            pg.consume_input()
            continue
        frame = bytes(view)
        if frame[0] == DATA:
            size += got
            if frame[25] in ROWS:
                seen += 1
                if seen == warm:
                    began = time.perf_counter()
        elif frame[17]:  # a keepalive that wants an answer
            pg.put_copy_data(struct.pack(">BQQQqB", ord("r"), 0, 0, 0, 0, 0))
    return count / (time.perf_counter() - began), size


given = json.loads(sys.argv[1])
connection = start(given["database"], given["slot"])
figure, size = read(connection.pgconn, given["warm"], given["count"])
facts = {"changes": given["warm"] + given["count"], "megabytes": round(size / 1e6, 1)}
facts |= {"driver": psycopg.pq.__impl__, "low_water": LOW_WATER}
print(json.dumps({"figure": figure, **facts}))
