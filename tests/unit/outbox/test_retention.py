"""Nothing undelivered is ever deleted: for any mix of rows, on SQLite; on PostgreSQL the same is
shown by integration/test_operator_upkeep.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from duly.databases.sqlite.database import SqliteDatabase
from duly.errors import ConfigurationError
from duly.kernel.lifecycle import INBOX_STATUSES, OUTBOX_STATUSES
from duly.outbox.retention import Keep, Pruned, Retention
from duly.outbox.schema import Schema
from duly.outbox.sole import SoleRole
from duly.runtime.clock import SystemClock
from tests.unit.outbox.rows import Rows

WEEK = 7 * 86_400.0
FINISHED = {
    "outbox": {"sent", "unrouted", "skipped", "dropped"},
    "inbox": {"done", "skipped", "dropped"},
}
AGES = st.sampled_from([0.0, WEEK - 60, WEEK + 60, 5 * WEEK])


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SqliteDatabase]:
    path: Path = tmp_path_factory.mktemp("retention") / "duly.db"
    database = SqliteDatabase(f"sqlite:///{path}")
    Schema(database, "shop").start()
    yield database
    database.close()


@pytest.fixture
def rows(database: SqliteDatabase) -> Rows:
    rows = Rows(database)
    for table in ("outbox", "inbox", "effect", "failure", "audit"):
        rows.run(f"DELETE FROM duly_{table}")
    return rows


def row_of(statuses: frozenset[str]) -> st.SearchStrategy[tuple[str, float, float | None]]:
    return st.tuples(st.sampled_from(sorted(statuses)), AGES, st.none() | AGES)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    outbox=st.lists(row_of(OUTBOX_STATUSES), max_size=8),
    inbox=st.lists(row_of(INBOX_STATUSES), max_size=8),
)
def test_nothing_unfinished_goes_and_nothing_young(
    rows: Rows,
    database: SqliteDatabase,
    outbox: list[tuple[str, float, float | None]],
    inbox: list[tuple[str, float, float | None]],
) -> None:
    kept: dict[str, list[int]] = {"outbox": [], "inbox": []}
    for box, mix in (("outbox", outbox), ("inbox", inbox)):
        rows.run(f"DELETE FROM duly_{box}")
        for n, (status, age, settled) in enumerate(mix):
            age = max(age, settled or 0.0)  # nothing is settled before it was made
            insert = getattr(rows, box)
            row = insert(message_id=f"m{n}", status=status, age=age, settled_age=settled)
            old = settled is not None and settled > WEEK
            if not (status in FINISHED[box] and old):
                kept[box].append(row)
    retention = Retention(database.connect, Keep())
    counted = retention.count()
    pruned = retention.prune()
    assert counted == pruned
    for box, expected in kept.items():
        left = [r["id"] for r in rows.run(f"SELECT id FROM duly_{box} ORDER BY id")]
        assert left == expected
    assert retention.prune() == Pruned()


def test_effects_go_with_their_row_and_never_alone(rows: Rows, database: SqliteDatabase) -> None:
    rows.inbox(message_id="old", status="done", age=WEEK * 2, settled_age=WEEK * 2)
    rows.inbox(message_id="new", status="done")
    rows.inbox(message_id="failed", status="failed", age=WEEK * 9)
    for name in ("old", "new", "failed", "not-yet-received"):
        rows.run(
            "INSERT INTO duly_effect (group_name, handler, dedupe_key, step, provider_key,"
            " arguments, state, created_at) VALUES ('billing', 'billing/order.placed', :key,"
            f" 'charge', 'p', 'h', 'intent', {rows.ago(WEEK * 9)})",
            key=f"shop/{name}",
        )
    assert Retention(database.connect, Keep()).prune() == Pruned(inbox=1, effects=1)
    left = {r["dedupe_key"] for r in rows.run("SELECT dedupe_key FROM duly_effect")}
    assert left == {"shop/new", "shop/failed", "shop/not-yet-received"}


def test_failures_and_audit(rows: Rows, database: SqliteDatabase) -> None:
    for state, age in (("open", 400), ("resolved", 40), ("dropped", 40), ("resolved", 20)):
        rows.run(
            "INSERT INTO duly_failure (source, message_id, message_type, kind, topic, payload,"
            " state, created_at, settled_at) VALUES ('publish', 'm', 't', 'event', 'o', '{}',"
            f" :state, {rows.ago(age * 86_400)}, {rows.ago(age * 86_400)})",
            state=state,
        )
    for age in (100, 400):
        rows.run(
            "INSERT INTO duly_audit (created_at, actor, verb, target)"
            f" VALUES ({rows.ago(age * 86_400)}, 'anna', 'drop', 'outbox/1')"
        )
    retention = Retention(database.connect, Keep())
    assert retention.count() == Pruned(failures=2, audit=1)
    assert retention.prune() == Pruned(failures=2, audit=1)


def test_more_than_one_batch(rows: Rows, database: SqliteDatabase) -> None:
    many = (
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1203) "
        "INSERT INTO duly_outbox (message_id, message_type, kind, topic, lane, payload, status,"
        " created_at, settled_at) SELECT 'm' || i, 't', 'event', 'o', 0, '{}',"
        f" CASE WHEN i % 2 THEN 'sent' ELSE 'failed' END, {rows.ago(WEEK * 2)},"
        f" {rows.ago(WEEK * 2)} FROM n"
    )
    rows.run(many)
    for n in range(510):
        rows.inbox(message_id=f"m{n}", status="done", age=WEEK * 2, settled_age=WEEK * 2)
    assert Retention(database.connect, Keep()).prune() == Pruned(outbox=602, inbox=510)
    left = rows.run("SELECT DISTINCT status FROM duly_outbox")
    assert [row["status"] for row in left] == ["failed"]


async def test_as_a_role(rows: Rows, database: SqliteDatabase) -> None:
    gone = rows.outbox(status="sent", age=WEEK * 2, settled_age=WEEK * 2)
    kept = rows.outbox(status="failed", age=WEEK * 2)
    clock = SystemClock()
    retention = Retention(database.connect, Keep())
    role = SoleRole(
        "retention",
        lambda turn: retention.work(turn, clock.monotonic),
        database=database,
        clock=clock,
        every_seconds=60,
    )
    task = asyncio.create_task(role.run())
    async with asyncio.timeout(5):
        while len(rows.run("SELECT id FROM duly_outbox")) == 2:
            await asyncio.sleep(0.02)
    role.stop()
    await asyncio.wait_for(task, 5)
    assert [r["id"] for r in rows.run("SELECT id FROM duly_outbox")] == [kept] != [gone]


def test_handled_rows_outlive_the_dedupe_window() -> None:
    with pytest.raises(ConfigurationError, match="dedupe_window"):
        Keep(dedupe_window="7d", inbox="6d")
    with pytest.raises(ConfigurationError):
        Keep(outbox="soon")
    assert Keep(dedupe_window="1d", inbox="1d").inbox == "1d"
