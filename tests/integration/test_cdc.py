"""Changes of a real database become messages, whatever is killed on the way."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.engine import Engine

from duly import App
from duly.kernel import failpoints
from duly.observe.health import RoleState
from duly.outbox.operator import By
from duly.outbox.schema import Schema
from duly.testing.failpoints import ENVIRONMENT
from tests.integration.cdc_shop import make_app

ROOT = Path(__file__).resolve().parents[2]
WAIT_SECONDS = 60
KILLED_AT = (failpoints.CDC_STORED, failpoints.CDC_READ, failpoints.CDC_CONFIRMED)

pytestmark = pytest.mark.timeout(180)


class Shop:
    """Orders in a database, and a process that captures them."""

    def __init__(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CDC_DATABASE", url)
        self.app: App = make_app()
        self.engine: Engine = self.app.database.engine()
        Schema(self.app.database, "shop").upgrade()
        self.run("CREATE TABLE orders (id integer PRIMARY KEY, status text)")
        if self.engine.dialect.name == "postgresql":
            self.run("ALTER TABLE orders REPLICA IDENTITY FULL")
        self.processes: list[subprocess.Popen[bytes]] = []

    def run(self, sql: str, **values: Any) -> list[Any]:
        with self.engine.begin() as connection:
            result = connection.execute(text(sql), values)
            return list(result.all()) if result.returns_rows else []

    def pay(self, number: int) -> None:
        self.run("INSERT INTO orders VALUES (:id, 'placed')", id=number)
        self.run("UPDATE orders SET status = 'paid' WHERE id = :id", id=number)

    def start(self, plan: str = "") -> subprocess.Popen[bytes]:
        env = {**os.environ, ENVIRONMENT: plan, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
        command = [sys.executable, "-m", "tests.integration.cdc_shop"]
        process = subprocess.Popen(command, cwd=ROOT, env=env)
        self.processes.append(process)
        return process

    def messages(self) -> list[tuple[int, str]]:
        rows = self.run("SELECT payload, message_id FROM duly_outbox ORDER BY id")
        return [(json.loads(bytes(payload))["order_id"], name) for payload, name in rows]

    def begun(self) -> bool:
        return bool(self.app.streams().offset("shop").position)

    def until(self, what: Any) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while not what():
            assert time.monotonic() < deadline, self.messages()
            time.sleep(0.05)  # between two looks

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait(10)
        if self.engine.dialect.name == "postgresql":
            # A database with a slot cannot be dropped; a dead reader's connection may linger.
            self.until(self._dropped)
        self.app.close()

    def _dropped(self) -> bool:
        rows = self.run(
            "SELECT slot_name, active_pid FROM pg_replication_slots"
            " WHERE database = current_database()"
        )
        for name, pid in rows:
            if pid is None:
                self.run("SELECT pg_drop_replication_slot(:name)", name=name)
            else:
                self.run("SELECT pg_terminate_backend(:pid)", pid=pid)
        return not rows


@pytest.fixture(params=["sqlite", "postgres"])
def shop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    made = Shop(request.getfixturevalue(f"{request.param}_url"), monkeypatch)
    try:
        yield made
    finally:
        made.close()


def test_killed_between_store_and_confirm_nothing_is_lost_and_nothing_is_stored_twice(
    shop: Shop,
) -> None:
    first = shop.start()
    shop.until(shop.begun)
    first.kill()
    first.wait(10)
    number = 0
    for plan in KILLED_AT:
        process = shop.start(f"{plan}@2=kill")
        while process.poll() is None:
            number += 1
            shop.pay(number)
            time.sleep(0.02)  # so that they are not all one batch
            assert number < 2000, "it was never killed"
        assert process.returncode == -signal.SIGKILL
    process = shop.start()
    number += 1
    shop.pay(number)  # told by this process alone: it is past its start then
    shop.until(lambda: len(shop.messages()) >= number)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    found = shop.messages()
    assert [order for order, _ in found] == list(range(1, number + 1))
    assert len({name for _, name in found}) == number


async def test_killed_around_the_commit_of_an_effect_it_is_there_once(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CDC_WRITES", "1")
    shop.run("CREATE TABLE booked (id integer)")
    async with shop.app.running(["cdc"]):
        await asyncio.to_thread(shop.until, shop.begun)
    number = 0
    # After the commit one of the two is enough: each process takes a second to start.
    others = [failpoints.CDC_STORED] if shop.engine.dialect.name == "sqlite" else []
    for plan in (failpoints.CDC_WRITTEN, *others):
        process = shop.start(f"{plan}@3=kill")
        while process.poll() is None:
            number += 1
            shop.pay(number)
            time.sleep(0.02)  # so that they are not all one batch
            assert number < 2000, "it was never killed"
        assert process.returncode == -signal.SIGKILL
    heir = make_app()
    try:
        async with heir.running(["cdc"]):
            await asyncio.to_thread(shop.until, lambda: len(shop.messages()) >= number)
    finally:
        heir.close()
    booked = [row[0] for row in shop.run("SELECT id FROM booked")]
    assert booked == [order for order, _ in shop.messages()] == list(range(1, number + 1))


def test_a_frozen_reader_is_put_out_and_what_it_held_is_not_stored_twice(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CDC_LEASE_SECONDS", "2")
    frozen = shop.start(f"{failpoints.CDC_READ}@3=stop")
    shop.until(shop.begun)
    for number in range(1, 6):
        shop.pay(number)
    time.sleep(0.5)  # until it stands still; harmless where it is too short
    other = shop.start()
    shop.until(lambda: len(shop.messages()) == 5)
    frozen.send_signal(signal.SIGCONT)
    for number in range(6, 9):
        shop.pay(number)
    shop.until(lambda: len(shop.messages()) == 8)
    assert [order for order, _ in shop.messages()] == list(range(1, 9))
    for process in (other, frozen):
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


async def test_a_rewind_tells_the_same_events_again_under_the_same_ids(shop: Shop) -> None:
    streams, by = shop.app.streams(), By("tester")
    async with shop.app.running(["cdc"]):
        await asyncio.to_thread(shop.until, shop.begun)
        start = streams.offset("shop").position
        await asyncio.to_thread(shop.pay, 1)
        await asyncio.to_thread(shop.until, shop.messages)
        (status,) = await streams.status()
        assert (status.state, status.unreached, status.trouble) == ("follows", "", None)
        streams.rewind(start, by=by)
        if shop.engine.dialect.name == "sqlite":
            await asyncio.to_thread(shop.until, lambda: len(shop.messages()) == 2)
        else:  # a slot cannot go back: that is said, not passed over
            await asyncio.to_thread(shop.until, lambda: streams.offset("shop").state.trouble)
            trouble = streams.offset("shop").state.trouble
            assert trouble is not None
            assert trouble.stopped
            assert trouble.code.startswith(("GAP", "CDC_"))
    assert {number for number, _ in shop.messages()} == {1}
    assert len({name for _, name in shop.messages()}) == 1


async def test_lost_history_stops_the_stream_and_goes_on_when_a_person_has_decided(
    shop: Shop,
) -> None:
    streams, by = shop.app.streams(), By("tester")

    def stopped() -> bool:
        trouble = streams.offset("shop").state.trouble
        return trouble is not None and trouble.stopped

    def mended() -> bool:
        return all(one.done for one in streams.offset("shop").state.tables.values())

    async with shop.app.running(["cdc"]):
        await asyncio.to_thread(shop.until, shop.begun)
    await asyncio.to_thread(_lose_history, shop)
    async with shop.app.running(["cdc"]):
        await asyncio.to_thread(shop.until, stopped)
        roles = {role.role: role.state for role in shop.app.health.report().roles}
        assert roles["stream shop"] is RoleState.DEGRADED
        assert not shop.app.health.report().ready
        assert shop.messages() == []
        if shop.engine.dialect.name == "sqlite":
            streams.snapshot("orders", by=by)  # makes the triggers anew
            await asyncio.to_thread(
                shop.until, lambda: "orders" in streams.offset("shop").state.tables
            )
        else:
            streams.rewind("start", by=by)  # makes the slot anew
        await asyncio.to_thread(shop.until, lambda: shop.begun() and not stopped() and mended())
        await asyncio.to_thread(shop.pay, 2)
        await asyncio.to_thread(shop.until, shop.messages)
    assert [number for number, _ in shop.messages()] == [2]


def _lose_history(shop: Shop) -> None:
    if shop.engine.dialect.name == "sqlite":
        for (name,) in shop.run("SELECT name FROM sqlite_master WHERE type = 'trigger'"):
            shop.run(f'DROP TRIGGER "{name}"')
    else:
        shop.until(shop._dropped)
    shop.pay(1)
