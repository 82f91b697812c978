"""Ids are drawn before the commit: no reader may run ahead of a transaction that commits late."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest

from duly.databases.postgres.database import PostgresDatabase
from duly.kernel.backoff import Retry
from duly.kernel.names import place
from duly.message import new_id
from duly.observe.hooks import Hooks
from duly.ports import Database, Statement
from duly.runtime.clock import SystemClock
from duly.runtime.lanes import LaneTiming
from duly.runtime.leases import Deadlines
from duly.runtime.node import LeaseTiming, Node
from duly.runtime.work import LaneTerms, Row, Verdict, VerdictKind


class Collect:
    """Work that takes everything."""

    box = scope = "outbox"
    group = ""
    batch_max, in_flight_max = 100, 2

    def __init__(self) -> None:
        self.rows: list[Row] = []

    async def deliver(
        self, rows: Sequence[Row], *, deadline_seconds: float, terms: LaneTerms
    ) -> Sequence[Verdict]:
        self.rows.extend(rows)
        return [Verdict(VerdictKind.DONE)] * len(rows)

    def order_key(self, row: Row) -> tuple[str, str] | None:
        return None if row.key is None else (row.topic, row.key)

    wave_key = order_key

    def retry_of(self, row: Row) -> Retry:
        return Retry()

    def blocks(self, row: Row) -> bool:
        return False


@pytest.fixture
def database(postgres_url: str) -> PostgresDatabase:
    made = PostgresDatabase(postgres_url)
    connection = made.connect()
    for _, _, text in made.migrations():
        connection.script(text)
    connection.close()
    return made


@asynccontextmanager
async def relaying(database: Database, *, sweep_every: float = 10.0) -> AsyncIterator[Collect]:
    work, clock = Collect(), SystemClock()
    node = Node(
        database,
        [work],
        clock=clock,
        hooks=Hooks(),
        deadlines=Deadlines(clock),
        lease=LeaseTiming(),
        lanes=LaneTiming(poll_every=0.2, sweep_every=sweep_every),
    )
    task = asyncio.create_task(node.run())
    try:
        yield work
    finally:
        node.stop()
        await asyncio.wait_for(task, 15)


def publish(database: Database, connection: Any, key: str | None, mark: str) -> None:
    """What a flush does, inside an open transaction."""
    stripe, lane = (None, 0) if key is None else place("orders", key)
    row = {"message_id": new_id(), "message_type": mark, "kind": "event", "topic": "orders"}
    many = [row | {"key": key, "lane": lane, "stripe": stripe, "payload": b"{}", "headers": "{}"}]
    for text, values, _ in database.prepare(Statement("outbox.insert", many=many)):
        connection.cursor().execute(text, values)


async def until(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_late_commit_is_not_overtaken_by_a_later_message_of_its_key(
    database: PostgresDatabase,
) -> None:
    """T1 (key k) draws id 1; another key commits id 2 and is read; T1 commits, then T2 (k) id 3.

    A reader that goes on behind id 2 would send T2's message first.
    """
    async with relaying(database) as work:
        for round_ in range(20):
            with psycopg.connect(database.url) as slow, psycopg.connect(database.url) as quick:
                seen = len(work.rows)
                publish(database, slow, "k", f"slow-{round_}")
                publish(database, quick, "other", f"other-{round_}")
                quick.commit()
                await until(lambda seen=seen: len(work.rows) == seen + 1)  # type: ignore[misc]
                slow.commit()
                publish(database, quick, "k", f"quick-{round_}")
                quick.commit()
                await until(lambda seen=seen: len(work.rows) == seen + 3)  # type: ignore[misc]
    of_key = [row.message_type for row in work.rows if row.key == "k"]
    assert of_key == [f"{who}-{n}" for n in range(20) for who in ("slow", "quick")]


async def test_a_late_commit_without_a_key_is_found_within_seconds(
    database: PostgresDatabase,
) -> None:
    """P3: a slow transaction holds a lower id while the reader goes far beyond it."""
    async with relaying(database) as work:
        with psycopg.connect(database.url) as slow, psycopg.connect(database.url) as quick:
            publish(database, slow, None, "slow")
            for n in range(50):
                publish(database, quick, None, f"quick-{n}")
                quick.commit()
            await until(lambda: len(work.rows) == 50)
            await asyncio.sleep(1.0)  # the reader has long been at the end
            slow.commit()
            await until(lambda: len(work.rows) == 51, seconds=5.0)
    assert work.rows[-1].message_type == "slow"


async def test_a_foreign_writer_that_stays_open_stops_nobody(database: PostgresDatabase) -> None:
    """P6: only the floor waits for it, and for a few seconds."""
    with psycopg.connect(database.url) as foreign, psycopg.connect(database.url) as quick:
        foreign.execute("CREATE TABLE elsewhere (n int)")
        async with relaying(database) as work:
            for n in range(30):
                publish(database, quick, "k", f"quick-{n}")
                quick.commit()
            await until(lambda: len(work.rows) == 30)
        assert [row.message_type for row in work.rows] == [f"quick-{n}" for n in range(30)]
