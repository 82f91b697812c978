"""Redis that refuses, fails, restarts or stands behind a bad network: outcomes and errors say what
is known, and it recovers.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis

from duly import App, Event
from duly.brokers.redis import RedisBroker
from duly.errors import BrokerUnavailableError, ConfigurationError
from duly.message import Message
from duly.observe.facts import Fact, HistoryLost
from duly.ports import OutcomeKind, Severity, SubscriptionSpec
from duly.testing.broker_target import event, join, message, send
from duly.testing.fault_proxy import DROP_REPLIES, PASS, RESET, Fault, FaultProxy
from tools.services import PrivateServer, start_private_redis

CONFIRMED, REFUSED, IMPOSSIBLE = OutcomeKind.CONFIRMED, OutcomeKind.REFUSED, OutcomeKind.IMPOSSIBLE
UNKNOWN, UNAVAILABLE = OutcomeKind.UNKNOWN, OutcomeKind.UNAVAILABLE
SECRET = "hunter2-s3cret"


class Placed(Event, name="order.placed", topic="orders"):
    number: int


@asynccontextmanager
async def direct(url: str) -> AsyncIterator[RedisBroker]:
    broker = RedisBroker(url)
    await broker.start()
    try:
        yield broker
    finally:
        began = time.monotonic()
        await broker.close()
        assert time.monotonic() - began < 8.0, "close hung"


@pytest.fixture
def plain(private_redis: PrivateServer) -> Iterator[Any]:
    """The administrator of a server of this module's own."""
    with redis.Redis.from_url(private_redis.url, socket_timeout=10) as client:
        yield client


async def kinds(broker: RedisBroker, *messages: Message, seconds: float = 5.0) -> list[OutcomeKind]:
    return [o.kind for o in await broker.publish(messages, deadline_seconds=seconds)]


async def until_confirmed(broker: RedisBroker, one: Message) -> None:
    async with asyncio.timeout(20):
        while await kinds(broker, one) != [CONFIRMED]:
            await asyncio.sleep(0.1)


# --- the network ----------------------------------------------------------------------------------
@pytest.mark.parametrize("cut_after", [1, 700, 30_000, 90_000])
async def test_a_cut_in_the_middle_of_a_publish_is_all_or_nothing(
    redis_url: str, cut_after: int
) -> None:
    topic = event()
    parts = urlsplit(redis_url)
    batch = [message(topic, n, key="k", payload=bytes(200)) for n in range(150)]
    async with (
        FaultProxy(parts.hostname or "", parts.port or 0) as proxy,
        direct(redis_url) as near,
    ):
        receiver = await join(near, "readers", topic)
        place = f"{proxy.host}:{proxy.port}"
        async with direct(parts._replace(netloc=place).geturl()) as broker:
            await until_confirmed(broker, message(topic, 0, key="other"))
            await proxy.aset(Fault(cut_after_bytes=cut_after))
            outcomes = await broker.publish(batch, deadline_seconds=3.0)
            await proxy.aset(PASS)
            assert {o.kind for o in outcomes} <= {UNKNOWN, UNAVAILABLE, CONFIRMED}
            await asyncio.sleep(0.5)
            there = [m for m in receiver.ids if m in {one.id for one in batch}]
            assert len(there) in (0, len(batch))
            if any(o.kind is UNAVAILABLE for o in outcomes):
                assert not there
            await until_confirmed(broker, message(topic, 1, key="other"))


async def test_replies_lost_are_unknown_though_the_messages_are_there(redis_url: str) -> None:
    topic = event()
    parts = urlsplit(redis_url)
    async with (
        FaultProxy(parts.hostname or "", parts.port or 0) as proxy,
        direct(redis_url) as near,
    ):
        receiver = await join(near, "readers", topic)
        place = f"{proxy.host}:{proxy.port}"
        async with direct(parts._replace(netloc=place).geturl()) as broker:
            await until_confirmed(broker, message(topic, 0))
            await proxy.aset(DROP_REPLIES)
            batch = [message(topic, n) for n in range(50)]
            assert set(await kinds(broker, *batch, seconds=1.0)) == {UNKNOWN}
            await proxy.aset(PASS)
            await receiver.receive(51)
            await until_confirmed(broker, message(topic, 99))


async def test_a_receiver_comes_back_after_cuts_and_loses_nothing(redis_url: str) -> None:
    topic = event()
    parts = urlsplit(redis_url)
    async with (
        FaultProxy(parts.hostname or "", parts.port or 0) as proxy,
        direct(redis_url) as near,
    ):
        place = f"{proxy.host}:{proxy.port}"
        far_url = f"{parts._replace(netloc=place).geturl()}&lease=1s"
        async with direct(far_url) as far:
            receiver = await join(far, "readers", topic)
            sent: list[Message] = []
            for n in range(6):
                more = [message(topic, 100 * n + i) for i in range(100)]
                await send(near, more)
                sent += more
                await (proxy.aset(RESET) if n % 2 else asyncio.to_thread(proxy.cut))
                await asyncio.sleep(0.2)
                await proxy.aset(PASS)
            await receiver.until(lambda: {m.id for m in sent} <= set(receiver.ids), 30.0)
            assert set(receiver.ids) == {m.id for m in sent}


# --- the server -----------------------------------------------------------------------------------
async def test_a_full_server_uses_up_no_attempt_and_recovers(
    private_redis: PrivateServer, plain: Any
) -> None:
    topic = event()
    async with direct(private_redis.url) as broker:
        await broker.declare([topic], [SubscriptionSpec("readers", (topic,))])
        plain.config_set("maxmemory", 1_000_000)
        try:
            batch = [message(topic, n, payload=bytes(10_000)) for n in range(200)]
            for _ in range(3):
                outcomes = await broker.publish(batch, deadline_seconds=5.0)
            assert {o.kind for o in outcomes} == {UNAVAILABLE}
            assert "maxmemory" in outcomes[0].error
        finally:
            plain.config_set("maxmemory", 0)
        await until_confirmed(broker, message(topic))


async def test_a_replica_takes_nothing_until_it_is_the_primary(
    private_redis: PrivateServer, plain: Any
) -> None:
    topic = event()
    async with direct(private_redis.url) as broker:
        receiver = await join(broker, "readers", topic)
        plain.replicaof("127.0.0.1", "1")
        try:
            found = {f.code: f.severity for f in await broker.inspect()}
            assert found["REDIS_REPLICATION"] is Severity.RED
            outcomes = await broker.publish(
                [message(topic, 1), message(topic, 2)], deadline_seconds=3
            )
            assert {o.kind for o in outcomes} == {UNAVAILABLE}
        finally:
            plain.replicaof("NO", "ONE")
        last = message(topic, 3)
        await until_confirmed(broker, last)
        await receiver.until(lambda: last.id in receiver.ids, 30.0)


async def test_a_value_that_the_server_does_not_take_is_impossible(
    private_redis: PrivateServer, plain: Any
) -> None:
    topic = event()
    plain.config_set("proto-max-bulk-len", 1_048_576)
    try:
        async with direct(private_redis.url) as broker:
            await broker.declare([topic], [SubscriptionSpec("readers", (topic,))])
            big = message(topic, payload=bytes(1_048_577))
            assert await kinds(broker, message(topic, 1), big, message(topic, 2)) == [
                *(CONFIRMED, IMPOSSIBLE),
                CONFIRMED,
            ]
    finally:
        plain.config_set("proto-max-bulk-len", 512_000_000)


async def test_what_a_server_without_persistence_loses_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    topic = event()
    with start_private_redis("appendonly no\n") as server:
        async with direct(server.url) as broker:
            found = {f.code: f for f in await broker.inspect()}
            assert found["REDIS_DURABILITY"].severity is Severity.RED
            receiver = await join(broker, "readers", topic)
            await send(broker, [message(topic, 1)])
            await receiver.receive(1)
            await asyncio.to_thread(server.kill)
            assert await kinds(broker, message(topic, 2), seconds=1.0) != [CONFIRMED]
            await asyncio.to_thread(server.start)
            last = message(topic, 3)
            await until_confirmed(broker, last)
            await receiver.until(lambda: last.id in receiver.ids, 20.0)
    assert "REDIS_HISTORY_LOST" in caplog.text


@pytest.mark.parametrize(
    ("setting", "code", "severity"),
    [
        (("appendfsync", "always"), "REDIS_DURABILITY", Severity.GREEN),
        (("appendfsync", "everysec"), "REDIS_DURABILITY", Severity.WEAK),
        (("appendfsync", "no"), "REDIS_DURABILITY", Severity.RED),
        (("maxmemory-policy", "allkeys-lru"), "REDIS_EVICTION", Severity.RED),
        (("maxmemory-policy", "volatile-lru"), "REDIS_EVICTION", Severity.WEAK),
    ],
)
async def test_the_verdict_follows_the_settings_of_the_server(
    private_redis: PrivateServer,
    plain: Any,
    setting: tuple[str, str],
    code: str,
    severity: Severity,
) -> None:
    before = plain.config_get(setting[0])[setting[0]]
    plain.config_set("maxmemory", 1_000_000_000)
    plain.config_set(*setting)
    try:
        async with direct(private_redis.url) as broker:
            found = {f.code: f for f in await broker.inspect()}
        assert found[code].severity is severity
        assert setting[1] in found[code].message or severity is Severity.GREEN
    finally:
        plain.config_set(setting[0], before)


# --- rights ---------------------------------------------------------------------------------------
def with_login(url: str, user: str, password: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=f"{user}:{password}@{parts.hostname}:{parts.port}").geturl()


async def test_a_refused_login_is_one_clear_error(
    private_redis: PrivateServer, plain: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    plain.acl_setuser("anna", enabled=True, passwords=["+right"], categories=["+@all"])
    async with direct(with_login(private_redis.url, "anna", SECRET)) as broker:
        with pytest.raises(ConfigurationError) as caught:
            await broker.declare([event()], [])
        assert caught.value.code == "REDIS_LOGIN_REFUSED"
        assert [f.code for f in await broker.inspect()] == ["REDIS_REFUSED"]
        outcomes = await broker.publish([message(event())], deadline_seconds=2.0)
        assert outcomes[0].kind is UNAVAILABLE
    assert SECRET not in caplog.text + str(caught.value) + outcomes[0].error


async def test_missing_rights_are_named(private_redis: PrivateServer, plain: Any) -> None:
    topic = event()
    async with direct(private_redis.url) as admin:
        await admin.declare([topic], [SubscriptionSpec("readers", (topic,))])
    rights = {"keys": ["duly:*"], "commands": ["+ping", "+info", "+smembers", "+multi", "+exec"]}
    plain.acl_setuser("reader", enabled=True, passwords=["+pw"], **rights)
    async with direct(with_login(private_redis.url, "reader", "pw")) as broker:
        assert await kinds(broker, message(topic), message(topic)) == [REFUSED] * 2
        with pytest.raises(ConfigurationError) as caught:
            await broker.declare([topic], [])
        assert caught.value.code == "REDIS_RIGHTS"
        finding = {f.code: f for f in await broker.inspect()}["REDIS_RIGHTS"]
        assert finding.severity is Severity.RED
        assert "XADD" in finding.message
    rights["commands"] += ["+xadd"]
    plain.acl_setuser("writer", enabled=True, passwords=["+pw"], **rights)
    async with direct(with_login(private_redis.url, "writer", "pw")) as broker:
        assert await kinds(broker, message(topic), message(topic)) == [CONFIRMED] * 2
        finding = {f.code: f for f in await broker.inspect()}["REDIS_RIGHTS"]
        assert finding.severity is Severity.WEAK
        assert "EVAL" in finding.message


async def test_the_rights_that_are_documented_are_enough(
    private_redis: PrivateServer, plain: Any
) -> None:
    topic = event()
    words = (
        "~duly:* +ping +info +multi +exec +xadd +sadd +srem +smembers +xreadgroup +xread +xack "
        "+xautoclaim +xclaim +xpending +xgroup +xinfo +xtrim +xlen +xrange +xrevrange +exists +get "
        "+set +del +pexpire +time +eval +evalsha"
    )
    plain.execute_command("ACL", "SETUSER", "shop", "reset", "on", ">pw", *words.split())
    async with direct(f"{with_login(private_redis.url, 'shop', 'pw')}?lease=1s") as broker:
        for ordered in (False, True):
            receiver = await join(broker, f"readers-{ordered}", topic, ordered=ordered)
            await send(broker, [message(topic, n, key="k") for n in range(2)])
            await receiver.receive(2)
            await asyncio.sleep(1.5)
            await receiver.close()
        assert await broker.topics()
        assert await broker.peek(topic.name)
        finding = {f.code: f for f in await broker.inspect()}["REDIS_RIGHTS"]
        assert finding.severity is Severity.GREEN


async def test_a_key_that_holds_something_else_is_named(redis_url: str) -> None:
    topic = event()
    key = f"{redis_url.rpartition('=')[2]}event:{topic.name}"
    with redis.Redis.from_url(redis_url.partition("?")[0]) as plain:
        plain.set(key, "a cached page")
        async with direct(redis_url) as broker:
            with pytest.raises(ConfigurationError) as caught:
                await broker.declare([topic], [SubscriptionSpec("readers", (topic,))])
            assert caught.value.code == "REDIS_KEY_TAKEN"
            assert await kinds(broker, message(topic), message(topic)) == [REFUSED] * 2


async def test_a_server_that_is_not_there() -> None:
    async with direct("redis://127.0.0.1:1/0") as broker:
        with pytest.raises(BrokerUnavailableError):
            await broker.declare([event()], [])
        assert {f.code for f in await broker.inspect()} == {"REDIS_TLS", "REDIS_REACHABLE"}
        assert await kinds(broker, message(event()), seconds=1.0) == [UNAVAILABLE]


async def test_an_app_states_a_loss_as_a_fact(sqlite_url: str, redis_url: str) -> None:
    app = App("shop", database=sqlite_url, broker=redis_url)
    app.on(Placed, group="sales")(lambda event: None)
    told: list[Fact] = []
    app.hooks.add(told.append)
    key = f"{redis_url.rpartition('=')[2]}event:orders"
    with redis.Redis.from_url(redis_url.partition("?")[0]) as plain:
        async with app.running(), asyncio.timeout(30):
            while not any(one.name == "runtime.connected" for one in told) or not plain.exists(key):
                await asyncio.sleep(0.05)
            plain.delete(key)
            while not any(isinstance(one, HistoryLost) for one in told):
                await asyncio.sleep(0.05)
    lost = next(one for one in told if isinstance(one, HistoryLost))
    assert (lost.place, lost.group, lost.messages) == (key, "sales", None)
    app.close()
