"""The test kit inside a transaction of PostgreSQL that never commits, sync and async."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from duly import App, AsyncTx, Retry, Tx
from duly.outbox.schema import Schema
from duly.testing.app_test import AppTest
from tests.acceptance.shop_app import Charge, Placed, insert


@pytest.fixture
def app() -> App:
    app = App("shop")

    @app.on(Placed, group="sales", retry=Retry(attempts=1))
    def bill(event: Placed, tx: Tx) -> None:
        tx.session.execute(insert(event.order_id))
        if event.note == "broken":
            tx.session.execute(sa.text("SELECT * FROM nowhere"))
        tx.send(Charge(order_id=event.order_id))

    @app.handle(Charge)
    async def charge(command: Charge, tx: AsyncTx) -> None:
        await tx.session.execute(insert(command.order_id + 1_000))

    return app


@pytest.fixture
def kit(app: App, postgres_url: str, tmp_path: Path) -> Iterator[AppTest]:
    with app.override(database=postgres_url):
        Schema(app.database, "shop").upgrade()
    with AppTest(app, tmp_path, database=postgres_url) as kit:
        with kit.engine.begin() as connection:
            connection.execute(sa.text("CREATE TABLE work (order_id bigint NOT NULL)"))
        yield kit


ALL = sa.text("SELECT order_id FROM work ORDER BY order_id")


def committed(kit: AppTest) -> list[Any]:
    with kit.engine.connect() as connection:
        tables = ("work", "duly_outbox", "duly_inbox")
        return [connection.scalar(sa.text(f"SELECT count(*) FROM {table}")) for table in tables]


def test_a_sync_session_that_is_rolled_back_at_the_end(app: App, kit: AppTest) -> None:
    with kit.engine.connect() as connection:
        outer = connection.begin()
        session = Session(bind=connection, join_transaction_mode="create_savepoint")
        kit.join(session)
        app.publish(session, Placed(order_id=1), key="k")
        app.publish(session, Placed(order_id=2, note="broken"), key="k")
        session.commit()
        drained = kit.drain()
        assert drained.relayed == 3
        assert len(drained.failures) >= 1, "a statement failed; PostgreSQL would abort it all"
        assert connection.scalars(ALL).all() == [1, 1_001]
        session.close()
        outer.rollback()
    assert committed(kit) == [0, 0, 0]


async def test_an_async_session_that_is_rolled_back_at_the_end(app: App, kit: AppTest) -> None:
    engine = app.database.async_engine()
    async with AsyncSession(engine) as session:
        kit.join(session)
        app.publish(session, Placed(order_id=1))
        await kit.adrain()
        assert (await session.scalars(ALL)).all() == [1, 1_001]
        kit.assert_published(Charge, order_id=1)
        await session.rollback()
    await engine.dispose()
    assert committed(kit) == [0, 0, 0]


def test_committed_work_is_done_as_in_production(app: App, kit: AppTest) -> None:
    with Session(kit.engine) as session, session.begin():
        app.publish(session, Placed(order_id=1))
    assert kit.drain().failures == ()
    assert committed(kit) == [2, 0, 2]
