"""The probes of interleavings that concern MySQL and MariaDB, against duly itself, on MariaDB.

What only MySQL proper has is not run anywhere: there is no such server to be had for these tests.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from duly import AsyncTx, Tx
from duly.databases.mysql.database import MysqlDatabase
from duly.errors import ConfigurationError, TransactionConflictError, UnsafeSettingError
from duly.frameworks.dbapi import atomic
from duly.inbox.context import Job
from duly.inbox.ending import End
from duly.inbox.identity import Identity, message_key
from duly.inbox.runner import run
from duly.outbox.schema import Schema
from duly.ports import Connection, Severity, Statement
from duly.runtime.desk import Desk
from duly.runtime.floor import MARGIN_SECONDS
from duly.testing.drain import consume_context
from tests.acceptance.shop_app import Placed, Shop, insert, placed
from tests.conftest import mariadb
from tests.integration.probes import blocked, in_thread, order_ids, two_consumers_of_one_message
from tests.integration.test_late_commit import publish, relaying, until

PROMPT_SECONDS = 3.0
PAST_MARGIN_SECONDS = MARGIN_SECONDS + 3.0


@pytest.fixture
def shop(mariadb_url: str, tmp_path: Path) -> Iterator[Shop]:
    shop = Shop(mariadb_url, f"embedded:///{tmp_path / 'broker.db'}", lock_timeout="10s")
    yield shop
    shop.close()


def flushes(connection: Connection) -> set[str]:
    """The flushes that the id floor waits for."""
    return set(connection.ask(Statement("lease.horizon")).rows[0][0])


async def until_relayed(shop: Shop) -> float:
    """Seconds until the outbox has nothing that can be seen."""
    began = time.monotonic()
    async with asyncio.timeout(15):
        while await asyncio.to_thread(order_ids, shop):
            await asyncio.sleep(0.02)
    return time.monotonic() - began


@pytest.fixture
def pair(shop: Shop) -> Shop:
    """Two rows that can be locked crosswise."""
    shop.prepare()
    with shop.engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE pair (id int PRIMARY KEY, n int NOT NULL)"))
        connection.execute(sa.text("INSERT INTO pair VALUES (1, 0), (2, 0)"))
    return shop


def lock(session: Any, number: int) -> Any:
    return session.execute(sa.text(f"UPDATE pair SET n = n + 1 WHERE id = {number}"))


# --- order of ids ---------------------------------------------------------------------------------
def test_p1_p2_p4_ids_of_a_key_are_drawn_in_the_order_of_commits(shop: Shop) -> None:
    """T1 begins and publishes first, and commits last; a third waits before it draws its id."""
    shop.prepare()
    with Session(shop.engine) as t1, Session(shop.engine) as t2:
        shop.app.publish(t1, Placed(order_id=1), key="k")
        t1.execute(insert(-1))
        shop.app.publish(t2, Placed(order_id=2), key="k")
        t2.commit()
        shop.app.flush(t1)
        third = in_thread(lambda: shop.place(3, key="k"))
        assert blocked(third)
        shop.place(4, key="another key")
        shop.place(5)
        t1.commit()
    third.result(20)
    assert [n for n in order_ids(shop) if n < 4] == [2, 1, 3]


def test_a_writer_that_waits_too_long_is_told_and_nothing_of_it_is_stored(
    mariadb_url: str, tmp_path: Path
) -> None:
    shop = Shop(mariadb_url, f"embedded:///{tmp_path / 'broker.db'}", lock_timeout="1s")
    shop.prepare()
    with Session(shop.engine) as t1:
        shop.app.publish(t1, Placed(order_id=1), key="k")
        shop.app.flush(t1)
        with pytest.raises(TransactionConflictError):
            shop.place(2, key="k")
        t1.commit()
    assert (order_ids(shop), shop.ordered()) == ([1], [])
    shop.close()


def test_the_horizon_names_each_flush_under_way_until_it_ends(shop: Shop) -> None:
    """A key that is flushed again and again is another flush each time, however it ended."""
    shop.prepare()
    with closing(shop.app.database.connect()) as connection, Session(shop.engine) as one:
        assert flushes(connection) == set()
        shop.app.publish(one, Placed(order_id=1), key="k")
        assert flushes(connection) == set(), "nothing is drawn before the flush"
        shop.app.flush(one)
        first = flushes(connection)
        waiting = in_thread(lambda: shop.place(2, key="k"))
        assert blocked(waiting)
        assert (len(first), flushes(connection)) == (1, first)
        one.commit()
        waiting.result(20)
        shop.app.publish(one, Placed(order_id=3), key="k")
        shop.app.flush(one)
        assert len(flushes(connection)) == 1
        assert not flushes(connection) & first
        one.rollback()
        assert flushes(connection) == set()


async def test_p3_a_lower_id_that_commits_later_is_relayed_promptly_and_first(
    mariadb_url: str,
) -> None:
    """T1 holds its key past the floor's margin, while others are read beyond its id; no sweep
    helps. Then it commits, and then T2 of the same key.
    """
    database = MysqlDatabase(mariadb_url)
    Schema(database).upgrade()
    with closing(mariadb(mariadb_url)) as slow, closing(mariadb(mariadb_url)) as quick:
        slow.begin()
        async with relaying(database, sweep_every=3600.0) as work:
            publish(database, slow, "k", "slow")
            began = time.monotonic()
            while time.monotonic() - began < PAST_MARGIN_SECONDS:
                publish(database, quick, None, "another")
                await asyncio.sleep(0.1)  # so that many reads may move the floor
            slow.commit()
            publish(database, quick, "k", "later")
            await until(lambda: any(row.message_type == "later" for row in work.rows))
            await until(
                lambda: any(row.message_type == "slow" for row in work.rows), PROMPT_SECONDS
            )
    assert [row.message_type for row in work.rows if row.key == "k"] == ["slow", "later"]


# --- isolation ------------------------------------------------------------------------------------
async def test_p8_a_relay_that_looks_at_an_empty_outbox_stops_no_producer(
    mariadb_url: str, tmp_path: Path
) -> None:
    """The producer's engine is MySQL's default, REPEATABLE READ; ours reads without gap locks."""
    engine = sa.create_engine(
        mariadb_url.replace("mysql:", "mysql+pymysql:"), isolation_level="REPEATABLE READ"
    )
    shop = Shop(engine, f"embedded:///{tmp_path / 'broker.db'}")
    shop.prepare()
    async with shop.app.running(["relay"]):
        await asyncio.sleep(0.5)
        for n in range(1, 6):
            began = time.monotonic()
            await asyncio.to_thread(shop.place, n, key=f"k{n}")
            assert time.monotonic() - began < PROMPT_SECONDS
        assert await until_relayed(shop) < PROMPT_SECONDS
    shop.close()
    engine.dispose()


# --- consumers ------------------------------------------------------------------------------------
@pytest.mark.parametrize("first_fails", [False, True])
def test_p10_a_duplicate_waits_for_the_first(shop: Shop, first_fails: bool) -> None:
    first, second, begun = two_consumers_of_one_message(shop, first_fails=first_fails)
    expected = (End.RETRY, End.DONE, 2) if first_fails else (End.DONE, End.DUPLICATE, 1)
    assert (first, second, begun) == expected
    assert shop.work() == [7]


def test_p13_of_three_consumers_whose_first_fails_one_does_the_work(shop: Shop) -> None:
    """The two that wait may deadlock with each other: that is run again, and never a failure."""
    inside, go, begun = threading.Event(), threading.Event(), []

    @shop.app.on(Placed, group="sales")
    def handle(event: Placed, tx: Tx) -> None:
        tx.session.execute(insert(event.order_id))
        begun.append(event.order_id)
        if len(begun) == 1:
            inside.set()
            assert go.wait(10)
            raise RuntimeError

    shop.prepare()
    consume = consumer_of(shop, placed(b'{"order_id":7}'))
    first = in_thread(consume)
    assert inside.wait(10)
    others = [in_thread(consume), in_thread(consume)]
    assert all(map(blocked, others))
    go.set()
    assert first.result(20).end is End.RETRY
    assert sorted(other.result(20).end.name for other in others) == ["DONE", "DUPLICATE"]
    assert shop.work() == [7]


def test_p14_ids_that_differ_in_case_or_in_a_space_at_the_end_are_different(shop: Shop) -> None:
    shop.app.on(Placed, group="sales")(write)
    shop.prepare()
    for n, message_id in enumerate(["AbC", "abc", "abc ", "\u00e4bc", "abc"]):
        message = placed(b'{"order_id":%d}' % (n + 1), id=message_id)
        consumer_of(shop, message)()
    assert shop.work() == [1, 2, 3, 4], "only the last one was there before"


def write(event: Placed, tx: Tx) -> None:
    tx.session.execute(insert(event.order_id))


def consumer_of(shop: Shop, message: Any) -> Any:
    """What handles one message as a worker does."""
    context = consume_context(shop.app)
    (handler,) = shop.app.handlers.of_group("sales")
    identity = Identity("sales", handler.name, message_key(message))

    def consume() -> Any:
        desk = Desk(shop.app.database, limit_seconds=30, turn=context.turn)
        try:
            return run(context, desk, Job(handler, [message], [identity]))[0]
        finally:
            desk.close()

    return consume


def test_a_deadlock_in_a_handler_is_run_again(pair: Shop) -> None:
    """The server has rolled it back, savepoints and all: nothing of it was half done."""
    begun: list[int] = []

    @pair.app.on(Placed, group="sales")
    def handle(event: Placed, tx: Tx) -> None:
        begun.append(event.order_id)
        tx.session.execute(insert(event.order_id))
        lock(tx.session, 1)
        if len(begun) == 1:
            locked.set()
            assert met.wait(10)
        lock(tx.session, 2)

    locked, met = threading.Event(), threading.Event()
    consume = in_thread(consumer_of(pair, placed(b'{"order_id":7}')))
    assert locked.wait(10)
    with Session(pair.engine) as heavy:
        for n in range(20):  # the lighter transaction is the one that the server ends
            heavy.execute(insert(-100 - n))
        lock(heavy, 2)
        met.set()
        assert blocked(consume)
        lock(heavy, 1)
        heavy.commit()
    assert consume.result(20).end is End.DONE
    assert (pair.work(), begun) == ([7], [7, 7])


def test_whoever_overlooks_a_deadlock_commits_no_message_of_the_lost_half(pair: Shop) -> None:
    """On a session and in an atomic block; the next transaction of that connection is clean."""
    with Session(pair.engine) as session:
        session.execute(insert(-1))
        pair.app.publish(session, Placed(order_id=1))
        deadlock(pair, lambda number: lock(session, number))
        session.execute(insert(-2))
        with pytest.raises(TransactionConflictError):
            session.commit()
        session.rollback()
        pair.app.publish(session, Placed(order_id=3))
        session.commit()
    raw = mariadb(pair.app.database.url)
    raw.autocommit(False)
    with closing(raw), pytest.raises(ConfigurationError) as caught, atomic(raw) as tx:
        pair.app.publish(tx, Placed(order_id=4))
        deadlock(pair, lambda n: raw.query(f"UPDATE pair SET n = n + 1 WHERE id = {n}"))
        raw.query("INSERT INTO work (order_id) VALUES (-4)")
    assert caught.value.code == "TRANSACTION_ENDED"
    assert order_ids(pair) == [3]
    assert pair.ordered() == []


def deadlock(pair: Shop, update: Any) -> None:
    """Let the transaction behind ``update`` lose a deadlock, and overlook it."""
    update(1)
    with Session(pair.engine) as heavy:
        for n in range(20):
            heavy.execute(insert(-100 - n))
        lock(heavy, 2)
        other = in_thread(lambda: lock(heavy, 1))
        assert blocked(other)
        with pytest.raises(Exception, match="1213"):
            update(2)
        other.result(20)
        heavy.rollback()


def test_a_worker_whose_connection_is_cut_handles_its_message_again(shop: Shop) -> None:
    begun: list[int] = []

    @shop.app.on(Placed, group="sales")
    def handle(event: Placed, tx: Tx) -> None:
        begun.append(event.order_id)
        tx.session.execute(insert(event.order_id))
        if len(begun) == 1:
            number = tx.connection.thread_id()
            with closing(mariadb(shop.app.database.url)) as admin:
                admin.query(f"KILL {number}")
        tx.session.execute(sa.text("SELECT 1"))

    shop.prepare()
    ending = consumer_of(shop, placed(b'{"order_id":7}'))()
    assert (ending.end, begun, shop.work()) == (End.DONE, [7, 7], [7])


# --- sessions that are not ours -------------------------------------------------------------------
def test_a_users_modes_and_time_zone_change_nothing(mariadb_url: str, tmp_path: Path) -> None:
    """Keys with quotes and backslashes, and a due time, under the modes that change the syntax."""
    modes = "ANSI_QUOTES,PIPES_AS_CONCAT,NO_BACKSLASH_ESCAPES,HIGH_NOT_PRECEDENCE,IGNORE_SPACE"
    modes += ",ONLY_FULL_GROUP_BY,STRICT_TRANS_TABLES"
    start = f"SET SESSION sql_mode = '{modes}', time_zone = '+11:00'"
    url = mariadb_url.replace("mysql:", "mysql+pymysql:")
    engine = sa.create_engine(url, connect_args={"init_command": start})
    shop = Shop(engine, f"embedded:///{tmp_path / 'broker.db'}")
    shop.app.on(Placed, group="sales")(write)
    shop.prepare()
    key = """it's a "k\\e'y" \U0001f600 %s"""
    shop.place(1, key=key)
    shop.place(2)
    consumer_of(shop, placed(b'{"order_id":7}'))()
    stored = shop.query("SELECT `key` FROM duly_outbox ORDER BY id")
    assert [bytes(k) if k else k for k in stored] == [key.encode(), None]
    aged = "SELECT ABS(TIMESTAMPDIFF(SECOND, created_at, UTC_TIMESTAMP())) FROM duly_outbox"
    assert max(shop.query(aged)) < 60
    assert (order_ids(shop), shop.work()) == ([1, 2], [7])
    shop.close()
    engine.dispose()


@pytest.mark.parametrize(
    ("arrange", "code"),
    [
        ("SET SESSION sql_mode = ''", "MYSQL_NOT_STRICT"),
        ("SET NAMES latin1", "MYSQL_CHARSET"),
        ("ALTER TABLE duly_failure ENGINE = MyISAM", "NOT_INNODB"),
    ],
)
def test_a_session_or_table_that_could_lose_something_is_refused(
    shop: Shop, arrange: str, code: str
) -> None:
    shop.prepare()
    with shop.engine.connect() as connection:
        connection.execute(sa.text(arrange))
        connection.commit()
        shop.app.publish(connection.begin() and connection, Placed(order_id=1))
        with pytest.raises(UnsafeSettingError) as caught:
            connection.commit()
    assert caught.value.code == code
    red = [f.code for f in shop.app.database.inspect() if f.severity is Severity.RED]
    assert red == ([code] if code == "NOT_INNODB" else [])


async def test_async_sessions_and_handlers(shop: Shop) -> None:
    """asyncmy: publish, claim, write and the outgoing message in one commit, as for the others."""

    @shop.app.on(Placed, group="sales")
    async def handle(event: Placed, tx: AsyncTx) -> None:
        await tx.session.execute(insert(event.order_id))

    shop.prepare()
    async with AsyncSession(shop.app.database.async_engine()) as session, session.begin():
        await session.execute(insert(-5))
        shop.app.publish(session, Placed(order_id=5), key="k")
    async with shop.app.running() as running:
        await asyncio.wait_for(running.settled(), 20)
    assert (shop.work(), shop.ordered(), order_ids(shop)) == ([5], [5], [])
