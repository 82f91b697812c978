"""Record what Debezium itself emits for the changes in ``debezium_changes.sql``.

    .venv-peers/bin/python tests/servers/record_debezium.py postgresql://postgres@host/database

Wants Java 17 and the environment of the peers (``tools/peers.py``), and an empty database of a
server with ``wal_level = logical``. Writes ``tests/fixtures/debezium/postgres.json``: keys and
values as text, in order, with schemas left out, as most consumers have it.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
from importlib.metadata import version
from pathlib import Path
from urllib.parse import unquote, urlsplit

import psycopg
from pydbzengine import BasePythonChangeHandler, DebeziumEngine

FOLDER = Path(__file__).resolve().parents[1] / "fixtures" / "debezium"
FIXED = """
name=shop topic.prefix=shop connector.class=io.debezium.connector.postgresql.PostgresConnector
plugin.name=pgoutput publication.autocreate.mode=disabled snapshot.mode=no_data
offset.storage=org.apache.kafka.connect.storage.MemoryOffsetBackingStore
key.converter.schemas.enable=false value.converter.schemas.enable=false
slot.name=recorded publication.name=recorded slot.drop.on.stop=true poll.interval.ms=50
"""
SECONDS = 120


class Handler(BasePythonChangeHandler):
    """Keeps what comes until the last change, which is of the table ``ended``."""

    def __init__(self) -> None:
        self.events: list[dict[str, str | None]] = []
        self.ended = threading.Event()

    def handleJsonBatch(self, records):  # noqa: N802  # its name for it
        for record in records:
            topic, key, value = (record.destination(), record.key(), record.value())
            if str(topic).endswith(".ended"):
                self.ended.set()
                return
            value = None if value is None else json.loads(str(value))
            self.events.append({"topic": str(topic), "key": json.loads(str(key)), "value": value})


def main(url: str) -> int:
    """Make the tables, start the engine, make the changes, write what came."""
    at = urlsplit(url)
    made, changed = (FOLDER / "changes.sql").read_text().split("-- changes\n")
    with psycopg.connect(url, autocommit=True) as database:
        database.execute(made)
        database.execute("CREATE TABLE ended (id int PRIMARY KEY)")
        database.execute("CREATE PUBLICATION recorded FOR ALL TABLES")
        properties = dict(pair.split("=") for pair in FIXED.split())
        properties |= {"database.hostname": at.hostname, "database.port": str(at.port)}
        properties |= {"database.user": unquote(at.username or ""), "database.dbname": at.path[1:]}
        properties |= {"database.password": unquote(at.password or "")}
        handler = Handler()
        os.chdir(tempfile.mkdtemp())  # it writes a log where it stands
        engine = DebeziumEngine(properties, handler)
        threading.Thread(target=engine.run, daemon=True).start()
        streaming = (
            "SELECT 1 FROM pg_stat_replication WHERE state = 'streaming' AND pid = ("
            "SELECT active_pid FROM pg_replication_slots WHERE slot_name = 'recorded')"
        )
        for _ in range(SECONDS * 10):
            if database.execute(streaming).fetchone():
                break
            threading.Event().wait(0.1)
        for statement in changed.split(";\n"):
            if statement.strip():
                database.execute(statement)
        database.execute("INSERT INTO ended VALUES (1)")
        came = handler.ended.wait(SECONDS)
    text = json.dumps({"debezium": version("pydbzengine"), "events": handler.events}, indent=1)
    (FOLDER / "postgres.json").write_text(text + "\n")
    print(f"{len(handler.events)} events")
    sys.stdout.flush()
    os._exit(0 if came else 1)  # the engine's threads do not end


if __name__ == "__main__":
    main(sys.argv[1])
