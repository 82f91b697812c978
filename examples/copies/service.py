"""A service with a table of flights. It knows nothing of duly, of the index, of the cache."""

import sqlite3
import sys
from contextlib import closing

from duly.admin.demo.data import Flight, load

TABLE = """
CREATE TABLE IF NOT EXISTS flights (
    id INTEGER PRIMARY KEY, carrier TEXT, number INTEGER, dest TEXT, status TEXT, delay INTEGER
)"""


def operate(db: sqlite3.Connection, flight: Flight) -> None:
    """One flight, from the schedule to its end; each step is a commit of its own."""
    row = (flight.id, flight.carrier, flight.number, flight.dest)
    db.execute("INSERT INTO flights VALUES (?, ?, ?, ?, 'scheduled', NULL)", row)
    if flight.cancelled:
        db.execute("UPDATE flights SET status = 'cancelled' WHERE id = ?", (flight.id,))
        return
    values = (flight.delay, flight.id)
    db.execute("UPDATE flights SET status = 'departed', delay = ? WHERE id = ?", values)
    if flight.id % 10 == 0:  # an old entry is thrown away, and one is entered under another number
        db.execute("DELETE FROM flights WHERE id = ?", (flight.id,))
    elif flight.id % 10 == 1:
        db.execute("UPDATE flights SET id = id + 1000000 WHERE id = ?", (flight.id,))


with closing(sqlite3.connect("flights.db", isolation_level=None, timeout=30)) as db:
    db.execute("PRAGMA journal_mode = WAL")
    db.execute(TABLE)
    for one in load(int(sys.argv[1])) if sys.argv[1] != "0" else ():
        operate(db, one)
