"""What happens to a running App: signals, a broker that is stopped, a service that is added."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from duly import App, Tx
from tests.acceptance.shop_app import QUICK, Placed, Shop, child, insert
from tools.services import PrivateServer

SLOW = """
    import asyncio, logging, sys, time
    @app.on(Placed, group="sales", concurrency=1)
    def handle(event: Placed, tx: Tx) -> None:
        tx.session.execute(insert(event.order_id))
        print("began", event.order_id, flush=True)
        time.sleep({seconds})
    app.run()
    print("ended", flush=True)
"""


@pytest.fixture
def urls(tmp_path: Path) -> tuple[str, str]:
    return f"sqlite:///{tmp_path / 'shop.db'}", f"embedded:///{tmp_path / 'broker.db'}"


@pytest.fixture
def shop(urls: tuple[str, str]) -> Iterator[Shop]:
    """The same App, looking on."""
    shop = Shop(*urls)
    shop.app.on(Placed, group="sales")(lambda event: None)
    shop.prepare()
    yield shop
    shop.close()


@contextlib.contextmanager
def running(urls: tuple[str, str], seconds: float) -> Iterator[subprocess.Popen[str]]:
    """A process that runs the App and is inside its first handler."""
    process = child(*urls, SLOW.format(seconds=seconds))
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "began 1\n"
        yield process
    finally:
        process.kill()
        process.communicate(timeout=10)


async def finish(shop: Shop, urls: tuple[str, str]) -> None:
    """Another process does the rest."""
    once = "asyncio.run(app.run_once(timeout='30s'))"
    after = child(*urls, SLOW.format(seconds=0).replace("app.run()", once))
    assert await asyncio.to_thread(after.communicate, timeout=40)
    assert after.returncode == 0


async def test_sigterm_finishes_what_is_in_hand_and_leaves_the_rest(
    shop: Shop, urls: tuple[str, str]
) -> None:
    shop.place(1, 2, 3, 4)
    with running(urls, seconds=1.0) as process:
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=20)
    assert process.returncode == 0, errors
    assert time.monotonic() - began < 8
    assert output.endswith("ended\n")
    done = shop.work()
    assert done[0] == 1
    assert len(done) < 4, "it went on with what was not begun"
    await finish(shop, urls)
    assert shop.work() == [1, 2, 3, 4]


async def test_a_second_sigterm_ends_at_once_and_loses_nothing(
    shop: Shop, urls: tuple[str, str]
) -> None:
    shop.place(1, 2)
    with running(urls, seconds=30) as process:
        process.send_signal(signal.SIGTERM)
        await asyncio.sleep(1)
        assert process.poll() is None, "it waits for the handler"
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=10)
    assert process.returncode == 130
    assert time.monotonic() - began < 3
    assert shop.work() == []
    await finish(shop, urls)
    assert shop.work() == [1, 2]


async def test_a_handler_that_does_not_end_is_left_behind_after_the_drain_time(
    shop: Shop, urls: tuple[str, str]
) -> None:
    shop.place(1)
    with running(urls, seconds=60) as process:
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=40)
    assert time.monotonic() - began < 25  # drain_timeout is 5 s
    assert shop.work() == []
    await finish(shop, urls)
    assert shop.work() == [1]


# --- M1: a broker that is stopped is not felt by publishers ---------------------------------------
@pytest.mark.timeout(120)
async def test_commits_go_on_without_the_broker_and_the_backlog_drains(
    sqlite_url: str, private_rabbitmq: PrivateServer
) -> None:
    shop = Shop(sqlite_url, private_rabbitmq.url)

    @shop.app.on(Placed, group="sales")
    def handle(event: Placed, tx: Tx) -> None:
        tx.session.execute(insert(event.order_id))

    shop.prepare()
    slowest: list[float] = []
    async with shop.app.running() as running:
        await asyncio.to_thread(commit_for, shop, 2.0, slowest)
        await asyncio.wait_for(running.settled(), 20)
        before = len(slowest)
        await asyncio.to_thread(private_rabbitmq.kill)
        await asyncio.to_thread(commit_for, shop, 6.0, slowest)
        waiting = shop.query("SELECT count(*) FROM duly_outbox")[0]
        await asyncio.to_thread(private_rabbitmq.start)
        await until(lambda: len(shop.work()) == len(slowest), seconds=40)
    assert waiting == len(slowest) - before > 50
    assert max(slowest) < 1.0
    assert shop.work() == shop.ordered() == list(range(1, len(slowest) + 1))
    assert shop.outbox() == []
    shop.close()


def commit_for(shop: Shop, seconds: float, took: list[float]) -> None:
    """Commit an order every few milliseconds and note how long each commit took."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        began = time.monotonic()
        shop.place(len(took) + 1)
        took.append(time.monotonic() - began)
        time.sleep(0.02)  # a steady trickle, not a flood


async def until(condition: Callable[[], bool], *, seconds: float) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(seconds):
        while not await asyncio.to_thread(condition):
            await asyncio.sleep(0.2)


# --- M2: a service is added without touching the publisher ----------------------------------------
@pytest.mark.parametrize("kind", ["embedded", "rabbitmq"])
async def test_a_new_service_gets_events_while_the_old_one_runs_on(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    broker = (
        request.getfixturevalue("rabbitmq_url")
        if kind == "rabbitmq"
        else f"embedded:///{tmp_path / 'broker.db'}"
    )
    old = Shop(f"sqlite:///{tmp_path / 'shop.db'}", broker)
    old.app.on(Placed, group="sales")(lambda event, tx: tx.session.execute(insert(event.order_id)))
    old.prepare()
    new = Audit(tmp_path, broker)
    seen: list[int] = new.seen
    async with old.app.running() as running:
        old.place(1)
        await asyncio.wait_for(running.settled(), 20)
        async with new.app.running() as added:
            await asyncio.wait_for(added.settled(), 20)
            old.place(2, 3)
            await until(lambda: {2, 3} <= set(seen), seconds=20)
            await asyncio.wait_for(running.settled(), 20)
        old.place(4)  # while the new one is down
        await asyncio.wait_for(running.settled(), 20)
        async with new.app.running():
            await until(lambda: 4 in seen, seconds=20)
    expected = [1, 2, 3, 4] if kind == "embedded" else [2, 3, 4]  # a log keeps its history
    assert sorted(seen) == expected
    assert old.work() == [1, 2, 3, 4]
    old.close()
    new.app.close()


class Audit:
    """Another App, with its own name and database, on the same broker."""

    def __init__(self, tmp_path: Path, broker: str) -> None:
        self.app = App(
            "audit", database=f"sqlite:///{tmp_path / 'audit.db'}", broker=broker, **QUICK
        )
        self.seen: list[int] = []
        self.app.on(Placed, group="audit")(self.handle)

    def handle(self, event: Placed) -> None:
        self.seen.append(event.order_id)
