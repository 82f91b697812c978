"""The App of the runs of change data capture: rules over the source's tables, and one consumer.

Owns what a rule tells: the ``v`` of a row before and after each change.  Rules see row by row, row
by row without old values, and all of a transaction with what its writer meant by it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import duly.cdc.outgoing as outgoing
import duly.databases.mysql.changes_snapshot as mysql_chunks
import duly.databases.postgres.changes_snapshot as postgres_chunks
import duly.databases.sqlite.changelog as sqlite_log
import duly.databases.sqlite.chunks as sqlite_chunks
from duly.app import App
from duly.inbox.transaction import Tx
from duly.kernel.backoff import Retry
from duly.kernel.changes import ABSENT, Change, Transaction
from duly.message import Event, Message
from tests.crash.cdc_stage import BULK_EVERY, CHUNK_ROWS, INTENT, STREAM

LOG_ROWS = 20  # of SQLite's changes in one read, so that a chunk has to wait for its place
PIECE = 15  # messages of a large transaction in one write
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
    _rules(app)
    _consumer(app, "?" if config["database"].startswith("sqlite") else "%s")
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

    @app.cdc(tables=["item", "small"], transaction=True)
    def meaning(transaction: Transaction) -> Iterator[Meant]:
        intent = transaction.intent(INTENT)
        if intent is not None:
            yield Meant(txn=intent.data.decode(), changes=sum(1 for _ in transaction))


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
    insert = (
        "INSERT INTO cdc_effect (message_id, body, headers, pid) "
        f"VALUES ({mark}, {mark}, {mark}, {mark})"
    )

    def keep(body: dict[str, Any], tx: Tx, msg: Message) -> None:
        headers = {name: text for name, text in msg.headers.items() if name.startswith("cdc")}
        values = (msg.id, json.dumps(body), json.dumps(headers), os.getpid())
        tx.connection.cursor().execute(insert, values)

    @app.on(Told, group="ordered", order="key", retry=PATIENT)
    def told(event: Told, tx: Tx, msg: Message) -> None:
        body = {name: getattr(event, name) for name in ("table", "op", "key", "old", "new", "was")}
        keep({**body, "rule": "bulk" if event.table == "bulk" else "rows"}, tx, msg)

    @app.on(Meant, group="ordered", order="key", retry=PATIENT)
    def meant(event: Meant, tx: Tx, msg: Message) -> None:
        keep({"op": "meaning", "key": event.txn, "new": event.changes, "rule": "meaning"}, tx, msg)
