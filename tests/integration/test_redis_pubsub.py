"""Redis Pub/Sub: refused where a loss matters, and honest where it is accepted."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis
from sqlalchemy.orm import Session

from duly import App, Command, Event
from duly.adapters import make_broker
from duly.brokers.redis import RedisPubSubBroker
from duly.config import load
from duly.errors import UnsafeSettingError
from duly.ports import Broker, OutcomeKind, Severity, SubscriptionSpec
from duly.testing.broker_target import Receiver, command, event, message

REASONS = {
    "REDIS_PUBSUB": "a gauge on a screen",
    "REDIS_PUBSUB_COMMANDS": "the screen may miss one",
}


class Placed(Event, name="order.placed", topic="orders"):
    number: int


class Charge(Command, name="billing.charge", queue="billing"):
    number: int


@pytest.fixture
def pubsub_url(redis_url: str) -> str:
    return urlsplit(redis_url)._replace(scheme="redis+pubsub").geturl()


async def test_behind_an_outbox_it_is_refused_without_a_reason(
    sqlite_url: str, pubsub_url: str
) -> None:
    app = App("shop", database=sqlite_url, broker=pubsub_url)
    app.on(Placed, group="screen")(lambda event: None)
    with pytest.raises(UnsafeSettingError, match="REDIS_PUBSUB"):
        async with app.running():
            pass
    assert app.settings.broker == pubsub_url
    app.close()


async def test_nothing_is_declared_without_a_reason(pubsub_url: str) -> None:
    """Also where the server could not be checked at the start."""
    broker = RedisPubSubBroker(pubsub_url)
    await broker.start()
    with pytest.raises(UnsafeSettingError) as caught:
        await broker.declare([event()], [])
    assert caught.value.code == "REDIS_PUBSUB"
    events_only = RedisPubSubBroker(pubsub_url, allow_unsafe={"REDIS_PUBSUB": "a gauge"})
    await events_only.start()
    await events_only.declare([event()], [])
    with pytest.raises(UnsafeSettingError) as caught:
        await events_only.subscribe(SubscriptionSpec("billing", (command(),)))
    assert caught.value.code == "REDIS_PUBSUB_COMMANDS"
    await broker.close()
    await events_only.close()


async def test_with_a_reason_an_app_runs_on_it(sqlite_url: str, pubsub_url: str) -> None:
    app = App("shop", database=sqlite_url, broker=pubsub_url, allow_unsafe=REASONS)
    seen: list[int] = []
    app.on(Placed, group="screen")(lambda event: seen.append(event.number))
    app.handle(Charge)(lambda order: seen.append(-order.number))
    async with app.running():
        await asyncio.sleep(0.5)
        for number in range(1, 4):
            with Session(app.database.engine()) as session, session.begin():
                app.publish(session, Placed(number=number))
                app.send(session, Charge(number=number))
        async with asyncio.timeout(20):
            while len(seen) < 6:
                await asyncio.sleep(0.05)
    assert sorted(seen) == [-3, -2, -1, 1, 2, 3]
    app.close()


async def test_it_says_when_nobody_listens_and_keeps_nothing(pubsub_url: str) -> None:
    settings = load({"broker": pubsub_url, "allow_unsafe": REASONS})
    broker: Any = make_broker(settings)
    assert isinstance(broker, Broker)
    assert not broker.features.durable
    await broker.start()
    topic = event()
    outcomes = await broker.publish([message(topic, 1)], deadline_seconds=5.0)
    assert [o.kind for o in outcomes] == [OutcomeKind.UNROUTED]
    receiver = Receiver(await broker.subscribe(SubscriptionSpec("screen", (topic,))))
    payloads = [b'{"n":1}', b"", b"\xff\x00"]
    sent = [message(topic, key="k", payload=payload) for payload in payloads]
    bad = message(topic, 2, key="\ud800")
    outcomes = await broker.publish([*sent, bad], deadline_seconds=5.0)
    assert [o.kind for o in outcomes] == [OutcomeKind.CONFIRMED] * 3 + [OutcomeKind.IMPOSSIBLE]
    assert await receiver.receive(3) == sent
    status = {t.name: t for t in await broker.topics()}[topic.name]
    assert status.groups[0].members == 1
    found = {f.code: f.severity for f in await broker.inspect()}
    assert found["REDIS_PUBSUB"] is Severity.RED
    await receiver.close()
    await broker.close()
    outcomes = await broker.publish(sent, deadline_seconds=1.0)
    assert {o.kind for o in outcomes} == {OutcomeKind.UNAVAILABLE}


async def test_it_listens_again_after_a_cut(pubsub_url: str) -> None:
    topic = event()
    broker = RedisPubSubBroker(pubsub_url, allow_unsafe=REASONS)
    await broker.start()
    receiver = Receiver(await broker.subscribe(SubscriptionSpec("screen", (topic,))))
    plain = redis.Redis.from_url(
        urlsplit(pubsub_url)._replace(scheme="redis", query="").geturl(), socket_timeout=10
    )
    channel = next(c for c in plain.pubsub_channels() if topic.name.encode() in c)
    for client in plain.client_list(_type="pubsub"):
        plain.client_kill_filter(_id=client["id"])
    async with asyncio.timeout(20):
        while not receiver.ids:
            await broker.publish([message(topic, 1)], deadline_seconds=5.0)
            await asyncio.sleep(0.1)
    assert topic.name.encode() in channel
    plain.close()
    await broker.close()
    await receiver.close()
