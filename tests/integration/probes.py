"""What the probes of both dialects have in common: a shop on a database, and interleaving."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from sqlalchemy.orm import Session

from duly import Tx
from duly.inbox.context import Job
from duly.inbox.ending import End, Ending
from duly.inbox.identity import Identity, message_key
from duly.inbox.runner import run
from duly.ports import Database, Result, Statement, Steps
from duly.runtime.desk import Desk
from duly.testing.drain import consume_context
from tests.acceptance.shop_app import Placed, Shop, insert, placed

BLOCKED_SECONDS = 0.4


def in_thread(function: Callable[[], Any]) -> Future[Any]:
    """Run something that may have to wait."""
    future: Future[Any] = Future()

    def work() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future


def blocked(future: Future[Any]) -> bool:
    """Whether it is still waiting a moment later."""
    try:
        future.result(BLOCKED_SECONDS)
    except TimeoutError:
        return True
    return False


def order_ids(shop: Shop) -> list[int]:
    """The orders in the outbox, in the order of row ids."""
    payloads = shop.query("SELECT payload FROM duly_outbox ORDER BY id")
    return [shop.app.registry.decode(spec(shop), bytes(payload)).order_id for payload in payloads]


def spec(shop: Shop) -> Any:
    return shop.app.registry.of(Placed)


def arrived(messages: Any, shop: Shop) -> list[int]:
    """The orders of messages, in their order."""
    return [shop.app.registry.decode(spec(shop), message.payload).order_id for message in messages]


def two_consumers_of_one_message(shop: Shop, *, first_fails: bool) -> tuple[End, End, int]:
    """P10: the second comes while the first is inside its handler; how both end, and how often the
    handler began.
    """
    inside, go = threading.Event(), threading.Event()
    begun: list[int] = []

    @shop.app.on(Placed, group="sales")
    def handle(event: Placed, tx: Tx) -> None:
        tx.session.execute(insert(event.order_id))
        begun.append(event.order_id)
        if len(begun) == 1:
            inside.set()
            assert go.wait(10)
            if first_fails:
                raise RuntimeError

    shop.prepare()
    context = consume_context(shop.app)
    (handler,) = shop.app.handlers.of_group("sales")
    message = placed(b'{"order_id":7}')
    identity = Identity("sales", handler.name, message_key(message))

    def consume() -> Ending:
        desk = Desk(shop.app.database, limit_seconds=30, turn=context.turn)
        try:
            return run(context, desk, Job(handler, [message], [identity]))[0]
        finally:
            desk.close()

    first = in_thread(consume)
    assert inside.wait(10)
    second = in_thread(consume)
    assert blocked(second), "the second claims the message while the first has it"
    go.set()
    return first.result(20).end, second.result(20).end, len(begun)


async def through_two_relays(shop: Shop, url: str) -> list[int]:
    """P12: 200 orders of one key, half of them while two relays work; gives them as they arrived.

    url: of the shop's database, for the second relay.
    """
    shop.prepare()
    other = Shop(url, shop.app.settings.broker)
    for one in (shop, other):
        one.app.on(Placed, group="sales")(lambda event: None)
    for n in range(1, 101):
        shop.place(n, key="k")
    async with shop.app.running(["relay"]) as one, other.app.running(["relay"]) as two:
        for n in range(101, 201):
            await asyncio.to_thread(shop.place, n, key="k")
        for running in (one, two):
            await asyncio.wait_for(running.settled(), 20)
    broker = shop.app.make_broker()
    await broker.start()
    try:
        peeked = await broker.peek("orders", after="", limit=1_000)
    finally:
        await broker.close()
        other.close()
    return arrived([one.message for one in peeked], shop)


def publish_around_savepoints(shop: Shop) -> None:
    """P15: orders 1 and 3 in a transaction that commits, order 2 in a savepoint that does not."""
    shop.prepare()
    with Session(shop.engine) as session, session.begin():
        shop.app.publish(session, Placed(order_id=1))
        inner = session.begin_nested()
        shop.app.publish(session, Placed(order_id=2))
        session.execute(insert(-2))
        session.flush()
        inner.rollback()
        with session.begin_nested():
            shop.app.publish(session, Placed(order_id=3))


def beat_past_the_end(
    database: Database, *, ttl_seconds: float, wait: Callable[[], None]
) -> tuple[Result, Result]:
    """P16: a beat and a burial in the transaction that has taken the lease, after ``wait``."""
    member = {"name": "member/x", "ttl_seconds": ttl_seconds}

    def steps() -> Steps[tuple[Result, Result]]:
        yield Statement("lease.join", {**member, "holder": "x", "scopes": "[]"})
        wait()
        beat = yield Statement("lease.beat", {**member, "asleep": False})
        buried = yield Statement("lease.bury")
        return beat, buried

    connection = database.connect()
    try:
        return connection.run(steps())
    finally:
        connection.close()
