"""Joining asyncio sessions and connections: aiosqlite and async psycopg, with the same code as the
sync ones.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)

from duly.databases.sqlite.engine import sqlite_engine
from duly.errors import ConfigurationError, NotInTransactionError
from duly.frameworks.sqlalchemy import JOIN
from tests.unit.frameworks.shop import Order, Shop
from tests.unit.frameworks.store import Placed, PostgresStore, SqliteStore


def placed(n: int) -> Placed:
    return Placed(order_id=n)


class AsyncShop(Shop):
    """aengine: the user's AsyncEngine; the sync one looks at the result."""

    aengine: AsyncEngine


@pytest.fixture(params=["sqlite", "postgres"])
async def shop(request: Any, tmp_path: Path) -> AsyncIterator[AsyncShop]:
    if request.param == "sqlite":
        path = tmp_path / "shop.db"
        made = AsyncShop(sqlite_engine(f"sqlite:///{path}"), SqliteStore(str(path)))
        made.aengine = sqlite_engine(f"sqlite+aiosqlite:///{path}", asynchronous=True)
    else:
        url = request.getfixturevalue("postgres_url")
        target = url.replace("postgresql://", "postgresql+psycopg://", 1)
        made = AsyncShop(create_engine(target), PostgresStore(urlsplit(url).path[1:]))
        made.aengine = create_async_engine(target)
    yield made
    await made.aengine.dispose()
    made.engine.dispose()


async def test_async_session(shop: AsyncShop) -> None:
    """Late values, savepoints, hooks that use the session - under ``async with`` and without an
    await at publish.
    """
    ran: list[Any] = []
    async with AsyncSession(shop.aengine) as s, s.begin():
        order = Order(note="a")
        s.add(order)
        shop.app.publish(s, lambda: placed(order.id), key=lambda: order.id)
        shop.app.publish(
            s,
            lambda: placed(
                s.sync_session.execute(text("SELECT count(*) + 10 FROM orders")).scalar_one()
            ),
        )
        savepoint = await s.begin_nested()
        shop.app.publish(s, placed(3))
        await savepoint.rollback()
        async with s.begin_nested():
            shop.app.publish(s, placed(4))
            shop.app.after_commit(s, lambda: ran.append(order.id))
        assert ran == []
    assert (shop.saved(), shop.stored(), ran, shop.app.reports) == ([1], [1, 11, 4], [1], [])
    async with AsyncSession(shop.aengine) as s:
        shop.app.publish(s, placed(5))
        await s.commit()
        shop.app.publish(s, placed(6))
        await s.rollback()
        shop.app.publish(s, placed(7))
    assert shop.stored() == [1, 11, 4, 5]


async def test_async_factories(shop: AsyncShop) -> None:
    scoped = async_scoped_session(async_sessionmaker(shop.aengine), scopefunc=asyncio.current_task)
    shop.app.publish(scoped, placed(1))
    await scoped.commit()
    await scoped.remove()
    async with async_sessionmaker(shop.aengine).begin() as s:
        shop.app.publish(s, placed(2))
    assert shop.stored() == [1, 2]


async def test_async_connection(shop: AsyncShop) -> None:
    ran: list[int] = []
    async with shop.aengine.connect() as c:
        with pytest.raises(NotInTransactionError):
            shop.app.publish(c, placed(0))
        transaction = await c.begin()
        await c.execute(text("INSERT INTO orders (id, note) VALUES (1, '')"))
        shop.app.publish(c, placed(1))
        shop.app.publish(transaction, lambda: placed(2))
        async with c.begin_nested() as savepoint:
            shop.app.publish(c, placed(3))
            await savepoint.rollback()
        shop.app.after_commit(c, lambda: ran.append(1))
        await transaction.commit()
    async with shop.aengine.begin() as c:
        shop.app.publish(c, placed(4))
    with pytest.raises(ZeroDivisionError):
        async with shop.aengine.begin() as c:
            shop.app.publish(c, placed(5))
            raise ZeroDivisionError
    assert (shop.saved(), shop.stored(), ran) == ([1], [1, 2, 4], [1])


async def test_async_session_on_an_outer_connection(shop: AsyncShop) -> None:
    ran: list[int] = []
    for n, end in ((1, "rollback"), (2, "commit")):
        async with shop.aengine.connect() as c:
            transaction = await c.begin()
            async with AsyncSession(c, join_transaction_mode="create_savepoint") as s:
                s.add(Order(id=n))
                shop.app.publish(s, placed(n))
                shop.app.after_commit(s, lambda n=n: ran.append(n))
                await s.commit()
                await s.run_sync(JOIN.flush)
            assert ran == []
            await getattr(transaction, end)()
    assert shop.saved() == shop.stored() == ran == [2]


async def test_async_refusals(shop: AsyncShop) -> None:
    for target in (shop.aengine, async_sessionmaker(shop.aengine)):
        with pytest.raises(NotInTransactionError) as caught:
            shop.app.publish(target, placed(1))
        assert caught.value.code == "ENGINE_IS_NO_TRANSACTION"
    with pytest.raises(NotInTransactionError, match="not started"):
        shop.app.publish(AsyncConnection(shop.aengine), placed(1))
    async with AsyncSession(shop.aengine.execution_options(isolation_level="AUTOCOMMIT")) as s:
        shop.app.publish(s, placed(2))
        with pytest.raises(ConfigurationError):
            await s.commit()

    async def hook() -> None: ...

    async with AsyncSession(shop.aengine) as s:
        with pytest.raises(ConfigurationError) as refused:
            shop.app.after_commit(s, hook)
        assert refused.value.code == "ASYNC_HOOK"
    assert shop.stored() == []


async def test_flush_error_then_the_pool_again(shop: AsyncShop) -> None:
    async with AsyncSession(shop.aengine) as s, s.begin():
        shop.app.publish(s, placed(0))
    async with shop.aengine.begin() as c:
        await c.execute(text("ALTER TABLE duly_outbox RENAME TO away"))
    for _ in range(3):
        async with AsyncSession(shop.aengine) as s:
            s.add(Order(id=1))
            shop.app.publish(s, placed(1))
            with pytest.raises(DBAPIError):
                await s.commit()
    async with shop.aengine.begin() as c:
        await c.execute(text("ALTER TABLE away RENAME TO duly_outbox"))
        await c.execute(text("INSERT INTO orders (id, note) VALUES (2, '')"))
    assert (shop.saved(), shop.stored()) == ([2], [0])


async def test_cancelled_in_the_flush(shop: AsyncShop) -> None:
    """The task is cancelled while our INSERT waits: CancelledError goes out, nothing of the
    transaction stays.
    """
    async with AsyncSession(shop.aengine) as s, s.begin():
        shop.app.publish(s, placed(0))
    task: asyncio.Task[None] | None = None

    async def work() -> None:
        async with AsyncSession(shop.aengine) as s, s.begin():
            await s.execute(text("INSERT INTO orders (id, note) VALUES (1, '')"))
            assert task is not None
            shop.app.publish(s, lambda: (task.cancel(), placed(1))[1])

    task = asyncio.create_task(work())
    with pytest.raises(asyncio.CancelledError):
        await task
    async with AsyncSession(shop.aengine) as s, s.begin():
        s.add(Order(id=2))
        shop.app.publish(s, placed(2))
    assert (shop.saved(), shop.stored()) == ([2], [0, 2])
