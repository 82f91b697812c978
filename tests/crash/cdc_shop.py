"""The App of the runs of change data capture: rules over the source's tables, and one consumer.
Or, as the config says, rules that write in the transaction of the position, or sinks.

Owns what a rule tells: the ``v`` of a row before and after each change.  Rules see row by row, row
by row without old values, and all of a transaction with what its writer meant by it."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from typing import Any

from sqlalchemy import text

import duly.cdc.outgoing as outgoing
import duly.databases.mysql.changes_snapshot as mysql_chunks
import duly.databases.postgres.changes_snapshot as postgres_chunks
import duly.databases.sqlite.changelog as sqlite_log
import duly.databases.sqlite.chunks as sqlite_chunks
from duly.app import App
from duly.cdc.effects import ChangeTx
from duly.inbox.transaction import Tx
from duly.kernel.backoff import Retry
from duly.kernel.changes import ABSENT, Change, Transaction
from duly.message import Event, Message
from tests.crash.cdc_copies import COPIES
from tests.crash.cdc_sinks import add_copies
from tests.crash.cdc_stage import BULK_EVERY, CHUNK_ROWS, EFFECTS, INTENT, STREAM

LOG_ROWS = 20  # of SQLite's changes in one read, so that a chunk has to wait for its place
PIECE = 15  # messages of a large transaction in one write
RAISE_CHANCE = 0.003
EFFECT_COLUMNS = "message_id, body, headers, pid"
PATIENT = Retry(attempts=2000, base="40ms", max="150ms")


class Told(Event, name="crash.told", topic="crash.told"):
    """One change of a row. old, new: its ``v``; was: its key before, where that changed."""

    table: str
    op: str
    key: str
    old: int | None = None
    new: int | None = None
    was: str = ""


class Meant(Event, name="crash.meant", topic="crash.told"):
    """A whole transaction. txn: as its writer called it; changes: of item and small."""

    txn: str
    changes: int


def make_app(config: dict[str, Any], *, broker: Any = None) -> App:
    """The App of one process."""
    app = App(
        STREAM,
        database=config["database"],
        broker=broker,
        batch_size=50,
        workers=2,
        lease_ttl=config["lease"],
        renew_every=config["renew"],
        send_timeout=config["send_timeout"],
        poll_every=0.3,
        handler_timeout=30,
        lock_timeout=10,
        drain_timeout=5,
        keep_sent=True,
    )
    postgres_chunks._FIRST_ROWS = postgres_chunks.CHUNK_ROWS_MAX = CHUNK_ROWS  # type: ignore[misc]
    mysql_chunks._FIRST_ROWS = mysql_chunks.CHUNK_ROWS_MAX = CHUNK_ROWS  # type: ignore[misc]
    sqlite_chunks.ROWS_MAX = CHUNK_ROWS
    sqlite_log.ROWS_MAX = LOG_ROWS
    outgoing.PIECE = PIECE
    rules = config.get("rules", "")
    if rules in COPIES:
        add_copies(app, COPIES[rules], config["targets"])
        return app
    mark = "?" if config["database"].startswith("sqlite") else "%s"
    if rules == EFFECTS:
        _writing_rules(app, mark)
    else:
        _rules(app)
    _consumer(app, mark)
    return app


def _rules(app: App) -> None:
    @app.cdc(tables=["item", "small"], on_snapshot=True)
    def rows(change: Change) -> Iterator[Told]:
        was = _key(change.before) if change.op == "update" else ""
        yield _told(change, was=was if was != _key(change.key) else "")

    @app.cdc(table="bulk", before=False)
    def bulk(change: Change) -> Iterator[Told]:
        if change.op == "truncate" or int(change.key["id"]) % BULK_EVERY == 0:
            yield _told(change)

    _meaning(app)


def _meaning(app: App) -> None:
    @app.cdc(tables=["item", "small"], transaction=True)
    def meaning(transaction: Transaction) -> Iterator[Meant]:
        intent = transaction.intent(INTENT)
        if intent is not None:
            yield Meant(txn=intent.data.decode(), changes=sum(1 for _ in transaction))


def _writing_rules(app: App, mark: str) -> None:
    """Rules that keep a line of ``cdc_effect`` in their own transaction, and now and then raise
    behind it. What a transaction means is still told by a message, out of the same commit.
    """
    insert = f"INSERT INTO cdc_effect ({EFFECT_COLUMNS}) VALUES ({mark}, {mark}, {mark}, {mark})"
    named = f"INSERT INTO cdc_effect ({EFFECT_COLUMNS}) VALUES (:id, :body, :headers, :pid)"

    def keep(change: Change, tx: ChangeTx, rule: str) -> None:
        was = _key(change.before) if change.op == "update" else ""
        told = _told(change, was=was if was != _key(change.key) else "")
        headers = {"cdcsource": change.source, "cdcposition": change.position}
        headers["cdcordinal"] = str(change.ordinal)
        values = (change.event_id(rule), _body(told, rule), json.dumps(headers), os.getpid())
        if change.table.endswith("small"):
            names = ("id", "body", "headers", "pid")
            tx.session.execute(text(named), dict(zip(names, values, strict=True)))
        else:
            tx.connection.cursor().execute(insert, values)
        if random.random() < RAISE_CHANCE:
            raise ValueError("now and then")

    @app.cdc(tables=["item", "small"], on_snapshot=True, retry=PATIENT)
    def rows(change: Change, tx: ChangeTx) -> None:
        keep(change, tx, "rows")

    @app.cdc(table="bulk", before=False, retry=PATIENT)
    def bulk(change: Change, tx: ChangeTx) -> None:
        if change.op == "truncate" or int(change.key["id"]) % BULK_EVERY == 0:
            keep(change, tx, "bulk")

    _meaning(app)


def _body(told: Told, rule: str) -> str:
    names = ("table", "op", "key", "old", "new", "was")
    return json.dumps({**{name: getattr(told, name) for name in names}, "rule": rule})


def _told(change: Change, *, was: str = "") -> Told:
    return Told(
        table=change.table.rpartition(".")[2],
        op=change.op,
        key=_key(change.key),
        old=_v(change.before),
        new=_v(change.after),
        was=was,
    )


def _key(row: Any) -> str:
    return str(row["id"]) if row else ""


def _v(row: Any) -> int | None:
    value = (row or {}).get("v")
    return None if value is ABSENT or value is None else int(value)


def _consumer(app: App, mark: str) -> None:
    insert = f"INSERT INTO cdc_effect ({EFFECT_COLUMNS}) VALUES ({mark}, {mark}, {mark}, {mark})"

    def keep(body: str, tx: Tx, msg: Message) -> None:
        headers = {name: value for name, value in msg.headers.items() if name.startswith("cdc")}
        values = (msg.id, body, json.dumps(headers), os.getpid())
        tx.connection.cursor().execute(insert, values)

    @app.on(Told, group="ordered", order="key", retry=PATIENT)
    def told(event: Told, tx: Tx, msg: Message) -> None:
        keep(_body(event, "bulk" if event.table == "bulk" else "rows"), tx, msg)

    @app.on(Meant, group="ordered", order="key", retry=PATIENT)
    def meant(event: Meant, tx: Tx, msg: Message) -> None:
        body = {"op": "meaning", "key": event.txn, "new": event.changes, "rule": "meaning"}
        keep(json.dumps(body), tx, msg)
