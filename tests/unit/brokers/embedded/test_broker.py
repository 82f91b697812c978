from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from duly.brokers.embedded import EmbeddedBroker
from duly.brokers.embedded.broker import _Attempt
from duly.errors import BrokerUnavailableError, ConfigurationError
from duly.ports import OutcomeKind, Severity, SubscriptionSpec, TopicSpec
from duly.testing.broker_target import Receiver, message

TOPIC = TopicSpec("orders", "event")
SPEC = SubscriptionSpec("readers", (TOPIC,))


@asynccontextmanager
async def started(url: str, **options: Any) -> AsyncIterator[EmbeddedBroker]:
    broker = EmbeddedBroker(url, **options)
    await broker.start()
    try:
        yield broker
    finally:
        await broker.close()


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"embedded:///{tmp_path / 'broker.db'}"


@pytest.mark.parametrize(
    "bad",
    [
        "embedded://broker.db",
        "embedded:///",
        "embedded:",
        "sqlite:///broker.db",
        "embedded:///a.db?retention=1",
        "embedded:///a.db#x",
        "embedded:///a%00b",
        "embedded://host/a.db",
    ],
)
def test_a_bad_url_is_refused(bad: str) -> None:
    with pytest.raises(ConfigurationError, match=r"embedded:///file\.db"):
        EmbeddedBroker(bad)


@pytest.mark.parametrize("options", [{"lease_seconds": 0}, {"retention_seconds": -1}])
def test_a_bad_limit_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        EmbeddedBroker("embedded:///a.db", **options)


async def test_a_relative_path_and_an_escaped_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with started("embedded:///my%20broker.db") as broker:
        await broker.declare([TOPIC], [])
    assert (tmp_path / "my broker.db").exists()


async def test_a_folder_that_is_not_there_is_said_at_start(tmp_path: Path) -> None:
    broker = EmbeddedBroker(f"embedded:///{tmp_path}/missing/a.db")
    with pytest.raises(ConfigurationError, match="missing"):
        await broker.start()
    await broker.close()


async def test_a_file_that_is_no_log(tmp_path: Path) -> None:
    path = tmp_path / "notes.db"
    path.write_text("not a database, " * 100)
    async with started(f"embedded:///{path}") as broker:
        with pytest.raises(ConfigurationError, match="NOTADB"):
            await broker.declare([TOPIC], [])
        outcomes = await broker.publish([message(TOPIC)], deadline_seconds=1.0)
        assert outcomes[0].kind is OutcomeKind.UNAVAILABLE
        assert [f.severity for f in await broker.inspect()] == [Severity.RED]


async def test_what_check_says(url: str) -> None:
    async with started(url) as broker:
        (finding,) = await broker.inspect()
        assert (finding.severity, finding.facts["synchronous"]) == (Severity.GREEN, "2")
    async with started("embedded:///:memory:") as broker:
        (finding,) = await broker.inspect()
        assert finding.severity is Severity.RED


async def test_calls_before_start_and_after_close(url: str) -> None:
    broker = EmbeddedBroker(url)
    for _ in range(2):
        with pytest.raises(BrokerUnavailableError):
            await broker.declare([TOPIC], [])
        outcomes = await broker.publish([message(TOPIC)], deadline_seconds=1.0)
        assert outcomes[0].kind is OutcomeKind.UNAVAILABLE
        await broker.start() if not broker._engine._closing.is_set() else None
        await broker.close()


def test_an_attempt_is_given_up_or_committed_never_both() -> None:
    committed = _Attempt(10.0)
    assert committed.may_commit()
    assert not committed.abandon()
    given_up = _Attempt(10.0)
    assert given_up.abandon()
    assert not given_up.may_commit()
    late = _Attempt(0.0)
    assert not late.may_commit()


async def test_a_locked_file_costs_the_deadline_and_nothing_is_stored_later(
    url: str, tmp_path: Path
) -> None:
    async with started(url) as broker:
        await broker.declare([TOPIC], [SPEC])
        lock = sqlite3.connect(tmp_path / "broker.db", isolation_level=None)
        lock.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        outcomes = await broker.publish([message(TOPIC)], deadline_seconds=0.3)
        assert 0.2 < time.monotonic() - began < 1.0
        assert outcomes[0].kind is OutcomeKind.UNAVAILABLE
        lock.execute("ROLLBACK")
        lock.close()
        await asyncio.sleep(0.3)
        assert (await broker.topics())[0].depth == 0


async def test_what_was_handed_over_late_is_not_handed_out(url: str) -> None:
    """A process that was stopped wakes up with deliveries that are others' by now."""
    async with started(url, lease_seconds=1.0) as broker:
        subscription = await broker.subscribe(SPEC)
        await broker.publish([message(TOPIC, n, key="k") for n in range(5)], deadline_seconds=5.0)
        await asyncio.sleep(0.2)  # handed over, not yet taken
        for d in subscription._arrived[0]:  # type: ignore[attr-defined]
            d.token.held.until = 1.0
        receiver = Receiver(subscription)
        await receiver.receive(5)
        assert len(receiver.ids) == 5
        await receiver.close()


async def test_topics_and_peek(url: str) -> None:
    async with started(url) as broker:
        receiver = Receiver(await broker.subscribe(SPEC), acking=False)
        sent = [message(TOPIC, n, key="k") for n in range(10)]
        await broker.publish(sent, deadline_seconds=5.0)
        await receiver.receive(10)
        (status,) = await broker.topics()
        assert (status.name, status.kind, status.depth) == ("orders", "event", 10)
        assert [(g.group, g.read, g.lag, g.members) for g in status.groups] == [
            ("readers", 0, 10, 1)
        ]
        await receiver.ack_all()
        await asyncio.sleep(0.2)
        assert (await broker.topics())[0].groups[0].lag == 0
        peeked = await broker.peek("orders", after="", limit=4)
        assert [p.message for p in peeked] == sent[:4]
        rest = await broker.peek("orders", after=peeked[-1].cursor, limit=100)
        assert [p.message for p in rest] == sent[4:]
        await receiver.close()


# --- several processes ----------------------------------------------------------------------------
PROGRAM = """
import asyncio, signal, sys
from threading import get_ident
from duly.brokers.embedded import EmbeddedBroker
from duly.ports import SubscriptionSpec, TopicSpec
from duly.testing.broker_target import message

TOPIC = TopicSpec("orders", "event")

async def read(broker):
    subscription = await broker.subscribe(SubscriptionSpec("readers", (TOPIC,)))
    async for batch in subscription.batches():
        for d in batch:
            print(d.source, d.position, d.message.payload.decode(), flush=True)
        await subscription.ack([d.token for d in batch])

async def freeze(broker):
    subscription = await broker.subscribe(SubscriptionSpec("readers", (TOPIC,)))
    frozen = False
    async for batch in subscription.batches():
        await subscription.ack([d.token for d in batch])
        if frozen:
            continue
        frozen = True
        # From its own thread, so between two transactions: a process that is stopped while it
        # holds the file's write lock stops every other one too.
        broker._engine.submit(lambda log: signal.pthread_kill(get_ident(), signal.SIGSTOP))

async def write(broker, name, count):
    for n in range(int(count)):
        batch = [message(TOPIC, 10 * n + i, key=name) for i in range(10)]
        outcomes = await broker.publish(batch, deadline_seconds=10.0)
        assert {o.kind.value for o in outcomes} == {"confirmed"}, outcomes

async def main(url, verb, *args):
    broker = EmbeddedBroker(url)
    await broker.start()
    await {"freeze": freeze, "read": read, "write": write}[verb](broker, *args)
    await broker.close()

asyncio.run(main(*sys.argv[1:]))
"""


@asynccontextmanager
async def process(*args: str) -> AsyncIterator[subprocess.Popen[bytes]]:
    environment = os.environ | {"PYTHONPATH": "src"}
    child = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *args], stdout=subprocess.PIPE, env=environment
    )
    try:
        yield child
    finally:
        child.kill()
        child.wait()


async def until_first_line(child: subprocess.Popen[bytes]) -> None:
    assert child.stdout is not None
    line = await asyncio.wait_for(asyncio.to_thread(child.stdout.readline), 10.0)
    assert line


async def until_stopped(child: subprocess.Popen[bytes]) -> None:
    stopped = asyncio.to_thread(os.waitpid, child.pid, os.WUNTRACED)
    _, status = await asyncio.wait_for(stopped, 10.0)
    assert os.WIFSTOPPED(status)


async def test_a_killed_reader_is_replaced_within_five_seconds(url: str) -> None:
    async with started(url) as broker:
        await broker.declare([TOPIC], [SPEC])
        async with process(url, "read") as child:
            await broker.publish([message(TOPIC, key="k")], deadline_seconds=5.0)
            await until_first_line(child)
            child.kill()
            child.wait()
            killed = time.monotonic()
            receiver = Receiver(await broker.subscribe(SPEC))
            batch = [message(TOPIC, n, key=f"k{n}") for n in range(100)]
            await broker.publish(batch, deadline_seconds=5.0)
            await receiver.until(lambda: {m.id for m in batch} <= set(receiver.ids))
            assert time.monotonic() - killed < 5.0
            await receiver.close()


async def test_a_stopped_reader_wakes_up_fenced(url: str) -> None:
    async with started(url, lease_seconds=4.0) as broker:
        await broker.declare([TOPIC], [SPEC])
        async with process(url, "freeze") as child:
            await broker.publish([message(TOPIC, key="k")], deadline_seconds=5.0)
            await until_stopped(child)
            receiver = Receiver(await broker.subscribe(SPEC), acking=True)
            sent = [message(TOPIC, n, key=f"k{n % 9}") for n in range(90)]
            await broker.publish(sent, deadline_seconds=5.0)
            await receiver.until(lambda: {m.id for m in sent} <= set(receiver.ids), 8.0)
            child.send_signal(signal.SIGCONT)
            await asyncio.sleep(2.0)  # it rejoins and takes its share; nothing old comes again
            assert len(set(receiver.ids)) == len(receiver.ids)
            (status,) = await broker.topics()
            assert (status.groups[0].lag, status.groups[0].members) == (0, 2)
            await receiver.close()


async def test_many_writing_processes_lose_and_reorder_nothing(url: str) -> None:
    async with started(url) as broker:
        receiver = Receiver(await broker.subscribe(SPEC))
        names = ["a", "b", "c"]
        async with (
            process(url, "write", names[0], "40") as one,
            process(url, "write", names[1], "40") as two,
            process(url, "write", names[2], "40") as three,
        ):
            await receiver.receive(1200, 30.0)
            for child in (one, two, three):
                assert await asyncio.to_thread(child.wait, 10.0) == 0
        for name in names:
            numbers = [int(m.payload) for m in receiver.messages if m.key == name]
            assert numbers == list(range(400))
        await receiver.close()
