"""The failure log, on SQLite; on PostgreSQL: integration/test_operator_upkeep."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import pytest

from duly.databases.sqlite.database import SqliteDatabase
from duly.errors import InvalidNameError, NotFoundError, OperatorError, WrongStatusError
from duly.kernel.backoff import Retry
from duly.message import Message, new_id
from duly.observe.facts import OperatorActed
from duly.observe.hooks import Hooks
from duly.outbox.failure_log import FailureRetrier, FailureScope, FailureStore
from duly.outbox.operator import By
from duly.outbox.schema import Schema
from duly.outbox.sole import SoleRole
from duly.ports import CONFIRMED, Outcome, OutcomeKind
from duly.runtime.clock import SystemClock

ANNA = By("anna")


@pytest.fixture
def database(sqlite_url: str) -> SqliteDatabase:
    database = SqliteDatabase(sqlite_url)
    Schema(database, "shop").start()
    return database


@pytest.fixture
def store(database: SqliteDatabase) -> FailureStore:
    return FailureStore(database.connect)


def message(kind: str = "event") -> Message:
    return Message(new_id(), "order.placed", kind, "orders", None, b'{"a":1}', {"source": "shop"})


class Sender:
    """Answers with one outcome and keeps what it was given."""

    def __init__(self, outcome: Outcome = CONFIRMED, *, wait: float = 0.0) -> None:
        self.outcome, self.wait = outcome, wait
        self.sent: list[str] = []

    async def __call__(
        self, messages: Sequence[Message], *, deadline_seconds: float
    ) -> Sequence[Outcome]:
        await asyncio.sleep(self.wait)
        self.sent += [m.id for m in messages]
        return [self.outcome] * len(messages)


def role(database: SqliteDatabase, sender: Sender, **options: object) -> SoleRole:
    clock = SystemClock()
    retrier = FailureRetrier("publish", sender, clock=clock, **options)  # type: ignore[arg-type]
    return SoleRole("failures", retrier.work, database=database, clock=clock, every_seconds=0.02)


async def play(*roles: SoleRole, seconds: float = 0.4) -> None:
    tasks = [asyncio.create_task(each.run()) for each in roles]
    await asyncio.sleep(seconds)
    for each in roles:
        each.stop()
    await asyncio.wait_for(asyncio.gather(*tasks), 10)


def test_an_entry_is_kept_whole(store: FailureStore) -> None:
    sent = message()
    entry = store.add("publish", sent, "UNAVAILABLE: no broker" + "x" * 2000)
    detail = store.show(entry)
    assert (detail.line.message_id, detail.line.state) == (sent.id, "open")
    assert (detail.line.attempts, detail.line.due_at) == (0, None)
    assert detail.payload == {"a": 1}
    assert detail.headers == {"source": "shop"}
    assert len(detail.line.error or "") == 1000
    with pytest.raises(InvalidNameError):
        store.add("no name", sent, "X")
    with pytest.raises(NotFoundError):
        store.show(entry + 1)


async def test_what_is_due_is_sent_and_resolved(
    database: SqliteDatabase, store: FailureStore
) -> None:
    due = [store.add("publish", message(), "X", delay_seconds=0) for _ in range(3)]
    later = store.add("publish", message(), "X", delay_seconds=3600)
    by_hand = store.add("publish", message(), "X")
    other = store.add("background", message(), "X", delay_seconds=0)
    sender = Sender()
    await play(role(database, sender))
    assert len(sender.sent) == 3
    assert [store.show(entry).line.state for entry in due] == ["resolved"] * 3
    assert [store.show(e).line.state for e in (later, by_hand, other)] == ["open"] * 3


async def test_a_backlog_is_sent_without_waiting_in_between(
    database: SqliteDatabase, store: FailureStore
) -> None:
    for _ in range(120):
        store.add("publish", message(), "X", delay_seconds=0)
    sender = Sender()
    await play(role(database, sender), seconds=1.0)
    assert len(sender.sent) == len(set(sender.sent)) == 120


async def test_a_refusal_uses_up_attempts_and_then_waits_for_a_person(
    database: SqliteDatabase, store: FailureStore
) -> None:
    entry = store.add("publish", message(), "X", delay_seconds=0)
    sender = Sender(Outcome(OutcomeKind.REFUSED, "not today"))
    retry = Retry(attempts=3, base=0.01, max=0.01)
    await play(role(database, sender, retry=retry), seconds=0.8)
    line = store.show(entry).line
    assert len(sender.sent) == 3
    assert (line.state, line.attempts, line.due_at) == ("open", 3, None)
    assert line.error == "REFUSED: not today"


@pytest.mark.parametrize("kind", [OutcomeKind.UNAVAILABLE, OutcomeKind.UNKNOWN])
async def test_no_broker_uses_up_no_attempt(
    database: SqliteDatabase, store: FailureStore, kind: OutcomeKind
) -> None:
    entry = store.add("publish", message(), "X", delay_seconds=0)
    await play(role(database, Sender(Outcome(kind, "down"))))
    line = store.show(entry).line
    assert (line.state, line.attempts) == ("open", 0)
    assert line.due_at is not None
    assert line.due_at > time.time() + 1


async def test_what_can_never_be_sent_is_not_tried_twice(
    database: SqliteDatabase, store: FailureStore
) -> None:
    entry = store.add("publish", message(), "X", delay_seconds=0)
    sender = Sender(Outcome(OutcomeKind.IMPOSSIBLE, "too large"))
    await play(role(database, sender))
    assert len(sender.sent) == 1
    assert store.show(entry).line.due_at is None


async def test_an_event_without_readers_is_sent_a_command_is_not(
    database: SqliteDatabase, store: FailureStore
) -> None:
    event = store.add("publish", message("event"), "X", delay_seconds=0)
    command = store.add("publish", message("command"), "X", delay_seconds=0)
    await play(role(database, Sender(Outcome(OutcomeKind.UNROUTED))))
    assert store.show(event).line.state == "resolved"
    assert store.show(command).line.state == "open"


async def test_two_nodes_never_send_the_same_entry(
    database: SqliteDatabase, store: FailureStore
) -> None:
    for _ in range(30):
        store.add("publish", message(), "X", delay_seconds=0)
    first, second = Sender(wait=0.05), Sender(wait=0.05)
    await play(role(database, first), role(database, second), seconds=0.8)
    assert len(first.sent) + len(second.sent) == 30
    assert len({*first.sent, *second.sent}) == 30


async def test_attempts_are_not_counted_under_a_lost_lease(
    database: SqliteDatabase, store: FailureStore
) -> None:
    """Frozen while it was sending: somebody else has the role by now, and their view stands."""
    entry = store.add("publish", message(), "X", delay_seconds=0)

    class Robbed(Sender):
        async def __call__(
            self, messages: Sequence[Message], *, deadline_seconds: float
        ) -> Sequence[Outcome]:
            engine = database.engine()
            with engine.begin() as connection:
                connection.exec_driver_sql(
                    "UPDATE duly_lease SET holder = 'other', token = token + 1, until = 9e12"
                    " WHERE name = 'role/failures'"
                )
            return await super().__call__(messages, deadline_seconds=deadline_seconds)

    await play(role(database, Robbed(Outcome(OutcomeKind.REFUSED, "no"))))
    assert store.show(entry).line.attempts == 0


async def test_what_a_person_decided_meanwhile_stands(
    database: SqliteDatabase, store: FailureStore
) -> None:
    entry = store.add("publish", message(), "X", delay_seconds=0)

    class Slow(Sender):
        async def __call__(
            self, messages: Sequence[Message], *, deadline_seconds: float
        ) -> Sequence[Outcome]:
            await asyncio.to_thread(store.act, "drop", entry, by=ANNA)
            return await super().__call__(messages, deadline_seconds=deadline_seconds)

    await play(role(database, Slow(Outcome(OutcomeKind.REFUSED, "no"))))
    line = store.show(entry).line
    assert (line.state, line.attempts) == ("dropped", 0)


def test_verbs_by_hand(store: FailureStore) -> None:
    entry = store.add("publish", message(), "X")
    assert store.act("retry", entry, by=ANNA)
    assert store.act("retry", entry, by=ANNA)
    assert store.show(entry).line.due_at is not None
    assert store.act("resolve", entry, by=By("anna", "sent by mail"))
    assert not store.act("resolve", entry, by=ANNA)
    for verb in ("retry", "drop"):
        with pytest.raises(WrongStatusError):
            store.act(verb, entry, by=ANNA)
    audited = store.show(entry).audit
    assert [(a.verb, a.reason) for a in audited] == [
        ("resolve", "sent by mail"),
        ("retry", ""),
        ("retry", ""),
    ]
    with pytest.raises(OperatorError):
        store.act("resend", entry, by=ANNA)
    with pytest.raises(OperatorError):
        store.act("drop", entry, by=By(""))
    with pytest.raises(NotFoundError):
        store.act("drop", 4711, by=ANNA)


def test_many_by_scope(database: SqliteDatabase) -> None:
    hooks, seen = Hooks(), []
    hooks.add(seen.append)
    store = FailureStore(database.connect, hooks=hooks)
    for n in range(105):
        store.add("publish", message(), f"CODE{n % 2}: x")
    scope = FailureScope(error="CODE1", source="publish", topic="orders")
    assert store.count(scope) == 52
    with pytest.raises(WrongStatusError):
        store.act_on_all("drop", scope, by=ANNA, expected=51)
    assert store.act_on_all("drop", scope, by=ANNA, expected=52).changed == 52
    assert store.count(FailureScope()) == 53
    assert store.count(FailureScope(states=("dropped",))) == 52
    assert len(store.find(FailureScope(), limit=10)) == 10
    assert seen == [OperatorActed(box="failures", verb="drop", actor="anna", count=52)]
    with pytest.raises(OperatorError):
        store.find(FailureScope(states=("sent",)))
