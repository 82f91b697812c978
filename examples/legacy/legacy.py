"""The old system: it keeps a row for each flight and knows nothing of duly."""

import json
import sqlite3
import sys
from contextlib import closing

from duly.admin.demo.data import Flight, load

TABLE = """
CREATE TABLE IF NOT EXISTS flights (
    id INTEGER PRIMARY KEY, carrier TEXT, number INTEGER, dest TEXT, status TEXT, delay INTEGER
)"""
BOARD = """
SELECT carrier, sum(status = 'departed'), sum(status = 'cancelled') FROM flights
GROUP BY carrier ORDER BY carrier"""


def operate(db: sqlite3.Connection, flight: Flight) -> None:
    """One flight, from the schedule to its end; each step is a commit of its own."""
    row = (flight.id, flight.carrier, flight.number, flight.dest)
    db.execute("INSERT INTO flights VALUES (?, ?, ?, ?, 'scheduled', NULL)", row)
    if flight.cancelled:
        db.execute("UPDATE flights SET status = 'cancelled' WHERE id = ?", (flight.id,))
        return
    values = (flight.delay, flight.id)
    db.execute("UPDATE flights SET status = 'departed', delay = ? WHERE id = ?", values)
    if flight.delay is not None and flight.delay < 0:
        correct(db, flight)


def correct(db: sqlite3.Connection, flight: Flight) -> None:
    """Who leaves early is on time. The new screen says that it corrects; the old one does not."""
    db.execute("BEGIN")
    if flight.id % 2 == 0:
        said = json.dumps({"by": "dispatcher"})
        db.execute("INSERT INTO duly_intent (name) VALUES ('BEGIN')")
        db.execute("INSERT INTO duly_intent (name, data) VALUES ('Corrected', ?)", (said,))
    db.execute("UPDATE flights SET delay = 0 WHERE id = ?", (flight.id,))
    if flight.id % 2 == 0:
        db.execute("INSERT INTO duly_intent (name) VALUES ('COMMIT')")
    db.execute("COMMIT")


def check(db: sqlite3.Connection) -> str:
    """The board that was kept of the changes, held against this system's own table."""
    with closing(sqlite3.connect("operations.db")) as operations:
        kept = operations.execute("SELECT * FROM board ORDER BY carrier").fetchall()
    return "the same" if kept == db.execute(BOARD).fetchall() else "NOT the same"


with closing(sqlite3.connect("legacy.db", isolation_level=None, timeout=30)) as db:
    db.execute("PRAGMA journal_mode = WAL")
    db.execute(TABLE)
    if sys.argv[1:] == ["--check"]:
        print(check(db))
    else:
        for one in load(int(sys.argv[1])) if sys.argv[1] != "0" else ():
            operate(db, one)
