"""Everything through PgBouncer in transaction mode, where two transactions of one connection may
meet two servers; only LISTEN goes around it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest

from duly import AsyncTx, Tx
from tests.acceptance.shop_app import Placed, Shop, insert
from tests.integration.probes import in_thread, order_ids

SERVERS = 12  # more than one App takes of the pool


@pytest.fixture
def shop(postgres_url: str, pgbouncer_url: str, tmp_path: Path) -> Iterator[Shop]:
    shop = Shop(
        pgbouncer_url,
        f"embedded:///{tmp_path / 'broker.db'}",
        listen_url=postgres_url,
        poll_every="6s",
        lease_ttl="40s",
        renew_every="10s",
    )

    @shop.app.on(Placed, group="sales")
    def bill(event: Placed, tx: Tx) -> None:
        tx.session.execute(insert(event.order_id))

    yield shop
    shop.close()


def test_it_is_a_pooler_in_transaction_mode(pgbouncer_url: str) -> None:
    """Otherwise the other tests here prove nothing."""
    with psycopg.connect(pgbouncer_url, autocommit=True, prepare_threshold=None) as one:
        one.execute("SELECT set_config('duly.probe', 'mine', false)")
        with psycopg.connect(pgbouncer_url, autocommit=True, prepare_threshold=None) as two:
            two.execute("BEGIN")
            two.execute("SELECT pg_backend_pid()")
            pids = {one.execute("SELECT pg_backend_pid()").fetchone() for _ in range(3)}
            mine = two.execute("SELECT pg_backend_pid()").fetchone()
            two.execute("COMMIT")
    assert mine not in pids


def test_publishers_side_by_side_with_and_without_a_key(shop: Shop) -> None:
    shop.prepare()
    barrier = threading.Barrier(4)

    def publish(who: int) -> None:
        barrier.wait(10)
        for n in range(25):
            order_id = who * 100 + n + 1
            shop.place(order_id, key="k") if who % 2 else shop.place(order_id)

    for future in [in_thread(lambda who=who: publish(who)) for who in range(4)]:  # type: ignore[misc]
        future.result(40)
    ids = order_ids(shop)
    assert (
        sorted(ids)
        == shop.ordered()
        == sorted(w * 100 + n + 1 for w in range(4) for n in range(25))
    )
    for who in (1, 3):
        own = [order_id for order_id in ids if order_id // 100 == who]
        assert own == sorted(own)


async def test_relay_and_handlers_work_and_a_flush_wakes_the_relay(shop: Shop) -> None:
    shop.prepare()
    shop.place(*range(1, 51), key="k")
    async with shop.app.running() as running:
        await asyncio.wait_for(running.settled(), 30)
        assert shop.work() == list(range(1, 51))
        while shop.query("SELECT count(*) FROM duly_lease WHERE asleep") == [0]:
            await asyncio.sleep(0.1)
        began = time.monotonic()
        with psycopg.connect(
            shop.app.settings.listen_url or ""
        ) as other:  # no hint in this process
            shop.app.publish(other, Placed(order_id=99), key="k")
            other.commit()
        while 99 not in await asyncio.to_thread(shop.work):
            assert time.monotonic() - began < 2, "nobody woke it; poll_every is 6 s"
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("colour", ["plain", "async"])
async def test_a_handlers_limits_do_not_stay_with_the_server_for_the_next(
    postgres_url: str, pgbouncer_url: str, tmp_path: Path, colour: str
) -> None:
    """What a session sets behind a pooler is met by whoever gets that server next."""
    broker = f"embedded:///{tmp_path / 'broker.db'}"
    shop = Shop(pgbouncer_url, broker, listen_url=postgres_url, handler_timeout="77s")
    names = ("lock_timeout", "idle_in_transaction_session_timeout")
    inside: list[str] = []

    def plain(event: Placed, tx: Tx) -> None:
        inside.extend(tx.connection.execute(f"SHOW {name}").fetchone()[0] for name in names)

    async def coloured(event: Placed, tx: AsyncTx) -> None:
        driver = await tx.connection()
        cursors = [await driver.execute(f"SHOW {name}") for name in names]
        inside.extend([(await cursor.fetchone())[0] for cursor in cursors])

    shop.app.on(Placed, group="sales")(plain if colour == "plain" else coloured)
    shop.prepare()
    shop.place(1)
    try:
        async with shop.app.running() as running:
            await asyncio.wait_for(running.settled(), 30)
    finally:
        shop.close()
    with ExitStack() as stack:  # all at once, so that every server of the pool is met
        others = [
            stack.enter_context(psycopg.connect(pgbouncer_url, prepare_threshold=None))
            for _ in range(SERVERS)
        ]
        found = [other.execute(f"SHOW {name}").fetchone() for other in others for name in names]
    assert inside == ["77s", "77s"]
    assert ("77s",) not in found
