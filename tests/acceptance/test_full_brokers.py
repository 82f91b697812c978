"""Brokers whose disk is full: told with a code, found by `doctor`; nothing lost, and it goes on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session

from duly import Tx
from duly.ports import Severity
from duly.runtime import lanes
from tests.acceptance.shop_app import Placed, Shop, insert
from tests.conftest import unavailable
from tests.servers.disks import free_bytes, small_disk
from tools.services import PrivateServer
from tools.services.activemq import ActiveMQ
from tools.services.activemq import find as find_activemq
from tools.services.kafka import Kafka
from tools.services.kafka import find as find_kafka
from tools.services.nats import NATS
from tools.services.nats import find as find_nats
from tools.services.redis import Redis
from tools.services.redis import find as find_redis

LARGE = "x" * 20_000


BROKERS = {
    "nats": (NATS, find_nats, 24, "NATS_HEALTH"),
    "redis": (Redis, find_redis, 24, "BROKER_UNREACHABLE"),  # with `always` it ends itself
    "redis that goes on": (Redis, find_redis, 24, "REDIS_DURABILITY"),
    "kafka": (Kafka, find_kafka, 48, "BROKER_UNREACHABLE"),
    "activemq": (ActiveMQ, find_activemq, 96, "BROKER_UNREACHABLE"),  # its journal has large files
}


@pytest.fixture(params=BROKERS)
def full(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[tuple[PrivateServer, Path, str]]:
    """A server, the disk that its data is on, and what ``doctor`` says when it cannot write."""
    kind, find, megabytes, code = BROKERS[request.param]
    programs = find()
    if programs is None:
        unavailable(f"{request.param} is not on this machine; run: make services")
    with small_disk(tmp_path, megabytes=megabytes) as disk:
        home = disk / "home"
        home.mkdir(mode=0o777)
        more = {"more": "appendfsync everysec\n"} if request.param.endswith("goes on") else {}
        server = PrivateServer(kind.create(home, programs, **more))
        if kind is NATS:
            server.url += f"/shop?monitor={server.environment['DULY_TEST_NATS_MONITOR']}"
        with server:
            yield server, disk, code


async def until(true: Callable[[], Any]) -> None:
    async with asyncio.timeout(60):
        while not true():  # no event says so
            await asyncio.sleep(0.02)


def place(shop: Shop, first: int, count: int) -> None:
    """So many large ones at once: what was handled makes room again."""
    with Session(shop.engine) as session, session.begin():
        for order_id in range(first, first + count):
            session.execute(insert(-order_id))
            shop.app.publish(session, Placed(order_id=order_id, note=LARGE), key=order_id)


async def test_a_full_disk_of_the_broker(
    full: tuple[PrivateServer, Path, str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lanes, "TELL_SECONDS", 0.2)
    server, disk, code = full
    shop = Shop(f"sqlite:///{tmp_path / 'shop.db'}", server.url, send_timeout="0.4s")

    @shop.app.on(Placed, group="sales")
    def bill(event: Placed, tx: Tx) -> None:
        tx.session.execute(insert(event.order_id))

    shop.prepare()
    async with shop.app.running():
        place(shop, 1, 3)
        await until(lambda: shop.work() == [1, 2, 3])
        filler = disk / "filler"
        filler.write_bytes(b"x" * (free_bytes(disk) - 50_000))
        with caplog.at_level(logging.WARNING):
            for first in range(4, 1_000, 20):  # Redis notices a second after it has confirmed
                place(shop, first, 20)
                await asyncio.sleep(0.3)
                if told := codes(caplog):
                    break
        assert told <= {"OUTCOME_UNKNOWN", "BROKER_UNAVAILABLE"}
        red = [one.code for one in await asyncio.to_thread(shop.app.check) if one.severity is RED]
        assert code in red
        waiting = shop.query("SELECT status, attempts FROM duly_outbox")
        assert set(waiting) == {("ready", 0)}  # nobody's fault: no attempt is used up
        filler.unlink()
        if code != "REDIS_DURABILITY":
            server.stop()
            server.start()
        await until(lambda: shop.work() == shop.ordered())
    assert not shop.outbox()
    shop.close()


RED = Severity.RED


def codes(caplog: pytest.LogCaptureFixture) -> set[str]:
    """Of what the relay has logged."""
    return {str(getattr(r, "code", "")) for r in caplog.records if r.name == "duly.lanes"}
