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

from duly.brokers.embedded import EmbeddedBroker
from duly.brokers.rabbitmq import RabbitMQBroker
from duly.ports import Broker, BrokerFeatures
from duly.testing.broker_conformance import BrokerConformance, Target
from duly.testing.fault_proxy import SILENT, FaultProxy
from tools.services import PrivateServer

REQUIRED = tomllib.loads((Path(__file__).parent / "required.toml").read_text())["broker"]


def required(name: str) -> BrokerFeatures:
    return BrokerFeatures(**REQUIRED[name])


def test_every_adapter_is_pinned_and_nothing_else() -> None:
    assert set(REQUIRED) == {"embedded file", "embedded memory", "rabbitmq"}


class TestEmbeddedFile(BrokerConformance):
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


class TestEmbeddedMemory(BrokerConformance):
    @pytest.fixture
    def target(self) -> Target:
        return Target(
            make=lambda: EmbeddedBroker("embedded:///:memory:", lease_seconds=2.0),
            features=required("embedded memory"),
            shared=False,
        )


class TestRabbitMQ(BrokerConformance):
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
