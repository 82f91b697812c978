"""Global transactions with messages in ActiveMQ: PostgreSQL with the App's tables, XA beside it.

Messages are counted by a STOMP client that is not ours, up to a message that is sent after them.
Crashes are made as in ``test_twophase``; the Java VM of this process is started by the first test.
"""

from __future__ import annotations

import asyncio
import json
import os
import queue
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit
from uuid import uuid4

import psycopg
import pytest
import stomp
from sqlalchemy import text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from duly import App, Command, Event
from duly.brokers.activemq.broker import ActiveMQBroker
from duly.brokers.activemq.xa import jvm
from duly.brokers.activemq.xa.broker import XaBroker
from duly.errors import ConfigurationError, RetryableError
from duly.kernel import failpoints
from duly.kernel.twophase import Status
from duly.observe.facts import Unrouted
from duly.outbox.operator import By
from duly.ports import SubscriptionSpec, TopicSpec
from duly.twophase import recovery
from tests.conftest import server_url

pytestmark = pytest.mark.timeout(180)  # the first test loads a Java VM
EVENTS, COMMANDS = TopicSpec("payments", "event"), TopicSpec("bookings", "command")


class Paid(Event, name="xa.paid", topic="payments"):
    id: int


class Book(Command, name="xa.book", queue="bookings"):
    id: int


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True, default=2)


class Nobody(Command, name="xa.nobody", queue="nobody"):
    id: int


class Unread(Event, name="xa.unread", topic="unread"):
    id: int


class Crash(BaseException):
    """The end of the process, as far as the code can see it."""


class Reader(stomp.ConnectionListener):  # type: ignore[misc]
    """A client that reads a queue, without duly."""

    def __init__(self, url: str) -> None:
        self._url = urlsplit(url)
        self._frames: queue.Queue[Any] = queue.Queue()
        self._receipts: queue.Queue[str] = queue.Queue()

    def on_message(self, frame: Any) -> None:
        self._frames.put(frame)

    def on_receipt(self, frame: Any) -> None:
        self._receipts.put(frame.headers["receipt-id"])

    def all(self, topic: TopicSpec) -> list[tuple[str, dict[str, str]]]:
        """What is in the queue of a topic, and not any more: body and headers."""
        address = f"{self._url.path[1:]}.{topic.kind}.{topic.name}"
        group = f"{self._url.path[1:]}.group.audit~{topic.name}"
        target = f"{address}::{group}" if topic.kind == "event" else address
        kind = "MULTICAST" if topic.kind == "event" else "ANYCAST"
        client = stomp.Connection12([(self._url.hostname, self._url.port)])
        client.set_listener("", self)
        client.connect(self._url.username, self._url.password, wait=True)
        client.subscribe(target, id="1", ack="auto")
        client.send(address, "the end", headers={"destination-type": kind})
        found = []
        while (frame := self._frames.get(timeout=30)).body != "the end":
            found.append((frame.body, frame.headers))
        client.unsubscribe("1", receipt="left")  # else what comes next may still go to this one
        assert self._receipts.get(timeout=30) == "left"
        client.disconnect()
        return found


@dataclass
class World:
    app: App
    shop_url: str
    mq: str  # over STOMP

    def ids(self) -> tuple[list[int], list[int]]:
        """What is committed in the database, and what a reader has of it."""
        with psycopg.connect(self.shop_url) as shop:
            rows = [row[0] for row in shop.execute("SELECT id FROM orders ORDER BY id")]
        read = Reader(self.mq).all(EVENTS)
        return rows, sorted(json.loads(body)["id"] for body, _ in read)

    def pay(self, gtx: Any, n: int) -> None:
        gtx.session().execute(text("INSERT INTO orders VALUES (:n)"), {"n": n})
        gtx.publish(Paid(id=n), via="mq", headers={"receipt": "7"})

    def status(self, transaction: str) -> Status:
        return self.app.global_transactions._opened().journal.read([transaction])[0].status

    def listed(self) -> list[str] | None:
        with closing(self.app.global_transactions.recovery()) as one:
            return one.listed("mq")

    def recover(self) -> None:
        with closing(self.app.global_transactions.recovery()) as one:
            one.sweep()
            one._looked_at = 0.0
            one.sweep()


def xa_url(url: str, **options: str) -> str:
    """The URL of the participant, from that of the broker."""
    jars = {"jars": server_url("DULY_TEST_ACTIVEMQ_JARS")}
    at = urlsplit(url)._replace(query=urlencode(jars | options))
    if "+tls" in url:
        return at._replace(scheme="activemq+tls").geturl()
    login = at.netloc.rpartition("@")[0]
    place = f"{login}@{server_url('DULY_TEST_ACTIVEMQ_CORE')}"
    return at._replace(scheme="activemq", netloc=place).geturl()


@pytest.fixture(scope="module")
def shop_url() -> Iterator[str]:
    server, name = server_url("DULY_TEST_POSTGRES"), f"duly_{uuid4().hex}"
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
        url = urlsplit(server)._replace(path=f"/{name}").geturl()
        try:
            app = App("shop", database=url)
            app.upgrade_tables()
            app.close()
            with psycopg.connect(url) as made:
                made.execute("CREATE TABLE orders (id int PRIMARY KEY)")
            yield url
        finally:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def world(shop_url: str, activemq_url: str) -> Iterator[World]:
    app = App(
        "shop",
        database=shop_url,
        broker="embedded:///:memory:",
        allow_unsafe={"EMBEDDED_MEMORY": "a test"},
    )
    app.participant("mq", xa_url(activemq_url))
    asyncio.run(declare(activemq_url))
    try:
        yield World(app, shop_url, activemq_url)
    finally:
        failpoints.arm(None)
        with closing(app.global_transactions.recovery()) as one:
            for place in ("app", "mq"):
                for name in one.listed(place) or ():
                    one._end_late(place, name, commit=False)
        app.close()
        with psycopg.connect(shop_url) as shop:
            shop.execute("DELETE FROM orders; DELETE FROM duly_outbox; DELETE FROM duly_global_tx")


async def declare(url: str) -> None:
    """The queues of readers."""
    broker = ActiveMQBroker(url)
    await broker.start()
    specs = [SubscriptionSpec("audit", (EVENTS, COMMANDS))]
    await broker.declare([EVENTS, COMMANDS], specs)
    await broker.close()


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Coordinators have no time, and recovery gives them none."""
    monkeypatch.setattr(recovery, "GRACE_SECONDS", 0.0)
    monkeypatch.setattr(recovery, "LOOK_SECONDS", 0.0)
    monkeypatch.setenv("DULY_GLOBAL_TX_TIMEOUT", "1ms")


def crash_at(point: str, *, nth: int = 1) -> None:
    hits = 0

    def action(name: str) -> None:
        nonlocal hits
        hits += name == point
        if name == point and hits == nth:
            raise Crash(name)

    failpoints.arm(action)


# --- the good and the bad end ---------------------------------------------------------------------
def test_the_row_and_the_messages_or_none(world: World) -> None:
    with world.app.global_transaction() as gtx:
        world.pay(gtx, 1)
        gtx.send(Book(id=1), via="mq")
        gtx.session().add(order := Order())
        gtx.publish(lambda: Paid(id=order.id), via="mq")  # it has none before the flush
        assert world.ids() == ([], [])
    assert world.status(gtx.id) is Status.COMMITTED
    (booked,) = Reader(world.mq).all(COMMANDS)
    (one, headers), (two, _) = Reader(world.mq).all(EVENTS)
    assert [json.loads(body) for body in (booked[0], one, two)] == [{"id": 1}, {"id": 1}, {"id": 2}]
    assert (headers["ce_type"], headers["duly-header-receipt"]) == ("xa.paid", "7")
    with pytest.raises(ZeroDivisionError), world.app.global_transaction() as gtx:
        world.pay(gtx, 3)
        raise ZeroDivisionError
    assert (world.ids(), world.listed()) == (([1, 2], []), [])


async def test_async_code_commits_alike(world: World) -> None:
    async with world.app.global_transaction() as gtx:
        await (await gtx.session()).execute(text("INSERT INTO orders VALUES (1)"))
        gtx.publish(Paid(id=1), via="mq")
    assert await asyncio.to_thread(world.ids) == ([1], [1])
    await world.app.database.async_engine().dispose()


def test_what_is_refused_commits_nothing(world: World, activemq_url: str) -> None:
    """A command without a queue, a login that may not send, another participant's kind."""
    with pytest.raises(RetryableError) as unrouted, world.app.global_transaction() as gtx:
        world.pay(gtx, 1)
        gtx.send(Nobody(id=1), via="mq")
    assert unrouted.value.code == "COMMAND_UNROUTED"
    reader = activemq_url.replace("duly:", "reader:")
    world.app.participant("denied", xa_url(reader))
    with pytest.raises(ConfigurationError) as denied, world.app.global_transaction() as gtx:
        world.pay(gtx, 1)
        gtx.publish(Paid(id=1), via="denied")
    assert denied.value.code == "ACTIVEMQ_RIGHTS"
    assert "SEND" in str(denied.value)
    with world.app.global_transaction() as gtx:
        with pytest.raises(ConfigurationError, match="is a broker"):
            gtx.session("mq")
        with pytest.raises(ConfigurationError, match="is a database"):
            gtx.publish(Paid(id=1), via="app")
    assert (world.ids(), world.listed()) == (([], []), [])


def test_an_event_that_nobody_reads_is_counted(world: World) -> None:
    facts: list[Any] = []
    world.app.hooks.add(facts.append)
    with world.app.global_transaction() as gtx:
        world.pay(gtx, 1)
        gtx.publish(Unread(id=1), via="mq")
    assert Unrouted(topic="unread", count=1) in facts
    assert world.ids() == ([1], [1])


# --- crashes --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("point", "nth", "committed"),
    [
        (failpoints.TWOPHASE_JOURNALLED, 1, False),
        (failpoints.TWOPHASE_BRANCH_PREPARED, 1, False),
        (failpoints.TWOPHASE_PREPARED, 1, False),
        (failpoints.TWOPHASE_DECIDED, 1, True),
        (failpoints.TWOPHASE_BRANCH_ENDED, 1, True),
        (failpoints.TWOPHASE_NOT_RECORDED, 1, True),
    ],
)
@pytest.mark.usefixtures("at_once")
def test_recovery_ends_what_a_crash_leaves(
    world: World, point: str, nth: int, committed: bool
) -> None:
    crash_at(point, nth=nth)
    with pytest.raises(Crash), world.app.global_transaction() as gtx:
        world.pay(gtx, 1)
    failpoints.arm(None)
    world.recover()
    assert world.ids() == (([1], [1]) if committed else ([], []))
    assert world.status(gtx.id) is (Status.COMMITTED if committed else Status.ABORTED)
    assert world.listed() == []


@pytest.mark.usefixtures("at_once")
def test_a_branch_ended_by_hand_is_recorded_and_then_forgotten(world: World) -> None:
    """The server remembers it; what was done is in the journal before the server may forget."""
    crash_at(failpoints.TWOPHASE_DECIDED)
    with pytest.raises(Crash), world.app.global_transaction() as gtx:
        world.pay(gtx, 1)
    failpoints.arm(None)
    (name,) = world.listed() or ["none"]
    by_hand(world, name, "rollbackPreparedTransaction")
    with closing(world.app.global_transactions.recovery()) as one:
        one.settle(world.app.global_transactions._opened().journal.read([gtx.id])[0])
    assert (world.status(gtx.id), world.listed()) == (Status.HEURISTIC, [name])
    operator = world.app.global_transactions.operator()
    states = {branch.participant: branch.state for branch in operator.find()[0].branches}
    assert states == {"app": "done", "mq": "against"}
    world.recover()
    assert (world.ids(), world.listed()) == (([1], []), [])


def by_hand(world: World, name: str, verb: str) -> None:
    """What an operator of the server may do to a prepared branch."""
    from duly.brokers.activemq.api import Api
    from duly.brokers.activemq.link import Link
    from duly.brokers.activemq.settings import parse

    async def act() -> None:
        link = Link(parse(world.mq), purpose="by_hand")
        api = Api(link)
        link.open()
        bytes_of = ".".join(str(byte) for byte in name.rpartition("-")[0].encode())
        listed = [str(one) for one in await api.call("listPreparedTransactions")]
        (found,) = [one for one in listed if f"gtxid:{bytes_of} " in one]
        assert await api.call(verb, found.partition("base64: ")[2].split()[0]) is True
        await link.close()

    asyncio.run(act())


@pytest.mark.usefixtures("at_once")
def test_a_person_sees_and_decides(world: World) -> None:
    crash_at(failpoints.TWOPHASE_PREPARED)
    with pytest.raises(Crash), world.app.global_transaction() as gtx:
        world.pay(gtx, 1)
    failpoints.arm(None)
    operator = world.app.global_transactions.operator()
    (line,) = operator.find()
    assert [(b.participant, b.state) for b in line.branches] == [
        ("app", "prepared"),
        ("mq", "prepared"),
    ]
    assert operator.resolve(gtx.id, "commit", by=By("tester", "a test")) == "committed"
    assert (world.ids(), world.listed()) == (([1], [1]), [])


# --- the Java VM ----------------------------------------------------------------------------------
def test_check_tls_and_a_refused_login(world: World) -> None:
    (found,) = [one for one in world.app.global_transactions.inspect() if "XA" in one.code]
    assert (found.code, found.severity.name) == ("ACTIVEMQ_XA", "GREEN")
    tls = server_url("DULY_TEST_ACTIVEMQ_TLS")
    authority = dict([tls.partition("?")[2].split("=", 1)])
    with closing(XaBroker(xa_url(tls, **authority))) as secured:
        assert secured.connect().prepared() == []
    wrong = xa_url(world.mq.replace(":artemis", ":s3cr3t"))
    with closing(XaBroker(wrong)) as refused, pytest.raises(ConfigurationError) as caught:
        refused.connect()
    assert caught.value.code == "ACTIVEMQ_LOGIN_REFUSED"
    assert "s3cr3t" not in str(caught.value)


def test_no_thread_is_kept_and_a_fork_is_refused(world: World) -> None:
    with closing(XaBroker(xa_url(world.mq))) as broker:
        broker.connect().close()
        threads = jvm.java(None).find("java.lang.Thread").getAllStackTraces
        before = int(threads().size())
        for _ in range(20):
            one = threading.Thread(target=lambda: broker.connect().close())
            one.start()
            one.join()
        assert int(threads().size()) < before + 10
        child = os.fork()
        if child == 0:
            os._exit(in_a_fork(broker))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def in_a_fork(broker: XaBroker) -> int:
    """Of a child; 0 when it was refused, and its end would not wait for Java."""
    import jpype._core

    try:
        broker.connect()
    except ConfigurationError as error:
        jpype._core._JTerminate()  # what Python calls at its end
        return 0 if error.code == "XA_FORKED" else 1
    return 2
