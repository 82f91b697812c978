"""An inbox without an App: a database, a broker that is a list, and a consumer between them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

from duly.databases.mysql.database import MysqlDatabase
from duly.databases.postgres.database import PostgresDatabase
from duly.databases.sqlite.database import SqliteDatabase
from duly.inbox.consume import Consumer
from duly.inbox.context import ConsumeContext
from duly.inbox.handlers import HandlerRegistry
from duly.inbox.work import InboxWork
from duly.kernel.lease import LeaseTerm
from duly.message import HEADER_SOURCE, HEADER_TIME, Command, Event, Message, Registry, new_id
from duly.observe.facts import Fact
from duly.observe.hooks import Hooks
from duly.outbox.publish import MessageOutlet
from duly.ports import Delivery, Statement
from duly.runtime.clock import SystemClock
from duly.runtime.connection import ConnectionThread
from duly.runtime.leases import Deadlines
from duly.runtime.work import Row, Verdict, VerdictKind
from tests.conftest import mariadb


class Placed(Event, name="order.placed", topic="orders"):
    order_id: int
    note: str = ""


class Charge(Command, name="billing.charge", queue="billing"):
    order_id: int


class FakeSubscription:
    """Deliveries that a test puts in; remembers what was acknowledged and what was given back."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[list[Delivery]] = asyncio.Queue()
        self.acked: list[Any] = []
        self.released: list[Any] = []

    async def batches(self) -> AsyncIterator[list[Delivery]]:
        while True:
            yield await self.queue.get()

    async def ack(self, tokens: Sequence[Any]) -> None:
        self.acked += tokens

    async def release(self, tokens: Sequence[Any]) -> None:
        self.released += tokens

    async def close(self) -> None:
        pass


class World:
    """One process with one group."""

    def __init__(self, database: Any, **settings: Any) -> None:
        self.database = database
        self.registry = Registry()
        for cls in (Placed, Charge):
            self.registry.of(cls)
        self.handlers = HandlerRegistry(self.registry)
        self.hooks = Hooks()
        self.facts: list[Fact] = []
        self.hooks.add(self.facts.append)
        self.context = ConsumeContext(
            database=database,
            registry=self.registry,
            handlers=self.handlers,
            outlet=MessageOutlet("shop", self.registry, database),
            hooks=self.hooks,
            deadlines=Deadlines(SystemClock()),
            **{"workers": 2, **settings},
        )
        self.connection = ConnectionThread(database, "test")
        self.subscription = FakeSubscription()
        self._consumer: Consumer | None = None
        self._task: asyncio.Task[None] | None = None
        self._works: list[InboxWork] = []

    def start(self, group: str) -> Consumer:
        """A consumer that runs in the background."""
        consumer = Consumer(self.context, group, connection=self.connection)
        self._consumer = consumer
        self._task = asyncio.create_task(consumer.run(self.subscription))
        return consumer

    async def feed(
        self, group: str, *messages: Message, redelivered: bool = False, placed: bool = True
    ) -> None:
        """Deliver messages in one batch and wait until each was acknowledged or given back. placed:
        whether the broker can name a message's place.
        """
        consumer = self._consumer or self.start(group)
        assert consumer.group == group
        before = len(self.subscription.acked) + len(self.subscription.released)
        batch = [
            Delivery(m, object(), "orders/0", str(n) if placed else "", redelivered)
            for n, m in enumerate(messages)
        ]
        self.subscription.queue.put_nowait(batch)
        for _ in range(2000):
            if len(self.subscription.acked) + len(self.subscription.released) >= before + len(
                batch
            ):
                return
            assert self._task is not None
            if self._task.done():
                self._task.result()
            await asyncio.sleep(0.005)
        raise AssertionError("not every message was answered")

    async def run_rows(
        self,
        group: str,
        token: int = 1,
        *,
        statuses: Collection[str] = ("ready", "retry", "held"),
    ) -> list[Verdict]:
        """Run every unfinished row of a group as the lane reader would, by itself."""
        work = InboxWork(self.context, group, connection=self.connection)
        self._works.append(work)
        rows = [
            Row(
                r["id"],
                r["message_id"],
                r["message_type"],
                r["kind"],
                r["topic"],
                r["key"],
                r["lane"],
                r["payload"],
                r["headers"],
                r["status"],
                r["attempts"],
                r["handler"],
                r["dedupe_key"],
            )
            for r in self.inbox()
            if r["group_name"] == group and r["status"] in statuses
        ]
        return list(await work.deliver(rows, deadline_seconds=5, terms=self.terms(group, token)))

    def terms(self, group: str, token: int) -> Any:
        """Lanes held under a token."""
        return lambda lane: LeaseTerm(f"lane/inbox:{group}/{lane}", token, 1e12)

    def hold_lanes(self, group: str) -> None:
        """Lane rows of this group, all with token 1."""
        if self.query("SELECT 1 FROM duly_lease WHERE scope = ?", f"inbox:{group}"):
            return
        self.ask("lease.seed", scope=f"inbox:{group}", lanes=64)
        self.ask("lease.take", scope=f"inbox:{group}", lanes=list(range(64)), holder="me")

    def ask(self, name: str, /, **params: Any) -> Any:
        return self.connection.submit(lambda c: c.ask(Statement(name, params))).result(10)

    def query(self, sql: str, *parameters: Any) -> list[dict[str, Any]]:
        """Plain SQL, each time on a connection of its own."""
        if self.database.dialect == "sqlite":
            import sqlite3

            with contextlib.closing(
                sqlite3.connect(self.database.path, timeout=10, isolation_level=None)
            ) as db:
                db.row_factory = sqlite3.Row
                return [dict(row) for row in db.execute(sql, parameters).fetchall()]
        if self.database.dialect == "mysql":
            return _query_mariadb(self.database.url, sql, parameters)
        import psycopg
        from psycopg.rows import dict_row

        with psycopg.connect(self.database.url, autocommit=True, row_factory=dict_row) as db:
            cursor = db.execute(sql.replace("?", "%s"), parameters)
            return list(cursor.fetchall()) if cursor.description else []

    def inbox(self) -> list[dict[str, Any]]:
        return self.query("SELECT * FROM duly_inbox ORDER BY id")

    def outbox(self) -> list[dict[str, Any]]:
        return self.query("SELECT * FROM duly_outbox ORDER BY id")

    def effects(self) -> list[dict[str, Any]]:
        return self.query("SELECT * FROM duly_effect ORDER BY step")

    def work(self) -> list[int]:
        """What handlers have written."""
        return [row["order_id"] for row in self.query("SELECT order_id FROM work ORDER BY id")]

    async def close(self) -> None:
        if self._consumer is not None and self._task is not None:
            self._consumer.stop()
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            await self._consumer.drain(5)
        for work in self._works:
            await work.stop(5)
        self.connection.close()
        self.database.close()


def placed(
    order_id: int, *, id: str | None = None, key: str | None = None, **headers: str
) -> Message:
    payload = b'{"order_id":%d}' % order_id
    all_headers = {HEADER_SOURCE: "shop", HEADER_TIME: datetime.now(UTC).isoformat(), **headers}
    return Message(id or new_id(), "order.placed", "event", "orders", key, payload, all_headers)


def charge(order_id: int, *, id: str | None = None, **headers: str) -> Message:
    payload = b'{"order_id":%d}' % order_id
    all_headers = {HEADER_SOURCE: "shop", HEADER_TIME: datetime.now(UTC).isoformat(), **headers}
    return Message(
        id or new_id(), "billing.charge", "command", "billing", None, payload, all_headers
    )


def make_database(url: str, **settings: Any) -> Any:
    """A database with duly's tables and one table for the handlers."""
    scheme = url.partition(":")[0]
    database: Any = _DATABASES[scheme](url, **settings)
    connection = database.connect()
    for _, _, text in database.migrations():
        connection.script(text)
    kind = _IDS[scheme]
    connection.script(f"CREATE TABLE work (id {kind}, order_id bigint NOT NULL);")
    connection.close()
    return database


_DATABASES: dict[str, Any] = {
    "mysql": MysqlDatabase,
    "postgresql": PostgresDatabase,
    "sqlite": SqliteDatabase,
}
_IDS = {
    "mysql": "bigint PRIMARY KEY AUTO_INCREMENT",
    "postgresql": "bigserial PRIMARY KEY",
    "sqlite": "INTEGER PRIMARY KEY AUTOINCREMENT",
}


def _query_mariadb(url: str, sql: str, parameters: Sequence[Any]) -> list[dict[str, Any]]:
    """Rows with keys as text, which is stored as bytes there."""
    from pymysql.cursors import DictCursor

    with contextlib.closing(mariadb(url)) as db, db.cursor(DictCursor) as cursor:
        cursor.execute(sql.replace("?", "%s"), parameters)
        rows = cursor.fetchall() if cursor.description else []
    text = ("key", "dedupe_key")
    return [{k: v.decode() if k in text and v else v for k, v in row.items()} for row in rows]


@contextlib.contextmanager
def emptied_postgres(server: str) -> Iterator[str]:
    """One database for a whole module: making one for every test costs more than the tests."""
    import psycopg

    name = f"duly_{uuid4().hex}"
    with psycopg.connect(server, autocommit=True, connect_timeout=10) as admin:
        admin.execute(f"CREATE DATABASE {name}")
        try:
            yield urlsplit(server)._replace(path=f"/{name}").geturl()
        finally:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


def empty(url: str) -> None:
    """Everything that a test may have left."""
    import psycopg

    with psycopg.connect(url, autocommit=True, connect_timeout=10) as db:
        names = db.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        if names:
            db.execute(f"DROP TABLE {', '.join(name for (name,) in names)}")


__all__ = [
    "Charge",
    "FakeSubscription",
    "Placed",
    "VerdictKind",
    "World",
    "charge",
    "emptied_postgres",
    "empty",
    "make_database",
    "placed",
]
