"""Record what Debezium itself emits for the changes in ``changes_mariadb.sql``.

    .venv-peers/bin/python tests/servers/record_debezium_mariadb.py \
        mysql://root@host:3306/database JARS

Wants Java 17, the environment of the peers (``tools/peers.py``), a folder with the jars of
Debezium's connector for MariaDB (``bench/rows/binlog.py`` says which), and an empty database of a
server with ``binlog_row_image`` and ``binlog_row_metadata`` FULL. Writes
``tests/fixtures/debezium/mariadb.json``: keys and values in order, with schemas left out.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
from pathlib import Path
from urllib.parse import unquote, urlsplit

import jpype
import pymysql
from pydbzengine import BasePythonChangeHandler, DebeziumEngine

FOLDER = Path(__file__).resolve().parents[1] / "fixtures" / "debezium"
FIXED = """
name=shop topic.prefix=shop connector.class=io.debezium.connector.mariadb.MariaDbConnector
snapshot.mode=recovery schema.history.internal=io.debezium.relational.history.MemorySchemaHistory
offset.storage=org.apache.kafka.connect.storage.FileOffsetBackingStore
key.converter.schemas.enable=false value.converter.schemas.enable=false
offset.storage.file.filename=offsets include.schema.changes=false poll.interval.ms=50
"""
SECONDS = 120


class Handler(BasePythonChangeHandler):
    """Keeps what comes until the last change, which is of the table ``ended``."""

    def __init__(self) -> None:
        self.events: list[dict[str, object]] = []
        self.ended = threading.Event()

    def handleJsonBatch(self, records):  # noqa: N802  # its name for it
        for record in records:
            topic, key, value = str(record.destination()), record.key(), record.value()
            if topic.endswith(".ended"):
                self.ended.set()
                return
            value = None if value is None else json.loads(str(value))
            # Not the name of whichever database it was recorded in.
            topic = f"shop.recorded.{topic.rpartition('.')[2]}"
            self.events.append({"topic": topic, "key": json.loads(str(key)), "value": value})


def store_offset(file: str, offset: int, gtids: str) -> None:
    """Where to begin, as Debezium stores it."""
    as_bytes = jpype.JArray(jpype.JByte)
    stored = jpype.JClass("java.util.HashMap")()
    where = json.dumps({"file": file, "pos": offset, "gtids": gtids})
    stored.put(as_bytes(b'["shop",{"server":"shop"}]'), as_bytes(where.encode()))
    file_out = jpype.JClass("java.io.FileOutputStream")("offsets")
    out = jpype.JClass("java.io.ObjectOutputStream")(file_out)
    out.writeObject(stored)
    out.close()


def make_changes(cursor: pymysql.cursors.Cursor) -> tuple[str, int, str]:
    """Make the tables and the changes; the place in the log between the two."""
    made, changed = (FOLDER / "changes_mariadb.sql").read_text().split("-- changes\n")
    cursor.execute("SET time_zone = '+00:00'")
    for statement in filter(str.strip, made.split(";\n")):
        cursor.execute(statement)
    cursor.execute("CREATE TABLE ended (id int PRIMARY KEY)")
    cursor.execute("SHOW MASTER STATUS")
    file, offset = cursor.fetchone()[:2]
    cursor.execute("SELECT BINLOG_GTID_POS(%s, %s)", (file, offset))
    gtids = cursor.fetchone()[0]
    for statement in filter(str.strip, changed.split(";\n")):
        cursor.execute(statement)
    cursor.execute("INSERT INTO ended VALUES (1)")
    return file, offset, gtids


def main(url: str, jars: str) -> int:
    """Make the changes, let the engine read them, write what came."""
    at = urlsplit(url)
    login = {"host": at.hostname, "port": at.port or 3306, "user": unquote(at.username or "")}
    login |= {"password": unquote(at.password or ""), "database": at.path[1:]}
    with pymysql.connect(**login, autocommit=True) as database:
        place = make_changes(database.cursor())
    properties = dict(pair.split("=") for pair in FIXED.split())
    properties |= {"database.hostname": at.hostname, "database.port": str(login["port"])}
    properties |= {"database.user": login["user"], "database.password": login["password"]}
    properties |= {"database.include.list": at.path[1:], "database.server.id": str(2**30 + 7)}
    jpype.startJVM(classpath=[str(jar.resolve()) for jar in Path(jars).glob("*.jar")])
    os.chdir(tempfile.mkdtemp())  # the offset is stored where it stands
    store_offset(*place)
    handler = Handler()
    engine = DebeziumEngine(properties, handler)
    threading.Thread(target=engine.run, daemon=True).start()
    came = handler.ended.wait(SECONDS)
    version = next(event["value"]["source"]["version"] for event in handler.events)
    text = json.dumps({"debezium": version, "events": handler.events}, indent=1, ensure_ascii=False)
    (FOLDER / "mariadb.json").write_text(text + "\n")
    print(f"{len(handler.events)} events of {version}")
    sys.stdout.flush()
    os._exit(0 if came else 1)  # the engine's threads do not end


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
