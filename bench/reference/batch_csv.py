"""A server-side cursor and ``csv.writer``, the way it is written by hand; fsync at the end."""

import csv
import json
import os
import sys
import time
from pathlib import Path

import psycopg

given = json.loads(sys.argv[1])
target = Path(given["folder"]) / f"written-{os.getpid()}.csv"
began = time.perf_counter()
with psycopg.connect(given["database"]) as db, target.open("w", newline="") as file:
    cursor = db.cursor(name="rows")
    cursor.itersize = 10_000
    cursor.execute(given["query"] + " ORDER BY id")
    rows = csv.writer(file)
    rows.writerow([column.name for column in cursor.description])
    rows.writerows(cursor)
    file.flush()
    os.fsync(file.fileno())
seconds = time.perf_counter() - began
print(
    json.dumps(
        {"figure": given["count"] / seconds, "bytes": target.stat().st_size, "itersize": 10_000}
    )
)
