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


@pytest.fixture
def shop() -> Shop:
    return Shop()


@pytest.fixture
def test(shop: Shop, tmp_path: Path) -> Iterator[AppTest]:
    with AppTest(shop.app, tmp_path) as test:
        metadata.create_all(test.engine)
        yield test


def rows(test: AppTest, table: sa.Table) -> list[int]:
    """What is committed."""
    with test.engine.connect() as connection:
        return sorted(connection.execute(sa.select(table.c.order_id)).scalars())


def status(test: AppTest) -> list[tuple[str, int]]:
    with test.engine.connect() as connection:
        text = "SELECT status, count(*) FROM duly_inbox GROUP BY 1 ORDER BY 1"
        return [tuple(row) for row in connection.execute(sa.text(text))]


# --- committed ------------------------------------------------------------------------------------
def test_what_was_committed_is_relayed_handled_and_what_it_publishes_too(
    shop: Shop, test: AppTest
) -> None:
    with Session(test.engine) as session, session.begin():
        for n in range(5):
            shop.place(session, n, key="k")
    drained = test.drain()
    assert (drained.relayed, drained.failures) == (10, ())
    assert rows(test, invoice) == rows(test, payment) == [0, 1, 2, 3, 4]
    assert len(set(shop.calls)) == 5
    assert status(test) == [("done", 10)]
    assert test.drain().relayed == 0


def test_a_rolled_back_message_is_not_there(shop: Shop, test: AppTest) -> None:
    shop.place(test.session, 1)
    test.session.rollback()
    test.drain()
    test.assert_nothing_published()
    assert rows(test, invoice) == []


def test_a_drain_takes_less_than_a_tenth_of_a_second_and_leaves_no_thread(
    shop: Shop, test: AppTest
) -> None:
    took = []
    for n in range(5):
        with Session(test.engine) as session, session.begin():
            shop.place(session, n)
        began = time.perf_counter()
        test.drain()
        took.append(time.perf_counter() - began)
    assert min(took) < 0.1, took
    assert not [t.name for t in threading.enumerate() if t is not threading.main_thread()]
    assert rows(test, payment) == [0, 1, 2, 3, 4]


async def test_adrain_works_under_an_event_loop_and_drain_says_so(
    shop: Shop, test: AppTest
) -> None:
    with Session(test.engine) as session, session.begin():
        shop.place(session, 1)
    with pytest.raises(RuntimeError, match="adrain"):
        test.drain()
    assert (await test.adrain()).relayed == 2
    assert rows(test, payment) == [1]


# --- inside a transaction that never commits ------------------------------------------------------
def test_inside_an_open_session_everything_happens_in_its_transaction(
    shop: Shop, test: AppTest
) -> None:
    shop.place(test.session, 1)
    assert test.drain().relayed == 2
    assert test.session.scalars(sa.select(invoice.c.order_id)).all() == [1]
    assert test.session.scalars(sa.select(payment.c.order_id)).all() == [1]
    test.assert_published(Charge, order_id=1)
    test.session.rollback()
    assert rows(test, invoice) == rows(test, payment) == []
    assert status(test) == []


def test_a_session_in_an_outer_transaction_commits_only_its_savepoint(
    shop: Shop, test: AppTest
) -> None:
    with test.engine.connect() as connection:
        outer = connection.begin()
        session = Session(bind=connection, join_transaction_mode="create_savepoint")
        test.join(session)
        for n in (1, 2):
            shop.place(session, n)
            session.commit()
            test.assert_published(Placed, order_id=n)
            test.drain()
        assert connection.scalar(sa.select(sa.func.count()).select_from(payment)) == 2
        session.close()
        outer.rollback()
    assert rows(test, invoice) == rows(test, payment) == []


def test_a_savepoint_of_the_test_that_is_rolled_back_takes_its_message_along(
    shop: Shop, test: AppTest
) -> None:
    shop.place(test.session, 1)
    inner = test.session.begin_nested()
    shop.place(test.session, 2)
    inner.rollback()
    test.drain()
    assert [one.order_id for one in test.published(Placed)] == [1]
    assert test.session.scalars(sa.select(invoice.c.order_id)).all() == [1]


def test_a_failing_handler_loses_only_its_own_savepoint(shop: Shop, test: AppTest) -> None:
    test.session.execute(invoice.insert().values(order_id=99))
    shop.raising = [RuntimeError("no")]
    shop.place(test.session, 1)
    assert test.drain().failures == ("sales/sales.order.placed: RuntimeError",)
    assert test.session.scalars(sa.select(invoice.c.order_id)).all() == [99]
    test.clock.advance("11s")
    assert test.drain().failures == ()
    assert test.session.scalars(sa.select(invoice.c.order_id)).all() == [99, 1]
    test.session.commit()
    assert rows(test, invoice) == [1, 99]


def test_a_handler_that_commits_inside_is_refused_as_ever(tmp_path: Path) -> None:
    app = App("shop")

    @app.on(Placed, group="sales")
    def bill(event: Placed, tx: Tx) -> None:
        tx.session.execute(invoice.insert().values(order_id=event.order_id))
        tx.session.commit()

    with AppTest(app, tmp_path) as test:
        metadata.create_all(test.engine)
        app.publish(test.session, Placed(order_id=1))
        failures = test.drain().failures
        assert failures == ("sales/sales.order.placed: TRANSACTION_MISUSE",)
        assert test.session.scalars(sa.select(invoice.c.order_id)).all() == []


async def test_inside_an_async_session(shop: Shop, test: AppTest) -> None:
    async with AsyncSession(shop.app.database.async_engine()) as session:
        test.join(session)
        shop.place(session, 1)
        assert (await test.adrain()).relayed == 2
        assert (await session.scalars(sa.select(payment.c.order_id))).all() == [1]
        assert test.assert_published(Charge).order_id == 1
        await session.rollback()
    assert rows(test, payment) == []


# --- faults ---------------------------------------------------------------------------------------
def test_a_broker_that_is_away_is_tried_again(shop: Shop, test: AppTest) -> None:
    shop.place(test.session, 1)
    test.session.commit()
    test.fail_next("broker.publish", times=2)
    assert test.drain().relayed == 2
    assert rows(test, invoice) == [1]


def test_a_lost_answer_sends_twice_and_is_handled_once(shop: Shop, test: AppTest) -> None:
    shop.place(test.session, 1)
    test.session.commit()
    test.fail_next("broker.publish_unknown")
    assert test.drain().relayed == 3
    assert rows(test, invoice) == rows(test, payment) == [1]
    test.assert_published(Placed, order_id=1)


def test_a_handler_that_fails_waits_for_the_clock(shop: Shop, test: AppTest) -> None:
    shop.place(test.session, 1)
    test.session.commit()
    test.fail_next("handler:sales.order.placed", times=2)
    assert test.drain().failures == ("sales/sales.order.placed: InjectedError",)
    assert test.drain().failures == ()
    assert rows(test, invoice) == []
    test.clock.advance("11s")
    assert test.drain().failures == ("sales/sales.order.placed: InjectedError",)
    test.clock.advance("21s")
    assert test.drain().failures == ()
    assert rows(test, invoice) == [1]


def test_the_last_attempt_fails_for_good(shop: Shop, test: AppTest) -> None:
    shop.place(test.session, 1)
    test.session.commit()
    test.fail_next("handler:sales.order.placed", times=3)
    for _ in range(4):
        test.drain()
        test.clock.advance("1h")
    assert status(test) == [("failed", 1)]


@pytest.mark.parametrize("inside", [False, True])
def test_a_commit_that_meets_a_deadlock_is_done_again(
    shop: Shop, test: AppTest, inside: bool
) -> None:
    shop.place(test.session, 1)
    if not inside:
        test.session.commit()
    test.fail_next("commit", times=3)
    assert test.drain().failures == ()
    assert len(shop.calls) == 1
    test.session.commit()
    assert rows(test, invoice) == rows(test, payment) == [1]


def test_a_fault_that_nobody_knows_or_that_never_happens_is_an_error(
    shop: Shop, tmp_path: Path
) -> None:
    left = pytest.raises(AssertionError, match=r"broker\.publish \(1 left\)")
    with left, AppTest(shop.app, tmp_path) as test:
        with pytest.raises(ConfigurationError, match=r"nearest is 'broker\.publish'"):
            test.fail_next("broker.publsh")
        with pytest.raises(ConfigurationError, match="0 times"):
            test.fail_next("commit", times=0)
        test.fail_next("broker.publish")


# --- assertions -----------------------------------------------------------------------------------
def test_assertions_see_what_waits_and_what_was_relayed(shop: Shop, test: AppTest) -> None:
    test.assert_nothing_published()
    shop.place(test.session, 1)
    assert test.assert_published(Placed, order_id=1) == Placed(order_id=1)
    test.session.commit()
    test.assert_published(Placed, order_id=1)
    test.drain()
    test.assert_published(Placed, order_id=1)
    test.assert_nothing_published(kind=Shop)


def test_a_failed_assertion_shows_what_there_is(shop: Shop, test: AppTest) -> None:
    shop.raising = [RuntimeError("secret")]
    shop.place(test.session, 1)
    shop.place(test.session, 1)
    test.session.commit()
    test.drain()
    with pytest.raises(AssertionError) as missing:
        test.assert_published(Placed, order_id=7)
    assert "Placed(order_id=7) was not published" in str(missing.value)
    assert "Placed(order_id=1, note='')" in str(missing.value)
    assert "sales/sales.order.placed: RuntimeError" in str(missing.value)
    with pytest.raises(AssertionError, match="published 2 times"):
        test.assert_published(Placed, order_id=1)
    with pytest.raises(AssertionError, match="no field 'order'"):
        test.assert_published(Placed, order=1)
    with pytest.raises(AssertionError, match="nothing should have been published"):
        test.assert_nothing_published()


# --- bounds ---------------------------------------------------------------------------------------
def test_messages_without_end_are_told(tmp_path: Path) -> None:
    app = App("shop")

    @app.on(Placed, group="echo")
    def echo(event: Placed, tx: Tx) -> None:
        tx.publish(Placed(order_id=event.order_id + 1))

    with AppTest(app, tmp_path) as test:
        app.publish(test.session, Placed(order_id=0))
        test.session.commit()
        with pytest.raises(TimeoutError, match="still not quiet after 300ms"):
            test.drain(timeout="300ms")
    assert threading.active_count() == 1


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
    with AppTest(shop.app, tmp_path, database=sqlite_url, clock=clock) as test:
        metadata.create_all(test.engine)
        shop.place(test.session, 1)
        test.session.commit()
        with test.engine.connect() as connection:
            created = connection.scalar(sa.text("SELECT created_at FROM duly_outbox"))
        assert created == 1_000_000.0
        test.drain()
    assert list(tmp_path.glob("app_test*")) == []


async def test_whoever_runs_the_app_for_real_is_told_what_to_use(shop: Shop, test: AppTest) -> None:
    with pytest.raises(ConfigurationError, match="embedded:///"):
        async with asyncio.timeout(10), shop.app.running() as running:
            await running.wait()
