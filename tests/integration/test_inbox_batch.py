"""Batch handlers: one transaction for all, only for what is new, and one by one when it fails."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import text

from duly.errors import BatchError
from duly.inbox.transaction import AsyncTx, Tx
from duly.message import Message
from duly.observe.facts import Duplicate, Handled
from tests.integration.inbox_world import (
    Charge,
    Placed,
    World,
    placed,
)


def insert(tx: Tx, events: list[Placed]) -> None:
    tx.session.execute(
        text("INSERT INTO work (order_id) VALUES (:o)"), [{"o": e.order_id} for e in events]
    )


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_batch_is_one_transaction_of_the_fresh_ones(world: World, is_async: bool) -> None:
    batches: list[list[int]] = []
    ids: list[list[str]] = []

    if is_async:

        @world.handlers.on(Placed, group="count")
        async def count_async(events: list[Placed], tx: AsyncTx, msgs: list[Message]) -> None:
            batches.append([e.order_id for e in events])
            ids.append([m.id for m in msgs])
            values = [{"o": e.order_id} for e in events]
            await tx.session.execute(text("INSERT INTO work (order_id) VALUES (:o)"), values)
            tx.send(Charge(order_id=len(events)))

    else:

        @world.handlers.on(Placed, group="count")
        def count(events: list[Placed], tx: Tx, msgs: list[Message]) -> None:
            batches.append([e.order_id for e in events])
            ids.append([m.id for m in msgs])
            insert(tx, events)
            tx.send(Charge(order_id=len(events)))

    messages = [placed(n) for n in range(6)]
    await world.feed("count", *messages[:4], messages[0])  # one of them twice in one batch
    await world.feed("count", *messages)
    assert batches == [[0, 1, 2, 3], [4, 5]]
    assert ids == [[m.id for m in messages[:4]], [m.id for m in messages[4:]]]
    assert world.work() == [0, 1, 2, 3, 4, 5]
    assert [bytes(row["payload"]) for row in world.outbox()] == [
        b'{"order_id":4}',
        b'{"order_id":2}',
    ]
    assert sum(f.count for f in world.facts if isinstance(f, Handled)) == 6
    assert sum(f.count for f in world.facts if isinstance(f, Duplicate)) == 5


async def test_the_size_of_a_batch_is_limited(world: World) -> None:
    sizes: list[int] = []

    @world.handlers.on(Placed, group="count", batch=3, concurrency=1)
    def count(events: list[Placed]) -> None:
        sizes.append(len(events))

    await world.feed("count", *(placed(n) for n in range(7)))
    assert sizes == [3, 3, 1]


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_failed_batch_is_tried_one_by_one_once(world: World, is_async: bool) -> None:
    sizes: list[int] = []

    def check(events: list[Placed]) -> None:
        sizes.append(len(events))
        if any(e.order_id == 2 for e in events):
            raise ValueError

    if is_async:

        @world.handlers.on(Placed, group="count")
        async def count_async(events: list[Placed], tx: AsyncTx) -> None:
            for event in events:
                await tx.session.execute(
                    text("INSERT INTO work (order_id) VALUES (:o)"), {"o": event.order_id}
                )
            check(events)

    else:

        @world.handlers.on(Placed, group="count")
        def count(events: list[Placed], tx: Tx) -> None:
            insert(tx, events)
            check(events)

    await world.feed("count", *(placed(n) for n in range(5)))
    assert sizes == [5, 1, 1, 1, 1, 1]
    assert world.work() == [0, 1, 3, 4]
    assert sorted((r["status"], r["attempts"]) for r in world.inbox()) == [("done", 0)] * 4 + [
        ("retry", 1)
    ]


@pytest.mark.parametrize("name_by", ["place", "object", "message"])
async def test_batch_error_names_the_culprits_and_the_rest_is_one_batch_again(
    world: World, name_by: str
) -> None:
    batches: list[list[int]] = []

    @world.handlers.on(Placed, group="count")
    def count(events: list[Placed], tx: Tx, msgs: list[Message]) -> None:
        batches.append([e.order_id for e in events])
        insert(tx, events)
        bad: list[Any] = [n for n, e in enumerate(events) if e.order_id in (1, 3)]
        if bad:
            raise BatchError(
                {
                    "place": bad,
                    "object": [events[n] for n in bad],
                    "message": [msgs[n] for n in bad],
                }[name_by]
            )

    await world.feed("count", *(placed(n) for n in range(5)))
    assert batches == [[0, 1, 2, 3, 4], [0, 2, 4]]
    assert world.work() == [0, 2, 4]
    failed = [row for row in world.inbox() if row["status"] == "retry"]
    assert [row["last_error"].partition(":")[0] for row in failed] == ["BATCH_PARTLY_FAILED"] * 2


async def test_an_undecodable_one_does_not_spoil_the_batch(world: World) -> None:
    batches: list[int] = []

    @world.handlers.on(Placed, group="count")
    def count(events: list[Placed], tx: Tx) -> None:
        batches.append(len(events))
        insert(tx, events)

    bad = Message("bad", "order.placed", "event", "orders", None, b"{", {})
    await world.feed("count", placed(1), bad, placed(2))
    assert (batches, world.work()) == ([2], [1, 2])
    assert {r["status"] for r in world.inbox() if r["message_id"] == "bad"} == {"failed"}


async def test_what_a_batch_publishes_is_gone_with_it(world: World) -> None:
    @world.handlers.on(Placed, group="count")
    def count(events: list[Placed], tx: Tx) -> None:
        for event in events:
            tx.send(Charge(order_id=event.order_id))
        if len(events) > 1 or events[0].order_id == 1:
            raise ValueError

    await world.feed("count", placed(0), placed(1), placed(2))
    assert sorted(bytes(row["payload"]) for row in world.outbox()) == [
        b'{"order_id":0}',
        b'{"order_id":2}',
    ]


async def test_an_effect_in_a_batch_is_refused(world: World) -> None:
    calls: list[int] = []

    @world.handlers.on(Placed, group="count")
    def count(events: list[Placed], tx: Tx) -> None:
        tx.effect("ask", calls.append, 1)

    await world.feed("count", placed(0))
    assert calls == []
    assert [row["last_error"].partition(":")[0] for row in world.inbox()] == [
        "EFFECT_INSIDE_TRANSACTION"
    ]


async def test_stored_rows_of_a_batch_handler_come_back_one_by_one(world: World) -> None:
    sizes: list[int] = []

    @world.handlers.on(Placed, group="count")
    def count(events: list[Placed], tx: Tx) -> None:
        sizes.append(len(events))
        insert(tx, events)

    await world.feed("count", placed(0), placed(1), redelivered=True)
    world.hold_lanes("count")
    await world.run_rows("count")
    assert (sizes, sorted(world.work())) == ([1, 1], [0, 1])
    assert [row["status"] for row in world.inbox()] == ["done", "done"]
