"""The lane reader on a real SQLite file, with work that says what the test wants."""

from __future__ import annotations

import asyncio
import logging
import random
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from duly.databases.sqlite.database import SqliteDatabase
from duly.errors import StaleLeaseError
from duly.kernel.backoff import Retry
from duly.kernel.names import place
from duly.message import new_id
from duly.observe.facts import Fact, StillStuck
from duly.observe.hooks import Hooks
from duly.ports import Connection, Result, Statement
from duly.runtime import lanes
from duly.runtime.box import Box, Failure, Reading
from duly.runtime.clock import SystemClock
from duly.runtime.lanes import LaneTiming
from duly.runtime.leases import Deadlines
from duly.runtime.node import LeaseTiming, Node
from duly.runtime.work import LaneTerms, Row, Verdict, VerdictKind

DONE = Verdict(VerdictKind.DONE)
RETRY = Verdict(VerdictKind.RETRY, "REFUSED: not now")
LATER = Verdict(VerdictKind.LATER, "BROKER_UNAVAILABLE: gone")
FAILED = Verdict(VerdictKind.FAILED, "IMPOSSIBLE: never")


READ = Box("outbox", "outbox").read(Reading(range(64), (), (), 50), 0)


class Script:
    """Work that answers every row by a function, and remembers what it was given."""

    box = scope = "outbox"
    group = ""
    batch_max, in_flight_max = 20, 3

    def __init__(
        self, answer: Callable[[Row], Verdict], *, attempts: int = 50, block: bool = False
    ) -> None:
        self.answer, self.attempts, self.block = answer, attempts, block
        self.done: list[Row] = []
        self.tried: list[Row] = []
        self.under_way: set[tuple[str, str]] = set()

    async def deliver(
        self, rows: Sequence[Row], *, deadline_seconds: float, terms: LaneTerms
    ) -> Sequence[Verdict]:
        keys = {key for row in rows if (key := self.order_key(row))}
        assert not keys & self.under_way, "two rows of one key under way"
        self.under_way |= keys
        self.tried.extend(rows)
        await asyncio.sleep(0)
        self.under_way -= keys
        verdicts = [self.answer(row) for row in rows]
        self.done.extend(
            row for row, verdict in zip(rows, verdicts, strict=True) if verdict is DONE
        )
        return verdicts

    def order_key(self, row: Row) -> tuple[str, str] | None:
        return None if row.key is None else (row.topic, row.key)

    wave_key = order_key

    def retry_of(self, row: Row) -> Retry:
        return Retry(attempts=self.attempts, base="20ms", max="40ms")

    def blocks(self, row: Row) -> bool:
        return self.block


@pytest.fixture
def database(tmp_path: Path) -> Iterator[SqliteDatabase]:
    made = SqliteDatabase(f"sqlite:///{tmp_path}/lanes.db")
    connection = made.connect()
    for _, _, text in made.migrations():
        connection.script(text)
    connection.close()
    yield made
    made.close()


def store(connection: Connection, keys: Sequence[str | None]) -> list[str]:
    """Insert one message per key; returns their ids."""
    many = []
    for n, key in enumerate(keys):
        lane = n % 64 if key is None else place("orders", key).lane
        many.append(
            {
                "message_id": new_id(),
                "message_type": "order.placed",
                "kind": "event",
                "topic": "orders",
                "key": key,
                "lane": lane,
                "stripe": None,
                "payload": b"{}",
                "headers": "{}",
            }
        )
    connection.ask(Statement("outbox.insert", many=many))
    return [row["message_id"] for row in many]


@asynccontextmanager
async def running(
    database: SqliteDatabase, work: Script, hooks: Hooks | None = None, **timing: float
) -> AsyncIterator[Node]:
    clock = SystemClock()
    node = Node(
        database,
        [work],
        clock=clock,
        hooks=hooks or Hooks(),
        deadlines=Deadlines(clock),
        lease=LeaseTiming(1.0, 0.25),
        lanes=LaneTiming(batch=50, poll_every=0.1, **timing),  # type: ignore[arg-type]
    )
    task = asyncio.create_task(node.run())
    try:
        yield node
    finally:
        node.stop()
        await asyncio.wait_for(task, 10)


async def until(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


def rows_left(database: SqliteDatabase) -> list[tuple[str, str | None, str]]:
    with sqlite3.connect(database.path) as raw:
        return raw.execute("SELECT message_id, key, status FROM duly_outbox ORDER BY id").fetchall()


async def test_every_row_is_delivered_once_and_settled(database: SqliteDatabase) -> None:
    work = Script(lambda row: DONE)
    connection = database.connect()
    ids = store(connection, [None] * 300)
    async with running(database, work):
        await until(lambda: not rows_left(database))
        more = store(connection, [None] * 10)
        await until(lambda: not rows_left(database))
    assert sorted(row.message_id for row in work.done) == sorted(ids + more)


@pytest.mark.parametrize("seed", range(4))
async def test_order_per_key_survives_random_failures(database: SqliteDatabase, seed: int) -> None:
    """m1 fails and waits for its retry; m2 of its key must not overtake, whatever happens to m1
    meanwhile.
    """
    chance = random.Random(seed)
    work = Script(
        lambda row: chance.choice(
            [DONE, DONE, RETRY, DONE, LATER if chance.random() < 0.1 else DONE]
        )
    )
    connection = database.connect()
    keys = [f"k{chance.randrange(12)}" for _ in range(400)]
    ids = store(connection, keys)
    async with running(database, work):
        await until(lambda: not rows_left(database), 40)
    done = [row.message_id for row in work.done]
    assert sorted(done) == sorted(ids)
    for key in set(keys):
        assert [row.message_id for row in work.done if row.key == key] == [
            i for i, k in zip(ids, keys, strict=True) if k == key
        ]


async def test_a_poison_key_stops_nobody_and_its_followers_wait_for_it(
    database: SqliteDatabase,
) -> None:
    open_now = False
    work = Script(lambda row: RETRY if row.key == "poison" and not open_now else DONE)
    connection = database.connect()
    ids = store(connection, ["poison"] * 120 + [f"k{n}" for n in range(100)])
    async with running(database, work):
        await until(lambda: sum(1 for row in work.done) == 100)
        assert {row.message_id for row in work.tried if row.key == "poison"} == {ids[0]}
        open_now = True
        await until(lambda: not rows_left(database), 30)
    assert [row.message_id for row in work.done if row.key == "poison"] == ids[:120]


async def test_skip_lets_the_key_go_on_after_the_last_attempt(database: SqliteDatabase) -> None:
    connection = database.connect()
    ids = store(connection, ["a", "a", "a"])
    work = Script(lambda row: RETRY if row.message_id == ids[0] else DONE, attempts=2)
    async with running(database, work):
        await until(lambda: len(work.done) == 2)
        await until(lambda: [status for _, _, status in rows_left(database)] == ["failed"])
    assert [row.message_id for row in work.done] == ids[1:]


async def test_block_keeps_the_key_until_a_person_acts(database: SqliteDatabase) -> None:
    connection = database.connect()
    ids = store(connection, ["a", "a", "a", "b"])
    work = Script(lambda row: FAILED if row.message_id == ids[0] else DONE, block=True)
    async with running(database, work):
        await until(
            lambda: [status for _, _, status in rows_left(database)] == ["failed", "held", "held"]
        )
        await asyncio.sleep(0.3)
    assert [row.message_id for row in work.done] == [ids[3]]
    with sqlite3.connect(database.path) as raw:
        assert raw.execute("SELECT key, blocker_id FROM duly_key_hold").fetchall() == [("a", 1)]


async def test_two_nodes_share_the_lanes_and_a_dead_one_is_replaced(
    database: SqliteDatabase,
) -> None:
    first, second = Script(lambda row: DONE), Script(lambda row: DONE)
    connection = database.connect()

    def owners() -> dict[str, int]:
        query = (
            "SELECT holder, count(*) FROM duly_lease "
            "WHERE kind = 'lane' AND holder IS NOT NULL GROUP BY holder"
        )
        with sqlite3.connect(database.path) as raw:
            return dict(raw.execute(query).fetchall())

    async with running(database, first):
        await until(lambda: list(owners().values()) == [64])
        async with running(database, second):
            await until(lambda: sorted(owners().values()) == [32, 32])
            ids = store(connection, [None] * 128)
            await until(lambda: not rows_left(database))
        await until(lambda: list(owners().values()) == [64])
    assert len(first.done) == len(second.done) == 64
    assert sorted(row.message_id for row in first.done + second.done) == sorted(ids)


async def test_a_failure_under_a_lost_lease_is_not_stored(database: SqliteDatabase) -> None:
    """The lane was taken over while the row was under way: the late failure must not touch the new
    owner's row.
    """
    connection = database.connect()
    store(connection, ["a"])

    def steal(row: Row) -> Verdict:
        with sqlite3.connect(database.path, timeout=5) as raw:
            raw.execute("UPDATE duly_lease SET token = token + 1 WHERE kind = 'lane'")
        return RETRY

    work = Script(steal)
    async with running(database, work):
        await until(lambda: len(work.tried) >= 1)
        await asyncio.sleep(0.2)
        with sqlite3.connect(database.path) as raw:
            assert raw.execute("SELECT status, attempts FROM duly_outbox").fetchall() == [
                ("ready", 0)
            ]


async def test_a_lane_that_goes_while_a_read_is_prepared_is_not_in_that_read(
    database: SqliteDatabase,
) -> None:
    """The read asks two questions; the lanes are those at the second one."""
    connection = database.connect()
    work = Script(lambda row: DONE)
    async with running(database, work) as node:
        reader = node._scopes[0].reader
        await until(lambda: reader._own.readable == reader._memory.known_lanes == set(range(64)))
        ask, gone = reader._reader.ask, frozenset({3})

        async def ask_and_lose(statement: Statement) -> Result:
            if statement.name == "lease.horizon" and not rows_left(database) and not work.done:
                reader._own.let_go(gone)
                store(connection, [None] * 64)
            return await ask(statement)

        reader._reader.ask = ask_and_lose  # type: ignore[method-assign]
        await until(lambda: len(work.done) == 63)
        await asyncio.sleep(0.2)
        assert gone.isdisjoint(row.lane for row in work.done)


class Gated(Script):
    """Work in which some rows, by their ids, wait until they are let through."""

    def __init__(self, *ids: int) -> None:
        super().__init__(lambda row: DONE)
        self.gates = {id_: asyncio.Event() for id_ in ids}
        self.waiting: set[int] = set()

    async def deliver(
        self, rows: Sequence[Row], *, deadline_seconds: float, terms: LaneTerms
    ) -> Sequence[Verdict]:
        for id_ in {row.id for row in rows} & self.gates.keys():
            self.waiting.add(id_)
            await self.gates[id_].wait()
        return await super().deliver(rows, deadline_seconds=deadline_seconds, terms=terms)


async def test_a_lane_that_was_to_be_given_back_and_is_kept_is_read_from_its_beginning(
    database: SqliteDatabase,
) -> None:
    """What was queued of it was put back, and the reads of other lanes have gone on above that."""
    connection, lane = database.connect(), place("orders", "a").lane
    beside = next(key for key in map(str, range(9999)) if place("orders", key).lane == lane)
    work = Gated(1, 3)
    async with running(database, work) as node:
        reader, own = node._scopes[0].reader, node._scopes[0].ownership
        await until(lambda: own.readable == reader._memory.known_lanes == set(range(64)))
        store(connection, ["a", "a"])
        await until(lambda: 1 in work.waiting and bool(reader._memory.queued))
        store(connection, [beside])
        await until(lambda: 3 in work.waiting)
        own._leaving = {lane}
        reader.hint()
        await until(lambda: not reader._memory.queued)
        work.gates[1].set()

        def gone_on() -> bool:
            store(connection, [None])  # of another lane
            reader.hint()
            return reader._memory.floor._floor >= 2

        await until(gone_on)
        own._leaving = set()
        store(connection, ["a"])
        reader.hint()
        await until(lambda: [row.key for row in work.done].count("a") == 3)
        work.gates[3].set()
    assert lane != 0
    ids = [row.id for row in work.done if row.key == "a"]
    assert ids == sorted(ids)


async def test_a_node_that_forfeits_its_lanes_comes_back_under_another_name(
    database: SqliteDatabase,
) -> None:
    """What it held is free when the old name has expired."""
    connection = database.connect()
    work = Script(lambda row: DONE)
    async with running(database, work) as node:
        await until(lambda: len(node._scopes[0].ownership.readable) == 64)
        before = node.holder
        node._keeper.forfeit()
        await until(lambda: node.holder not in ("", before))
        assert not node._scopes[0].ownership.readable
        store(connection, ["a", None])
        await until(lambda: not rows_left(database))


async def test_followers_under_a_lost_lease_are_not_marked(database: SqliteDatabase) -> None:
    """Somebody else reads them, and would find them changed behind its back."""
    connection = database.connect()
    store(connection, ["a", "a"])
    rows = [Row(*values) for values in connection.ask(READ).rows]
    box = Box("outbox", "outbox")
    async with running(database, Script(lambda row: LATER)) as node:
        own = node._scopes[0].ownership
        await until(lambda: own.term(rows[0].lane) is not None)
        term = own.term(rows[0].lane)
        assert term is not None
        failure = Failure(rows[0], term, own.holder, "retry", 1, "REFUSED", 60.0, blocks=True)
        connection.run(box.fail(failure))
        stale = term._replace(token=term.token - 1)
        with pytest.raises(StaleLeaseError):
            connection.run(box.hold_followers(rows[1:], [stale], holder=own.holder))
        assert [status for _, _, status in rows_left(database)] == ["retry", "ready"]
        assert connection.run(box.hold_followers(rows[1:], [term], holder=own.holder)) == 1


async def test_a_row_that_waits_for_somebody_uses_up_no_attempt_and_stops_nobody(
    database: SqliteDatabase,
) -> None:
    connection = database.connect()
    ids = store(connection, ["a", "a", "b"])
    waiting = Verdict(VerdictKind.WAIT, "EFFECT_IS_LIVE: charge")
    tries = 0

    def answer(row: Row) -> Verdict:
        nonlocal tries
        tries += row.message_id == ids[0]
        return waiting if row.message_id == ids[0] and tries < 3 else DONE

    work = Script(answer, attempts=1)
    async with running(database, work):
        await until(lambda: not rows_left(database))
    assert [row.message_id for row in work.done] == [ids[2], ids[0], ids[1]]
    assert {row.attempts for row in work.tried} == {0}


async def test_a_trouble_that_lasts_is_told_and_told_again(
    database: SqliteDatabase, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "TELL_SECONDS", 0.2)
    monkeypatch.setattr(lanes, "REPORT_SECONDS", 0.3)
    facts: list[Fact] = []
    connection = database.connect()
    store(connection, ["a", "b"])
    connection.close()
    work, hooks = Script(lambda row: LATER), Hooks()
    hooks.add(facts.append)

    def told() -> list[logging.LogRecord]:
        return [record for record in caplog.records if record.name == "duly.lanes"]

    async with running(database, work, hooks):
        await until(lambda: len(told()) >= 2 and any(isinstance(f, StillStuck) for f in facts))
        work.answer = lambda row: DONE
        await until(lambda: len(work.done) == 2)
    assert {record.__dict__["code"] for record in told()} == {"BROKER_UNAVAILABLE"}
    assert len(told()) < len(work.tried)
    [stuck, *_] = [fact for fact in facts if isinstance(fact, StillStuck)]
    assert (stuck.what, stuck.code) == ("outbox", "BROKER_UNAVAILABLE")
    assert stuck.oldest_seconds >= 0.3
