"""An App with a fake source, and its stream run until something is so."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from duly import App, Change, Event
from duly.cdc.follower import Pace
from duly.cdc.offsets import Offset
from duly.cdc.runner import StreamContext, StreamRole
from duly.observe.facts import Fact
from duly.outbox.schema import Schema
from tests.unit.cdc.fake_source import FakeSource

WAIT_SECONDS = 30


class Paid(Event, name="order.paid", topic="orders"):
    order_id: int


class Seen(Event, name="order.seen", topic="orders"):
    order_id: int


def created(table: str, row: dict[str, Any]) -> Change:
    return Change("", table, "create", {"id": row["id"]}, None, row, "", 0)


def updated(table: str, before: dict[str, Any], after: dict[str, Any]) -> Change:
    return Change("", table, "update", {"id": after["id"]}, before, after, "", 0)


class World:
    """An App on a SQLite file; rules are added to ``app`` before the first stream is made."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "duly.db"
        self.app = App("shop", database=f"sqlite:///{self.path}")
        self.source = FakeSource()
        self.facts: list[Fact] = []
        self.app.hooks.add(self.facts.append)
        Schema(self.app.database, "shop").start()

    def paid_rule(self) -> None:
        @self.app.cdc(table="orders")
        def paid(change: Change) -> Iterator[Paid]:
            if change.became("status", "paid"):
                yield Paid(order_id=change.key["id"])

    def role(self, *, limit_seconds: float = 300.0, **pace: Any) -> StreamRole:
        context = StreamContext(
            database=self.app.database,
            outlet=self.app.outlet,
            hooks=self.app.hooks,
            health=self.app.health,
            clock=self.app.clock,
            make_source=lambda _: self.source,
            ttl_seconds=2.0,
            renew_seconds=0.1,
            pace=Pace(**{"idle_seconds": 0.1, "look_seconds": 0.05, **pace}),
            limit_seconds=limit_seconds,
        )
        return StreamRole(self.app.captures.stream(), context)

    @asynccontextmanager
    async def running(self, **pace: Any) -> AsyncIterator[StreamRole]:
        role = self.role(**pace)
        task = asyncio.create_task(role.run())
        try:
            yield role
        finally:
            role.stop()
            await asyncio.wait_for(task, WAIT_SECONDS)

    def rows(self, sql: str = "SELECT * FROM duly_outbox ORDER BY id") -> list[dict[str, Any]]:
        with sqlite3.connect(self.path) as connection:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute(sql)]

    def payloads(self) -> list[dict[str, Any]]:
        return [json.loads(row["payload"]) for row in self.rows()]

    def offset(self) -> Offset:
        return self.app.streams().offset(self.app.captures.stream().name)


async def until(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not what():
        assert time.monotonic() < deadline, "it never came to be so"
        await asyncio.sleep(0.02)
