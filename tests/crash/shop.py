"""The App of the runs: two messages, three groups and a command with an outside call.

Owns what a handler writes: one row of ``crash_effect`` per message and group in its transaction,
and what the handler sends on in the same commit.  Trouble comes with the message (``trouble``: the
handler raises for some time), never from the harness's clock."""

from __future__ import annotations

import os
import random
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from duly.app import App
from duly.inbox.transaction import Tx
from duly.kernel.backoff import Retry
from duly.message import Command, Event, Message
from duly.testing.journal import Journal
from tests.crash import plain_mysql
from tests.crash.stage import QUEUE, TOPIC

TROUBLE_CHANCE = 0.5
CHARGE_SHARE = 8  # one event in so many sends a command on
PATIENT = Retry(attempts=2000, base="40ms", max="150ms")
SLOW = Retry(attempts=2000, base="10m", max="10m")  # not again while the run lasts


class TroubleError(Exception):
    """A handler's trouble, for now."""


class Noted(Event, name="crash.noted", topic=TOPIC):
    """Something was noted. n: a number of its own; key: what it is about."""

    n: int
    key: str
    refuse: bool = False
    trouble: bool = False
    poison: bool = False


class Charge(Command, name="crash.charge", queue=QUEUE):
    """Charge once."""

    n: int
    trouble: bool = False


class Gateway:
    """An outside system: counts calls per key, acts once per key, and looks whether the caller has
    written down that it would call."""

    def __init__(self, path: str, database: str) -> None:
        self._journal = Journal(path)
        self._database = database
        self._plain: Any = None

    def charge(self, n: int, *, idempotency_key: str) -> str:
        """Do it once per key; the same answer for the same key."""
        self._journal.append("call", key=idempotency_key, n=n, intent=self._intent(idempotency_key))
        return f"receipt-{idempotency_key}"

    def _intent(self, key: str) -> bool:
        """Whether the intent is committed, as anybody but the caller's transaction can see."""
        sql = "SELECT count(*) FROM duly_effect WHERE provider_key = "
        if self._database.startswith("sqlite"):
            path = Path(self._database.removeprefix("sqlite:///"))
            plain = sqlite3.connect(path, timeout=10)
            try:
                return bool(plain.execute(sql + "?", (key,)).fetchone()[0])
            finally:
                plain.close()
        if self._database.startswith("mysql"):
            with closing(plain_mysql.connect(self._database, autocommit=True)) as plain:
                return bool(plain.execute(sql + "?", (key,)).fetchone()[0])
        import psycopg

        with psycopg.connect(self._database, autocommit=True, connect_timeout=10) as plain:
            row = plain.execute(sql.encode() + b"%s", (key,)).fetchone()
            return bool(row is not None and row[0])


def make_app(config: dict[str, Any], *, broker: Any = None, gateway: Gateway | None = None) -> App:
    """The App of one process."""
    settings = {
        "batch_size": config.get("batch_size", 50),
        "workers": config.get("workers", 2),
        "lease_ttl": config["lease"],
        "renew_every": config["renew"],
        "send_timeout": config["send_timeout"],
        "poll_every": config.get("poll", 0.3),
        "handler_timeout": 30,
        "lock_timeout": 10,
        "drain_timeout": 5,
    }
    app = App("crash", database=config["database"], broker=broker, **settings)
    if config.get("impatient"):  # a poisoned message fails soon, and its key waits for a person
        app.route(TOPIC, retry=Retry(attempts=3, base="40ms", max="100ms"), on_exhausted="block")
    else:
        app.route(TOPIC, retry=SLOW if config.get("slow") else PATIENT)
    app.route(QUEUE, retry=PATIENT)
    if gateway is not None:
        _handlers(app, gateway, insert=_insert(config["database"]), retry=PATIENT)
    return app


def _insert(database: str) -> str:
    mark = "?" if database.startswith("sqlite") else "%s"
    return f"INSERT INTO crash_effect (grp, message_id, pid) VALUES ({mark}, {mark}, {mark})"


def _handlers(app: App, gateway: Gateway, *, insert: str, retry: Retry) -> None:
    remember = insert.replace(
        "crash_effect (grp, message_id, pid)", "crash_sent (message_id, kind, txn)"
    )

    def note(event: Noted, tx: Tx, msg: Message, group: str) -> None:
        tx.connection.cursor().execute(insert, (group, msg.id, os.getpid()))
        if event.trouble and random.random() < TROUBLE_CHANCE:
            raise TroubleError(f"{event.n}")

    @app.on(Noted, group="ordered", order="key", retry=retry)
    def ordered(event: Noted, tx: Tx, msg: Message) -> None:
        note(event, tx, msg, "ordered")

    @app.on(Noted, group="free", retry=retry)
    def free(event: Noted, tx: Tx, msg: Message) -> None:
        note(event, tx, msg, "free")
        if event.n % CHARGE_SHARE == 0:
            sent = tx.send(Charge(n=event.n, trouble=event.trouble))
            tx.connection.cursor().execute(remember, (sent, "command", f"handler-{msg.id}"))

    @app.on(Noted, group="batch", retry=retry, batch=50)
    def batch(events: list[Noted], tx: Tx, msgs: list[Message]) -> None:
        rows = [("batch", msg.id, os.getpid()) for msg in msgs]
        tx.connection.cursor().executemany(insert, rows)
        if any(event.trouble and random.random() < TROUBLE_CHANCE for event in events):
            raise TroubleError("one of the batch")

    @app.handle(Charge, retry=retry)
    def charge(command: Charge, tx: Tx, msg: Message) -> None:
        receipt = tx.effect("charge", gateway.charge, command.n, key_as="idempotency_key")
        tx.connection.cursor().execute(insert, (QUEUE, msg.id, os.getpid()))
        if not receipt.startswith("receipt-") or (
            command.trouble and random.random() < TROUBLE_CHANCE
        ):
            raise TroubleError(f"{command.n}")
