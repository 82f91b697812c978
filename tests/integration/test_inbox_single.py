"""One message, one transaction: handled once, stored when it fails, acknowledged only then."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, Literal

import pytest
from sqlalchemy import text
from sqlalchemy.exc import UnboundExecutionError

from duly.errors import DulyError, TransactionMisuseError
from duly.frameworks import join_of
from duly.inbox.transaction import AsyncTx, Tx
from duly.kernel import failpoints
from duly.kernel.backoff import Retry
from duly.message import HEADER_UNDECODABLE, HEADER_VERSION, Message
from duly.observe.facts import Duplicate, Handled, Held, Skipped
from duly.outbox.publisher import Publisher
from tests.integration.inbox_world import (
    Charge,
    Placed,
    World,
    charge,
    make_database,
    placed,
)

Write = Callable[[Any, int], None]


def write(tx: Tx, order_id: int) -> None:
    tx.session.execute(text("INSERT INTO work (order_id) VALUES (:o)"), {"o": order_id})


async def write_async(tx: AsyncTx, order_id: int) -> None:
    await tx.session.execute(text("INSERT INTO work (order_id) VALUES (:o)"), {"o": order_id})


def register(
    world: World, *, is_async: bool, fail: list[int] | None = None, **options: Any
) -> list[int]:
    """A handler that writes and sends; returns the orders that it was called with."""
    calls: list[int] = []

    if is_async:

        @world.handlers.on(Placed, group="billing", **options)
        async def bill_async(event: Placed, tx: AsyncTx) -> None:
            calls.append(event.order_id)
            await write_async(tx, event.order_id)
            tx.send(Charge(order_id=event.order_id))
            if event.order_id in (fail or ()):
                raise ValueError(f"card 4111 of {event.order_id}")

    else:

        @world.handlers.on(Placed, group="billing", **options)
        def bill(event: Placed, tx: Tx) -> None:
            calls.append(event.order_id)
            write(tx, event.order_id)
            tx.send(Charge(order_id=event.order_id))
            if event.order_id in (fail or ()):
                raise ValueError(f"card 4111 of {event.order_id}")

    return calls


@pytest.mark.parametrize("is_async", [False, True])
async def test_work_record_and_outgoing_are_one_commit(world: World, is_async: bool) -> None:
    register(world, is_async=is_async, fail=[2])
    messages = [placed(n) for n in range(4)]
    await world.feed("billing", *messages)
    assert sorted(world.work()) == [0, 1, 3]
    assert sorted(row["payload"] for row in world.outbox()) == [
        b'{"order_id":%d}' % n for n in (0, 1, 3)
    ]
    rows = {row["message_id"]: row for row in world.inbox()}
    assert [rows[m.id]["status"] for m in messages] == ["done", "done", "retry", "done"]
    assert rows[messages[0].id]["payload"] is None
    failed = rows[messages[2].id]
    assert (bytes(failed["payload"]), failed["attempts"]) == (messages[2].payload, 1)
    assert failed["due_at"] is not None
    assert failed["last_error"].startswith("ValueError: raised at test_inbox_single.py:")
    assert "4111" not in failed["last_error"]
    assert sum(f.count for f in world.facts if isinstance(f, Handled)) == 3


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_redelivery_never_reaches_the_handler(world: World, is_async: bool) -> None:
    calls = register(world, is_async=is_async, fail=[1])
    messages = [placed(n) for n in range(3)]
    await world.feed("billing", *messages)
    await world.feed("billing", *messages)
    assert sorted(calls) == [0, 1, 2]
    assert len(world.subscription.acked) == 6
    assert sum(f.count for f in world.facts if isinstance(f, Duplicate)) == 3


async def test_acknowledged_only_after_the_commit_is_visible_to_others(world: World) -> None:
    register(world, is_async=False, fail=[1])
    seen: list[list[str]] = []
    ack = world.subscription.ack

    async def looking(tokens: Any) -> None:
        seen.append([row["status"] for row in world.inbox()])
        await ack(tokens)

    world.subscription.ack = looking  # type: ignore[method-assign]
    await world.feed("billing", placed(0))
    await world.feed("billing", placed(1))
    assert seen == [["done"], ["done", "retry"]]


async def test_nothing_is_acknowledged_when_the_process_stops_before_the_commit(
    world: World,
) -> None:
    """CONSUME_HANDLED is the last place before COMMIT: what happens there must leave no trace."""
    register(world, is_async=False)

    def stop(name: str) -> None:
        if name == failpoints.CONSUME_HANDLED:
            raise SystemExit(name)

    failpoints.arm(stop)
    try:
        await world.feed("billing", placed(7))
    finally:
        failpoints.arm(None)
    assert (world.work(), world.outbox()) == ([], [])
    assert [row["status"] for row in world.inbox()] == ["retry"]


def both_wait(
    world: World, other: World, outcome: Callable[[], None]
) -> tuple[threading.Event, list[str]]:
    """The same handler in two processes: the first waits inside its transaction, then does
    ``outcome``.
    """
    inside, order = threading.Event(), []

    @world.handlers.on(Placed, group="billing")
    def first(event: Placed, tx: Tx) -> None:
        write(tx, event.order_id)
        inside.set()
        threading.Event().wait(0.6)  # the second one has to meet our uncommitted row
        order.append("first")
        outcome()

    @other.handlers.on(Placed, group="billing")
    def second(event: Placed, tx: Tx) -> None:
        write(tx, event.order_id)
        order.append("second")

    return inside, order


@pytest.mark.parametrize("first_fails", [False, True])
async def test_p10_a_second_consumer_waits_for_the_first(world: World, first_fails: bool) -> None:
    """P10, P13: insert first; the second waits, then finds a duplicate - or proceeds when the first
    rolls back.
    """
    other = World(world.database)

    def outcome() -> None:
        if first_fails:
            raise ValueError

    inside, order = both_wait(world, other, outcome)
    message = placed(1)
    one = asyncio.create_task(world.feed("billing", message))
    await asyncio.to_thread(inside.wait, 5)
    two = asyncio.create_task(other.feed("billing", message))
    await asyncio.gather(one, two)
    if not first_fails:
        assert (world.work(), order) == ([1], ["first"])
    elif [row["status"] for row in world.inbox()] == [
        "retry"
    ]:  # the stored copy of the first was faster
        assert (world.work(), len(other.subscription.acked)) == ([], 1)
        other.hold_lanes("billing")
        await other.run_rows("billing")
    assert world.work() == [1]
    assert [row["status"] for row in world.inbox()] == ["done"]
    await close_only(other)


async def close_only(other: World) -> None:
    class Nothing:
        def close(self) -> None:
            pass

    other.database = Nothing()
    await other.close()


async def test_p10_under_repeatable_read_a_conflict_is_run_again(emptied_postgres_url: str) -> None:
    from sqlalchemy import create_engine

    url = emptied_postgres_url.replace("postgresql://", "postgresql+psycopg://")
    engine = create_engine(url, isolation_level="REPEATABLE READ")
    database = make_database(emptied_postgres_url, engine=engine)
    world, other = World(database), World(database)
    inside, order = both_wait(world, other, lambda: None)
    message = placed(1)
    one = asyncio.create_task(world.feed("billing", message))
    await asyncio.to_thread(inside.wait, 5)
    await asyncio.gather(one, other.feed("billing", message))
    assert (world.work(), order) == ([1], ["first"])
    assert [(row["status"], row["attempts"]) for row in world.inbox()] == [("done", 0)]
    await close_only(other)
    await world.close()
    engine.dispose()


@pytest.mark.parametrize("is_async", [False, True])
async def test_the_duplicate_signal_cannot_be_swallowed(world: World, is_async: bool) -> None:
    """Both copies are in one batch, so neither is known when they start."""
    if is_async:

        @world.handlers.on(Placed, group="billing")
        async def stubborn_async(event: Placed, tx: AsyncTx) -> None:
            with contextlib.suppress(BaseException):
                await write_async(tx, event.order_id)
            with contextlib.suppress(BaseException):
                await write_async(tx, event.order_id + 100)

    else:

        @world.handlers.on(Placed, group="billing")
        def stubborn(event: Placed, tx: Tx) -> None:
            with contextlib.suppress(BaseException):
                write(tx, event.order_id)
            with contextlib.suppress(BaseException):
                write(tx, event.order_id + 100)

    message = placed(1)
    await world.feed("billing", message, message)
    assert sorted(world.work()) == [1, 101]
    assert len(world.subscription.acked) == 2


ENDS: dict[str, Callable[[Tx], Any]] = {
    "session.commit": lambda tx: tx.session.commit(),
    "session.rollback": lambda tx: tx.session.rollback(),
    "session.close": lambda tx: tx.session.close(),
    "session.commit, caught": lambda tx: contextlib.suppress(DulyError).__enter__() or _caught(tx),
    "core commit": lambda tx: tx.session.connection().commit(),
    "core rollback": lambda tx: tx.session.connection().rollback(),
    "core close": lambda tx: tx.session.connection().close(),
    "text commit": lambda tx: tx.session.execute(text("COMMIT")),
    "text rollback": lambda tx: tx.session.execute(text("ROLLBACK")),
    "driver commit": lambda tx: tx.connection.commit(),
    "driver rollback": lambda tx: tx.connection.rollback(),
    "driver close": lambda tx: tx.connection.close(),
    "commit, then more": lambda tx: ([tx.connection.commit(), tx.connection.execute("BEGIN")]),
    "commit, then raise": lambda tx: (tx.connection.commit(), 1 / 0),
}


def _caught(tx: Tx) -> None:
    with contextlib.suppress(DulyError):
        tx.session.commit()


@pytest.mark.parametrize("how", ENDS)
async def test_a_handler_that_ends_our_transaction_is_found_out(world: World, how: str) -> None:
    @world.handlers.on(Placed, group="billing")
    def wrong(event: Placed, tx: Tx) -> None:
        write(tx, event.order_id)
        if event.order_id == 1:
            ENDS[how](tx)

    bad = placed(1)
    await world.feed("billing", bad)
    await world.feed("billing", placed(2), placed(3))
    rows = {row["message_id"]: row for row in world.inbox()}
    assert rows[bad.id]["status"] == "failed"
    assert rows[bad.id]["last_error"] == "TRANSACTION_MISUSE: billing/billing.order.placed"
    assert bytes(rows[bad.id]["payload"]) == bad.payload
    assert set(world.work()) >= {2, 3}
    assert sorted(row["status"] for row in rows.values()) == ["done", "done", "failed"]


# asyncio ends the loop for SystemExit and KeyboardInterrupt; the thread of a plain handler goes on
@pytest.mark.parametrize(
    ("error", "is_async"),
    [
        (SystemExit, False),
        (KeyboardInterrupt, False),
        (GeneratorExit, False),
        (asyncio.CancelledError, False),
        (GeneratorExit, True),
        (asyncio.CancelledError, True),
    ],
)
async def test_base_exceptions_fail_the_message_and_nothing_else(
    world: World, error: type[BaseException], is_async: bool
) -> None:
    calls = []

    def bad(event: Placed) -> None:
        calls.append(event.order_id)
        if event.order_id == 1:
            raise error

    if is_async:

        @world.handlers.on(Placed, group="billing")
        async def handler(event: Placed, tx: AsyncTx) -> None:
            bad(event)
            await write_async(tx, event.order_id)

    else:

        @world.handlers.on(Placed, group="billing")
        def plain(event: Placed, tx: Tx) -> None:
            bad(event)
            write(tx, event.order_id)

    await world.feed("billing", *(placed(n) for n in range(1, 9)))
    assert sorted(world.work()) == [2, 3, 4, 5, 6, 7, 8]
    failed = [row for row in world.inbox() if row["status"] != "done"]
    assert [(row["status"], row["last_error"].partition(":")[0]) for row in failed] == [
        ("retry", error.__name__)
    ]


async def test_an_ignored_database_error_is_no_success(emptied_postgres_url: str) -> None:
    """PostgreSQL answers COMMIT with ROLLBACK after an error, without saying so."""
    world = World(make_database(emptied_postgres_url))

    @world.handlers.on(Placed, group="billing")
    def careless(event: Placed, tx: Tx) -> None:
        write(tx, event.order_id)
        with contextlib.suppress(Exception):
            tx.connection.execute("SELECT 1 / 0")

    await world.feed("billing", placed(1))
    assert world.work() == []
    assert [row["last_error"].partition(":")[0] for row in world.inbox()] == ["TRANSACTION_ABORTED"]
    await world.close()


async def test_a_lost_connection_uses_up_no_attempt(emptied_postgres_url: str) -> None:
    world = World(make_database(emptied_postgres_url))
    calls = []

    @world.handlers.on(Placed, group="billing")
    def unlucky(event: Placed, tx: Tx) -> None:
        calls.append(event.order_id)
        write(tx, event.order_id)
        if len(calls) == 1:
            pid = tx.connection.info.backend_pid
            world.query("SELECT pg_terminate_backend(?)", pid)
        write(tx, event.order_id)

    await world.feed("billing", placed(1))
    assert (calls, world.work()) == ([1, 1], [1, 1])
    assert [(row["status"], row["attempts"]) for row in world.inbox()] == [("done", 0)]
    await world.close()


async def test_the_server_limits_how_long_a_handler_may_idle(emptied_postgres_url: str) -> None:
    world = World(make_database(emptied_postgres_url), handler_timeout_seconds=7.0)
    found: list[str] = []

    @world.handlers.on(Placed, group="billing")
    def looks(event: Placed, tx: Tx) -> None:
        names = ("lock_timeout", "idle_in_transaction_session_timeout")
        found.extend(tx.connection.execute(f"SHOW {name}").fetchone()[0] for name in names)

    await world.feed("billing", placed(1))
    assert found == ["7s", "7s"]
    await world.close()


# --- who is it for, and may it be handled? --------------------------------------------------------
async def test_what_is_not_handled_here(world: World) -> None:
    calls = register(world, is_async=False)
    other = placed(1)
    unknown = Message("x1", "order.shipped", "event", "orders", None, b"{}", {})
    newer = placed(2, **{HEADER_VERSION: "2"})
    command = Message("x2", "order.cancel", "command", "orders", None, b"{}", {})
    broken = Message("x3", "", "event", "orders", None, b"\xff", {HEADER_UNDECODABLE: "type"})
    await world.feed("billing", other, unknown, newer, command, broken)
    rows = {row["message_id"]: row for row in world.inbox()}
    assert calls == [1]
    assert {
        i: (r["status"], (r["last_error"] or "").partition(":")[0]) for i, r in rows.items()
    } == {
        other.id: ("done", ""),
        newer.id: ("held", "NEWER_VERSION"),
        "x2": ("held", "UNKNOWN_TYPE"),
        "x3": ("held", "UNDECODABLE"),
    }
    assert len(world.subscription.acked) == 5
    assert [(f.type, f.count) for f in world.facts if isinstance(f, Skipped)] == [
        ("order.shipped", 1)
    ]
    assert len([f for f in world.facts if isinstance(f, Held)]) == 3


async def test_a_payload_that_cannot_be_decoded_fails_for_good_and_is_kept(world: World) -> None:
    calls = register(world, is_async=False)
    bad = Message("b1", "order.placed", "event", "orders", None, b'{"order_id":"x"}', {})
    deep = Message("b2", "order.placed", "event", "orders", None, b"[" * 100_000, {})
    await world.feed("billing", bad, deep)
    rows = world.inbox()
    assert calls == []
    assert {(row["status"], row["last_error"].partition(":")[0]) for row in rows} == {
        ("failed", "UNDECODABLE")
    }
    assert {bytes(row["payload"]) for row in rows} == {bad.payload, deep.payload}


async def test_no_id_gets_one_from_its_place_and_another_body_changes_nothing(world: World) -> None:
    register(world, is_async=False)
    nameless = Message("", "order.placed", "event", "orders", None, b'{"order_id":1}', {})
    await world.feed("billing", nameless)
    again = Message("", "order.placed", "event", "orders", None, b'{"order_id":99}', {})
    await world.feed("billing", again)
    assert world.work() == [1]
    assert [row["message_id"] for row in world.inbox()] == ["orders/0/0"]


@pytest.mark.parametrize("order", ["none", "key"])
async def test_without_id_and_place_only_what_may_have_been_handled_is_held(
    world: World, order: Literal["none", "key"]
) -> None:
    """RabbitMQ: nothing is lost, and nothing that was received is handled again in silence."""

    @world.handlers.on(Placed, group="billing", order=order)
    def bill(event: Placed, tx: Tx) -> None:
        write(tx, event.order_id)

    def nameless(order_id: int) -> Message:
        body = b'{"order_id":%d}' % order_id
        return Message("", "order.placed", "event", "orders", None, body, {})

    await world.feed("billing", nameless(1), nameless(1), placed=False)
    await world.feed("billing", nameless(1), nameless(2), placed=False, redelivered=True)
    held = [row for row in world.inbox() if row["status"] == "held"]
    assert [row["last_error"].partition(":")[0] for row in held] == ["NO_MESSAGE_ID"]
    assert bytes(held[0]["payload"]) == b'{"order_id":1}'
    world.hold_lanes("billing")
    await world.run_rows("billing", statuses=("ready", "retry"))
    assert sorted(world.work()) == [1, 1, 2]


@pytest.mark.parametrize("order", ["none", "key"])
async def test_a_message_from_before_the_dedupe_window_is_held(
    world: World, order: Literal["none", "key"]
) -> None:
    calls: list[int] = []
    world.handlers.on(Placed, group="billing", order=order)(lambda e: calls.append(e.order_id))
    await world.feed("billing", placed(1, time="2020-01-01T00:00:00Z"))
    assert [(row["status"], row["last_error"].partition(":")[0]) for row in world.inbox()] == [
        ("held", "DEDUPE_WINDOW_PASSED")
    ]
    world.hold_lanes("billing")
    await world.run_rows("billing", statuses=("ready", "retry"))
    assert calls == []


async def test_same_id_from_two_sources_is_two_messages(world: World) -> None:
    register(world, is_async=False)
    await world.feed("billing", placed(1, id="a", source="east"), placed(2, id="a", source="west"))
    assert sorted(world.work()) == [1, 2]


# --- business keys --------------------------------------------------------------------------------
async def test_a_business_key_dedupes_messages_with_different_ids(world: World) -> None:
    calls = []

    @world.handlers.handle(Charge, dedupe=lambda c: c.order_id)
    def charge_card(command: Charge, tx: Tx) -> None:
        calls.append(command.order_id)
        write(tx, command.order_id)
        if command.order_id == 2 and len(calls) < 3:
            raise ValueError

    await world.feed("billing", charge(1))
    await world.feed("billing", charge(1))
    assert calls == [1]
    first, second = charge(2), charge(2)
    await world.feed("billing", first)
    await world.feed("billing", second)
    rows = {row["message_id"]: row for row in world.inbox()}
    assert (rows[first.id]["status"], rows[second.id]["status"]) == ("retry", "held")
    assert rows[second.id]["last_error"].startswith("DEDUPE_KEY_BUSY")
    assert bytes(rows[second.id]["payload"]) == second.payload
    assert calls == [1, 2]
    world.hold_lanes("billing")
    await world.run_rows(
        "billing"
    )  # the retry is done, and the one that waited for it is then no more than a copy
    await world.run_rows("billing")
    assert sorted(row["status"] for row in world.inbox()) == ["done", "done", "skipped"]
    assert sorted(world.work()) == [1, 2]


async def test_a_key_that_cannot_be_computed_fails_the_message(world: World) -> None:
    world.handlers.handle(Charge, dedupe=lambda c: None)(lambda command: None)
    await world.feed("billing", charge(1))
    assert [(r["status"], r["last_error"].partition(":")[0]) for r in world.inbox()] == [
        ("failed", "DEDUPE_KEY_INVALID")
    ]


# --- publishing, reading --------------------------------------------------------------------------
@pytest.mark.parametrize("is_async", [False, True])
async def test_late_values_and_the_apps_own_verb(world: World, is_async: bool) -> None:
    publisher = Publisher(
        world.context.outlet, join_of=join_of, deliver=lambda *_: None, report=lambda *_: None
    )

    def publish(tx: Any, event: Placed) -> None:
        late: dict[str, int] = {}
        tx.send(lambda: Charge(order_id=late["id"]), key=lambda: late["id"])
        publisher.publish(tx.session, Placed(order_id=event.order_id + 20))
        late["id"] = event.order_id + 10

    if is_async:

        @world.handlers.on(Placed, group="billing")
        async def republish_async(event: Placed, tx: AsyncTx) -> None:
            await write_async(tx, event.order_id)
            publish(tx, event)

    else:

        @world.handlers.on(Placed, group="billing")
        def republish(event: Placed, tx: Tx) -> None:
            write(tx, event.order_id)
            publish(tx, event)

    await world.feed("billing", placed(1))
    assert world.work() == [1], [r["last_error"] for r in world.inbox()]
    assert sorted((row["message_type"], bytes(row["payload"])) for row in world.outbox()) == [
        ("billing.charge", b'{"order_id":11}'),
        ("order.placed", b'{"order_id":21,"note":""}'),
    ]


@pytest.mark.parametrize("is_async", [False, True])
async def test_read_closes_before_an_effect_and_writes_nothing(
    world: World, is_async: bool
) -> None:
    counts = []

    if is_async:

        @world.handlers.on(Placed, group="billing")
        async def reads_async(event: Placed, tx: AsyncTx) -> None:
            async with tx.read() as session:
                counts.append((await session.execute(text("SELECT count(*) FROM work"))).scalar())
                await session.execute(text("INSERT INTO work (order_id) VALUES (99)"))
            counts.append(await tx.effect("ask", lambda: 5))
            await write_async(tx, event.order_id)

    else:

        @world.handlers.on(Placed, group="billing")
        def reads(event: Placed, tx: Tx) -> None:
            with tx.read() as session:
                counts.append(session.execute(text("SELECT count(*) FROM work")).scalar())
                session.execute(text("INSERT INTO work (order_id) VALUES (99)"))
            counts.append(tx.effect("ask", lambda: 5))
            write(tx, event.order_id)

    await world.feed("billing", placed(1))
    assert (counts, world.work()) == ([0, 5], [1])


async def test_a_handler_that_touches_nothing_is_recorded_too(world: World) -> None:
    calls: list[int] = []
    world.handlers.on(Placed, group="billing")(lambda event: calls.append(event.order_id))
    message = placed(1)
    await world.feed("billing", message, message)
    await world.feed("billing", message)
    assert [row["status"] for row in world.inbox()] == ["done"]
    assert len(calls) <= 2


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_tx_that_was_kept_is_of_no_use(world: World, is_async: bool) -> None:
    """It must not reach into the transaction of the next message."""
    kept: list[Any] = []

    if is_async:

        @world.handlers.on(Placed, group="billing", concurrency=1)
        async def keeps_async(event: Placed, tx: AsyncTx) -> None:
            kept.append((tx, tx.session))
            await write_async(tx, event.order_id)

    else:

        @world.handlers.on(Placed, group="billing", concurrency=1)
        def keeps(event: Placed, tx: Tx) -> None:
            kept.append((tx, tx.session))
            write(tx, event.order_id)

    await world.feed("billing", placed(1))
    tx, session = kept[0]
    for use in (
        lambda: tx.session,
        lambda: tx.publish(Placed(order_id=1)),
        lambda: tx.send(Charge(order_id=1)),
    ):
        with pytest.raises(TransactionMisuseError):
            use()
    with pytest.raises(UnboundExecutionError):
        getattr(session, "sync_session", session).execute(text("SELECT 1"))


async def test_a_running_handler_is_on_the_list_of_deadlines(world: World) -> None:
    seen: list[list[str]] = []

    @world.handlers.on(Placed, group="billing")
    def slow(event: Placed) -> None:
        deadlines = world.context.deadlines
        token = deadlines.enter("over", -1.0)
        seen.append([label for _, label in deadlines._running.values()])
        deadlines.leave(token)

    await world.feed("billing", placed(1))
    assert seen == [["billing/billing.order.placed", "over"]]
    assert world.context.deadlines.passed() == []


# --- redelivery and stopping ----------------------------------------------------------------------
async def test_what_may_have_ended_a_process_runs_from_the_inbox_with_its_attempt_committed(
    world: World,
) -> None:
    seen: list[int] = []

    @world.handlers.on(Placed, group="billing", retry=Retry(attempts=2))
    def bill(event: Placed, tx: Tx) -> None:
        seen.append(world.inbox()[0]["attempts"])
        raise SystemExit

    await world.feed("billing", placed(1), redelivered=True)
    assert seen == []
    world.hold_lanes("billing")
    await world.run_rows("billing")
    await world.run_rows("billing")
    assert seen == [1, 2]
    assert [v.error.partition(":")[0] for v in await world.run_rows("billing")] == ["PROCESS_ENDED"]


async def test_stopping_gives_back_what_was_not_begun(world: World) -> None:
    inside, go_on = threading.Event(), threading.Event()

    @world.handlers.on(Placed, group="billing", concurrency=1)
    def slow(event: Placed, tx: Tx) -> None:
        inside.set()
        go_on.wait(5)
        write(tx, event.order_id)

    consumer = world.start("billing")
    feeding = asyncio.create_task(world.feed("billing", placed(1), placed(2), placed(3)))
    await asyncio.to_thread(inside.wait, 5)
    consumer.stop()
    asyncio.get_running_loop().call_later(0.2, go_on.set)
    assert await consumer.drain(5)
    await feeding
    assert (len(world.subscription.acked), len(world.subscription.released)) == (1, 2)
    assert world.work() == [1]


async def test_an_async_handler_that_is_cancelled_by_the_drain_is_not_done(world: World) -> None:
    begun = asyncio.Event()

    @world.handlers.on(Placed, group="billing")
    async def slow(event: Placed, tx: AsyncTx) -> None:
        await write_async(tx, event.order_id)
        begun.set()
        await asyncio.sleep(30)

    consumer = world.start("billing")
    feeding = asyncio.create_task(world.feed("billing", placed(1)))
    await begun.wait()
    consumer.stop()
    assert not await consumer.drain(0.3)
    await feeding
    assert (world.subscription.acked, len(world.subscription.released)) == ([], 1)
    assert (world.work(), world.inbox()) == ([], [])
