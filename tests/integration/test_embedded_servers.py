"""The embedded broker on PostgreSQL and MariaDB: locks, wake-up, faults, rights, verdict."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from sqlalchemy import inspect

from duly.admin.demo.ground import clean_broker, plain_engine
from duly.admin.demo.model import PREFIX
from duly.brokers.embedded import EmbeddedBroker, mysql, postgres
from duly.brokers.embedded.log import Log
from duly.brokers.embedded.places import place_of
from duly.brokers.embedded.store import PARTITIONS, TABLES
from duly.brokers.embedded.tables import MYSQL, POSTGRES
from duly.errors import (
    BrokerUnavailableError,
    ConfigurationError,
    DulyError,
    OutcomeUnknownError,
)
from duly.kernel.names import place
from duly.ports import OutcomeKind, Severity, SubscriptionSpec, TopicSpec
from duly.testing.broker_target import Receiver, join, message, send, twice
from duly.testing.fault_proxy import DROP_REPLIES, PASS, SILENT, Fault, FaultProxy
from tests.conftest import mariadb
from tools.services import PrivateServer

ROOT = Path(__file__).resolve().parents[2]
TOPIC = TopicSpec("orders", "event")
SPEC = SubscriptionSpec("readers", (TOPIC,))
CONFIRMED, UNKNOWN, UNAVAILABLE = (
    OutcomeKind.CONFIRMED,
    OutcomeKind.UNKNOWN,
    OutcomeKind.UNAVAILABLE,
)


@pytest.fixture(params=["postgres", "mysql"])
def url(request: pytest.FixtureRequest) -> str:
    fixture = {"postgres": "postgres_url", "mysql": "mariadb_url"}[request.param]
    return f"embedded+{request.getfixturevalue(fixture)}"


@contextmanager
def opened(url: str) -> Iterator[Log]:
    with closing(Log(place_of(url, prefix="duly_").open(listening=False))) as log:
        yield log


@asynccontextmanager
async def started(url: str) -> AsyncIterator[EmbeddedBroker]:
    broker = EmbeddedBroker(url, lease_seconds=2.0)
    await broker.start()
    try:
        yield broker
    finally:
        began = time.monotonic()
        await broker.close()
        assert time.monotonic() - began < 8.0, "close hung"


def through(url: str, proxy: FaultProxy) -> str:
    parts = urlsplit(url)
    place = f"{parts.username}:{parts.password or ''}@{proxy.host}:{proxy.port}"
    return parts._replace(netloc=place).geturl()


def proxy_to(url: str) -> FaultProxy:
    parts = urlsplit(url)
    return FaultProxy(parts.hostname or "", parts.port or 0)


def publish(
    log: Log, numbers: range, *, key: str = "k", may_commit: Callable[[], bool] = lambda: True
) -> list[OutcomeKind]:
    batch = [message(TOPIC, n, key=key) for n in numbers]
    return [o.kind for o in log.publish(batch, wait_seconds=5.0, may_commit=may_commit)]


def stored(log: Log) -> list[int]:
    return [int(p.message.payload) for p in log.peek(TOPIC.name, after="", limit=10_000)]


def other_partition(key: str) -> str:
    """A key that is stored elsewhere."""
    mine = place(TOPIC.name, key).stripe % PARTITIONS
    keys = (f"o{n}" for n in range(100))
    return next(k for k in keys if place(TOPIC.name, k).stripe % PARTITIONS != mine)


# --- tables ---------------------------------------------------------------------------------------
def test_many_that_start_at_once_all_get_the_tables(url: str) -> None:
    start = threading.Barrier(6, timeout=30)

    def begin(n: int) -> int:
        start.wait()
        with opened(url) as log:
            log.declare([TOPIC], [(TOPIC, f"group{n % 2}", True), (TOPIC, "all", True)])
            return log.topic_id(TOPIC)

    with ThreadPoolExecutor(6) as pool:
        assert len(set(pool.map(begin, range(6)))) == 1
    with opened(url) as log:
        (status,) = log.topics()
        assert [g.group for g in status.groups] == ["all", "group0", "group1"]
        assert publish(log, range(3)) == [CONFIRMED] * 3


def test_tables_of_a_newer_version_are_refused(url: str) -> None:
    with opened(url) as log, log.store.writing() as db:
        db.change("UPDATE {epoch} SET version = 2")
    with pytest.raises(ConfigurationError, match="schema 2"), opened(url):
        pass


def test_the_page_shows_the_statements_that_are_run() -> None:
    page = (ROOT / "docs/reference/embedded.md").read_text()
    names = ("topic", "source", "chunk", "claim", "member", "epoch")
    words = {name: f"duly_broker_{name}" for name in names}
    for text in (POSTGRES, MYSQL):
        assert text.format_map(words).strip() in page


# --- order ----------------------------------------------------------------------------------------
def test_a_partition_has_one_writer_until_its_commit_and_others_do_not_wait(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P3: with ids drawn before the lock, the second could be read before the first is there."""
    monkeypatch.setitem(postgres._SESSION, "idle_in_transaction_session_timeout", "60s")
    idle = "idle_transaction_timeout = "
    monkeypatch.setattr(mysql, "_SESSION", mysql._SESSION.replace(f"{idle}3", f"{idle}60"))
    with opened(url) as slow, opened(url) as fast, ThreadPoolExecutor(2) as pool:
        slow.declare([TOPIC], [(TOPIC, "readers", True)])
        drawn, go = threading.Event(), threading.Event()

        def wait() -> bool:
            drawn.set()
            return go.wait(30.0)

        first = pool.submit(publish, slow, range(5), may_commit=wait)
        assert drawn.wait(10.0)
        assert publish(fast, range(100, 105), key=other_partition("k")) == [CONFIRMED] * 5
        second = pool.submit(publish, fast, range(5, 10))
        time.sleep(0.3)  # long enough for a publish that waits for nobody
        assert not second.done(), "it drew its offsets beside the first"
        go.set()
        assert first.result(10.0) == second.result(10.0) == [CONFIRMED] * 5
        assert [n for n in stored(fast) if n < 100] == list(range(10))


def test_a_writer_that_is_frozen_in_its_transaction_is_put_out(url: str) -> None:
    with opened(url) as frozen, opened(url) as next_one, ThreadPoolExecutor(1) as pool:
        frozen.declare([TOPIC], [(TOPIC, "readers", True)])
        drawn, awake = threading.Event(), threading.Event()

        def freeze() -> bool:
            drawn.set()
            return awake.wait(20.0)

        first = pool.submit(publish, frozen, range(5), may_commit=freeze)
        assert drawn.wait(10.0)
        assert publish(next_one, range(5, 10)) == [CONFIRMED] * 5
        awake.set()
        with pytest.raises(DulyError):
            first.result(10.0)
        assert stored(next_one) == list(range(5, 10))


async def test_many_nodes_lose_double_and_reorder_nothing(url: str) -> None:
    async with started(url) as one, started(url) as two, started(url) as three:
        receivers = [await join(b, "readers", TOPIC) for b in (one, two)]
        sent = {name: [message(TOPIC, n, key=name) for n in range(200)] for name in "abc"}

        async def write(broker: EmbeddedBroker, name: str) -> None:
            for at in range(0, 200, 20):
                await send(broker, sent[name][at : at + 20])

        await asyncio.gather(*(write(b, n) for b, n in zip((one, two, three), sent, strict=True)))
        await receivers[0].until(lambda: sum(len(r.ids) for r in receivers) >= 600)
        for name in sent:
            by_source = [[m for m in r.messages if m.key == name] for r in receivers]
            for part in by_source:
                numbers = [int(m.payload) for m in part]
                assert numbers == sorted(numbers)
        assert sorted(i for r in receivers for i in r.ids) == sorted(
            m.id for batch in sent.values() for m in batch
        )


def test_peek_passes_nothing_over_that_commits_late(url: str) -> None:
    with opened(url) as log:
        log.declare([TOPIC], [(TOPIC, "readers", True)])
        publish(log, range(3))
        publish(log, range(10, 13), key=other_partition("k"))
        newest = log.peek(TOPIC.name, after=None, limit=4)
        assert [int(p.message.payload) for p in newest] == [2, 10, 11, 12]
        publish(log, range(3, 5))
        behind = log.peek(TOPIC.name, after=newest[-1].cursor, limit=10)
        assert [int(p.message.payload) for p in behind] == [3, 4]


# --- wake-up --------------------------------------------------------------------------------------
async def test_a_notification_wakes_a_reader_of_another_node(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks by itself once an hour here, so what comes at all came by the notification."""
    monkeypatch.setattr(postgres, "LOOK_SECONDS", 3600.0)
    monkeypatch.setattr(postgres.PostgresStore, "pause_seconds", (3600.0, 3600.0))
    url = f"embedded+{postgres_url}"
    broker = EmbeddedBroker(url, lease_seconds=300.0)  # nor to renew
    await broker.start()
    receiver = await join(broker, "readers", TOPIC)
    async with started(url) as other:
        await send(other, [message(TOPIC)])
        await receiver.receive(1)
        await asyncio.sleep(1.0)  # idle
        await send(other, [message(TOPIC, 1)])
        got = await receiver.receive(2)
        assert [int(m.payload) for m in got] == [0, 1]
    await broker.close()


# --- faults ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("cut_after", [700, 300_000])
async def test_a_cut_in_the_middle_of_a_publish_is_all_or_nothing(url: str, cut_after: int) -> None:
    sent = [message(TOPIC, n, payload=b"x" * 1000) for n in range(600)]
    with proxy_to(url) as proxy:
        async with started(through(url, proxy)) as broker:
            await broker.declare([TOPIC], [SPEC])
            await send(broker, [message(TOPIC, -1)])
            await proxy.aset(Fault(cut_after_bytes=cut_after))
            outcomes = await broker.publish(sent, deadline_seconds=5.0)
            assert {o.kind for o in outcomes} == {UNAVAILABLE}, "it was cut before the commit"
            assert all(o.error for o in outcomes)
            with opened(url) as log:
                assert len(log.peek(TOPIC.name, after="", limit=1000)) == 1
            await proxy.aset(PASS)
            await send(broker, sent)
            receiver = Receiver(await broker.subscribe(SPEC))
            await receiver.receive(601)
            assert not twice(receiver.ids)


def test_an_answer_to_commit_that_is_lost_is_unknown(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "SILENCE_SECONDS", 1.0)
    monkeypatch.setattr(mysql, "SILENCE_SECONDS", 1.0)
    with proxy_to(url) as proxy, opened(through(url, proxy)) as log:
        log.declare([TOPIC], [(TOPIC, "readers", True)])

        def last_moment() -> bool:
            proxy.set(DROP_REPLIES)
            return True

        began = time.monotonic()
        with pytest.raises(OutcomeUnknownError):
            publish(log, range(5), may_commit=last_moment)
        assert 0.9 < time.monotonic() - began < 10.0
        assert log.store.lost
        with opened(url) as another:
            assert stored(another) == list(range(5)), "it was committed all the same"


async def test_a_half_open_link_is_found_and_replaced(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "SILENCE_SECONDS", 1.0)
    monkeypatch.setattr(mysql, "SILENCE_SECONDS", 1.0)
    with proxy_to(url) as proxy:
        async with started(through(url, proxy)) as broker:
            receiver = await join(broker, "readers", TOPIC)
            await send(broker, [message(TOPIC)])
            await receiver.receive(1)
            before = proxy.accepted
            await proxy.aset(SILENT)
            await receiver.until(lambda: proxy.accepted > before, 20.0, "another connection")
            await proxy.aset(PASS)
            await send(broker, [message(TOPIC, 1)])
            await receiver.until(lambda: len(set(receiver.ids)) == 2, 30.0)
            assert receiver.messages[-1].payload == b"1"


@pytest.mark.timeout(150)
@pytest.mark.parametrize("kind", ["postgres", "mariadb"])
async def test_a_server_that_is_killed_loses_and_doubles_nothing_confirmed(
    kind: str, request: pytest.FixtureRequest
) -> None:
    server: PrivateServer = request.getfixturevalue(f"private_{kind}")
    kinds: set[OutcomeKind] = set()
    async with started(f"embedded+{server.url}") as broker:
        receiver = await join(broker, "readers", TOPIC)
        sent = [message(TOPIC, n, key=f"k{n % 5}") for n in range(400)]
        await send(broker, sent[:10])
        restart = asyncio.create_task(asyncio.to_thread(_restart, server))
        left, confirmed, end = sent[10:], {m.id for m in sent[:10]}, time.monotonic() + 100
        while left or not restart.done():
            assert time.monotonic() < end
            outcomes = await broker.publish(left[:20] or sent[:1], deadline_seconds=1.0)
            kinds |= {o.kind for o in outcomes}
            assert len({o.kind for o in outcomes}) == 1, "a batch is stored whole or not at all"
            if outcomes[0].kind is CONFIRMED:
                confirmed |= {m.id for m in left[:20]}
                left = left[20:]
            await asyncio.sleep(0.01)
        await restart
        assert confirmed == {m.id for m in sent}
        await receiver.until(lambda: confirmed <= set(receiver.ids), 30.0)
    assert kinds <= {CONFIRMED, UNKNOWN, UNAVAILABLE}
    assert UNAVAILABLE in kinds


def _restart(server: PrivateServer) -> None:
    server.kill()
    server.start()


PROGRAM = """
import asyncio, sys
from duly.brokers.embedded import EmbeddedBroker
from duly.ports import SubscriptionSpec, TopicSpec
from duly.testing.broker_target import message

TOPIC = TopicSpec("orders", "event")

async def main(url):
    broker = EmbeddedBroker(url, lease_seconds=2.0)
    await broker.start()
    subscription = await broker.subscribe(SubscriptionSpec("readers", (TOPIC,)))

    async def read():
        async for batch in subscription.batches():
            print(len(batch), flush=True)  # and never acknowledges

    reading = asyncio.create_task(read())
    while True:
        await broker.publish([message(TOPIC, -1, key="own")], deadline_seconds=5.0)

asyncio.run(main(sys.argv[1]))
"""


async def test_a_killed_process_is_replaced(url: str) -> None:
    async with started(url) as broker:
        await broker.declare([TOPIC], [SPEC])
        sent = [message(TOPIC, n, key=f"k{n}") for n in range(100)]
        child = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, url],
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        )
        assert child.stdout is not None
        try:
            assert await asyncio.wait_for(asyncio.to_thread(child.stdout.readline), 20.0)
            await send(broker, sent)
        finally:
            child.kill()
            child.wait()
            child.stdout.close()
        receiver = Receiver(await broker.subscribe(SPEC))
        await receiver.until(lambda: {m.id for m in sent} <= set(receiver.ids))
        await send(broker, [message(TOPIC, 100, key="own")])  # it left no lock behind
        await receiver.until(lambda: receiver.messages[-1].payload == b"100")


async def test_a_server_that_is_away_is_said_without_the_password() -> None:
    with FaultProxy("127.0.0.1", 1) as proxy:
        port = proxy.port
    for scheme in ("postgresql", "mysql"):
        async with started(f"embedded+{scheme}://shop:s3cret@127.0.0.1:{port}/shop") as broker:
            with pytest.raises(BrokerUnavailableError) as caught:
                await broker.declare([TOPIC], [SPEC])
            assert "s3cret" not in str(caught.value)
            assert f"***@127.0.0.1:{port}/shop" in caught.value.detail
            (outcome,) = await broker.publish([message(TOPIC)], deadline_seconds=1.0)
            assert outcome.kind is UNAVAILABLE
            (finding,) = await broker.inspect()
            assert (finding.code, finding.severity) == ("EMBEDDED_LOG", Severity.RED)


# --- rights and verdicts --------------------------------------------------------------------------
def test_a_login_without_rights_is_refused_by_name(postgres_url: str, mariadb_url: str) -> None:
    import psycopg

    name = f"weak_{urlsplit(postgres_url).path[6:26]}"
    with psycopg.connect(postgres_url, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {name} LOGIN PASSWORD 's3cret'")
        admin.execute("REVOKE CREATE ON SCHEMA public FROM public")
        try:
            assert _refusal(f"embedded+{_as(postgres_url, name)}").code == "DATABASE_REFUSED"
        finally:
            admin.execute(f"DROP ROLE {name}")
    with closing(mariadb(mariadb_url)) as root, root.cursor() as ask:
        ask.execute(f"CREATE USER {name}@'%' IDENTIFIED BY 's3cret'")
        try:
            assert _refusal(f"embedded+{_as(mariadb_url, name)}").code == "DATABASE_REFUSED"
        finally:
            ask.execute(f"DROP USER {name}@'%'")


def _as(url: str, name: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=f"{name}:s3cret@{parts.hostname}:{parts.port}").geturl()


def _refusal(url: str) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught, opened(url):
        pass
    assert "s3cret" not in str(caught.value)
    return caught.value


def test_a_pooler_in_transaction_mode_is_refused(pgbouncer_url: str) -> None:
    with pytest.raises(ConfigurationError, match="name the server itself"):
        place_of(f"embedded+{pgbouncer_url}", prefix="duly_").open(listening=True)


async def test_the_verdict_follows_the_settings_of_the_server(
    postgres_url: str, private_mariadb: PrivateServer
) -> None:
    import psycopg

    async with started(f"embedded+{postgres_url}") as broker:
        (finding,) = await broker.inspect()
        assert (finding.code, finding.severity) == ("EMBEDDED_DURABILITY", Severity.GREEN)
    with psycopg.connect(postgres_url, autocommit=True) as admin:
        name = urlsplit(postgres_url).path[1:]
        admin.execute(f"ALTER DATABASE {name} SET synchronous_commit = off")
    async with started(f"embedded+{postgres_url}") as broker:
        (finding,) = await broker.inspect()
        assert finding.severity is Severity.WEAK
        assert "synchronous_commit is off" in finding.message
    async with started(f"embedded+{private_mariadb.url}") as broker:
        with closing(mariadb(private_mariadb.url)) as root, root.cursor() as ask:
            ask.execute("SET GLOBAL innodb_flush_log_at_trx_commit = 2")
            (finding,) = await broker.inspect()
            ask.execute("SET GLOBAL innodb_flush_log_at_trx_commit = 1")
        assert finding.severity is Severity.WEAK
        assert "innodb_flush_log_at_trx_commit is 2" in finding.message


def test_a_message_larger_than_the_server_takes_is_impossible(mariadb_url: str) -> None:
    with opened(f"embedded+{mariadb_url}") as log:
        log.declare([TOPIC], [(TOPIC, "readers", True)])
        most = log.store.payload_bytes_max
        worst = b"'" * most  # each byte is two in the text of a statement
        batch: list[Any] = [message(TOPIC, payload=worst), message(TOPIC, payload=worst + b"'")]
        kinds = [o.kind for o in log.publish(batch, wait_seconds=5.0, may_commit=lambda: True)]
        assert kinds == [CONFIRMED, OutcomeKind.IMPOSSIBLE]
        assert log.peek(TOPIC.name, after="", limit=2)[0].message.payload == worst


def test_the_demo_clears_its_own_log_and_nothing_else(url: str) -> None:
    for prefix in ("duly_", PREFIX):
        place_of(url, prefix=prefix).open(listening=False).close()
    clean_broker(f"{url}?lease=2s")
    engine = plain_engine(url.partition("+")[2])
    names = inspect(engine).get_table_names()
    engine.dispose()
    assert sorted(names) == [f"duly_broker_{name}" for name in sorted(TABLES)]
