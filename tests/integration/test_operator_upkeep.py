"""Failure log, retention, reconciliation and the role lease on PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

import pytest

from duly.databases.postgres.database import PostgresDatabase
from duly.kernel.backoff import Retry
from duly.message import Message, new_id
from duly.outbox.failure_log import FailureRetrier, FailureScope, FailureStore
from duly.outbox.operator import By, Operator
from duly.outbox.reconcile import Verdict, reconcile
from duly.outbox.retention import Keep, Pruned, Retention
from duly.outbox.schema import Schema
from duly.outbox.sole import Pass, SoleRole
from duly.ports import CONFIRMED, Outcome, OutcomeKind, Statement
from duly.runtime.clock import SystemClock
from tests.unit.outbox.rows import Rows

WEEK = 7 * 86_400.0
ANNA = By("anna")


@pytest.fixture
def database(postgres_url: str) -> Iterator[PostgresDatabase]:
    database = PostgresDatabase(postgres_url)
    Schema(database, "shop").upgrade()
    yield database
    database.close()


@pytest.fixture
def rows(database: PostgresDatabase) -> Rows:
    return Rows(database)


def message() -> Message:
    return Message(new_id(), "order.placed", "event", "orders", "k", b'{"a":1}', {"source": "shop"})


def test_the_failure_log_by_hand(database: PostgresDatabase) -> None:
    store = FailureStore(database.connect)
    entries = [store.add("publish", message(), f"CODE{n}: x", delay_seconds=n) for n in range(3)]
    by_hand = store.add("publish", message(), "CODE9: x")
    assert store.show(by_hand).line.due_at is None
    assert store.show(entries[0]).payload == {"a": 1}
    assert store.act("retry", entries[0], by=ANNA)
    assert store.act("drop", entries[1], by=ANNA)
    assert not store.act("drop", entries[1], by=ANNA)
    scope = FailureScope(error="CODE", source="publish", topic="orders", since=1.0)
    assert store.count(scope) == 3
    assert store.act_on_all("resolve", scope, by=ANNA, expected=3).changed == 3
    assert [e.state for e in store.find(FailureScope(states=("dropped",)))] == ["dropped"]


async def test_two_retriers_and_one_role(database: PostgresDatabase) -> None:
    store, clock = FailureStore(database.connect), SystemClock()
    for _ in range(20):
        store.add("publish", message(), "X", delay_seconds=0)
    sent: list[str] = []
    calls: dict[str, int] = {}

    async def send(messages: Sequence[Message], *, deadline_seconds: float) -> Sequence[Outcome]:
        await asyncio.sleep(0.02)
        for each in messages:
            calls[each.id] = calls.get(each.id, 0) + 1
        sent.extend(m.id for m in messages if calls[m.id] > 1)
        refused = Outcome(OutcomeKind.REFUSED, "first time")
        return [CONFIRMED if calls[m.id] > 1 else refused for m in messages]

    retry = Retry(attempts=5, base=0.01, max=0.01)
    roles = [
        SoleRole(
            "failures",
            FailureRetrier("publish", send, clock=clock, retry=retry).work,
            database=database,
            clock=clock,
            every_seconds=0.02,
        )
        for _ in range(2)
    ]
    tasks = [asyncio.create_task(role.run()) for role in roles]
    async with asyncio.timeout(10):
        while store.count(FailureScope()):
            await asyncio.sleep(0.05)
    for role in roles:
        role.stop()
    await asyncio.wait_for(asyncio.gather(*tasks), 10)
    assert len(sent) == len(set(sent)) == 20
    assert set(calls.values()) == {2}


async def test_a_role_changes_hands_when_its_lease_runs_out(
    database: PostgresDatabase, rows: Rows
) -> None:
    tokens: list[int] = []

    async def work(turn: Pass) -> bool:
        tokens.append(turn.term.token)
        return False

    def role() -> SoleRole:
        return SoleRole("r", work, database=database, clock=SystemClock(), every_seconds=0.02)

    async def play(seconds: float = 0.2) -> None:
        each = role()
        task = asyncio.create_task(each.run())
        await asyncio.sleep(seconds)
        each.stop()
        await asyncio.wait_for(task, 10)

    await play()
    assert set(tokens) == {1}
    tokens.clear()
    await play()  # given back, so taken at once
    assert set(tokens) == {2}
    tokens.clear()
    lease = "UPDATE duly_lease SET holder = 'dead', until = clock_timestamp() + interval"
    rows.run(f"{lease} '1 hour' WHERE name = 'role/r'")
    await play()
    assert tokens == []
    rows.run(f"{lease} '-1 second' WHERE name = 'role/r'")
    await play()
    assert set(tokens) == {3}


def test_retention(database: PostgresDatabase, rows: Rows) -> None:
    for status in ("ready", "retry", "held", "failed", "sent", "unrouted", "skipped", "dropped"):
        rows.outbox(message_id=status, status=status, age=2 * WEEK, settled_age=2 * WEEK)
    for status in ("ready", "retry", "held", "failed", "done", "skipped", "dropped"):
        rows.inbox(message_id=status, status=status, age=2 * WEEK, settled_age=2 * WEEK)
        rows.run(
            "INSERT INTO duly_effect (group_name, handler, dedupe_key, step, provider_key,"
            " arguments, state) VALUES ('billing', 'billing/order.placed', :key, 'charge', 'p',"
            " 'h', 'done')",
            key=f"shop/{status}",
        )
    rows.inbox(message_id="young", status="done", settled_age=60)
    retention = Retention(database.connect, Keep())
    expected = Pruned(outbox=4, inbox=3, effects=3)
    assert retention.count() == expected
    assert retention.prune() == expected
    left = {row["status"] for row in rows.run("SELECT status FROM duly_outbox")}
    assert left == {"ready", "retry", "held", "failed"}
    left = {row["message_id"] for row in rows.run("SELECT message_id FROM duly_inbox")}
    assert left == {"ready", "retry", "held", "failed", "young"}
    assert len(rows.run("SELECT * FROM duly_effect")) == 4


def test_a_row_that_another_transaction_holds_is_left_for_the_next_time(
    database: PostgresDatabase, rows: Rows
) -> None:
    for name in ("a", "b"):
        rows.inbox(message_id=name, status="done", age=2 * WEEK, settled_age=2 * WEEK)
    connection = database.connect()

    def steps() -> object:
        yield Statement("retention.inbox_old", {"keep_seconds": WEEK, "limit": 1})
        return Retention(database.connect, Keep()).prune()

    assert connection.run(steps()) == Pruned(inbox=1)  # type: ignore[arg-type]
    assert Retention(database.connect, Keep()).prune() == Pruned(inbox=1)
    connection.close()


def test_reconciliation(database: PostgresDatabase, rows: Rows) -> None:
    groups = {"billing": ["order.placed"]}
    for name in ("a", "b", "c"):
        rows.outbox(message_id=name, status="sent")
        edited = rows.inbox(message_id=name, status="failed")
    Operator(database.connect).edit("inbox", edited, b"{}", by=ANNA)
    found = reconcile(database, history=True, groups=groups)
    assert found.verdict is Verdict.ADDS_UP
    assert (found.groups[0].sent, found.groups[0].by_status) == (3, {"failed": 2, "retry": 1})
    rows.run("DELETE FROM duly_inbox WHERE message_id = 'a'")
    assert reconcile(database, history=True, groups=groups).verdict is Verdict.DIFFERS
    query = "SELECT count(*) FROM duly_outbox"
    found = reconcile(database, history=False, source=(query, "orders", ""))
    assert found.verdict is Verdict.ADDS_UP
