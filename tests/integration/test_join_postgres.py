"""Joining transactions on PostgreSQL: SQLAlchemy on psycopg, and raw psycopg connections."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from sqlalchemy import create_engine, event, text
from sqlalchemy.exc import DBAPIError, IntegrityError, ProgrammingError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from duly.errors import ConfigurationError, NotInTransactionError, TransactionConflictError
from duly.frameworks.dbapi import atomic
from tests.unit.frameworks.shop import Order, Shop
from tests.unit.frameworks.store import Placed, PostgresStore, TestApp

PREPARED = "SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database()"


def placed(n: int) -> Placed:
    return Placed(order_id=n)


def alchemy(url: str) -> str:
    return url.replace("postgresql://", "postgresql+psycopg://", 1)


@pytest.fixture
def shop(postgres_url: str) -> Iterator[Shop]:
    engine = create_engine(alchemy(postgres_url))
    yield Shop(engine, PostgresStore(urlsplit(postgres_url).path[1:]))
    engine.dispose()


@pytest.fixture
def raw(shop: Shop, postgres_url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(postgres_url) as connection:
        yield connection


def insert(connection: Any, n: int) -> None:
    sql = f"INSERT INTO orders (id, note) VALUES ({n:d}, '')"
    connection.execute(sql if isinstance(connection, psycopg.Connection) else text(sql))


# --- SQLAlchemy -----------------------------------------------------------------------------------
def test_session_and_statement_counts(shop: Shop) -> None:
    """0 statements without messages, else 1, whatever the number of messages."""
    with Session(shop.engine) as s:
        shop.app.publish(s, placed(0))
        s.commit()
        for count, key, extra in (
            (0, None, []),
            (1, None, ["INSERT INTO duly_outbox"]),
            (100, None, ["INSERT INTO duly_outbox"]),
            (100, "k", ["WITH d AS"]),
        ):
            with shop.statements() as seen:
                s.add(Order())
                for n in range(count):
                    keyed = {} if key is None else {"key": f"{key}{n}"}
                    shop.app.publish(s, lambda n=n: placed(n), **keyed)
                s.commit()
            assert seen == ["INSERT INTO orders", *extra]
    assert len(shop.stored()) == 202


def test_session_savepoints_and_rollback(shop: Shop) -> None:
    ran: list[int] = []
    with Session(shop.engine) as s, s.begin():
        for n, keep in ((1, True), (2, False), (3, True)):
            with pytest.raises(ZeroDivisionError) if not keep else _nothing(), s.begin_nested():
                s.add(Order(id=n))
                shop.app.publish(s, placed(n), key="k")
                shop.app.after_commit(s, lambda n=n: ran.append(n))
                assert keep or 1 // 0
        with pytest.raises(IntegrityError), s.begin_nested():
            shop.app.publish(s, placed(4))
            insert(s, 1)
    with pytest.raises(ZeroDivisionError), Session(shop.engine) as s, s.begin():
        s.add(Order(id=5))
        shop.app.publish(s, placed(5))
        raise ZeroDivisionError
    assert shop.saved() == shop.stored() == ran == [1, 3]


def _nothing() -> Any:
    from contextlib import nullcontext

    return nullcontext()


def test_flush_error_then_the_same_driver_connection(postgres_url: str) -> None:
    """order, message -> INSERT of the message fails -> another transaction on that driver
    connection: no order 1.
    """
    engine = create_engine(alchemy(postgres_url), pool_size=1, max_overflow=0)
    shop = Shop(engine, PostgresStore(urlsplit(postgres_url).path[1:]))
    with engine.begin() as c:
        shop.app.publish(c, placed(0))
        pid = c.execute(text("SELECT pg_backend_pid()")).scalar()
    with engine.begin() as c:
        c.execute(text("ALTER TABLE duly_outbox RENAME TO away"))
    with Session(engine) as s:
        insert(s, 1)
        shop.app.publish(s, placed(1))
        with pytest.raises(ProgrammingError):
            s.commit()
    with engine.begin() as c:
        assert c.execute(text("SELECT pg_backend_pid()")).scalar() == pid
        c.execute(text("ALTER TABLE away RENAME TO duly_outbox"))
        insert(c, 2)
    assert (shop.saved(), shop.stored()) == ([2], [0])
    engine.dispose()


def test_deferred_foreign_key_does_not_deadlock(shop: Shop) -> None:
    """P: T1 holds the stripe lock of k and COMMIT would check its deferred key, waiting for a row
    lock of T2; T2 holds that row lock and waits for the stripe lock. ``duly_settled`` makes T1 wait
    before it locks.

    T2: UPDATE/DELETE-locks order 1; T1: INSERT line -> order 1 (deferred) and publishes k; T1
    commits: waits for T2 without the stripe; T2 publishes k and commits; T1 goes on.
    """
    with shop.engine.begin() as c:
        insert(c, 1)
        c.execute(
            text("CREATE TABLE line (o bigint REFERENCES orders(id) DEFERRABLE INITIALLY DEFERRED)")
        )
        shop.app.publish(c, placed(0), key="k")
    errors: list[Exception] = []
    t2 = Session(shop.engine)
    t2.execute(text("SELECT 1 FROM orders WHERE id = 1 FOR UPDATE"))

    def first() -> None:
        try:
            with Session(shop.engine) as t1, t1.begin():
                t1.execute(text("SET LOCAL lock_timeout = '10s'"))
                t1.execute(text("INSERT INTO line VALUES (1)"))
                shop.app.publish(t1, placed(1), key="k")
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=first)
    thread.start()
    _until_waiting(shop)
    shop.app.publish(t2, placed(2), key="k")
    t2.commit()
    t2.close()
    thread.join(20)
    assert errors == []
    assert shop.stored() == [0, 2, 1]


WAITING = """SELECT count(*) FROM pg_stat_activity
    WHERE wait_event_type = 'Lock' AND datname = current_database()"""


def _until_waiting(shop: Shop) -> None:
    """Until somebody waits for a lock."""
    with shop.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as c:
        end = time.monotonic() + 10
        while not c.execute(text(WAITING)).scalar():
            assert time.monotonic() < end
            time.sleep(0.01)  # between two looks at the server; bounded by ``end``


def test_same_key_writers_wait_from_flush_to_commit(shop: Shop) -> None:
    """P4: T1 publishes k and works on; T2 publishes k and commits first - it does not wait, T1 has
    not flushed.
    """
    with Session(shop.engine) as t1, Session(shop.engine) as t2:
        insert(t1, 1)
        shop.app.publish(t1, placed(1), key="k")
        insert(t2, 2)
        shop.app.publish(t2, placed(2), key="k")
        t2.commit()
        t1.commit()
    assert shop.stored() == [2, 1]


def test_deadlock_is_retryable(shop: Shop) -> None:
    """T1 holds the stripe of k from outside, T2's flush waits for it past its lock timeout."""
    with shop.engine.connect() as holder, Session(shop.engine) as s:
        holder.execute(text("SELECT pg_advisory_xact_lock(7, s) FROM generate_series(0, 1023) s"))
        s.execute(text("SET LOCAL lock_timeout = '50ms'"))
        insert(s, 1)
        shop.app.publish(s, placed(1), key="k")
        with pytest.raises(TransactionConflictError):
            s.commit()
    assert shop.saved() == []


@pytest.mark.parametrize("form", ["engine", "connection", "session"])
def test_autocommit_is_refused(shop: Shop, postgres_url: str, form: str) -> None:
    options = {"isolation_level": "AUTOCOMMIT"}
    engine = create_engine(alchemy(postgres_url), **(options if form == "engine" else {}))
    with engine.connect() as c:
        if form == "connection":
            c = c.execution_options(**options)
        elif form == "session":
            c.execution_options(**options)
        c.begin()
        with pytest.raises(ConfigurationError) as caught:
            shop.app.publish(c, placed(1))
        assert caught.value.code == "AUTOCOMMIT"
    with Session(engine if form == "engine" else engine.execution_options(**options)) as s:
        shop.app.publish(s, placed(1))
        with pytest.raises(ConfigurationError) as caught:
            s.commit()
        assert caught.value.code == "AUTOCOMMIT"
    engine.dispose()
    assert shop.stored() == []


# --- two-phase ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "end", ["commit", "rollback", "prepare, commit", "prepare, rollback", "fails"]
)
def test_two_phase_session(shop: Shop, end: str) -> None:
    """The rows are in the transaction before PREPARE, so they become visible with COMMIT PREPARED
    and never before.
    """
    ran: list[int] = []
    with Session(shop.engine, twophase=True) as s:
        s.add(Order(id=1))
        shop.app.publish(s, lambda: placed(1) if end != "fails" else placed(1 // 0), key="k")
        shop.app.after_commit(s, lambda: ran.append(1))
        if end == "fails":
            with pytest.raises(ZeroDivisionError):
                s.prepare()
            s.rollback()
        for word in [] if end == "fails" else end.split(", "):
            getattr(s, word)()
            if word == "prepare":
                with shop.engine.connect() as c:
                    assert c.execute(text(PREPARED)).scalar() == 1
                assert (shop.stored(), ran) == ([], [])
                with pytest.raises(NotInTransactionError):
                    shop.app.publish(s, placed(2))
    assert shop.saved() == shop.stored() == ran == ([1] if end.endswith("commit") else [])


@pytest.mark.parametrize("prepare", [False, True])
def test_two_phase_connection(shop: Shop, prepare: bool) -> None:
    ran: list[int] = []
    with shop.engine.connect() as c:
        transaction = c.begin_twophase()
        insert(c, 1)
        shop.app.publish(c, placed(1))
        shop.app.after_commit(c, lambda: ran.append(1))
        if prepare:
            transaction.prepare()
            with pytest.raises(NotInTransactionError):
                shop.app.publish(c, placed(2))
        transaction.commit()
    assert shop.saved() == shop.stored() == ran == [1]


def test_two_phase_whose_flush_fails(shop: Shop) -> None:
    with shop.engine.connect() as c:
        transaction = c.begin_twophase()
        insert(c, 1)
        shop.app.publish(c, placed(1))
        c.execute(text("DROP TABLE duly_outbox"))
        with pytest.raises(ProgrammingError):
            transaction.prepare()
        transaction.rollback()
        with c.begin():
            insert(c, 2)
    assert (shop.saved(), shop.stored()) == ([2], [])


# --- several databases ----------------------------------------------------------------------------
def test_session_with_several_binds_writes_to_the_apps_database(shop: Shop, tmp_path: Any) -> None:
    """Orders live in the App's database, the default bind is another one; the message goes where
    the App's tables are.
    """
    from duly.databases.sqlite.engine import sqlite_engine

    other = sqlite_engine(f"sqlite:///{tmp_path / 'other.db'}")
    with Session(other, binds={Order: shop.engine}) as s, s.begin():
        s.add(Order(id=1))
        s.execute(text("CREATE TABLE t (x)"))
        shop.app.publish(s, lambda: placed(1))
    assert shop.saved() == shop.stored() == [1]
    with Session(binds={Order: shop.engine}) as s, s.begin():
        s.add(Order(id=2))
        shop.app.publish(s, lambda: placed(2))
    with (
        pytest.raises(ConfigurationError) as caught,
        Session(binds={Order: shop.engine}) as s,
        s.begin(),
    ):
        shop.app.publish(s, placed(3))
    assert caught.value.code == "WRONG_DATABASE"
    with pytest.raises(ConfigurationError), Session(other) as s, s.begin():
        s.execute(text("INSERT INTO t VALUES (1)"))
        shop.app.publish(s, placed(4))
    other.dispose()
    assert shop.saved() == shop.stored() == [1, 2]


# --- raw psycopg ----------------------------------------------------------------------------------
def test_raw_publish_stores_at_once(shop: Shop, raw: psycopg.Connection[Any]) -> None:
    insert(raw, 1)
    shop.app.publish(raw, placed(1), key="k")
    with pytest.raises(ZeroDivisionError), raw.transaction():
        shop.app.publish(raw, placed(2))
        raise ZeroDivisionError
    raw.commit()
    shop.app.publish(raw, placed(3))
    raw.rollback()
    raw.autocommit = True
    with pytest.raises(NotInTransactionError) as caught:
        shop.app.publish(raw, placed(4))
    assert caught.value.code == "AUTOCOMMIT"
    with raw.transaction():
        shop.app.publish(raw, lambda: placed(5))
    assert (shop.saved(), shop.stored(), shop.store.admissions) == ([1], [1, 5], 1)


def test_raw_publish_in_a_failed_transaction_is_refused(
    shop: Shop, raw: psycopg.Connection[Any]
) -> None:
    with pytest.raises(psycopg.errors.UndefinedTable):
        raw.execute("SELECT * FROM nowhere")
    with pytest.raises(NotInTransactionError, match="failed"):
        shop.app.publish(raw, placed(1))
    raw.close()
    with pytest.raises(NotInTransactionError, match="closed"):
        shop.app.publish(raw, placed(2))


@pytest.mark.parametrize("autocommit", [False, True])
def test_raw_block(shop: Shop, raw: psycopg.Connection[Any], autocommit: bool) -> None:
    """1; {2} back; {3}; in the user's own savepoint: 4 kept, 5 back - those two are stored at once;
    6.
    """
    raw.autocommit = autocommit
    ran: list[int] = []
    with atomic(raw) as tx:
        insert(raw, 1)
        shop.app.publish(tx, placed(1), key="k")
        with pytest.raises(ZeroDivisionError), atomic(raw):
            insert(raw, 2)
            shop.app.publish(raw, placed(2))
            shop.app.after_commit(raw, lambda: ran.append(2))
            raise ZeroDivisionError
        with atomic(raw):
            insert(raw, 3)
            shop.app.publish(
                raw, lambda: placed(raw.execute("SELECT max(id) FROM orders").fetchone()[0])
            )  # type: ignore[index]
            shop.app.after_commit(raw, lambda: ran.append(3))
        with raw.transaction():
            insert(raw, 4)
            shop.app.publish(raw, placed(4))
            with pytest.raises(NotInTransactionError):
                shop.app.after_commit(raw, lambda: None)
            with pytest.raises(ConfigurationError), atomic(raw):
                pass
        with pytest.raises(ZeroDivisionError), raw.transaction():
            insert(raw, 5)
            shop.app.publish(raw, placed(5))
            raise ZeroDivisionError
        insert(raw, 6)
        shop.app.publish(raw, placed(6))
        assert (shop.stored(), ran) == ([], [])
    assert shop.saved() == [1, 3, 4, 6]
    assert shop.stored() == [4, 1, 6, 6] or sorted(shop.stored()) == [1, 4, 6, 6]
    assert (ran, raw.info.transaction_status.name) == ([3], "IDLE")


def test_raw_block_rolls_back_on_every_error(shop: Shop, raw: psycopg.Connection[Any]) -> None:
    with pytest.raises(ZeroDivisionError), atomic(raw):
        insert(raw, 1)
        shop.app.publish(raw, lambda: placed(1 // 0))
    with pytest.raises(psycopg.errors.UndefinedTable), atomic(raw):
        insert(raw, 2)
        raw.execute("ALTER TABLE duly_outbox RENAME TO away")
        shop.app.publish(raw, placed(2), key="k")
    with atomic(raw):
        insert(raw, 3)
        shop.app.publish(raw, placed(3))
        raise psycopg.Rollback
    with pytest.raises(psycopg.ProgrammingError), atomic(raw):
        shop.app.publish(raw, placed(4))
        raw.commit()
    assert raw.info.transaction_status.name == "IDLE"
    raw.execute("SELECT 1")
    with pytest.raises(ConfigurationError) as caught, atomic(raw):
        pass
    assert caught.value.code == "ATOMIC_INSIDE_TRANSACTION"
    assert shop.saved() == shop.stored() == []


def test_raw_block_with_a_hook_that_writes(shop: Shop, raw: psycopg.Connection[Any]) -> None:
    with atomic(raw):
        insert(raw, 1)
        shop.app.after_commit(raw, lambda: insert(raw, 2))
        shop.app.after_commit(raw, lambda: insert(raw, 2))
        shop.app.after_commit(raw, lambda: insert(raw, 3))
    assert raw.info.transaction_status.name == "IDLE"
    assert (shop.saved(), len(shop.app.reports)) == ([1, 2, 3], 1)


async def test_raw_async(shop: Shop, postgres_url: str) -> None:
    ran: list[int] = []
    async with await psycopg.AsyncConnection.connect(postgres_url) as raw:
        with pytest.raises(NotInTransactionError, match="atomic") as caught:
            shop.app.publish(raw, placed(0))
        assert caught.value.code == "NEEDS_ATOMIC"
        async with atomic(raw) as tx:
            await raw.execute("INSERT INTO orders (id, note) VALUES (1, '')")
            shop.app.publish(raw, lambda: placed(1), key="k")
            with pytest.raises(ZeroDivisionError):
                async with atomic(raw):
                    shop.app.publish(tx, placed(2))
                    raise ZeroDivisionError
            async with atomic(raw):
                shop.app.publish(raw, placed(3))
                shop.app.after_commit(raw, lambda: ran.append(1))
            async with raw.transaction():
                with pytest.raises(NotInTransactionError):
                    shop.app.publish(raw, placed(4))
        assert (shop.stored(), ran) == ([1, 3], [1])
        with pytest.raises(ZeroDivisionError):
            async with atomic(raw):
                await raw.execute("INSERT INTO orders (id, note) VALUES (2, '')")
                shop.app.publish(raw, lambda: placed(1 // 0))
        with pytest.raises(NotInTransactionError), atomic(raw):
            pass
        other = TestApp(PostgresStore("another"))
        with pytest.raises(ConfigurationError):
            async with atomic(raw):
                other.publish(raw, placed(5))
        assert raw.info.transaction_status.name == "IDLE"
    assert (shop.saved(), shop.stored()) == ([1], [1, 3])


@pytest.mark.parametrize(
    "options", [{"stream_results": True}, {"yield_per": 10}, {"logging_token": "x"}]
)
def test_execution_options_of_the_user_do_not_touch_our_statement(shop: Shop, options: Any) -> None:
    with shop.engine.connect().execution_options(**options) as c:
        c.execute(text("SELECT 1")).all()
        shop.app.publish(c, placed(1), key="k")
        c.commit()
    assert shop.stored() == [1]


async def test_cancelled_while_the_flush_waits_for_its_stripe(
    shop: Shop, postgres_url: str
) -> None:
    """T1 holds every stripe; T2 inserted its order and its flush waits; T2 is cancelled there.

    CancelledError goes out, the order is gone with its message, and the pool's connection works.
    """
    engine = create_async_engine(alchemy(postgres_url), pool_size=1, max_overflow=0)

    async def work(n: int) -> None:
        async with AsyncSession(engine) as s, s.begin():
            s.add(Order(id=n))
            shop.app.publish(s, placed(n), key="k")

    with shop.engine.connect() as holder:
        holder.execute(text("SELECT pg_advisory_xact_lock(7, s) FROM generate_series(0, 1023) s"))
        task = asyncio.create_task(work(1))
        await asyncio.to_thread(_until_waiting, shop)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await work(2)
    await engine.dispose()
    assert shop.saved() == shop.stored() == [2]


def test_many_threads_each_with_its_own_session(shop: Shop) -> None:
    """Four threads, one scoped_session, keys in common, savepoints and rollbacks in between."""
    scoped = scoped_session(sessionmaker(shop.engine))
    ran: list[int] = []

    def work(thread: int) -> None:
        for n in range(thread * 1000, thread * 1000 + 40):
            scoped.add(Order(id=n))
            shop.app.publish(scoped, lambda n=n: placed(n), key=n % 5)
            shop.app.after_commit(scoped, lambda n=n: ran.append(n))
            with scoped.begin_nested() as savepoint:
                shop.app.publish(scoped, placed(-1), key="x")
                savepoint.rollback()
            scoped.rollback() if n % 4 == 0 else scoped.commit()
        scoped.remove()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    kept = [n for t in range(4) for n in range(t * 1000, t * 1000 + 40) if n % 4]
    assert shop.saved() == sorted(shop.stored()) == sorted(ran) == kept


def test_user_listener_on_the_engine_sees_our_statement(shop: Shop) -> None:
    """An error raised by somebody's event during our INSERT counts like the database's."""

    def forbid(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if "duly_outbox" in statement:
            raise PermissionError

    with Session(shop.engine) as s:
        insert(s, 1)
        shop.app.publish(s, placed(1))
        event.listen(shop.engine, "before_cursor_execute", forbid)
        with pytest.raises(PermissionError):
            s.commit()
        event.remove(shop.engine, "before_cursor_execute", forbid)
    assert shop.saved() == []


def test_server_gone_during_the_flush(shop: Shop) -> None:
    with Session(shop.engine) as s:
        insert(s, 1)
        pid = s.execute(text("SELECT pg_backend_pid()")).scalar_one()
        shop.app.publish(s, placed(1))
        with shop.engine.connect() as c:
            c.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
        with pytest.raises(DBAPIError):
            s.commit()
        s.rollback()
        insert(s, 2)
        shop.app.publish(s, placed(2))
        s.commit()
    assert shop.saved() == shop.stored() == [2]
