"""The test kit's App: what a user's tests rely on, in every kind of transaction."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from duly import App, AsyncTx, Command, Event, Retry, Tx
from duly.errors import ConfigurationError, UnsafeSettingError
from duly.testing.app_test import AppTest
from duly.testing.clock import FakeClock

metadata = sa.MetaData()
invoice = sa.Table("invoice", metadata, sa.Column("order_id", sa.Integer))
payment = sa.Table("payment", metadata, sa.Column("order_id", sa.Integer))


class Placed(Event, name="order.placed", topic="orders"):
    order_id: int
    note: str = ""


class Charge(Command, name="billing.charge", queue="billing"):
    order_id: int


class Shop:
    """A small App with a plain and an async handler."""

    def __init__(self) -> None:
        self.app = App("shop")
        self.calls: list[str] = []
        self.raising: list[Exception] = []
        self.app.on(Placed, group="sales", retry=Retry(attempts=3, base="10s", jitter=False))(
            self.bill
        )
        self.app.handle(Charge, dedupe=lambda c: c.order_id)(self.charge)

    def bill(self, event: Placed, tx: Tx) -> None:
        if self.raising:
            raise self.raising.pop()
        tx.session.execute(invoice.insert().values(order_id=event.order_id))
        tx.send(Charge(order_id=event.order_id))

    async def charge(self, command: Charge, tx: AsyncTx) -> None:
        await tx.effect("charge", self.provider, command.order_id, key_as="key")
        await tx.session.execute(payment.insert().values(order_id=command.order_id))

    def provider(self, order_id: int, *, key: str) -> str:
        self.calls.append(key)
        return "receipt"

    def place(self, session: Any, order_id: int, **options: Any) -> str:
        return self.app.publish(session, Placed(order_id=order_id), **options)


@pytest.fixture(autouse=True)
def others() -> set[threading.Thread]:
    """The threads from before: some tests of other rooms leave daemons, a kit leaves none."""
    return set(threading.enumerate())


@pytest.fixture
def shop() -> Shop:
    return Shop()


@pytest.fixture
def kit(shop: Shop, tmp_path: Path) -> Iterator[AppTest]:
    with AppTest(shop.app, tmp_path) as kit:
        metadata.create_all(kit.engine)
        yield kit


def rows(kit: AppTest, table: sa.Table) -> list[int]:
    """What is committed."""
    with kit.engine.connect() as connection:
        return sorted(connection.execute(sa.select(table.c.order_id)).scalars())


def status(kit: AppTest) -> list[tuple[str, int]]:
    with kit.engine.connect() as connection:
        text = "SELECT status, count(*) FROM duly_inbox GROUP BY 1 ORDER BY 1"
        return [tuple(row) for row in connection.execute(sa.text(text))]


# --- committed ------------------------------------------------------------------------------------
def test_what_was_committed_is_relayed_handled_and_what_it_publishes_too(
    shop: Shop, kit: AppTest
) -> None:
    with Session(kit.engine) as session, session.begin():
        for n in range(5):
            shop.place(session, n, key="k")
    drained = kit.drain()
    assert (drained.relayed, drained.failures) == (10, ())
    assert rows(kit, invoice) == rows(kit, payment) == [0, 1, 2, 3, 4]
    assert len(set(shop.calls)) == 5
    assert status(kit) == [("done", 10)]
    assert kit.drain().relayed == 0


def test_a_rolled_back_message_is_not_there(shop: Shop, kit: AppTest) -> None:
    shop.place(kit.session, 1)
    kit.session.rollback()
    kit.drain()
    kit.assert_nothing_published()
    assert rows(kit, invoice) == []


def test_a_drain_waits_for_no_timer_and_leaves_no_thread(
    others: set[threading.Thread], shop: Shop, kit: AppTest
) -> None:
    idle = []
    for n in range(5):
        with Session(kit.engine) as session, session.begin():
            shop.place(session, n)
        began, worked = time.perf_counter(), time.process_time()
        kit.drain()
        idle.append(time.perf_counter() - began - (time.process_time() - worked))
    assert min(idle) < 0.5, idle  # the shortest timer of a running App is twice as long
    assert set(threading.enumerate()) <= others
    assert rows(kit, payment) == [0, 1, 2, 3, 4]


async def test_adrain_works_under_an_event_loop_and_drain_says_so(shop: Shop, kit: AppTest) -> None:
    with Session(kit.engine) as session, session.begin():
        shop.place(session, 1)
    with pytest.raises(RuntimeError, match="adrain"):
        kit.drain()
    assert (await kit.adrain()).relayed == 2
    assert rows(kit, payment) == [1]


# --- inside a transaction that never commits ------------------------------------------------------
def test_inside_an_open_session_everything_happens_in_its_transaction(
    shop: Shop, kit: AppTest
) -> None:
    shop.place(kit.session, 1)
    assert kit.drain().relayed == 2
    assert kit.session.scalars(sa.select(invoice.c.order_id)).all() == [1]
    assert kit.session.scalars(sa.select(payment.c.order_id)).all() == [1]
    kit.assert_published(Charge, order_id=1)
    kit.session.rollback()
    assert rows(kit, invoice) == rows(kit, payment) == []
    assert status(kit) == []


def test_a_session_in_an_outer_transaction_commits_only_its_savepoint(
    shop: Shop, kit: AppTest
) -> None:
    with kit.engine.connect() as connection:
        outer = connection.begin()
        session = Session(bind=connection, join_transaction_mode="create_savepoint")
        kit.join(session)
        for n in (1, 2):
            shop.place(session, n)
            session.commit()
            kit.assert_published(Placed, order_id=n)
            kit.drain()
        assert connection.scalar(sa.select(sa.func.count()).select_from(payment)) == 2
        session.close()
        outer.rollback()
    assert rows(kit, invoice) == rows(kit, payment) == []


def test_a_savepoint_of_the_test_that_is_rolled_back_takes_its_message_along(
    shop: Shop, kit: AppTest
) -> None:
    shop.place(kit.session, 1)
    inner = kit.session.begin_nested()
    shop.place(kit.session, 2)
    inner.rollback()
    kit.drain()
    assert [one.order_id for one in kit.published(Placed)] == [1]
    assert kit.session.scalars(sa.select(invoice.c.order_id)).all() == [1]


def test_a_failing_handler_loses_only_its_own_savepoint(shop: Shop, kit: AppTest) -> None:
    kit.session.execute(invoice.insert().values(order_id=99))
    shop.raising = [RuntimeError("no")]
    shop.place(kit.session, 1)
    assert kit.drain().failures == ("sales/sales.order.placed: RuntimeError",)
    assert kit.session.scalars(sa.select(invoice.c.order_id)).all() == [99]
    kit.clock.advance("11s")
    assert kit.drain().failures == ()
    assert kit.session.scalars(sa.select(invoice.c.order_id)).all() == [99, 1]
    kit.session.commit()
    assert rows(kit, invoice) == [1, 99]


def test_a_handler_that_commits_inside_is_refused_as_ever(tmp_path: Path) -> None:
    app = App("shop")

    @app.on(Placed, group="sales")
    def bill(event: Placed, tx: Tx) -> None:
        tx.session.execute(invoice.insert().values(order_id=event.order_id))
        tx.session.commit()

    with AppTest(app, tmp_path) as kit:
        metadata.create_all(kit.engine)
        app.publish(kit.session, Placed(order_id=1))
        failures = kit.drain().failures
        assert failures == ("sales/sales.order.placed: TRANSACTION_MISUSE",)
        assert kit.session.scalars(sa.select(invoice.c.order_id)).all() == []


async def test_inside_an_async_session(shop: Shop, kit: AppTest) -> None:
    async with AsyncSession(shop.app.database.async_engine()) as session:
        kit.join(session)
        shop.place(session, 1)
        assert (await kit.adrain()).relayed == 2
        assert (await session.scalars(sa.select(payment.c.order_id))).all() == [1]
        assert kit.assert_published(Charge).order_id == 1
        await session.rollback()
    assert rows(kit, payment) == []


# --- faults ---------------------------------------------------------------------------------------
def test_a_broker_that_is_away_is_tried_again(shop: Shop, kit: AppTest) -> None:
    shop.place(kit.session, 1)
    kit.session.commit()
    kit.fail_next("broker.publish", times=2)
    assert kit.drain().relayed == 2
    assert rows(kit, invoice) == [1]


def test_a_lost_answer_sends_twice_and_is_handled_once(shop: Shop, kit: AppTest) -> None:
    shop.place(kit.session, 1)
    kit.session.commit()
    kit.fail_next("broker.publish_unknown")
    assert kit.drain().relayed == 3
    assert rows(kit, invoice) == rows(kit, payment) == [1]
    kit.assert_published(Placed, order_id=1)


def test_a_handler_that_fails_waits_for_the_clock(shop: Shop, kit: AppTest) -> None:
    shop.place(kit.session, 1)
    kit.session.commit()
    kit.fail_next("handler:sales.order.placed", times=2)
    assert kit.drain().failures == ("sales/sales.order.placed: InjectedError",)
    assert kit.drain().failures == ()
    assert rows(kit, invoice) == []
    kit.clock.advance("11s")
    assert kit.drain().failures == ("sales/sales.order.placed: InjectedError",)
    kit.clock.advance("21s")
    assert kit.drain().failures == ()
    assert rows(kit, invoice) == [1]


def test_the_last_attempt_fails_for_good(shop: Shop, kit: AppTest) -> None:
    shop.place(kit.session, 1)
    kit.session.commit()
    kit.fail_next("handler:sales.order.placed", times=3)
    for _ in range(4):
        kit.drain()
        kit.clock.advance("1h")
    assert status(kit) == [("failed", 1)]


@pytest.mark.parametrize("inside", [False, True])
def test_a_commit_that_meets_a_deadlock_is_done_again(
    shop: Shop, kit: AppTest, inside: bool
) -> None:
    shop.place(kit.session, 1)
    if not inside:
        kit.session.commit()
    kit.fail_next("commit", times=3)
    assert kit.drain().failures == ()
    assert len(shop.calls) == 1
    kit.session.commit()
    assert rows(kit, invoice) == rows(kit, payment) == [1]


def test_a_fault_that_nobody_knows_or_that_never_happens_is_an_error(
    shop: Shop, tmp_path: Path
) -> None:
    left = pytest.raises(AssertionError, match=r"broker\.publish \(1 left\)")
    with left, AppTest(shop.app, tmp_path) as kit:
        with pytest.raises(ConfigurationError, match=r"nearest is 'broker\.publish'"):
            kit.fail_next("broker.publsh")
        with pytest.raises(ConfigurationError, match="0 times"):
            kit.fail_next("commit", times=0)
        kit.fail_next("broker.publish")


# --- assertions -----------------------------------------------------------------------------------
def test_assertions_see_what_waits_and_what_was_relayed(shop: Shop, kit: AppTest) -> None:
    kit.assert_nothing_published()
    shop.place(kit.session, 1)
    assert kit.assert_published(Placed, order_id=1) == Placed(order_id=1)
    kit.session.commit()
    kit.assert_published(Placed, order_id=1)
    kit.drain()
    kit.assert_published(Placed, order_id=1)
    kit.assert_nothing_published(kind=Shop)


def test_a_failed_assertion_shows_what_there_is(shop: Shop, kit: AppTest) -> None:
    shop.raising = [RuntimeError("secret")]
    shop.place(kit.session, 1)
    shop.place(kit.session, 1)
    kit.session.commit()
    kit.drain()
    with pytest.raises(AssertionError) as missing:
        kit.assert_published(Placed, order_id=7)
    assert "Placed(order_id=7) was not published" in str(missing.value)
    assert "Placed(order_id=1, note='')" in str(missing.value)
    assert "sales/sales.order.placed: RuntimeError" in str(missing.value)
    with pytest.raises(AssertionError, match="published 2 times"):
        kit.assert_published(Placed, order_id=1)
    with pytest.raises(AssertionError, match="no field 'order'"):
        kit.assert_published(Placed, order=1)
    with pytest.raises(AssertionError, match="nothing should have been published"):
        kit.assert_nothing_published()


# --- bounds ---------------------------------------------------------------------------------------
def test_messages_without_end_are_told(others: set[threading.Thread], tmp_path: Path) -> None:
    app = App("shop")

    @app.on(Placed, group="echo")
    def echo(event: Placed, tx: Tx) -> None:
        tx.publish(Placed(order_id=event.order_id + 1))

    with AppTest(app, tmp_path) as kit:
        app.publish(kit.session, Placed(order_id=0))
        kit.session.commit()
        with pytest.raises(TimeoutError, match="still not quiet after 300ms"):
            kit.drain(timeout="300ms")
    assert set(threading.enumerate()) <= others


def test_what_is_wrong_with_the_handlers_is_told_at_once(tmp_path: Path) -> None:
    app = App("shop")
    app.registry.of(Charge)
    with pytest.raises(UnsafeSettingError, match="NO_HANDLER"), AppTest(app, tmp_path):
        pass
    assert app.settings.database == "sqlite:///duly.db"


def test_a_database_of_ones_own_and_a_clock_of_ones_own(
    shop: Shop, sqlite_url: str, tmp_path: Path
) -> None:
    clock = FakeClock(1_000_000.0)
    with AppTest(shop.app, tmp_path, database=sqlite_url, clock=clock) as kit:
        metadata.create_all(kit.engine)
        shop.place(kit.session, 1)
        kit.session.commit()
        with kit.engine.connect() as connection:
            created = connection.scalar(sa.text("SELECT created_at FROM duly_outbox"))
        assert created == 1_000_000.0
        kit.drain()
    assert list(tmp_path.glob("app_test*")) == []


async def test_whoever_runs_the_app_for_real_is_told_what_to_use(shop: Shop, kit: AppTest) -> None:
    with pytest.raises(ConfigurationError, match="embedded:///"):
        async with asyncio.timeout(10), shop.app.running() as running:
            await running.wait()
