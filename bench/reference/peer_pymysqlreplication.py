"""mysql-replication with a handler of single rows, until so many changes came.

As its documentation says for speed: events and tables that nobody wants are left out as early as
it can, nothing is logged, and the table's layout is taken from the binlog alone.
"""

import json
import sys
import time
from importlib.metadata import version
from urllib.parse import unquote, urlsplit

from pymysqlreplication import BinLogStreamReader
from pymysqlreplication.row_event import DeleteRowsEvent, UpdateRowsEvent, WriteRowsEvent

given = json.loads(sys.argv[1])
warm, last, at = given["warm"], given["warm"] + given["count"], urlsplit(given["database"])
login = {"host": at.hostname, "port": at.port, "user": unquote(at.username)}
login |= {"passwd": unquote(at.password or ""), "read_timeout": given["seconds"]}
settings = {"blocking": True, "resume_stream": True, "server_id": given["server_id"]}
settings |= {"log_file": given["file"], "log_pos": given["offset"]}
settings |= {"only_schemas": [at.path[1:]], "only_tables": [given["table"]]}
settings |= {"freeze_schema": True, "enable_logging": False}
EVENTS = [WriteRowsEvent, UpdateRowsEvent, DeleteRowsEvent]


class Handler:
    count, sample, began = 0, [], 0.0

    def __call__(self, op, before, after):
        self.count += 1
        if self.count == warm:
            self.began = time.perf_counter()
        if self.count % given["sampled"] == 0:
            self.sample.append([op, before, after])


def read(stream, handle):
    """Seconds that the changes behind the warm-up took."""
    for event in stream:
        kind = type(event)
        for row in event.rows:
            if kind is UpdateRowsEvent:
                handle("update", row["before_values"], row["after_values"])
            elif kind is WriteRowsEvent:
                handle("create", None, row["values"])
            else:
                handle("delete", row["values"], None)
            if handle.count == last:
                return time.perf_counter() - handle.began
    raise RuntimeError(f"the log ended behind {handle.count} changes")


handler = Handler()
seconds = read(BinLogStreamReader(login, only_events=EVENTS, **settings), handler)
facts = {"changes": handler.count, "peer": version("mysql-replication")}
facts["sample"] = json.loads(json.dumps(handler.sample, default=str))
print(json.dumps({"figure": given["count"] / seconds, **facts}))
