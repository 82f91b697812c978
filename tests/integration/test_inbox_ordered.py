"""Ordered groups: stored in the order of arrival, then run under the lane's token."""

from __future__ import annotations

from typing import Any

from sqlalchemy import text

from duly.inbox.transaction import Tx
from duly.inbox.work import InboxWork
from duly.kernel.backoff import Retry
from duly.kernel.names import place
from duly.message import HEADER_VERSION, Message
from duly.runtime.work import Row, VerdictKind
from tests.integration.inbox_world import (
    Placed,
    World,
    make_database,
    placed,
)


def register(world: World, fail: list[int] | None = None, **options: Any) -> list[int]:
    calls: list[int] = []

    @world.handlers.on(Placed, group="ledger", order="key", **options)
    def ledger(event: Placed, tx: Tx) -> None:
        calls.append(event.order_id)
        tx.session.execute(text("INSERT INTO work (order_id) VALUES (:o)"), {"o": event.order_id})
        if event.order_id in (fail or ()):
            raise ValueError

    return calls


async def test_stored_on_the_lane_of_the_key_before_the_ack_in_the_order_of_arrival(
    world: World,
) -> None:
    calls = register(world)
    messages = [placed(n, key=f"k{n % 3}") for n in range(9)]
    seen: list[int] = []
    ack = world.subscription.ack

    async def looking(tokens: Any) -> None:
        seen.append(len(world.inbox()))
        await ack(tokens)

    world.subscription.ack = looking  # type: ignore[method-assign]
    await world.feed("ledger", *messages)
    rows = world.inbox()
    assert (calls, seen) == ([], [9])
    assert [row["message_id"] for row in rows] == [m.id for m in messages]
    assert {row["status"] for row in rows} == {"ready"}
    assert [row["lane"] for row in rows] == [place("orders", m.key or "").lane for m in messages]
    assert [bytes(row["payload"]) for row in rows] == [m.payload for m in messages]


async def test_a_redelivered_message_is_stored_once(world: World) -> None:
    register(world)
    messages = [placed(n, key="k") for n in range(3)]
    await world.feed("ledger", *messages)
    await world.feed("ledger", *messages, redelivered=True)
    assert len(world.inbox()) == 3
    assert len(world.subscription.acked) == 6


async def test_rows_are_settled_in_the_handlers_transaction(world: World) -> None:
    register(world, fail=[1])
    await world.feed("ledger", placed(0, key="a"), placed(1, key="b"), placed(2, key="c"))
    world.hold_lanes("ledger")
    verdicts = await world.run_rows("ledger")
    assert [v.kind for v in verdicts] == [
        VerdictKind.SETTLED,
        VerdictKind.RETRY,
        VerdictKind.SETTLED,
    ]
    assert sorted(world.work()) == [0, 2]
    assert [(row["status"], row["payload"] is None) for row in world.inbox()] == [
        ("done", True),
        ("ready", False),
        ("done", True),
    ]


async def test_a_lost_lane_changes_nothing(world: World) -> None:
    register(world)
    await world.feed("ledger", placed(0, key="a"))
    world.hold_lanes("ledger")
    assert [v.kind for v in await world.run_rows("ledger", token=2)] == [VerdictKind.STALE]
    assert world.work() == []
    assert [row["status"] for row in world.inbox()] == ["ready"]


async def test_two_owners_of_one_row_handle_it_once(world: World) -> None:
    """The zombie and its successor: only one of the two transactions finds the row unfinished."""
    register(world)
    await world.feed("ledger", placed(0, key="a"))
    world.hold_lanes("ledger")
    work = InboxWork(world.context, "ledger", connection=world.connection)
    row = world.inbox()[0]
    given = Row(
        row["id"],
        row["message_id"],
        row["message_type"],
        row["kind"],
        row["topic"],
        row["key"],
        row["lane"],
        row["payload"],
        row["headers"],
        row["status"],
        row["attempts"],
        row["handler"],
        row["dedupe_key"],
    )
    verdicts = await work.deliver(
        [given, given], deadline_seconds=5, terms=world.terms("ledger", 1)
    )
    await work.stop(5)
    assert sorted(v.kind.value for v in verdicts) == ["settled", "stale"]
    assert world.work() == [0]


async def test_what_cannot_be_handled_keeps_its_place_and_is_held(world: World) -> None:
    register(world, on_exhausted="block")
    newer = placed(1, key="a", **{HEADER_VERSION: "2"})
    command = Message("c", "ledger.close", "command", "orders", "a", b"{}", {})
    skipped = Message("e", "order.shipped", "event", "orders", "a", b"{}", {})
    await world.feed("ledger", placed(0, key="a"), newer, command, skipped)
    rows = world.inbox()
    assert [row["message_id"] for row in rows][1:] == [newer.id, "c"]
    world.hold_lanes("ledger")
    verdicts = await world.run_rows("ledger")
    assert [v.error.partition(":")[0] for v in verdicts] == ["", "NEWER_VERSION", "UNKNOWN_TYPE"]
    assert [v.kind for v in verdicts][1:] == [VerdictKind.HELD, VerdictKind.HELD]
    work = InboxWork(world.context, "ledger", connection=world.connection)
    blocking = Row(1, "c", "t", "command", "orders", "a", 0, b"", "{}", "ready", 0, "none", "")
    assert work.blocks(blocking)
    assert work.order_key(blocking) == ("orders", "a")


async def test_an_undecodable_row_fails_for_good(world: World) -> None:
    register(world)
    await world.feed("ledger", Message("b", "order.placed", "event", "orders", "a", b"{", {}))
    world.hold_lanes("ledger")
    assert [(v.kind, v.error.partition(":")[0]) for v in await world.run_rows("ledger")] == [
        (VerdictKind.FAILED, "UNDECODABLE")
    ]


async def test_after_an_unclean_exit_ready_rows_count_their_attempts_first(sqlite_url: str) -> None:
    world = World(make_database(sqlite_url), after_unclean_exit=lambda: True)
    seen: list[int] = []

    @world.handlers.on(Placed, group="ledger", order="key", retry=Retry(attempts=1))
    def ledger(event: Placed, tx: Tx) -> None:
        seen.append(world.inbox()[0]["attempts"])
        raise SystemExit

    await world.feed("ledger", placed(0, key="a"))
    world.hold_lanes("ledger")
    assert [v.kind for v in await world.run_rows("ledger")] == [VerdictKind.RETRY]
    assert [v.error.partition(":")[0] for v in await world.run_rows("ledger")] == ["PROCESS_ENDED"]
    assert seen == [1]
    await world.close()


async def test_a_busy_business_key_is_held_also_here(world: World) -> None:
    @world.handlers.on(Placed, group="ledger", order="key", dedupe=lambda e: e.order_id)
    def ledger(event: Placed, tx: Tx) -> None:
        tx.session.execute(text("INSERT INTO work (order_id) VALUES (:o)"), {"o": event.order_id})

    first, second = placed(7, key="a"), placed(7, key="a")
    await world.feed("ledger", first)
    await world.feed("ledger", second)
    assert [(r["message_id"], r["status"]) for r in world.inbox()] == [
        (first.id, "ready"),
        (second.id, "held"),
    ]
    world.hold_lanes("ledger")
    await world.run_rows("ledger")
    await world.run_rows("ledger")
    assert world.work() == [7]
    assert [r["status"] for r in world.inbox()] == ["done", "skipped"]


async def test_a_handler_that_commits_by_itself_does_not_settle_its_row(world: World) -> None:
    @world.handlers.on(Placed, group="ledger", order="key")
    def ledger(event: Placed, tx: Tx) -> None:
        tx.connection.commit()

    message = placed(1, key="a")
    await world.feed("ledger", message)
    world.hold_lanes("ledger")
    assert [v.kind for v in await world.run_rows("ledger")] == [VerdictKind.FAILED]
    row = world.inbox()[0]
    assert (row["status"], bytes(row["payload"])) == ("failed", message.payload)
