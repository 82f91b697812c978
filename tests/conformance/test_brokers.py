"""Our own broker adapters, held to the public suite with the features that required.toml pins."""

from __future__ import annotations

import asyncio
import sqlite3
import tomllib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from duly.brokers.activemq import ActiveMQBroker
from duly.brokers.embedded import EmbeddedBroker
from duly.brokers.kafka import KafkaBroker
from duly.brokers.nats import NatsBroker
from duly.brokers.rabbitmq import RabbitMQBroker
from duly.brokers.redis import RedisBroker
from duly.kernel import failpoints
from duly.ports import Broker, BrokerFeatures, SubscriptionSpec
from duly.testing.broker_conformance import BrokerConformance, Target
from duly.testing.broker_target import event, message, send, started
from duly.testing.fault_proxy import SILENT, FaultProxy
from tools.services import PrivateServer

REQUIRED = tomllib.loads((Path(__file__).parent / "required.toml").read_text())["broker"]


def required(name: str) -> BrokerFeatures:
    return BrokerFeatures(**REQUIRED[name])


def test_every_adapter_is_pinned_and_nothing_else() -> None:
    assert set(REQUIRED) == {
        "activemq",
        "embedded file",
        "embedded memory",
        "embedded mysql",
        "embedded postgres",
        "kafka",
        "nats",
        "rabbitmq",
        "redis",
    }


class OurConformance(BrokerConformance):
    """What is asked of our own adapters besides."""

    async def test_a_crash_run_can_end_it_between_send_and_confirm(self, target: Target) -> None:
        topic, passed = event(), list[str]()
        async with started(target) as broker:
            await broker.declare([topic], [SubscriptionSpec("readers", (topic,))])
            failpoints.arm(passed.append)
            try:
                await send(broker, [message(topic)])
            finally:
                failpoints.arm(None)
        assert failpoints.RELAY_SENT in passed


class TestActiveMQ(OurConformance):
    @pytest.fixture
    def target(self, activemq_url: str) -> Target:
        @asynccontextmanager
        async def stalled() -> AsyncIterator[Broker]:
            parts = urlsplit(activemq_url)
            async with FaultProxy(parts.hostname or "", parts.port or 61613) as proxy:
                place = f"{parts.username}:{parts.password}@{proxy.host}:{proxy.port}"
                broker = ActiveMQBroker(parts._replace(netloc=place).geturl())
                await broker.start()
                await broker.publish([message(event("nowhere"))], deadline_seconds=5.0)  # connected
                await proxy.aset(SILENT)
                try:
                    yield broker
                finally:
                    await broker.close()

        return Target(
            make=lambda: ActiveMQBroker(activemq_url),
            features=required("activemq"),
            stalled=stalled,
        )

    @pytest.fixture
    def restartable(self, private_activemq: PrivateServer) -> Target:
        async def restart() -> None:
            await asyncio.to_thread(private_activemq.kill)
            await asyncio.to_thread(private_activemq.start)

        return Target(
            make=lambda: ActiveMQBroker(private_activemq.url),
            features=required("activemq"),
            restart=restart,
        )


class TestEmbeddedFile(OurConformance):
    @pytest.fixture
    def target(self, tmp_path: Path) -> Target:
        path = tmp_path / "broker.db"

        def make() -> EmbeddedBroker:
            return EmbeddedBroker(f"embedded:///{path}", lease_seconds=2.0)

        @asynccontextmanager
        async def stalled() -> AsyncIterator[Broker]:
            broker = make()
            await broker.start()
            await broker.topics()
            lock = sqlite3.connect(path, isolation_level=None)
            lock.execute("BEGIN IMMEDIATE")
            try:
                yield broker
            finally:
                lock.execute("ROLLBACK")
                lock.close()
                await broker.close()

        async def restart() -> None:
            """The file is the server; a checkpoint and a cold start are all there is to it."""
            cold = sqlite3.connect(path)
            cold.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            cold.close()

        return Target(
            make=make, features=required("embedded file"), stalled=stalled, restart=restart
        )


class TestEmbeddedMemory(OurConformance):
    @pytest.fixture
    def target(self) -> Target:
        return Target(
            make=lambda: EmbeddedBroker("embedded:///:memory:", lease_seconds=2.0),
            features=required("embedded memory"),
            shared=False,
        )


@asynccontextmanager
async def behind_silence(url: str, port: int) -> AsyncIterator[Broker]:
    """An embedded broker on a server that has stopped to answer."""
    parts = urlsplit(url)
    async with FaultProxy(parts.hostname or "", parts.port or port) as proxy:
        place = f"{parts.username}:{parts.password or ''}@{proxy.host}:{proxy.port}"
        broker = EmbeddedBroker(parts._replace(netloc=place).geturl())
        await broker.start()
        await broker.topics()
        await broker.publish([message(event("nowhere"))], deadline_seconds=5.0)  # connected
        await proxy.aset(SILENT)
        try:
            yield broker
        finally:
            await broker.close()


class TestEmbeddedMysql(OurConformance):
    @pytest.fixture
    def target(self, mariadb_url: str) -> Target:
        url = f"embedded+{mariadb_url}"
        return Target(
            make=lambda: EmbeddedBroker(url, lease_seconds=2.0),
            features=required("embedded mysql"),
            stalled=lambda: behind_silence(url, 3306),
        )

    @pytest.fixture
    def restartable(self, private_mariadb: PrivateServer) -> Target:
        async def restart() -> None:
            await asyncio.to_thread(private_mariadb.kill)
            await asyncio.to_thread(private_mariadb.start)

        return Target(
            make=lambda: EmbeddedBroker(f"embedded+{private_mariadb.url}", lease_seconds=2.0),
            features=required("embedded mysql"),
            restart=restart,
        )


class TestEmbeddedPostgres(OurConformance):
    @pytest.fixture
    def target(self, postgres_url: str) -> Target:
        url = f"embedded+{postgres_url}"
        return Target(
            make=lambda: EmbeddedBroker(url, lease_seconds=2.0),
            features=required("embedded postgres"),
            stalled=lambda: behind_silence(url, 5432),
        )

    @pytest.fixture
    def restartable(self, private_postgres: PrivateServer) -> Target:
        async def restart() -> None:
            await asyncio.to_thread(private_postgres.kill)
            await asyncio.to_thread(private_postgres.start)

        return Target(
            make=lambda: EmbeddedBroker(f"embedded+{private_postgres.url}", lease_seconds=2.0),
            features=required("embedded postgres"),
            restart=restart,
        )


class TestKafka(OurConformance):
    @pytest.fixture
    def target(self, kafka_url: str, kafka_proxy: FaultProxy) -> Target:
        @asynccontextmanager
        async def stalled() -> AsyncIterator[Broker]:
            async with kafka_proxy as proxy:
                parts = urlsplit(kafka_url)
                place = f"{proxy.host}:{proxy.port}"
                broker = KafkaBroker(parts._replace(netloc=place).geturl())
                await broker.start()
                await broker.publish([message(event("nowhere"))], deadline_seconds=5.0)  # connected
                await proxy.aset(SILENT)
                try:
                    yield broker
                finally:
                    await broker.close()

        return Target(
            make=lambda: KafkaBroker(kafka_url),
            features=required("kafka"),
            stalled=stalled,
            payload_bytes=900_000,  # the server takes 1 MB with headers, as installed
        )

    @pytest.fixture
    def restartable(self, private_kafka: PrivateServer) -> Target:
        async def restart() -> None:
            await asyncio.to_thread(private_kafka.kill)
            await asyncio.to_thread(private_kafka.start)

        return Target(
            make=lambda: KafkaBroker(private_kafka.url), features=required("kafka"), restart=restart
        )


class TestRabbitMQ(OurConformance):
    @pytest.fixture
    def target(self, rabbitmq_url: str) -> Target:
        @asynccontextmanager
        async def stalled() -> AsyncIterator[Broker]:
            parts = urlsplit(rabbitmq_url)
            async with FaultProxy(parts.hostname or "", parts.port or 5672) as proxy:
                place = f"{parts.username}:{parts.password}@{proxy.host}:{proxy.port}"
                broker = RabbitMQBroker(parts._replace(netloc=place).geturl())
                await broker.start()
                await broker.declare([], [])
                await proxy.aset(SILENT)
                try:
                    yield broker
                finally:
                    await broker.close()

        return Target(
            make=lambda: RabbitMQBroker(rabbitmq_url),
            features=required("rabbitmq"),
            stalled=stalled,
        )

    @pytest.fixture
    def restartable(self, private_rabbitmq: PrivateServer) -> Target:
        async def restart() -> None:
            await asyncio.to_thread(private_rabbitmq.kill)
            await asyncio.to_thread(private_rabbitmq.start)

        return Target(
            make=lambda: RabbitMQBroker(private_rabbitmq.url),
            features=required("rabbitmq"),
            restart=restart,
            settle_seconds=5.0,  # RabbitMQ writes what was declared to its disk log within seconds
        )


class TestNats(OurConformance):
    @pytest.fixture
    def target(self, nats_url: str) -> Target:
        @asynccontextmanager
        async def stalled() -> AsyncIterator[Broker]:
            parts = urlsplit(nats_url)
            async with FaultProxy(parts.hostname or "", parts.port or 4222) as proxy:
                place = f"{proxy.host}:{proxy.port}"
                broker = NatsBroker(parts._replace(netloc=place).geturl())
                await broker.start()
                await broker.publish([message(event("nowhere"))], deadline_seconds=5.0)  # connected
                await proxy.aset(SILENT)
                try:
                    yield broker
                finally:
                    await broker.close()

        return Target(
            make=lambda: NatsBroker(nats_url),
            features=required("nats"),
            stalled=stalled,
            payload_bytes=900_000,  # the server takes 1 MB with headers, as installed
        )

    @pytest.fixture
    def restartable(self, private_nats: PrivateServer) -> Target:
        async def restart() -> None:
            await asyncio.to_thread(private_nats.kill)
            await asyncio.to_thread(private_nats.start)

        return Target(
            make=lambda: NatsBroker(private_nats.url), features=required("nats"), restart=restart
        )


class TestRedis(OurConformance):
    @pytest.fixture
    def target(self, redis_url: str) -> Target:
        @asynccontextmanager
        async def stalled() -> AsyncIterator[Broker]:
            parts = urlsplit(redis_url)
            async with FaultProxy(parts.hostname or "", parts.port or 6379) as proxy:
                place = f"{proxy.host}:{proxy.port}"
                broker = RedisBroker(parts._replace(netloc=place).geturl())
                await broker.start()
                await broker.declare([], [])
                await proxy.aset(SILENT)
                try:
                    yield broker
                finally:
                    await broker.close()

        return Target(
            make=lambda: RedisBroker(redis_url), features=required("redis"), stalled=stalled
        )

    @pytest.fixture
    def restartable(self, private_redis: PrivateServer) -> Target:
        async def restart() -> None:
            await asyncio.to_thread(private_redis.kill)
            await asyncio.to_thread(private_redis.start)

        return Target(
            make=lambda: RedisBroker(private_redis.url), features=required("redis"), restart=restart
        )
