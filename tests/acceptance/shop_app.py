"""A small App for the acceptance tests, and ways to look at what became of its messages."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from duly import App, Command, Event
from duly.message import HEADER_SOURCE, Message, new_id
from duly.outbox.schema import Schema

ROOT = Path(__file__).resolve().parents[2]
QUICK: dict[str, Any] = {
    "lease_ttl": "2s",
    "renew_every": "0.5s",
    "send_timeout": "1.5s",
    "poll_every": "0.2s",
    "lock_timeout": "2s",
    "drain_timeout": "5s",
}


class Placed(Event, name="order.placed", topic="orders"):
    order_id: int
    note: Any = ""


class Charge(Command, name="billing.charge", queue="billing"):
    order_id: int


class Shop:
    """An App with a table ``work`` in which handlers write."""

    def __init__(self, database: Any, broker: str, **settings: Any) -> None:
        self.app = App("shop", database=database, broker=broker, **{**QUICK, **settings})

    def prepare(self) -> None:
        """Make duly's tables and ours."""
        Schema(self.app.database, "shop").upgrade()
        with self.engine.begin() as connection:
            connection.execute(sa.text("CREATE TABLE work (order_id bigint NOT NULL)"))

    @property
    def engine(self) -> Any:
        return self.app.database.engine()

    def place(self, *order_ids: int, **options: Any) -> None:
        """Publish in one transaction with a row in ``work`` per order (negative)."""
        with Session(self.engine) as session, session.begin():
            for order_id in order_ids:
                session.execute(insert(-order_id))
                self.app.publish(session, Placed(order_id=order_id), **options)

    def query(self, sql: str, **values: Any) -> list[Any]:
        """Rows of plain SQL; a row of one column as its value."""
        with self.engine.connect() as connection:
            rows = [tuple(row) for row in connection.execute(sa.text(sql), values)]
        return [row[0] if len(row) == 1 else row for row in rows]

    def work(self) -> list[int]:
        """What handlers have written."""
        return sorted(self.query("SELECT order_id FROM work WHERE order_id > 0"))

    def ordered(self) -> list[int]:
        """What was committed beside the messages."""
        return sorted(-n for n in self.query("SELECT order_id FROM work WHERE order_id < 0"))

    def outbox(self) -> list[Any]:
        return self.query("SELECT status, last_error FROM duly_outbox ORDER BY id")

    def inbox(self) -> dict[str, str]:
        """Status and code of each row by message id."""
        rows = self.query("SELECT message_id, status, last_error FROM duly_inbox ORDER BY id")
        return {i: status + (f" {code(e)}" if e else "") for i, status, e in rows}

    async def deliver(self, messages: Sequence[Message]) -> None:
        """Put messages into the broker as a foreign sender would."""
        broker = self.app.make_broker()
        await broker.start()
        try:
            handlers = self.app.handlers
            topics = {
                t for g in handlers.groups for t in handlers.subscription(g, prefetch=1).topics
            }
            specs = [handlers.subscription(group, prefetch=1) for group in handlers.groups]
            await broker.declare(sorted(topics, key=str), specs)
            outcomes = await broker.publish(messages, deadline_seconds=10)
            assert {outcome.kind.name for outcome in outcomes} == {"CONFIRMED"}, outcomes
        finally:
            await broker.close()

    def close(self) -> None:
        self.app.close()


def code(error: str) -> str:
    """The code at the beginning of a stored error."""
    return error.partition(":")[0]


def insert(order_id: int) -> Any:
    """A row of work."""
    return sa.text("INSERT INTO work (order_id) VALUES (:n)").bindparams(n=order_id)


def placed(payload: bytes, *, id: str | None = None, **headers: str) -> Message:
    """An event as it comes from the wire."""
    given = {HEADER_SOURCE: "elsewhere", **headers}
    return Message(
        new_id() if id is None else id, "order.placed", "event", "orders", None, payload, given
    )


CHILD = """
import sys
from tests.acceptance.shop_app import *
from duly import Tx, Retry
shop = Shop(sys.argv[1], sys.argv[2], **eval(sys.argv[3]))
app = shop.app
"""


def child(
    database: str,
    broker: str,
    body: str,
    *,
    settings: dict[str, Any] | None = None,
    output: Any = subprocess.PIPE,
) -> subprocess.Popen[str]:
    """A process of its own that has ``shop`` and ``app`` and runs ``body``; output: a file for all
    that it prints.
    """
    text = CHILD + textwrap.dedent(body)
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    environ = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-c", text, database, broker, repr(settings or {})]
    return subprocess.Popen(
        command,
        env=environ,
        stdout=output,
        stderr=subprocess.PIPE if output is subprocess.PIPE else subprocess.STDOUT,
        text=True,
        cwd=ROOT,
    )
