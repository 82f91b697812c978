"""Where one run of change data capture takes place: source tables, their history, what arrived.

The source's writer keeps a *history* of its changes in the very transactions that make them, so
that what was rolled back is not in there, and a row's lock puts its lines in the order of the
commits.  Nothing here imports duly.

    item         rows with all their old values; keys change, rows come back
    small        emptied now and then
    bulk         thousands of rows in one transaction, captured without old values
    cdc_history  one line per committed change that a rule is to tell
    cdc_effect   one line per event, in the handler's transaction

A change is named by the ``v`` of its row before and after it, which are never given twice."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.crash.stage import Stage, new_database, now

CDC_PAIRS = ("cdc postgres", "cdc sqlite", "cdc mariadb")
CDC_POSTGRES, CDC_SQLITE, CDC_MARIADB = CDC_PAIRS
EFFECT_PAIRS = ("cdc effects postgres", "cdc effects sqlite", "cdc effects mariadb")
SINK_PAIRS = (
    "cdc sink sql postgres",
    "cdc sink sql sqlite",
    "cdc sink sql mariadb",
    "cdc sink redis postgres",
    "cdc sink redis sqlite",
)
CAPTURES = (*CDC_PAIRS, *EFFECT_PAIRS, *SINK_PAIRS)  # the last word of each is its source
STREAM = "crash"
EFFECTS = "effects"  # which rules an App has: those that write in the position's transaction
INTENT = "crash.meaning"
ITEMS = 120  # rows at the start; keys go up to twice as many
SMALLS = 30
BULK_EVERY = 100  # one row in so many of bulk is told
CHUNK_ROWS = 20  # of a snapshot, so that a table has many chunks
EXISTED = ("load", "gap")  # lines of the history that no event tells
_SLOT_SECONDS = 20.0

_SOURCE = """
CREATE TABLE item (id integer PRIMARY KEY, v bigint NOT NULL, note {text} NOT NULL);
CREATE TABLE small (id integer PRIMARY KEY, v bigint NOT NULL);
CREATE TABLE bulk (id integer PRIMARY KEY, v bigint NOT NULL, filler {text} NOT NULL);
CREATE TABLE cdc_history (
    seq {identity}, tbl varchar(10) NOT NULL, op varchar(10) NOT NULL, key varchar(80) NOT NULL,
    old bigint, new bigint, txn varchar(80) NOT NULL);
CREATE TABLE cdc_effect (
    id {identity}, message_id varchar(64) NOT NULL, body {text} NOT NULL, headers {text} NOT NULL,
    pid integer NOT NULL);
"""
_TYPES = {
    "mysql": {"text": "text", "identity": "bigint AUTO_INCREMENT PRIMARY KEY"},
    "sqlite": {"text": "text", "identity": "integer PRIMARY KEY AUTOINCREMENT"},
    "postgres": {"text": "text", "identity": "bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY"},
}
_POSTGRES = """
ALTER TABLE item REPLICA IDENTITY FULL;
ALTER TABLE small REPLICA IDENTITY FULL
"""
_MYSQL = """
CREATE TABLE duly_intent (
    id bigint AUTO_INCREMENT PRIMARY KEY, name varchar(200) NOT NULL, data longblob)
"""
_MORE = {"mysql": _MYSQL, "postgres": _POSTGRES, "sqlite": ""}


class CdcStage(Stage):
    """A stage whose tables are those of a source."""

    def prepare(self) -> None:
        """Make the tables and load them; nothing is captured yet."""
        text = _SOURCE.format(**_TYPES[self.dialect])
        text += _MORE[self.dialect]
        with closing(self.connect()) as plain:
            if self.dialect == "sqlite":
                plain.execute("PRAGMA journal_mode = WAL")
            elif self.dialect == "postgres":  # large transactions are streamed while they run
                name = urlsplit(self.database).path[1:]
                plain.execute(f"ALTER DATABASE {name} SET logical_decoding_work_mem = '64kB'")
            for statement in text.split(";"):
                if statement.strip():
                    plain.execute(statement)
            self._load(plain)

    def _load(self, plain: Any) -> None:
        mark = "?" if self.dialect == "sqlite" else "%s"
        plain.execute("BEGIN")
        for table, count in (("item", ITEMS), ("small", SMALLS)):
            more, value = (", note", f", {mark}") if table == "item" else ("", "")
            for n in range(count):
                values = (n, n) + (("as it was loaded",) if more else ())
                marks = f"{mark}, {mark}{value}"
                plain.execute(f"INSERT INTO {table} (id, v{more}) VALUES ({marks})", values)
                line = "INSERT INTO cdc_history (tbl, op, key, new, txn) VALUES "
                marks = ", ".join([mark] * 5)
                plain.execute(f"{line} ({marks})", (table, "load", str(n), n, "load"))
        plain.execute("COMMIT")

    def offset(self) -> tuple[str, dict[str, Any]]:
        """Position and state of the stream; empty ones before its first start."""
        rows = self.rows("SELECT position, state FROM duly_offset WHERE stream = ?", (STREAM,))
        return (str(rows[0][0]), json.loads(rows[0][1])) if rows else ("", {})

    def snapshots_under_way(self) -> int:
        """How many tables are being read anew."""
        _, state = self.offset()
        return sum(not one.get("done") for one in state.get("tables", {}).values())

    def can_write(self) -> bool:
        """Whether nobody sits on the only writer's lock."""
        if self.dialect != "sqlite":
            return True
        path = self.database.removeprefix("sqlite:///")
        with closing(sqlite3.connect(path, timeout=1.0, isolation_level=None)) as plain:
            try:
                plain.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return False
        return True

    def told(self) -> int:
        """How many lines of the history are to come as events."""
        return self.number("SELECT count(*) FROM cdc_history WHERE op NOT IN ('load', 'gap')")

    def keep_tables(self) -> None:
        """Write the tables beside the journals."""
        names = ("item", "small", "cdc_history", "cdc_effect", "duly_outbox", "duly_inbox",
                 "duly_offset", "duly_lease")  # fmt: skip
        for name in names:
            with (self.folder / f"table-{name}.txt").open("w") as file:
                for row in self.rows(f"SELECT * FROM {name} ORDER BY 1"):
                    file.write(f"{row}\n"[:2000])

    def remove(self, *, keep_folder: bool = False) -> None:
        """Drop the slots, too: they would keep the server's log."""
        if self.dialect == "postgres" and self.server is None:
            self._drop_slots()
        super().remove(keep_folder=keep_folder)

    def _drop_slots(self) -> None:
        mine = "FROM pg_replication_slots WHERE database = current_database()"
        end = now() + _SLOT_SECONDS
        while self.number(f"SELECT count(*) {mine}"):
            self.rows(f"SELECT pg_terminate_backend(active_pid) {mine} AND active_pid IS NOT NULL")
            with suppress(Exception):  # its reader is on the way out; the end is bounded below
                self.rows(f"SELECT pg_drop_replication_slot(slot_name) {mine} AND NOT active")
            if now() > end:
                raise TimeoutError(f"a replication slot is still read after {_SLOT_SECONDS:.0f} s")
            time.sleep(0.05)


def make_cdc_stage(
    pair: str, folder: Path, *, server: str = "", kind: Callable[..., CdcStage] = CdcStage
) -> CdcStage:
    """A fresh stage; the broker is the embedded one. server: of the database, if it needs one."""
    path = folder / f"{pair.replace(' ', '-')}-{os.getpid()}-{int(now() * 1000)}"
    path.mkdir(parents=True)
    path = path.resolve()
    broker = f"embedded:///{path}/broker.db"
    if pair.endswith("sqlite"):
        stage = kind(path, "sqlite", f"sqlite:///{path}/app.db", broker)
    else:
        own = urlsplit(server)._replace(path=f"/{new_database(server)}").geturl()
        dialect = "mysql" if pair.endswith("mariadb") else "postgres"
        stage = kind(path, dialect, own, broker, admin=server)
    stage.prepare()
    return stage
