"""A process that changes the source's tables and keeps their history; never killed.

It knows nothing of duly but the marks and words that any service may write.  Invariant: a line of
``cdc_history`` stands in the transaction of its change, behind it - its lock is held by then -
and ``try`` is journalled with fsync before the commit is asked for, ``ack`` after it returned.

    rows        a few inserts, updates, deletes and keys that change; savepoints kept and undone
    emptied     all of small: one TRUNCATE, or the rows one by one where there is none
    bulk        thousands of rows at once, some of them in a savepoint that is undone"""

from __future__ import annotations

import logging
import os
import random
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from duly.testing.journal import Journal
from tests.crash import plain_mysql
from tests.crash.cdc_stage import BULK_EVERY, INTENT, ITEMS, SMALLS
from tests.crash.stop import Stop

ROLLBACK_CHANCE = 0.08
SAVEPOINT_CHANCE = 0.25
MARK_CHANCE = 0.5
EMPTY_CHANCE = 0.01
BULK_CHANCE = 0.012
KEY_CHANGE_CHANCE = 0.1
XA_CHANCE = 0.2  # of MariaDB's transactions, prepared before they are decided
FAT_CHANCE = 0.2
FAT_BYTES = 6000  # large enough to be kept out of line, and left out of an update
BULK_ROWS, UNDONE_ROWS = 5200, 1500
FILLER = "x" * 400
VERSIONS = 1_000_000_000  # of one thread
_log = logging.getLogger("crash.cdc")


def main(config: dict[str, Any]) -> int:
    """Write until SIGTERM; the exit code."""
    logging.basicConfig(level=logging.WARNING)
    stop = Stop()
    writers = [Writer(config, number, stop=stop) for number in range(config["writers"])]
    threads = [threading.Thread(target=one.run, daemon=True) for one in writers]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        time.sleep(0.05)
    return int(any(one.broken for one in writers))


class Writer:
    """One thread of transactions."""

    def __init__(self, config: dict[str, Any], number: int, *, stop: Stop) -> None:
        self._config, self._stop = config, stop
        self._name = f"{os.getpid()}-{number}"
        self._chance = random.Random(f"{config['seed']}-{number}")
        self._journal = Journal(f"{config['folder']}/acks-{self._name}.jsonl")
        self._url = config["database"]
        self._sqlite = self._url.startswith("sqlite")
        self._mysql = self._url.startswith("mysql")
        self._pace = Path(config["folder"]) / "pace"
        self._v = VERSIONS * (number + 1)
        self._bulk = 1_000_000 * (number + 1)  # the keys of this thread
        self._filled = 0
        self._db: Any = None
        self._lines = 0
        self._txn = ""
        self._marked = False
        self.broken = False

    def run(self) -> None:
        """Transactions, one after the other, at the pace that the driver sets."""
        count = 0
        try:
            while not self._stop.is_set():
                self._wait()
                count += 1
                self._txn = f"{self._name}-{count}"
                chance = self._chance.random()
                work: Callable[[], None] = self._rows
                if chance < EMPTY_CHANCE:
                    work = self._empty
                elif chance < EMPTY_CHANCE + BULK_CHANCE:
                    work = self._fill
                self._transaction(work)
        except BaseException:
            self.broken = True
            raise

    def _wait(self) -> None:
        while not self._stop.is_set():
            try:
                pause = float(self._pace.read_text() or 0)
            except (OSError, ValueError):
                pause = 0.05
            if pause < 1:
                time.sleep(pause)
                return
            time.sleep(0.05)

    # --- a transaction --------------------------------------------------------------------------
    def _transaction(self, work: Callable[[], None]) -> None:
        self._lines = 0
        self._journal.append("begin", txn=self._txn)
        try:
            self._db = self._db or self._connect()
            prepared = self._mysql and self._chance.random() < XA_CHANCE
            self._run(self._begin(prepared=prepared))
            # Unmarked, each change of SQLite is a transaction of its own, and has no meaning.
            self._marked = self._chance.random() < MARK_CHANCE or work == self._fill
            self._mark("BEGIN")
            work()
            self._mean()
            self._mark("COMMIT")
            rolled = self._chance.random() < ROLLBACK_CHANCE
            self._journal.append("try", txn=self._txn, count=self._lines, back=rolled)
            self._end("ROLLBACK" if rolled else "COMMIT", prepared=prepared)
            if not rolled:
                self._journal.append("ack", txn=self._txn)
        except _errors() as error:
            _log.warning("%s: %s", self._name, str(error)[:200])
            with suppress(Exception):
                self._db.close()
            self._db = None
            time.sleep(0.05)

    def _begin(self, *, prepared: bool) -> str:
        if prepared:
            return f"XA START '{self._txn}'"
        return "BEGIN IMMEDIATE" if self._sqlite else "BEGIN"

    def _end(self, verb: str, *, prepared: bool) -> None:
        if prepared:
            for first in ("END", "PREPARE"):
                self._run(f"XA {first} '{self._txn}'")
            time.sleep(self._chance.random() * 0.1)
        self._run(f"XA {verb} '{self._txn}'" if prepared else verb)

    def _mark(self, which: str) -> None:
        if self._sqlite and self._marked:
            self._run("INSERT INTO duly_intent (name) VALUES (?)", which)

    def _mean(self) -> None:
        """What the transaction means, and how many changes of rows are in it."""
        if not self._marked:
            return
        sql = "SELECT count(*) FROM cdc_history WHERE txn = ? AND tbl IN ('item', 'small')"
        count = self._run(sql, self._txn).fetchone()[0]
        if not count:
            return
        if self._sqlite or self._mysql:
            self._run("INSERT INTO duly_intent (name, data) VALUES (?, ?)", INTENT, self._txn)
        else:
            name = f"duly.intent:{INTENT}"
            self._run("SELECT pg_logical_emit_message(true, ?, ?)", name, self._txn)
        self._line("", "meaning", self._txn, new=count)

    # --- a few rows -----------------------------------------------------------------------------
    def _rows(self) -> None:
        for _ in range(self._chance.randint(1, 4)):
            self._row()
        if self._chance.random() < SAVEPOINT_CHANCE:
            before = self._lines
            self._run("SAVEPOINT inside")
            self._row()
            if self._chance.random() < 0.5:
                self._run("ROLLBACK TO inside")
                self._lines = before
            self._run("RELEASE SAVEPOINT inside")

    def _row(self) -> None:
        table = "item" if self._chance.random() < 0.8 else "small"
        key = self._chance.randrange(2 * (ITEMS if table == "item" else SMALLS))
        lock = "" if self._sqlite else " FOR UPDATE"
        found = self._run(f"SELECT v FROM {table} WHERE id = ?{lock}", key).fetchone()
        if found is None:
            self._insert(table, key)
        elif self._chance.random() < 0.3:
            self._run(f"DELETE FROM {table} WHERE id = ?", key)
            self._line(table, "delete", str(key), old=found[0])
        elif self._chance.random() < KEY_CHANGE_CHANCE:
            self._move(table, key, old=found[0])
        else:
            v = self._next()
            fat = table == "item" and self._chance.random() < FAT_CHANCE
            note = f", note = '{self._chance.randbytes(FAT_BYTES // 2).hex()}'" if fat else ""
            self._run(f"UPDATE {table} SET v = ?{note} WHERE id = ?", v, key)
            self._line(table, "update", str(key), old=found[0], new=v)

    def _insert(self, table: str, key: int) -> None:
        v = self._next()
        more, value = (", note", ", 'new'") if table == "item" else ("", "")
        sql = f"INSERT INTO {table} (id, v{more}) VALUES (?, ?{value}) ON CONFLICT DO NOTHING"
        if self._mysql:
            sql = f"INSERT IGNORE INTO {table} (id, v{more}) VALUES (?, ?{value})"
        if self._run(sql, key, v).rowcount:
            self._line(table, "create", str(key), new=v)

    def _move(self, table: str, key: int, *, old: int) -> None:
        to = self._chance.randrange(2 * (ITEMS if table == "item" else SMALLS))
        if to == key or self._run(f"SELECT 1 FROM {table} WHERE id = ?", to).fetchone():
            return
        v = self._next()
        self._run(f"UPDATE {table} SET id = ?, v = ? WHERE id = ?", to, v, key)
        self._line(table, f"move {key}", str(to), old=old, new=v)

    # --- many rows ------------------------------------------------------------------------------
    def _empty(self) -> None:
        if not (self._sqlite or self._mysql):  # MariaDB's is a transaction of its own
            self._run("TRUNCATE small")
            self._line("small", "truncate", "")
            return
        lock = "" if self._sqlite else " FOR UPDATE"  # without it rows as they were when it began
        for key, v in self._run(f"SELECT id, v FROM small ORDER BY id{lock}").fetchall():
            self._run("DELETE FROM small WHERE id = ?", key)
            self._line("small", "delete", str(key), old=v)

    def _fill(self) -> None:
        """Thousands of rows, with some that are undone in their midst; and away with older ones."""
        self._numbers(self._bulk + self._filled, BULK_ROWS // 2)
        before = self._lines
        self._run("SAVEPOINT inside")
        self._numbers(self._bulk + self._filled + BULK_ROWS, UNDONE_ROWS)
        self._run("ROLLBACK TO inside")
        self._lines = before
        self._run("RELEASE SAVEPOINT inside")
        self._numbers(self._bulk + self._filled + BULK_ROWS // 2, BULK_ROWS // 2)
        low = self._bulk + self._filled - 2 * BULK_ROWS
        high = low + BULK_ROWS
        told = "FROM bulk WHERE id >= ? AND id < ? AND id % ? = 0"
        lines = self._run(
            "INSERT INTO cdc_history (tbl, op, key, old, txn) "
            f"SELECT 'bulk', 'delete', CAST(id AS varchar(20)), NULL, ? {told} ORDER BY id",
            *(self._txn, low, high, BULK_EVERY),
        )
        self._lines += lines.rowcount
        self._run("DELETE FROM bulk WHERE id >= ? AND id < ?", low, high)
        self._filled += 2 * BULK_ROWS  # of the undone ones, too: they must never be told

    def _numbers(self, first: int, count: int) -> None:
        many = (
            "WITH RECURSIVE n(i) AS (SELECT CAST(? AS integer) UNION ALL SELECT i + 1 FROM n "
            "WHERE i < ?) INSERT INTO bulk (id, v, filler) SELECT i, i, ? FROM n"
        )
        if self._mysql:
            numbers = f"seq_{first}_to_{first + count - 1}"
            self._run(f"INSERT INTO bulk (id, v, filler) SELECT seq, seq, ? FROM {numbers}", FILLER)
        else:
            self._run(many, first, first + count - 1, FILLER)
        lines = self._run(
            "INSERT INTO cdc_history (tbl, op, key, new, txn) "
            "SELECT 'bulk', 'create', CAST(id AS varchar(20)), v, ? FROM bulk "
            "WHERE id >= ? AND id < ? AND id % ? = 0 ORDER BY id",
            *(self._txn, first, first + count, BULK_EVERY),
        )
        self._lines += lines.rowcount

    # --- details --------------------------------------------------------------------------------
    def _next(self) -> int:
        self._v += 1
        return self._v

    def _line(
        self, table: str, op: str, key: str, *, old: int | None = None, new: int | None = None
    ) -> None:
        sql = "INSERT INTO cdc_history (tbl, op, key, old, new, txn) VALUES (?, ?, ?, ?, ?, ?)"
        self._run(sql, table, op, key, old, new, self._txn)
        self._lines += 1

    def _run(self, sql: str, *values: Any) -> Any:
        if not self._sqlite:
            sql = sql.replace("%", "%%").replace("?", "%s")
        if self._mysql:
            sql = sql.replace("AS varchar(20))", "AS char(20))")
        return self._db.execute(sql, values)

    def _connect(self) -> Any:
        if self._sqlite:
            path = self._url.removeprefix("sqlite:///")
            return sqlite3.connect(path, timeout=30, isolation_level=None)
        if self._mysql:
            return plain_mysql.connect(self._url, autocommit=True)
        import psycopg

        options = "-c deadlock_timeout=100ms -c lock_timeout=5s"
        return psycopg.connect(self._url, autocommit=True, connect_timeout=10, options=options)


def _errors() -> tuple[type[Exception], ...]:
    import psycopg

    return (psycopg.Error, sqlite3.OperationalError, plain_mysql.Error)
