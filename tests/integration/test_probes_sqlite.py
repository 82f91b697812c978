"""The probes of interleavings that concern SQLite, against duly itself.

SQLite has one writer, so ids are drawn in the order of commits and P1 to P4 come down to: the
second writer waits.  There is no claim statement (P11), no sequence cache (P5) and no snapshot
horizon (P6, P7).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from duly.inbox.ending import End
from duly.testing.clock import FakeClock
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


@pytest.fixture
def shop(sqlite_url: str, tmp_path: Path) -> Iterator[Shop]:
    shop = Shop(sqlite_url, f"embedded:///{tmp_path / 'broker.db'}", lock_timeout="20s")
    yield shop
    shop.close()


def test_p1_to_p4_the_second_writer_waits_so_ids_follow_commits(shop: Shop) -> None:
    shop.prepare()
    first = Session(shop.engine)
    first.execute(insert(-1))
    shop.app.publish(first, Placed(order_id=1), key="k")
    second = in_thread(lambda: shop.place(2, key="k"))
    assert blocked(second)
    first.commit()
    second.result(20)
    assert order_ids(shop) == [1, 2]


@pytest.mark.parametrize("first_fails", [False, True])
def test_p10_a_duplicate_waits_for_the_first(shop: Shop, first_fails: bool) -> None:
    first, second, begun = two_consumers_of_one_message(shop, first_fails=first_fails)
    expected = (End.RETRY, End.DONE, 2) if first_fails else (End.DONE, End.DUPLICATE, 1)
    assert (first, second, begun) == expected
    assert shop.work() == [7]


async def test_p12_two_relays_keep_the_order_of_a_key(shop: Shop, sqlite_url: str) -> None:
    assert await through_two_relays(shop, sqlite_url) == list(range(1, 201))


def test_p15_a_savepoint_that_is_rolled_back_takes_its_message_along(shop: Shop) -> None:
    publish_around_savepoints(shop)
    assert order_ids(shop) == [1, 3]
    assert shop.ordered() == []


def test_p16_a_lease_runs_out_inside_a_long_transaction(shop: Shop) -> None:
    clock = FakeClock()
    with shop.app.override(clock=clock):
        shop.prepare()
        wait = partial(clock.advance, "2s")
        beat, buried = beat_past_the_end(shop.app.database, ttl_seconds=1.0, wait=wait)
    assert beat.rows[0][0] == 0, "it was renewed after its end"
    assert buried.rows == [("x",)]


def test_a_writer_that_stays_away_holds_nobody_up_for_longer_than_the_lock_timeout(
    sqlite_url: str, tmp_path: Path
) -> None:
    shop = Shop(sqlite_url, f"embedded:///{tmp_path / 'broker.db'}", lock_timeout="500ms")
    shop.prepare()
    idle = shop.engine.connect()
    idle.begin()
    began = time.monotonic()
    with pytest.raises(Exception, match="locked"):
        shop.place(1)
    assert 0.4 < time.monotonic() - began < 5
    idle.close()
    shop.place(2)
    assert order_ids(shop) == [2]
    shop.close()
