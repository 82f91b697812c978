"""A service with a table of flights. It knows nothing of duly, of the index, of the cache.

``python service.py COUNT [FIRST]`` operates so many flights, from that one of the day on.
"""

import os
import sys

from sqlalchemy import Connection, create_engine, text

from duly.admin.demo.data import Flight, load

URL = os.environ.get("SERVICE_URL", "sqlite:///flights.db")
TABLE = """
CREATE TABLE IF NOT EXISTS flights (
    id INTEGER PRIMARY KEY, carrier VARCHAR(10), number INTEGER, dest VARCHAR(10),
    status VARCHAR(20), delay INTEGER
)"""
INSERT = "INSERT INTO flights VALUES (:id, :carrier, :number, :dest, 'scheduled', NULL)"


def operate(db: Connection, flight: Flight) -> None:
    """One flight, from the schedule to its end; each step is a commit of its own."""
    row = flight._asdict()
    db.execute(text(INSERT), row)
    if flight.cancelled:
        db.execute(text("UPDATE flights SET status = 'cancelled' WHERE id = :id"), row)
        return
    depart = "UPDATE flights SET status = 'departed', delay = :delay WHERE id = :id"
    db.execute(text(depart), row)
    if flight.id % 10 == 0:  # an old entry is thrown away, and one is entered under another number
        db.execute(text("DELETE FROM flights WHERE id = :id"), row)
    elif flight.id % 10 == 1:
        db.execute(text("UPDATE flights SET id = id + 1000000 WHERE id = :id"), row)


if __name__ == "__main__":
    count, first = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    url = URL.replace("mysql://", "mysql+pymysql://", 1)
    with create_engine(url, isolation_level="AUTOCOMMIT").connect() as db:
        if URL.startswith("sqlite:"):
            db.execute(text("PRAGMA journal_mode = WAL"))
        db.execute(text(TABLE))
        for one in load(first + count)[first:] if count else ():
            operate(db, one)
