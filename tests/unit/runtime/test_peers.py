from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from duly.errors import BrokerUnavailableError, DatabaseUnavailableError
from duly.observe.facts import Connected, Disconnected, Fact
from duly.observe.hooks import Hooks
from duly.runtime.peers import Peer, PeerWatch


class Server:
    """Away while it has an error."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.asked = 0

    async def ask(self) -> None:
        self.asked += 1
        if self.error is not None:
            raise self.error


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def test_each_change_is_one_fact_however_often_it_is_asked() -> None:
    told: list[Fact] = []
    hooks, broker, database = Hooks(), Server(), Server()
    hooks.add(told.append)
    peers = [Peer("broker", "amqp://x", broker.ask), Peer("database", "sqlite://", database.ask)]
    watch = PeerWatch(peers, hooks=hooks, every_seconds=0.001)
    broker.error = BrokerUnavailableError("s3cret")
    role = asyncio.create_task(watch.run())
    await until(lambda: broker.asked >= 3)
    broker.error = None
    await until(lambda: len(told) == 3)
    database.error = DatabaseUnavailableError("gone")
    await until(lambda: len(told) == 4)
    seen = database.asked
    await until(lambda: database.asked >= seen + 3)
    watch.stop()
    await asyncio.wait_for(role, 10)
    away = Disconnected(
        peer="broker", url="amqp://x", code="BROKER_UNAVAILABLE", retry_in_seconds=0.001
    )
    assert told[:2] == [away, Connected(peer="database", url="sqlite://")]
    assert told[2] == Connected(peer="broker", url="amqp://x")
    assert isinstance(told[3], Disconnected)
    assert (told[3].peer, told[3].code, len(told)) == ("database", "DATABASE_UNAVAILABLE", 4)


async def test_it_stops_while_a_server_does_not_answer() -> None:
    async def never() -> None:
        await asyncio.Event().wait()

    told: list[Fact] = []
    hooks = Hooks()
    hooks.add(told.append)
    watch = PeerWatch([Peer("broker", "", never)], hooks=hooks)
    role = asyncio.create_task(watch.run())
    await asyncio.sleep(0)
    watch.stop()
    await asyncio.wait_for(role, 10)
    assert told == [], "nobody knows whether it is there"


async def test_a_fault_of_ours_is_not_taken_for_a_server_that_is_away() -> None:
    server = Server()
    server.error = KeyError("bug")
    with pytest.raises(KeyError):
        await PeerWatch([Peer("broker", "", server.ask)], hooks=Hooks()).run()
