"""Change data capture from MariaDB's binary log: as fast as what.

The backlog is written once: transactions of 1000 changes - three inserts to one update and one
delete - of a table of six columns, with whole rows and the names of their columns in the log.
Every repeat reads the same log from the same place, and the first quarter warms a side up.
Invariant: a side has read exactly what was written, and of every 733rd change the same values as
the side before it, or its row fails.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from bench.measure import Row, Sample, Scale, Sides
from bench.places import connect_mariadb, folder, mariadb
from bench.process import run_side
from bench.rows.peers import beside
from duly.databases.mysql.changes import MysqlChanges
from duly.runtime.clock import SystemClock
from duly.sources import TableSpec
from tools.peers import PeersMissingError, peers_python
from tools.services import maven
from tools.services.processes import ServerFailedError

__all__ = ["ROWS"]

Peer = Callable[[int], Sample]
COUNT, SIZE, INSERTS = 300_000, 1_000, 600
SAMPLED = 733  # a prime far from SIZE: it meets every kind of change soon
WAITS_SECONDS = 150.0
TABLE = "orders"
OURS, REPLICATION = "ours.binlog", "reference.peer_pymysqlreplication"
DEBEZIUM = "reference.peer_pydbzengine_mariadb"
# The newest connector for MariaDB that there is as a jar; pydbzengine brings none.
VERSION = "3.5.0.Final"
ARTIFACTS = (
    f"io.debezium:debezium-connector-mariadb:{VERSION}",
    f"io.debezium:debezium-embedded:{VERSION}",
)
# As it reads from a place in the log; the peer says what is set for speed.
DEBEZIUM_READS = """
name=bench topic.prefix=bench connector.class=io.debezium.connector.mariadb.MariaDbConnector
snapshot.mode=recovery schema.history.internal=io.debezium.relational.history.MemorySchemaHistory
offset.storage=org.apache.kafka.connect.storage.FileOffsetBackingStore
offset.storage.file.filename=offsets include.schema.changes=false tombstones.on.delete=false
key.converter.schemas.enable=false value.converter.schemas.enable=false
"""
FACTS = ("version", "binlog_row_image", "binlog_row_metadata", "binlog_checksum", "sync_binlog")

_TABLE = """
CREATE TABLE orders (id BIGINT PRIMARY KEY, customer VARCHAR(100) NOT NULL,
    amount DECIMAL(12,2) NOT NULL, paid BOOLEAN NOT NULL, placed_at TIMESTAMP(6) NOT NULL,
    detail JSON NOT NULL)
"""
_BACKLOG = f"""
CREATE PROCEDURE backlog(rounds INT) BEGIN
    DECLARE past BIGINT DEFAULT 0;
    SET time_zone = '+00:00';
    WHILE past < rounds * {INSERTS} DO
        START TRANSACTION;
        INSERT INTO orders SELECT past + seq, CONCAT('customer-', (past + seq) % 1000),
            (past + seq) % 100000 / 100, seq % 2,
            TIMESTAMP '2026-01-01 00:00:00.123456' + INTERVAL past + seq SECOND,
            JSON_OBJECT('no', past + seq, 'note', 'left at the door')
            FROM seq_1_to_{INSERTS};
        UPDATE orders SET paid = NOT paid, amount = amount + 1
            WHERE id BETWEEN past + 1 AND past + 200;
        DELETE FROM orders WHERE id BETWEEN past + 401 AND past + {INSERTS};
        COMMIT;
        SET past = past + {INSERTS};
    END WHILE;
END
"""


class Ground:
    """A database with a table that is captured, and where in the log its changes begin."""

    def __init__(self, url: str, count: int) -> None:
        self.url = url
        self._admin = connect_mariadb(url)
        self._ask(_TABLE)
        source = MysqlChanges(url, reader="bench", clock=SystemClock())
        self._position = asyncio.run(source.prepare([TableSpec(TABLE, before_image=True)]))
        self._file, self._offset = self._ask("SHOW MASTER STATUS")[:2]
        self._gtid = self._ask(f"SELECT BINLOG_GTID_POS('{self._file}', {self._offset})")[0]
        self._ask(_BACKLOG)
        self._ask(f"CALL backlog({count // SIZE})")
        self._sample: list[Any] = []

    def _ask(self, statement: str) -> Any:
        with self._admin.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchone()

    def read(self, module: str, python: Path, /, **given: Any) -> Sample:
        """A side that reads the backlog, or the beginning of it."""
        given |= {"database": self.url, "table": TABLE, "sampled": SAMPLED}
        given |= {"position": self._position, "file": self._file, "offset": self._offset}
        given["gtid"] = self._gtid
        with folder() as place:
            given |= {"seconds": WAITS_SECONDS, "place": str(place)}
            figure, told = run_side(module, python, **given)
        facts = dict(told)
        if facts["changes"] != given["warm"] + given["count"]:
            raise RuntimeError(f"{facts['changes']} changes were read by {module}")
        sample = facts.pop("sample")
        if len(sample) != facts["changes"] // SAMPLED:
            raise RuntimeError(f"{module} kept {len(sample)} changes")
        for one, other in zip(self._sample, sample, strict=False):
            if one != other:
                raise RuntimeError(f"{module} read {other}, not {one}")
        self._sample = max(self._sample, sample, key=len)
        names = ", ".join(f"@@{name}" for name in FACTS)
        server = dict(zip(FACTS, self._ask(f"SELECT {names}"), strict=True))
        return Sample(figure, {**server, "values_compared": len(sample), **facts})

    def close(self) -> None:
        """Leave the server."""
        self._admin.close()


@contextmanager
def _open(scale: Scale, *, peer: Callable[[Ground], Peer], envelope: bool) -> Iterator[Sides]:
    count = scale.of(COUNT, least=3 * SIZE) // (3 * SIZE) * (3 * SIZE)
    with mariadb() as url, closing(Ground(url, count + count // 3)) as ground:
        given = {"warm": count // 3, "count": count, "envelope": envelope}
        yield beside(partial(ground.read, OURS, Path(sys.executable), **given), peer(ground), count)


def _replication(ground: Ground) -> Peer:
    return lambda count: ground.read(
        REPLICATION, peers_python(), warm=count // 3, count=count, server_id=_server_id()
    )


def _debezium(ground: Ground) -> Peer:
    at = urlsplit(ground.url)
    reads = dict(pair.split("=") for pair in DEBEZIUM_READS.split())
    reads |= {"database.hostname": str(at.hostname), "database.port": str(at.port)}
    reads |= {
        "database.user": unquote(at.username or ""),
        "table.include.list": f"{at.path[1:]}.{TABLE}",
    }
    reads |= {"database.password": unquote(at.password or ""), "database.include.list": at.path[1:]}

    def read(count: int) -> Sample:
        properties = {**reads, "database.server.id": str(_server_id())}
        given = {"warm": count // 3, "count": count, "properties": properties}
        return ground.read(DEBEZIUM, peers_python(), jars=str(_jars()), **given)

    return read


def _server_id() -> int:
    """One that no replica has."""
    return random.randrange(2**30, 2**31)


def _jars() -> Path:
    try:
        return maven.fetch(f"debezium-mariadb-{VERSION}", ARTIFACTS)
    except (OSError, ServerFailedError) as error:
        raise PeersMissingError(str(error)) from error


ROWS = (
    Row(
        "cdc binlog mysql-replication",
        "changes/s",
        "mysql-replication on the same binlog, rows as dicts to a handler; ours: whole "
        "transactions, decoded, as JSON to a handler",
        partial(_open, peer=_replication, envelope=False),
    ),
    Row(
        "cdc binlog debezium",
        "changes/s",
        "Debezium embedded for MariaDB, the same binlog as its JSON envelope to a Python handler, "
        "warm; ours: the same envelope",
        partial(_open, peer=_debezium, envelope=True),
    ),
)
