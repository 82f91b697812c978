"""A broker that stores a batch whole or not at all refuses one row in the middle of a key."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from duly.brokers.embedded.broker import EmbeddedBroker
from duly.databases.sqlite.database import SqliteDatabase
from duly.kernel.backoff import Retry
from duly.message import Message
from duly.observe.hooks import Hooks
from duly.outbox.relay import RelayWork
from duly.outbox.routes import Route, Routes
from duly.ports import Outcome, OutcomeKind, SubscriptionSpec, TopicSpec
from duly.runtime.clock import SystemClock
from duly.runtime.lanes import LaneTiming
from duly.runtime.leases import Deadlines
from duly.runtime.node import LeaseTiming, Node
from duly.testing.database_conformance import insert

TOPIC = TopicSpec("orders", "event")
REFUSED = Outcome(OutcomeKind.REFUSED, "not this one")
BESIDE = Outcome(OutcomeKind.UNAVAILABLE, "stored whole or not at all")


class Refusing(EmbeddedBroker):
    """Refuses these payloads so many times, and stores nothing of what was sent with them."""

    def __init__(self, url: str, refusals: dict[bytes, int]) -> None:
        super().__init__(url)
        self.refusals = Counter(refusals)

    async def publish(
        self, messages: Sequence[Message], *, deadline_seconds: float
    ) -> Sequence[Outcome]:
        refused = {m.payload for m in messages if self.refusals[m.payload]}
        self.refusals.subtract(refused)
        if refused:
            return [REFUSED if m.payload in refused else BESIDE for m in messages]
        return await super().publish(messages, deadline_seconds=deadline_seconds)


@pytest.mark.parametrize(
    ("refusals", "attempts", "on_exhausted", "left"),
    [(4, 50, "skip", []), (10**6, 2, "skip", [3]), (10**6, 2, "block", [3, 4, 5])],
    ids=["retried", "skipped", "blocked"],
)
async def test_a_refused_row_in_the_middle_of_its_key_keeps_order_and_loses_nothing(
    tmp_path: Path, refusals: int, attempts: int, on_exhausted: str, left: list[int]
) -> None:
    database = SqliteDatabase(f"sqlite:///{tmp_path}/app.db")
    connection = database.connect()
    for _, _, text in database.migrations():
        connection.script(text)
    keys = ["a", "b", "a", "a", "a", "a", None, "b"]  # the payload of the fourth is {"n":3}
    insert(connection, keys)
    poison = {b'{"n":3}': refusals, b'{"n":4}': 1, b'{"n":7}': 1}
    refusing = Refusing(f"embedded:///{tmp_path}/broker.db", poison)
    await refusing.start()
    await refusing.declare([TOPIC], [SubscriptionSpec("g", (TOPIC,))])
    routes = Routes()
    retry = Retry(attempts=attempts, base="20ms", max="20ms")
    routes.add("orders", Route(retry=retry, on_exhausted=on_exhausted))  # type: ignore[arg-type]
    clock, hooks = SystemClock(), Hooks()
    node = Node(
        database, [RelayWork(refusing, routes, hooks=hooks)], clock=clock, hooks=hooks,
        deadlines=Deadlines(clock), lease=LeaseTiming(1.0, 0.25), lanes=LaneTiming(poll_every=0.1),
    )  # fmt: skip
    running = asyncio.create_task(node.run())

    def stored() -> list[int]:
        with sqlite3.connect(tmp_path / "app.db") as raw:
            return [n - 1 for (n,) in raw.execute("SELECT id FROM duly_outbox ORDER BY id")]

    async with asyncio.timeout(20):
        while stored() != left or not node.idle:
            await asyncio.sleep(0.02)
    node.stop()
    await asyncio.wait_for(running, 10)
    arrived = await refusing.peek("orders", after="", limit=100)
    await refusing.close()
    numbers = [int(peeked.message.payload[5:-1]) for peeked in arrived]
    assert sorted(numbers + left) == list(range(len(keys)))
    for key in ("a", "b"):
        mine = [n for n in numbers if keys[n] == key]
        assert mine == sorted(mine)
