"""Global transactions on real servers: PostgreSQL with the App's tables, MariaDB beside it.

What a crash leaves is made by stopping a coordinator at a failpoint with an exception that nothing
catches, as the end of its process would; kills of processes and servers are in ``tests/crash``.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
import pymysql
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from duly import App, Event
from duly.admin.cli import twophase as cli
from duly.admin.cli.main import invoke
from duly.errors import ConfigurationError, RetryableError, TransactionMisuseError, WrongStatusError
from duly.kernel import failpoints
from duly.kernel.twophase import Status
from duly.outbox.operator import By
from duly.twophase import recovery
from tests.conftest import mariadb, server_url

BY = By("tester", "a test")
ASLEEP = (
    "INSERT INTO duly_lease (name, kind, holder, token, until, seen_at, asleep) VALUES "
    "('member/x', 'member', 'x', 1, clock_timestamp() + interval '1 hour', clock_timestamp(), true)"
)


class Paid(Event, name="paid", topic="payments"):
    id: int


class Crash(BaseException):
    """The end of the process, as far as the code can see it."""


@dataclass
class World:
    app: App
    shop_url: str
    ledger_url: str

    def rows(self) -> tuple[list[int], list[int]]:
        """What is committed in both databases."""
        with psycopg.connect(self.shop_url) as shop:
            ours = [row[0] for row in shop.execute("SELECT id FROM orders ORDER BY id")]
        with closing(mariadb(self.ledger_url)) as ledger, ledger.cursor() as ask:
            ask.execute("SELECT id FROM entries ORDER BY id")
            return ours, [row[0] for row in ask.fetchall()]

    def messages(self) -> int:
        with psycopg.connect(self.shop_url) as shop:
            found = shop.execute("SELECT count(*) FROM duly_outbox").fetchone()
            assert found is not None
            return int(found[0])

    def status(self, transaction: str) -> Status:
        return self.journal.read([transaction])[0].status

    @property
    def journal(self) -> Any:
        return self.app.global_transactions._opened().journal

    def prepared(self) -> int:
        """Branches of this journal that are prepared anywhere."""
        with closing(self.app.global_transactions.recovery()) as one:
            return sum(len(one.listed(name) or ()) for name in ("app", "ledger"))

    def work(self, gtx: Any, n: int) -> None:
        gtx.session().execute(text("INSERT INTO orders VALUES (:n)"), {"n": n})
        gtx.session("ledger").execute(text("INSERT INTO entries VALUES (:n)"), {"n": n})

    def recover(self) -> None:
        """What the role does, without its waiting."""
        with closing(self.app.global_transactions.recovery()) as one:
            one.sweep()
            one._looked_at = 0.0
            one.sweep()


@pytest.fixture(scope="module")
def databases() -> Iterator[tuple[str, str]]:
    """Both databases of this module; making them costs more than the tests."""
    shop, ledger = server_url("DULY_TEST_POSTGRES"), server_url("DULY_TEST_MARIADB")
    name = f"duly_{uuid4().hex}"
    shop_url, ledger_url = (urlsplit(u)._replace(path=f"/{name}").geturl() for u in (shop, ledger))
    with (
        psycopg.connect(shop, autocommit=True) as admin,
        closing(mariadb(ledger)) as other,
        other.cursor() as ask,
    ):
        admin.execute(f"CREATE DATABASE {name}")
        ask.execute(f"CREATE DATABASE {name}")
        try:
            app = App("shop", database=shop_url)
            app.upgrade_tables()
            app.close()
            with psycopg.connect(shop_url) as made:
                made.execute("CREATE TABLE orders (id int PRIMARY KEY)")
            ask.execute(f"CREATE TABLE {name}.entries (id int PRIMARY KEY) ENGINE=InnoDB")
            yield shop_url, ledger_url
        finally:
            ask.execute(f"DROP DATABASE {name}")
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def world(databases: tuple[str, str]) -> Iterator[World]:
    app = App(
        "shop",
        database=databases[0],
        broker="embedded:///:memory:",
        allow_unsafe={"EMBEDDED_MEMORY": "a test"},
    )
    app.participant("ledger", databases[1])
    made = World(app, *databases)
    try:
        yield made
    finally:
        failpoints.arm(None)
        end_all(made)
        app.close()
        with psycopg.connect(made.shop_url) as shop:
            shop.execute("DELETE FROM orders; DELETE FROM duly_outbox; DELETE FROM duly_global_tx")
            shop.execute("DELETE FROM duly_lease")
        with closing(mariadb(made.ledger_url)) as ledger, ledger.cursor() as ask:
            ask.execute("DELETE FROM entries")


def end_all(world: World) -> None:
    """A prepared branch holds its locks, and keeps its database from being dropped."""
    with closing(world.app.global_transactions.recovery()) as one:
        for name in ("app", "ledger"):
            for branch in one.listed(name) or ():
                one._end_late(name, branch, commit=False)


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
def test_both_databases_and_the_message_or_none(world: World) -> None:
    """A relay sleeps meanwhile: PostgreSQL prepares nothing that has notified it."""
    with psycopg.connect(world.shop_url) as shop:
        shop.execute(ASLEEP)
    ran: list[int] = []
    with world.app.global_transaction() as gtx:
        world.work(gtx, 1)
        assert gtx.session() is not gtx.session()
        world.app.after_commit(gtx.connection(), lambda: ran.append(len(world.rows()[1])))
        gtx.publish(Paid(id=1))
        world.app.publish(gtx.connection(), lambda: Paid(id=1))
        assert world.rows() == ([], [])
    assert (world.rows(), world.messages(), ran) == (([1], [1]), 2, [1])
    assert world.status(gtx.id) is Status.COMMITTED
    with pytest.raises(ZeroDivisionError), world.app.global_transaction() as gtx:
        world.work(gtx, 2)
        gtx.publish(Paid(id=2))
        raise ZeroDivisionError
    assert (world.rows(), world.messages(), world.prepared()) == (([1], [1]), 2, 0)
    assert world.journal.read([gtx.id]) == []


async def test_async_sessions_commit_alike(world: World) -> None:
    async with world.app.global_transaction() as gtx:
        shop, ledger = await gtx.session(), await gtx.session("ledger")
        await shop.execute(text("INSERT INTO orders VALUES (1)"))
        await ledger.execute(text("INSERT INTO entries VALUES (1)"))
        world.app.publish(shop, Paid(id=1))
        gtx.publish(Paid(id=1))
    with pytest.raises(ZeroDivisionError):
        async with world.app.global_transaction() as gtx:
            ledger = await gtx.connection("ledger")
            await ledger.execute(text("INSERT INTO entries VALUES (2)"))
            raise ZeroDivisionError
    assert (world.rows(), world.messages()) == (([1], [1]), 2)
    await dispose(world)


async def test_a_cancellation_does_not_cut_a_commit_off(world: World) -> None:
    began = asyncio.Event()
    loop = asyncio.get_running_loop()

    def action(name: str) -> None:
        if name == failpoints.TWOPHASE_JOURNALLED:
            loop.call_soon_threadsafe(began.set)

    failpoints.arm(action)

    async def pay() -> None:
        async with world.app.global_transaction() as gtx:
            await (await gtx.session()).execute(text("INSERT INTO orders VALUES (1)"))
            await (await gtx.session("ledger")).execute(text("INSERT INTO entries VALUES (1)"))

    paying = asyncio.create_task(pay())
    await began.wait()
    paying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await paying
    assert world.rows() == ([1], [1])
    await dispose(world)


async def test_async_sessions_and_connections_of_the_user_are_joined(world: World) -> None:
    shop = create_async_engine(world.shop_url.replace("postgresql:", "postgresql+psycopg:"))
    ledger = create_async_engine(world.ledger_url.replace("mysql:", "mysql+asyncmy:"))
    async with AsyncSession(shop) as session, ledger.connect() as connection:
        async with world.app.global_transaction() as gtx:
            await gtx.join(session)
            await gtx.join(connection, "ledger")
            await session.execute(text("INSERT INTO orders VALUES (1)"))
            await connection.execute(text("INSERT INTO entries VALUES (1)"))
            world.app.publish(session, Paid(id=1))
            with pytest.raises(ConfigurationError) as caught:
                world.app.publish(session, Paid(id=1), key="k")
            assert caught.value.code == "KEYED_IN_GLOBAL_TRANSACTION"
        world.app.publish(session, Paid(id=2), key="k")  # it is the user's again
        await session.commit()
        with pytest.raises(ConfigurationError) as caught:
            async with world.app.global_transaction() as gtx:
                await gtx.join(shop)
        assert caught.value.code == "NOT_A_BRANCH"
    assert (world.rows(), world.messages()) == (([1], [1]), 2)
    for engine in (shop, ledger):
        await engine.dispose()


async def dispose(world: World) -> None:
    for name in ("app", "ledger"):
        place = world.app.global_transactions._opened().databases.find(name)
        await place.database.async_engine().dispose()


def test_what_the_user_has_is_joined(world: World) -> None:
    shop = create_engine(world.shop_url.replace("postgresql:", "postgresql+psycopg:"))
    parts = urlsplit(world.ledger_url)
    where = {"host": parts.hostname, "port": parts.port, "user": parts.username}
    raw = pymysql.connect(**where, database=parts.path.strip("/"))
    with Session(shop) as session, closing(raw):
        with world.app.global_transaction() as gtx:
            gtx.join(session)
            gtx.join(raw, "ledger")
            session.execute(text("INSERT INTO orders VALUES (1)"))
            with raw.cursor() as ask:
                ask.execute("INSERT INTO entries VALUES (1)")
            world.app.publish(session, Paid(id=1))
        with session.begin():  # it is the user's again
            session.execute(text("INSERT INTO orders VALUES (5)"))
        raw.begin()
        raw.rollback()
        with pytest.raises(ConfigurationError) as caught, world.app.global_transaction() as gtx:
            session.execute(text("SELECT 1"))
            gtx.join(session)
        assert caught.value.code == "BRANCH_NOT_IDLE"
        session.rollback()
        with pytest.raises(ConfigurationError) as caught, world.app.global_transaction() as gtx:
            gtx.join(session, "ledger")
        assert caught.value.code == "WRONG_DATABASE"
    shop.dispose()
    assert (world.rows(), world.messages()) == (([1, 5], [1]), 1)


def test_a_raw_psycopg_connection_is_a_branch(world: World) -> None:
    world.app.participant("again", world.shop_url)
    with psycopg.connect(world.shop_url) as raw:
        with world.app.global_transaction() as gtx:
            gtx.join(raw, "again")
            raw.execute("INSERT INTO orders VALUES (7)")
            world.work(gtx, 1)
        assert (world.rows(), raw.autocommit) == (([1, 7], [1]), False)
        with pytest.raises(TransactionMisuseError), world.app.global_transaction() as gtx:
            gtx.join(raw, "again")
            raw.execute("INSERT INTO orders VALUES (8)")
            raw.rollback()
            world.work(gtx, 2)
    assert world.rows() == ([1, 7], [1])


# --- what is refused ------------------------------------------------------------------------------
def test_a_key_is_refused(world: World) -> None:
    with world.app.global_transaction() as gtx:
        for target in (gtx.session(), gtx.connection()):
            with pytest.raises(ConfigurationError) as caught:
                world.app.publish(target, Paid(id=1), key="k")
            assert caught.value.code == "KEYED_IN_GLOBAL_TRANSACTION"
        with pytest.raises(ConfigurationError):
            gtx.publish(Paid(id=1), key="k")  # type: ignore[arg-type]


def test_sqlite_is_refused(tmp_path: Any) -> None:
    app = App("shop", database=f"sqlite:///{tmp_path / 'shop.db'}")
    app.participant("ledger", "mysql://root@localhost/ledger")
    app.upgrade_tables()
    with pytest.raises(ConfigurationError) as caught, app.global_transaction() as gtx:
        gtx.session()
    assert caught.value.code == "GLOBAL_TX_DATABASE"
    assert "PostgreSQL or MySQL" in str(caught.value)
    app.close()


def test_a_server_that_prepares_nothing_is_told_by_name(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the server of the tests prepares, its answer is changed; the words are the adapter's."""
    from duly.databases.postgres import prepared

    class Asked:
        def __init__(self, connection: Any) -> None:
            self._connection = connection

        def execute(self, sql: str) -> Any:
            return self._connection.execute("SELECT 0" if "max_prepared" in sql else sql)

    real = prepared.inspect
    monkeypatch.setattr(prepared, "inspect", lambda connection: real(Asked(connection)))
    with pytest.raises(ConfigurationError) as caught, world.app.global_transaction() as gtx:
        gtx.session()
    assert caught.value.code == "MAX_PREPARED_TRANSACTIONS"
    assert "set max_prepared_transactions = " in str(caught.value)


def test_a_failed_branch_undoes_the_other(world: World) -> None:
    """PostgreSQL answers ROLLBACK to the preparation of a failed transaction, which is no error."""
    with pytest.raises(Exception, match="aborted"), world.app.global_transaction() as gtx:
        world.work(gtx, 1)
        with pytest.raises(Exception, match="nowhere"):
            gtx.connection().execute(text("SELECT * FROM nowhere"))
    assert (world.rows(), world.prepared()) == (([], []), 0)


@pytest.mark.usefixtures("at_once")
def test_a_constraint_that_fails_when_it_is_prepared(world: World) -> None:
    with psycopg.connect(world.shop_url) as shop:
        shop.execute("DROP TABLE IF EXISTS line")
        shop.execute("CREATE TABLE line (o int REFERENCES orders DEFERRABLE INITIALLY DEFERRED)")
    with pytest.raises(Exception, match="line_o_fkey"), world.app.global_transaction() as gtx:
        world.work(gtx, 1)
        gtx.session().execute(text("INSERT INTO line VALUES (99)"))
    assert (world.rows(), world.prepared()) == (([], []), 0)
    world.recover()
    assert world.status(gtx.id) is Status.ABORTED


# --- what a crash leaves --------------------------------------------------------------------------
@pytest.mark.usefixtures("at_once")
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
def test_recovery_ends_what_a_coordinator_left(
    world: World, point: str, nth: int, committed: bool
) -> None:
    crash_at(point, nth=nth)
    with pytest.raises(Crash), world.app.global_transaction() as gtx:
        world.work(gtx, 1)
        gtx.publish(Paid(id=1))
    failpoints.arm(None)
    world.recover()
    assert world.rows() == (([1], [1]) if committed else ([], []))
    assert world.messages() == int(committed)
    assert (world.prepared(), world.status(gtx.id)) == (
        0,
        Status.COMMITTED if committed else Status.ABORTED,
    )


def test_a_coordinator_that_slept_learns_that_it_was_aborted(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes to its decision when recovery has presumed it dead; the branch that MariaDB keeps
    for its connection is rolled back by itself.
    """
    monkeypatch.setattr(recovery, "GRACE_SECONDS", 0.0)

    def action(name: str) -> None:
        if name == failpoints.TWOPHASE_PREPARED:
            with psycopg.connect(world.shop_url) as shop:
                shop.execute("UPDATE duly_global_tx SET decide_by = created_at")
            world.recover()

    failpoints.arm(action)
    with pytest.raises(RetryableError) as caught, world.app.global_transaction() as gtx:
        world.work(gtx, 1)
    assert caught.value.code == "GLOBAL_TX_ABORTED"
    failpoints.arm(None)
    world.recover()
    assert (world.rows(), world.prepared()) == (([], []), 0)
    assert world.status(gtx.id) is Status.ABORTED


@pytest.mark.usefixtures("at_once")
def test_a_branch_that_comes_late_is_rolled_back(world: World) -> None:
    """A coordinator that sleeps before its second preparation, while recovery aborts and ends the
    row, and dies after it: the branch is found by looking at what is prepared. The same for one
    whose row is gone, at the second look.
    """

    def action(name: str) -> None:
        if name == failpoints.TWOPHASE_JOURNALLED:
            world.recover()
        if name == failpoints.TWOPHASE_PREPARED:
            raise Crash

    failpoints.arm(action)
    with pytest.raises(Crash), world.app.global_transaction() as gtx:
        world.work(gtx, 1)
    failpoints.arm(None)
    assert (world.status(gtx.id), world.prepared()) == (Status.ABORTED, 2)
    with psycopg.connect(world.shop_url) as shop:
        shop.execute("DELETE FROM duly_global_tx")
    with closing(world.app.global_transactions.recovery()) as one:
        one.sweep()
        assert world.prepared() == 2
        one.sweep()
    assert (world.rows(), world.prepared()) == (([], []), 0)


@pytest.mark.usefixtures("at_once")
def test_a_branch_ended_by_hand_against_the_decision_is_recorded(world: World) -> None:
    crash_at(failpoints.TWOPHASE_DECIDED)
    with pytest.raises(Crash), world.app.global_transaction() as gtx:
        world.work(gtx, 1)
    failpoints.arm(None)
    with psycopg.connect(world.shop_url, autocommit=True) as shop:
        sql = "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()"
        (name,) = shop.execute(sql).fetchone() or ("none",)
        shop.execute(f"ROLLBACK PREPARED '{name}'")
    world.recover()
    assert world.status(gtx.id) is Status.HEURISTIC
    operator = world.app.global_transactions.operator()
    (line,) = operator.find()
    states = {branch.participant: branch.state for branch in line.branches}
    assert states == {"app": "against", "ledger": "done"}
    assert operator.resolve(gtx.id, "forget", by=BY) == "forgotten"
    assert operator.find() == []


@pytest.mark.usefixtures("at_once")
def test_a_person_decides(world: World) -> None:
    crash_at(failpoints.TWOPHASE_PREPARED)
    with pytest.raises(Crash), world.app.global_transaction() as first:
        world.work(first, 1)
    crash_at(failpoints.TWOPHASE_BRANCH_PREPARED)
    with pytest.raises(Crash), world.app.global_transaction() as second:
        world.work(second, 2)
    failpoints.arm(None)
    operator = world.app.global_transactions.operator()
    found = {line.id: line for line in operator.find()}
    assert [b.state for b in found[first.id].branches] == ["prepared", "prepared"]
    assert [b.state for b in found[second.id].branches] == ["prepared", "not prepared"]
    with pytest.raises(WrongStatusError):
        operator.resolve(second.id, "commit", by=BY)
    with pytest.raises(WrongStatusError):
        operator.resolve(second.id, "forget", by=BY)
    assert operator.resolve(first.id, "commit", by=BY) == "committed"
    assert operator.resolve(second.id, "rollback", by=BY) == "aborted"
    with pytest.raises(WrongStatusError):
        operator.resolve(second.id, "commit", by=BY)
    assert (world.rows(), world.prepared(), operator.find()) == (([1], [1]), 0, [])


@pytest.mark.usefixtures("at_once")
def test_the_command_line(
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "require_app", lambda _: world.app)
    assert invoke(["2pc", "list"]) == 0
    crash_at(failpoints.TWOPHASE_PREPARED)
    with pytest.raises(Crash), world.app.global_transaction() as gtx:
        world.work(gtx, 1)
    failpoints.arm(None)
    assert invoke(["2pc", "resolve", gtx.id, "--commit"]) == 2  # --yes is missing
    capsys.readouterr()
    assert invoke(["2pc", "list", "--json"]) == 1
    (shown,) = json.loads(capsys.readouterr().out)["transactions"]
    assert (shown["id"], shown["status"], shown["overdue"]) == (gtx.id, "preparing", True)
    assert invoke(["2pc", "resolve", gtx.id, "--commit", "--yes", "--reason", "both voted"]) == 0
    assert "is committed" in capsys.readouterr().out
    assert world.rows() == ([1], [1])
    with psycopg.connect(world.shop_url) as shop:
        audited = shop.execute("SELECT verb, target, reason FROM duly_audit").fetchall()
    assert ("commit", f"twophase/{gtx.id}", "both voted") in audited


@pytest.mark.usefixtures("at_once")
async def test_the_role_recovers_at_a_start(world: World) -> None:
    crash_at(failpoints.TWOPHASE_BRANCH_ENDED)
    with pytest.raises(Crash), world.app.global_transaction() as gtx:
        world.work(gtx, 1)
    failpoints.arm(None)
    assert world.rows() == ([], [1])
    async with world.app.running(roles=["upkeep"]):
        await until(lambda: world.status(gtx.id) is Status.COMMITTED)
    assert world.rows() == ([1], [1])


async def until(done: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not await asyncio.to_thread(done):
        assert time.monotonic() < end
        await asyncio.sleep(0.05)
