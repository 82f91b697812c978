"""The departures from New York in 2013, as a table; run it once."""

import sqlite3
from contextlib import closing

from duly.admin.demo.data import load

COLUMNS = "id INTEGER PRIMARY KEY, day TEXT, carrier TEXT, number INTEGER, dest TEXT, delay INTEGER"

with closing(sqlite3.connect("settlement.db")) as db, db:
    db.execute(f"CREATE TABLE IF NOT EXISTS departures ({COLUMNS})")
    rows = [(f.id, f.day, f.carrier, f.number, f.dest, f.delay) for f in load()]
    db.executemany("INSERT OR IGNORE INTO departures VALUES (?, ?, ?, ?, ?, ?)", rows)
    db.execute("CREATE INDEX IF NOT EXISTS departures_carrier ON departures (carrier, day, id)")
    print(f"{len(rows)} departures")
