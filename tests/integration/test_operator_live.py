"""What an operator puts back to work is really sent: verbs beside a running relay."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from duly.app import App
from duly.brokers.embedded import EmbeddedBroker
from duly.message import Event
from duly.outbox.operator import By, Operator, Scope
from duly.outbox.schema import Schema
from tests.unit.outbox.rows import Rows

ANNA = By("anna")


class OrderPlaced(Event, name="order.placed", topic="orders"):
    order_id: int


@pytest.fixture(params=["sqlite", "postgres"])
def app(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[App]:
    url = request.getfixturevalue(f"{request.param}_url")
    app = App("shop", database=url, broker=f"embedded:///{tmp_path / 'broker.db'}")

    @app.on(OrderPlaced, group="billing")  # the broker keeps what somebody reads
    def bill(event: OrderPlaced) -> None:
        raise AssertionError("only the relay runs here")

    Schema(app.database, "shop").upgrade()
    yield app
    app.database.close()


async def sent(app: App) -> list[str]:
    """The ids that are in the broker's log, in its order."""
    broker = app.make_broker()
    assert isinstance(broker, EmbeddedBroker)
    await broker.start()
    try:
        return [peeked.message.id for peeked in await broker.peek("orders", after="", limit=1000)]
    finally:
        await broker.close()


async def assert_relayed(app: App, expected: list[str]) -> None:
    """Run the relay until the broker has as many messages as expected, and compare."""
    async with app.running(["relay"]), asyncio.timeout(25):
        while len(await sent(app)) < len(expected):
            await asyncio.sleep(0.1)
    assert await sent(app) == expected


async def test_a_blocker_goes_first_and_its_followers_behind_it(app: App) -> None:
    rows, operator = Rows(app.database), Operator(app.database.connect)
    blocker = rows.outbox(message_id="a", key="k")
    for name in ("b", "c", "d"):
        rows.outbox(message_id=name, key="k", status="held")
    rows.hold(blocker)
    async with app.running(["relay"]):
        await asyncio.sleep(2.0)
        assert await sent(app) == []  # the key waits for a person
    operator.act("retry", "outbox", blocker, by=ANNA)
    await assert_relayed(app, ["a", "b", "c", "d"])
    assert rows.holds() == []


async def test_skipping_the_blocker_lets_its_followers_go(app: App) -> None:
    rows, operator = Rows(app.database), Operator(app.database.connect)
    blocker = rows.outbox(message_id="a", key="k")
    for name in ("b", "c"):
        rows.outbox(message_id=name, key="k", status="held")
    rows.hold(blocker)
    operator.act("skip", "outbox", blocker, by=ANNA)
    await assert_relayed(app, ["b", "c"])


async def test_an_edit_is_sent_under_its_new_id_in_its_old_place(app: App) -> None:
    rows, operator = Rows(app.database), Operator(app.database.connect)
    blocker = rows.outbox(message_id="a", key="k")
    rows.outbox(message_id="b", key="k", status="held")
    rows.hold(blocker)
    edited = operator.edit("outbox", blocker, b'{"order_id":8}', by=ANNA)
    await assert_relayed(app, [edited.message_id, "b"])


async def test_a_bulk_retry_beside_a_running_relay_keeps_order(app: App) -> None:
    rows, operator = Rows(app.database), Operator(app.database.connect)
    for n in range(60):
        rows.outbox(message_id=f"{n:03}", key=f"k{n % 3}")
    async with app.running(["relay"]):
        swept = await asyncio.to_thread(
            lambda: operator.act_on_all(
                "retry", "outbox", Scope(), by=ANNA, expected=60, out_of_order=True
            )
        )
        assert swept.changed == 60
        async with asyncio.timeout(25):
            while len(await sent(app)) < 60:
                await asyncio.sleep(0.2)
    found = await sent(app)
    assert len(found) == len(set(found)) == 60
    for key in range(3):
        mine = [name for name in found if int(name) % 3 == key]
        assert mine == sorted(mine)


async def test_a_paused_topic_waits_and_goes_on(app: App) -> None:
    rows, operator = Rows(app.database), Operator(app.database.connect)
    operator.pause("outbox", "orders", by=ANNA)
    async with app.running(["relay"]):
        await asyncio.sleep(2.0)
        rows.outbox(message_id="a", status="ready")
        await asyncio.sleep(2.5)
        assert await sent(app) == []
        operator.resume("outbox", "orders", by=ANNA)
        async with asyncio.timeout(20):
            while await sent(app) != ["a"]:
                await asyncio.sleep(0.2)
