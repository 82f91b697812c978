"""A process that makes business transactions with messages in them, and writes down what was
acknowledged.

The *steady* one is never killed and journals with fsync; the *mortal* one is killed in its flush,
and its parent keeps what it reports through a pipe.  Invariant: ``begin`` is reported before the
first statement, ``try`` before the commit is asked for, ``ack`` after it returned, and the order
within a key is given by the transaction itself: a counter row per key, so that commit order and
number agree whatever the ids do.

    session  SQLAlchemy: counters first, published along the way, savepoints, written at the commit
    core     one connection for two transactions; the flush of the first may fail
    raw      the driver's own connection: published (and stored) first, then the counter, so that
             only the stripe lock of the publish keeps two writers of a key in order
"""

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

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from duly.app import App
from duly.errors import RetryableError
from duly.testing.failpoints import arm, parse
from duly.testing.journal import Journal
from tests.crash.plain_mysql import NEXT, Error, connect, in_mysql
from tests.crash.shop import Charge, Noted, make_app
from tests.crash.stage import HOT_KEYS, KEYS
from tests.crash.stop import Stop

ROLLBACK_CHANCE = 0.06
SAVEPOINT_CHANCE = 0.2
KEYLESS_CHANCE = 0.15
COMMAND_CHANCE = 0.08
SLOW_CHANCE = 0.04
TROUBLE_CHANCE = 0.02
FLUSH_ERROR_CHANCE = 0.3
REFUSE_CHANCE = 0.015
LINES_MAX = 5

Report = Callable[..., None]
_log = logging.getLogger("crash.producer")


def main(config: dict[str, Any]) -> int:
    """Produce until SIGTERM; the exit code."""
    logging.basicConfig(level=logging.WARNING)
    stop = Stop()
    app = make_app(config)
    threads = [
        threading.Thread(target=Writer(app, config, number, stop=stop).run, daemon=True)
        for number in range(config["writers"])
    ]
    arm(*parse(config.get("plan", "")))
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        time.sleep(0.05)
    return 0


def reporter(config: dict[str, Any]) -> Report:
    """Where reports go: a journal of one's own, or a pipe to the parent."""
    if not config.get("pipe"):
        return Journal(f"{config['folder']}/acks-{os.getpid()}.jsonl").append
    pipe = os.open(config["pipe"], os.O_WRONLY)

    def report(what: str, **values: Any) -> None:
        import json

        line = json.dumps({"what": what, "pid": os.getpid(), **values}).encode() + b"\n"
        assert len(line) < 4096  # one write to a pipe is whole up to this size
        os.write(pipe, line)

    return report


class LateError(Exception):
    """A late value could not be computed, in the middle of a commit."""


def _raise_late() -> Noted:
    raise LateError


class Writer:
    """One thread of transactions."""

    def __init__(self, app: App, config: dict[str, Any], number: int, *, stop: Stop) -> None:
        self._app, self._config, self._stop = app, config, stop
        self._name = f"{os.getpid()}-{number}"
        self._chance = random.Random(f"{config['seed']}-{self._name}")
        self._report = reporter(config)
        self._sqlite = config["database"].startswith("sqlite")
        self._mysql = config["database"].startswith("mysql")
        self._pace = Path(config["folder"]) / "pace"
        self._count = 0
        self._raw: Any = None
        self._last_words = number == 0 and not self._sqlite and not config.get("pipe")

    def run(self) -> None:
        """Transactions, one after the other, at the pace that the driver sets."""
        while not self._stop.is_set():
            self._wait()
            if self._stop.is_set():
                break
            self._count += 1
            try:
                style = self._chance.choices(
                    (self._by_session, self._by_driver, self._by_connection), (5, 5, 2)
                )[0]
                style()
            except (RetryableError, DBAPIError, sqlite3.OperationalError, *_DRIVER_ERRORS) as error:
                self._raw = None
                _log.warning("%s: %s", self._name, str(error)[:200])
                time.sleep(0.05)
        if self._last_words:
            self._straddle()

    def _straddle(self) -> None:
        """A transaction whose message is stored early and committed late, after many later ones
        were read."""
        early, key = self._connect(), "straddle"
        txn = f"{self._name}-straddle"
        kept = [
            self._app.publish(early, self._plain(), **({"key": key} if n else {})) for n in range(2)
        ]
        for _ in range(5):
            self._count += 1
            self._by_session()
            time.sleep(0.7)
        seq = self._next(early, key)
        insert = self._sql(
            "INSERT INTO crash_sent (message_id, kind, key, seq, txn) VALUES (?, 'event', ?, ?, ?)"
        )
        for message_id, at in zip(kept, ((None, None), (key, seq)), strict=True):
            early.execute(insert, (message_id, *at, txn))
        self._report("begin", txn=txn)
        self._report("try", txn=txn, ids=kept, back=False)
        early.commit()
        early.close()
        self._report("ack", txn=txn)

    def _plain(self) -> Noted:
        return Noted(n=self._number(), key="")

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

    # --- one Core connection for many transactions ----------------------------------------------
    def _by_connection(self) -> None:
        """Two transactions on one connection; the first may fail in its flush, and must leave
        nothing behind."""
        with self._app.database.engine().connect() as connection:
            for number in range(2):
                txn = f"{self._name}-{self._count}-{number}"
                breaks = number == 0 and self._chance.random() < FLUSH_ERROR_CHANCE
                self._report("begin", txn=txn)
                try:
                    with connection.begin():
                        message_id = self._app.publish(connection, self._noted(None))
                        if breaks:
                            self._app.publish(connection, _raise_late)
                        self._remember(connection, message_id, "event", txn=txn)
                        self._report("try", txn=txn, ids=[message_id], back=breaks)
                except LateError:
                    continue
                self._report("ack", txn=txn)

    # --- a SQLAlchemy session -------------------------------------------------------------------
    def _by_session(self) -> None:
        txn = f"{self._name}-{self._count}"
        kept: list[str] = []
        self._report("begin", txn=txn)
        with Session(self._app.database.engine()) as session, session.begin() as transaction:
            for key in self._keys():
                kept += self._line(session, key, txn)
            if self._chance.random() < SAVEPOINT_CHANCE:
                kept += self._savepoint(session, txn)
            rolled = self._chance.random() < ROLLBACK_CHANCE
            self._report("try", txn=txn, ids=kept, back=rolled)
            if rolled:
                transaction.rollback()
        if not rolled:
            self._report("ack", txn=txn)

    def _keys(self) -> list[str | None]:
        count = self._chance.randint(1, LINES_MAX - 1)
        keyed = sorted(
            f"k{self._chance.randrange(KEYS):03}" for _ in range(count)
        )  # one order for all
        return [None if self._chance.random() < KEYLESS_CHANCE else key for key in keyed]

    def _line(self, session: Session, key: str | None, txn: str) -> list[str]:
        if key is None and self._chance.random() < COMMAND_CHANCE / KEYLESS_CHANCE:
            message_id = self._app.send(session, Charge(n=self._number()))
            self._remember(session, message_id, "command", txn=txn)
            return [message_id]
        seq = None
        if key is not None:
            if self._mysql:
                counted: Any = session.execute(self._text(NEXT.replace("?", ":key")), {"key": key})
                seq = counted.lastrowid
            else:
                sql = text("UPDATE crash_key SET n = n + 1 WHERE key = :key RETURNING n")
                seq = session.execute(sql, {"key": key}).scalar_one()
        keyed = {"key": key} if key is not None else {}
        message_id = self._app.publish(session, self._noted(key), **keyed)
        self._remember(session, message_id, "event", key=key, seq=seq, txn=txn)
        return [message_id]

    def _savepoint(self, session: Session, txn: str) -> list[str]:
        """A savepoint that is kept or rolled back with its message."""
        nested = session.begin_nested()
        inside = self._line(session, f"k{KEYS - 1:03}", txn)
        if self._chance.random() < 0.5:
            nested.rollback()
            return []
        nested.commit()
        return inside

    def _remember(
        self, session: Session | Connection, message_id: str, kind: str, **more: Any
    ) -> None:
        values = {"key": None, "seq": None, **more, "id": message_id, "kind": kind}
        sql = (
            "INSERT INTO crash_sent (message_id, kind, key, seq, txn) "
            "VALUES (:id, :kind, :key, :seq, :txn)"
        )
        session.execute(self._text(sql), values)

    def _noted(self, key: str | None) -> Noted:
        chance = self._chance.random()
        refuse, trouble = (
            chance < REFUSE_CHANCE,
            REFUSE_CHANCE <= chance < REFUSE_CHANCE + TROUBLE_CHANCE,
        )
        return Noted(n=self._number(), key=key or "", refuse=refuse, trouble=trouble)

    def _number(self) -> int:
        return self._chance.randrange(10**9)

    # --- the driver's own connection ------------------------------------------------------------
    def _by_driver(self) -> None:
        txn = f"{self._name}-{self._count}"
        self._report("begin", txn=txn)
        raw = self._raw = self._raw or self._connect()
        if self._sqlite:
            raw.execute("BEGIN IMMEDIATE")
        key = f"hot{self._chance.randrange(HOT_KEYS)}"
        kept = []
        try:
            for _ in range(self._chance.randint(1, 3)):
                kept.append(self._app.publish(raw, self._noted(key), key=key))
                time.sleep(self._chance.random() * 0.004)  # others may slip in here, if they can
                seq = self._next(raw, key)
                insert = (
                    "INSERT INTO crash_sent (message_id, kind, key, seq, txn) "
                    "VALUES (?, 'event', ?, ?, ?)"
                )
                raw.execute(self._sql(insert), (kept[-1], key, seq, txn))
            if not self._sqlite and self._chance.random() < SLOW_CHANCE:
                time.sleep(self._chance.random() * 0.2)
            rolled = self._chance.random() < ROLLBACK_CHANCE
            self._report("try", txn=txn, ids=kept, back=rolled)
            raw.rollback() if rolled else raw.commit()
        except BaseException:
            with suppress(Exception):
                raw.rollback()
            raise
        if not rolled:
            self._report("ack", txn=txn)

    def _next(self, raw: Any, key: str) -> int:
        """Count a key up, and its new number."""
        if self._mysql:
            return int(raw.execute(NEXT, (key,)).lastrowid)
        update = self._sql("UPDATE crash_key SET n = n + 1 WHERE key = ? RETURNING n")
        return int(raw.execute(update, (key,)).fetchone()[0])

    def _sql(self, sql: str) -> str:
        return sql if self._sqlite or self._mysql else sql.replace("?", "%s")

    def _text(self, sql: str) -> Any:
        return text(in_mysql(sql) if self._mysql else sql)

    def _connect(self) -> Any:
        if self._sqlite:
            path = self._config["database"].removeprefix("sqlite:///")
            return sqlite3.connect(path, timeout=20, isolation_level=None, check_same_thread=False)
        if self._mysql:
            return connect(self._config["database"], autocommit=False)
        import psycopg

        return psycopg.connect(self._config["database"], connect_timeout=10)


def _driver_error() -> tuple[type[Exception], ...]:
    import psycopg

    return (psycopg.Error, Error)


_DRIVER_ERRORS = _driver_error()
