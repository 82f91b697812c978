"""The probes of interleavings that concern PostgreSQL, against duly itself.

P8, P13 and P14 are MySQL's, P9 is logical decoding's.  P11 (a claim statement whose plan claims
1,000 rows) has no subject here: there is no claim statement, a lane has one reader.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from duly.inbox.ending import End
from duly.ports import Connection, Statement
from tests.acceptance.shop_app import Placed, Shop, insert
from tests.integration.probes import (
    beat_past_the_end,
    blocked,
    in_thread,
    order_ids,
    publish_around_savepoints,
    through_two_relays,
    two_consumers_of_one_message,
)

PROMPT_SECONDS = 3.0


@pytest.fixture
def shop(postgres_url: str, tmp_path: Path) -> Iterator[Shop]:
    shop = Shop(postgres_url, f"embedded:///{tmp_path / 'broker.db'}", lock_timeout="10s")
    yield shop
    shop.close()


def horizon(connection: Connection) -> int:
    """The oldest writer that the id floor waits for."""
    return int(connection.ask(Statement("lease.horizon")).rows[0][1])


async def until_past(connection: Connection, writer: int) -> None:
    """Other databases of the server have writers, too; they end soon."""
    async with asyncio.timeout(20):
        while horizon(connection) <= writer:
            await asyncio.sleep(0.1)


def relayed(shop: Shop) -> bool:
    return not order_ids(shop)


async def until_relayed(shop: Shop) -> float:
    """Seconds until the outbox has nothing that can be seen."""
    began = time.monotonic()
    async with asyncio.timeout(15):
        while not await asyncio.to_thread(relayed, shop):
            await asyncio.sleep(0.02)
    return time.monotonic() - began


# --- order of ids ---------------------------------------------------------------------------------
def test_p1_the_later_commit_of_a_key_has_the_higher_id(shop: Shop) -> None:
    """T1 has the lower transaction number and commits last."""
    shop.prepare()
    with Session(shop.engine) as t1, Session(shop.engine) as t2:
        t1.execute(insert(-1))
        t2.execute(insert(-2))
        shop.app.publish(t2, Placed(order_id=2), key="k")
        t2.commit()
        shop.app.publish(t1, Placed(order_id=1), key="k")
        t1.commit()
    assert order_ids(shop) == [2, 1]


def test_p2_publishing_early_draws_no_id(shop: Shop) -> None:
    """T1 publishes first of all and commits last."""
    shop.prepare()
    with Session(shop.engine) as t1, Session(shop.engine) as t2:
        shop.app.publish(t1, Placed(order_id=1), key="k")
        t1.execute(insert(-1))
        shop.app.publish(t2, Placed(order_id=2), key="k")
        t2.commit()
        t1.commit()
    assert order_ids(shop) == [2, 1]


def test_p4_the_second_writer_of_a_key_waits_before_it_draws_its_id(shop: Shop) -> None:
    shop.prepare()
    with Session(shop.engine) as t1:
        shop.app.publish(t1, Placed(order_id=1), key="k")
        shop.app.flush(t1)
        second = in_thread(lambda: shop.place(2, key="k"))
        assert blocked(second)
        shop.place(3, key="another key")
        shop.place(4)
        t1.commit()
    second.result(20)
    ids = order_ids(shop)
    assert ids.index(1) < ids.index(2)
    assert sorted(ids) == [1, 2, 3, 4]


def test_p4_a_writer_that_waits_too_long_is_told_and_nothing_of_it_is_stored(
    postgres_url: str, tmp_path: Path
) -> None:
    shop = Shop(postgres_url, f"embedded:///{tmp_path / 'broker.db'}", lock_timeout="300ms")
    shop.prepare()
    with Session(shop.engine) as t1:
        shop.app.publish(t1, Placed(order_id=1), key="k")
        shop.app.flush(t1)
        with pytest.raises(Exception, match="TRANSACTION_CONFLICT"):
            shop.place(2, key="k")
        t1.commit()
    assert order_ids(shop) == [1]
    assert shop.ordered() == []
    shop.close()


def test_deferred_foreign_keys_do_not_deadlock_with_a_keyed_publish(shop: Shop) -> None:
    """Checked at COMMIT, after the key is locked, they would wait for a row whose owner waits for
    the key.
    """
    shop.prepare()
    with shop.engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE parent (id int PRIMARY KEY)"))
        reference = "int REFERENCES parent DEFERRABLE INITIALLY DEFERRED"
        connection.execute(sa.text(f"CREATE TABLE child (parent_id {reference})"))
        connection.execute(sa.text("INSERT INTO parent VALUES (1)"))
    with Session(shop.engine) as t1, Session(shop.engine) as t2:
        t2.execute(sa.text("SELECT * FROM parent WHERE id = 1 FOR UPDATE"))
        t1.execute(sa.text("INSERT INTO child VALUES (1)"))
        shop.app.publish(t1, Placed(order_id=1), key="k")
        shop.app.publish(t2, Placed(order_id=2), key="k")
        first = in_thread(t1.commit)
        assert blocked(first), "the parent's row is locked"
        t2.commit()
        first.result(20)
    assert order_ids(shop) == [2, 1]


# --- what a reader must not miss ------------------------------------------------------------------
async def test_p3_a_lower_id_that_commits_later_is_relayed_promptly(shop: Shop) -> None:
    shop.prepare()
    slow = Session(shop.engine)
    shop.app.publish(slow, Placed(order_id=1))
    shop.app.flush(slow)  # its id is drawn
    async with shop.app.running(["relay"]):
        await asyncio.to_thread(shop.place, 2)
        await until_relayed(shop)
        await asyncio.sleep(6)  # past the floor's margin
        slow.commit()
        assert order_ids(shop) in ([1], [])
        assert await until_relayed(shop) < PROMPT_SECONDS


async def test_p6_an_open_writing_transaction_stops_only_the_floor(shop: Shop) -> None:
    shop.prepare()
    connection = shop.app.database.connect()
    other = Session(shop.engine)
    other.execute(insert(-99))
    writer = other.scalar(sa.text("SELECT pg_current_xact_id()::text::bigint")) or 0
    async with shop.app.running(["relay"]):
        for n in range(1, 4):
            await asyncio.to_thread(shop.place, n)
            assert await until_relayed(shop) < PROMPT_SECONDS
        assert horizon(connection) <= writer
        other.commit()
        await until_past(connection, writer)
    connection.close()


async def test_p7_an_orphaned_prepared_transaction_stops_only_the_floor(
    shop: Shop, postgres_url: str
) -> None:
    shop.prepare()
    name = f"orphan-{uuid4().hex}"
    connection = shop.app.database.connect()
    with psycopg.connect(postgres_url, autocommit=True) as admin:
        admin.execute("BEGIN")
        admin.execute("INSERT INTO work VALUES (-99)")
        admin.execute(f"PREPARE TRANSACTION '{name}'")
        try:
            found = "SELECT transaction::text::bigint FROM pg_prepared_xacts WHERE gid = %s"
            (writer,) = admin.execute(found, (name,)).fetchone() or (0,)
            async with shop.app.running(["relay"]):
                await asyncio.to_thread(shop.place, 1)
                assert await until_relayed(shop) < PROMPT_SECONDS
                assert horizon(connection) <= writer
        finally:
            admin.execute(f"ROLLBACK PREPARED '{name}'")
    await until_past(connection, writer)
    connection.close()


# --- consumers ------------------------------------------------------------------------------------
@pytest.mark.parametrize("first_fails", [False, True])
def test_p10_a_duplicate_waits_for_the_first(shop: Shop, first_fails: bool) -> None:
    first, second, begun = two_consumers_of_one_message(shop, first_fails=first_fails)
    expected = (End.RETRY, End.DONE, 2) if first_fails else (End.DONE, End.DUPLICATE, 1)
    assert (first, second, begun) == expected
    assert shop.work() == [7]


async def test_p12_two_relays_keep_the_order_of_a_key(shop: Shop, postgres_url: str) -> None:
    assert await through_two_relays(shop, postgres_url) == list(range(1, 201))


def test_p15_a_savepoint_that_is_rolled_back_takes_its_message_along(shop: Shop) -> None:
    publish_around_savepoints(shop)
    assert order_ids(shop) == [1, 3]
    assert shop.ordered() == []


def test_p16_a_lease_runs_out_inside_a_long_transaction(shop: Shop) -> None:
    """``now()`` would stand still at the transaction's start and renew what is over."""
    shop.prepare()
    wait = partial(time.sleep, 0.8)  # past the ttl, by the server's clock
    beat, buried = beat_past_the_end(shop.app.database, ttl_seconds=0.5, wait=wait)
    assert beat.rows[0][0] == 0, "it was renewed after its end"
    assert buried.rows == [("x",)]
