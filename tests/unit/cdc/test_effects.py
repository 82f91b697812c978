"""Rules that write in the transaction of the position."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from duly import Change, ChangeTx, Retry, Transaction
from duly.cdc import effects
from duly.errors import DatabaseUnavailableError, OutcomeUnknownError, TransactionMisuseError
from duly.kernel import failpoints
from duly.outbox.operator import By
from duly.runtime import leases
from tests.unit.cdc.fake_source import place
from tests.unit.cdc.world import Paid, World, created, until

ME = By("me")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    with sqlite3.connect(made.path) as db:
        db.execute("CREATE TABLE mirror (id INTEGER PRIMARY KEY, at TEXT)")
    yield made
    failpoints.arm(None)
    made.app.close()


def mirrored(world: World) -> list[int]:
    return [row["id"] for row in world.rows("SELECT id FROM mirror ORDER BY id")]


def insert(change: Change, tx: ChangeTx) -> None:
    values = (change.key["id"], change.position)
    tx.connection.execute("INSERT INTO mirror VALUES (?, ?)", values)


async def test_effect_message_and_position_are_one_commit(world: World) -> None:
    @world.app.cdc(table="orders")
    def mirror(change: Change, tx: ChangeTx) -> Iterator[Paid]:
        insert(change, tx)
        yield Paid(order_id=change.key["id"])

    seen: list[tuple[int, str, int]] = []

    def look(name: str) -> None:
        if name in (failpoints.CDC_WRITTEN, failpoints.CDC_STORED):
            (row,) = world.rows("SELECT position FROM duly_offset")
            seen.append((len(mirrored(world)), row["position"], len(world.rows())))

    async with world.running():
        await until(lambda: world.source.opened)
        failpoints.arm(look)
        world.source.commit(created("orders", {"id": 1}))
        await until(lambda: world.source.confirmed == place(1))
    assert seen == [(0, place(0), 0), (1, place(1), 1)]


@pytest.mark.parametrize("where", [failpoints.CDC_WRITTEN, failpoints.CDC_STORED])
async def test_a_reader_that_dies_there_writes_each_change_once(world: World, where: str) -> None:
    world.app.cdc(table="orders")(insert)
    died: list[str] = []

    def die(name: str) -> None:
        if name == where and world.source.log and len(died) < 3:
            died.append(name)
            raise OutcomeUnknownError("the process ends here")

    async with world.running(batch=1):
        await until(lambda: world.source.opened)
        failpoints.arm(die)
        for n in range(1, 6):
            world.source.commit(created("orders", {"id": n}))
        await until(lambda: world.source.confirmed == place(5))
    assert len(died) == 3
    assert mirrored(world) == [1, 2, 3, 4, 5]  # a second insert would have failed


async def test_a_raise_rolls_back_its_transaction_and_no_other(world: World) -> None:
    broken = [True]

    @world.app.cdc(table="orders")
    def fragile(change: Change, tx: ChangeTx) -> None:
        insert(change, tx)
        if change.key["id"] == 3 and broken[0]:
            raise KeyError("secret of the row")

    async with world.running():
        await until(lambda: world.source.opened)
        for n in (1, 2, 3, 4):
            world.source.commit(created("orders", {"id": n}))
        await until(lambda: world.offset().state.trouble)
        trouble = world.offset().state.trouble
        assert trouble is not None
        assert (trouble.code, trouble.position) == ("RULE_FAILED", place(3))
        assert "rule fragile" in trouble.detail
        assert "secret" not in trouble.detail
        assert (mirrored(world), world.offset().position) == ([1, 2], place(2))
        broken[0] = False
        await until(lambda: world.source.confirmed == place(4))
    assert mirrored(world) == [1, 2, 3, 4]


async def test_after_its_last_attempt_the_stream_stops_until_a_person_skips(world: World) -> None:
    calls: list[int] = []

    @world.app.cdc(table="orders", retry=Retry(attempts=2, base="10ms"))
    def fragile(change: Change, tx: ChangeTx) -> None:
        calls.append(change.key["id"])
        if change.key["id"] == 1:
            raise KeyError
        insert(change, tx)

    def stopped() -> bool:
        trouble = world.offset().state.trouble
        return trouble is not None and trouble.stopped

    async with world.running(batch=1):
        await until(lambda: world.source.opened)
        world.source.commit(created("orders", {"id": 1}))
        world.source.commit(created("orders", {"id": 2}))
        await until(stopped)
        trouble = world.offset().state.trouble
        assert trouble is not None
        assert (trouble.position, trouble.tries, calls) == (place(1), 2, [1, 1])
        world.app.streams().skip(place(1), by=ME)
        await until(lambda: world.source.confirmed == place(2))
    assert mirrored(world) == [2]
    assert world.offset().state.trouble is None


async def test_what_only_the_commit_refuses_is_found_by_halves(world: World) -> None:
    @world.app.cdc(table="orders", retry=Retry(attempts=1))
    def linked(change: Change, tx: ChangeTx) -> None:
        tx.connection.execute("INSERT INTO part VALUES (?)", (change.key["id"],))

    with sqlite3.connect(world.path) as db:
        db.execute(
            "CREATE TABLE part (id INTEGER REFERENCES mirror (id) DEFERRABLE INITIALLY DEFERRED)"
        )
        db.executemany("INSERT INTO mirror VALUES (?, '')", [(n,) for n in range(20) if n != 13])
    async with world.running():
        await until(lambda: world.source.opened)
        for n in range(20):
            world.source.commit(created("orders", {"id": n}))
        await until(lambda: world.offset().state.trouble)
    trouble = world.offset().state.trouble
    assert trouble is not None
    assert (trouble.position, "linked" in trouble.detail) == (place(14), True)
    assert [row["id"] for row in world.rows("SELECT id FROM part")] == list(range(13))


def commits(tx: ChangeTx) -> None:
    tx.connection.commit()


def commits_the_session(tx: ChangeTx) -> None:
    with pytest.raises(TransactionMisuseError):
        tx.session.commit()


@pytest.mark.parametrize("end", [commits, commits_the_session])
async def test_who_ends_the_transaction_stores_no_position(
    world: World, end: Callable[[ChangeTx], None]
) -> None:
    @world.app.cdc(table="orders")
    def ends(change: Change, tx: ChangeTx) -> None:
        assert change.created
        assert tx.connection
        end(tx)

    async with world.running():
        await until(lambda: world.source.opened)
        world.source.commit(created("orders", {"id": 1}))
        await until(lambda: world.offset().state.trouble)
    trouble = world.offset().state.trouble
    assert trouble is not None
    assert "TRANSACTION_MISUSE" in trouble.detail
    assert world.offset().position == place(0)


async def test_a_session_writes_and_cannot_be_kept(world: World) -> None:
    kept: list[Any] = []

    @world.app.cdc(table="orders")
    def mirror(change: Change, tx: ChangeTx) -> None:
        kept.append((tx, tx.session))
        values = {"id": change.key["id"], "at": ""}
        from sqlalchemy import text

        tx.session.execute(text("INSERT INTO mirror VALUES (:id, :at)"), values)

    async with world.running():
        await until(lambda: world.source.opened)
        world.source.commit(created("orders", {"id": 1}))
        await until(lambda: world.source.confirmed == place(1))
    assert mirrored(world) == [1]
    tx, session = kept[0]
    with pytest.raises(TransactionMisuseError):
        _ = tx.connection
    with pytest.raises(Exception, match="bind"):
        session.connection()


async def test_an_older_reader_writes_nothing(world: World) -> None:
    world.app.cdc(table="orders")(insert)
    overtaken: list[int] = []
    readings: list[int] = []

    def overtake(name: str) -> None:
        if name == failpoints.CDC_READ and not overtaken:
            overtaken.append(1)
            with sqlite3.connect(world.path) as db:
                db.execute("UPDATE duly_offset SET token = token + 1")
        if name == failpoints.CDC_WRITTEN:
            readings.append(len(world.source.opened))

    async with world.running():
        await until(lambda: world.source.opened)
        failpoints.arm(overtake)
        world.source.commit(created("orders", {"id": 1}))
        await until(lambda: mirrored(world))
    assert (mirrored(world), readings) == ([1], [2])


async def test_a_rule_that_touches_nothing_leaves_the_position_for_later(world: World) -> None:
    @world.app.cdc(table="orders")
    def picky(change: Change, tx: ChangeTx) -> None:
        if change.key["id"] == 2:
            insert(change, tx)

    stored: list[str] = []

    async with world.running(idle_seconds=3600):
        await until(lambda: world.source.opened)
        failpoints.arm(stored.append)
        world.source.commit(created("orders", {"id": 1}))
        await until(lambda: failpoints.CDC_READ in stored)
        world.source.commit(created("orders", {"id": 2}))
        await until(lambda: mirrored(world))
        await until(lambda: world.source.confirmed == place(2))
    assert world.offset().position == place(2)


async def test_a_large_transaction_is_one_commit_with_its_effects(world: World) -> None:
    @world.app.cdc(table="orders")
    def mirror(change: Change, tx: ChangeTx) -> Paid:
        insert(change, tx)
        return Paid(order_id=change.key["id"])

    commits: list[str] = []

    async with world.running(lazy=50):
        await until(lambda: world.source.opened)
        failpoints.arm(lambda name: commits.append(name) if "written" in name else None)
        world.source.commit(*(created("orders", {"id": n}) for n in range(1100)))
        await until(lambda: world.source.confirmed == place(1))
    assert mirrored(world) == list(range(1100))
    assert [payload["order_id"] for payload in world.payloads()] == list(range(1100))
    assert commits.count(failpoints.CDC_WRITTEN) == 1


async def test_one_transaction_takes_up_no_more_after_a_while(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(effects, "HOLD_SECONDS", 0.0)
    world.app.cdc(table="orders")(insert)
    commits: list[str] = []
    for n in range(5):
        world.source.commit(created("orders", {"id": n}))
    world.source.prepare = _from_the_start  # type: ignore[method-assign]
    failpoints.arm(commits.append)
    async with world.running():
        await until(lambda: world.source.confirmed == place(5))
    assert mirrored(world) == list(range(5))
    assert commits.count(failpoints.CDC_WRITTEN) == 5


async def _from_the_start(_tables: object) -> str:
    return place(0)


async def test_whole_transactions_and_rows_of_a_snapshot(world: World) -> None:
    @world.app.cdc(transaction=True, tables=["orders", "lines"])
    def whole(transaction: Transaction, tx: ChangeTx) -> None:
        count = len(list(transaction))
        tx.connection.execute("INSERT INTO mirror VALUES (?, 'whole')", (100 + count,))

    world.app.cdc(table="orders", on_snapshot=True)(insert)
    world.source.rows["orders"] = [{"id": n} for n in range(3)]
    async with world.running():
        await until(lambda: len(mirrored(world)) == 3)
        world.source.commit(created("orders", {"id": 7}), created("lines", {"id": 1}))
        await until(lambda: len(mirrored(world)) == 5)
    assert mirrored(world) == [0, 1, 2, 7, 102]


async def test_a_call_that_hangs_ends_the_process(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int] = []
    hangs = threading.Event()

    def end(code: int) -> None:  # as the operating system would, but for this test's process
        ended.append(code)
        hangs.set()

    monkeypatch.setattr(leases.os, "_exit", end)

    @world.app.cdc(table="orders")
    def stuck(change: Change, tx: ChangeTx) -> None:
        assert change.created
        assert tx.connection
        hangs.wait(30)

    async with world.running(limit_seconds=0.05):
        await until(lambda: world.source.opened)
        world.source.commit(created("orders", {"id": 1}))
        await until(lambda: ended)
    assert set(ended) == {leases.EXIT_DEADLINE}


async def test_a_database_that_is_away_is_no_fault_of_the_rule(world: World) -> None:
    world.app.cdc(table="orders", retry=Retry(attempts=1))(insert)
    lost: list[str] = []

    def lose(name: str) -> None:
        if name == failpoints.CDC_WRITTEN and not lost:
            lost.append(name)
            raise DatabaseUnavailableError("the server went")

    async with world.running():
        await until(lambda: world.source.opened)
        failpoints.arm(lose)
        world.source.commit(created("orders", {"id": 1}))
        await until(lambda: mirrored(world))
    assert lost
    assert world.offset().state.trouble is None
