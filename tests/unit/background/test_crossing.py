"""A session that came by a global: use, flush and commit of another's transaction are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from duly import App
from duly.databases.sqlite.engine import sqlite_engine
from duly.errors import CrossesThreadsError
from tests.unit.frameworks.shop import Order

HELD: dict[str, Any] = {}


def query(session: Session) -> None:
    session.execute(select(Order)).all()


def core_statement(session: Session) -> None:
    session.execute(text("SELECT 1"))


def lazy_load(session: Session) -> str:
    return str(HELD["order"].note)


def flush(session: Session) -> None:
    session.add(Order(id=2))
    session.flush()


def commit(session: Session) -> None:
    session.commit()


USES = [query, core_statement, lazy_load, flush, commit]


@pytest.mark.parametrize("use", USES, ids=lambda use: str(use.__name__))
def test_a_transaction_of_somebody_else(
    app: App, engine: Engine, use: Callable[[Session], Any]
) -> None:
    function = app.background(name="f")(lambda: use(HELD["session"]))
    with Session(engine) as setup, setup.begin():
        setup.add(Order(id=1, note="one"))
    app.tasks.pool("threads")  # from the first pool on, sessions remember where they began
    with Session(engine) as session:
        HELD["session"], HELD["order"] = session, session.get(Order, 1)
        session.expire(HELD["order"])
        error = function.submit().exception(20)
        assert isinstance(error, CrossesThreadsError), error
        session.rollback()
        use(session)  # its owner may


def test_a_session_of_its_own_may(app: App, engine: Engine) -> None:
    @app.background()
    def own(order_id: int) -> int:
        with Session(engine) as session, session.begin():
            session.add(Order(id=order_id))
            session.flush()
            return len(session.scalars(select(Order)).all())

    assert own.submit(1).result(20) == 1


def test_a_registry_per_thread_may(app: App, engine: Engine) -> None:
    """A scoped_session as a global: each worker has a session of its own, across its calls."""
    HELD["registry"] = registry = scoped_session(sessionmaker(engine))

    @app.background(workers=1)
    def count() -> int:
        return len(HELD["registry"].scalars(select(Order)).all())

    registry.execute(select(Order)).all()
    registry.commit()
    assert [count.submit().result(20) for _ in range(3)] == [0, 0, 0]
    app.background(name="remove")(lambda: HELD["registry"].remove()).submit().result(20)


async def test_an_async_session_of_somebody_else(app: App, engine: Engine) -> None:
    @app.background()
    async def use() -> int:
        return len((await HELD["async"].scalars(select(Order))).all())

    @app.background()
    async def own() -> int:
        async with AsyncSession(other) as session:
            return len((await session.scalars(select(Order))).all())

    app.tasks.pool("tasks")
    other = sqlite_engine(f"sqlite:///{engine.url.database}", asynchronous=True)
    async with AsyncSession(other) as session:
        HELD["async"] = session
        await session.execute(select(Order))
        with pytest.raises(CrossesThreadsError):
            await use.submit()
        await session.commit()
        assert await own.submit() == 0
    await other.dispose()


def test_threads_of_a_framework_may_hand_a_session_on(app: App, engine: Engine) -> None:
    """Outside of background calls nothing is compared: a request wanders between threads."""
    from concurrent.futures import ThreadPoolExecutor

    app.background(name="f")(lambda: None).submit().result(20)  # from now on sessions are watched
    with Session(engine) as session, ThreadPoolExecutor(1) as other:
        session.execute(select(Order)).all()
        rows = other.submit(session.execute, select(Order)).result(20).all()
        assert rows == []
