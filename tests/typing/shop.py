"""A user's program as type checkers see it; `make types` checks it, nothing runs it."""

from __future__ import annotations

from decimal import Decimal
from typing import assert_type

from sqlalchemy.orm import Session

from duly import App, AsyncTx, Command, Event, Message, Retry, Tx
from duly.background import Task
from duly.calls import Answer, Breaker, Deferred, Fail, Ignore

app = App("shop")


class OrderPlaced(Event, name="order.placed", version=2, topic="orders"):
    """An event with fields."""

    order_id: int
    total: Decimal = Decimal(0)


class ChargeCard(Command, name="billing.charge_card", queue="billing", handled_by="billing"):
    """A command for another service."""

    order_id: int


@app.on(OrderPlaced, group="billing", retry=Retry(attempts=3), order="key")
def bill(event: OrderPlaced, tx: Tx, msg: Message) -> None:
    """Decorated functions keep their types."""
    assert_type(event.order_id, int)
    assert_type(msg.payload, bytes)
    tx.send(ChargeCard(order_id=event.order_id))


@app.handle(ChargeCard, dedupe=lambda command: command.order_id)
async def charge(command: ChargeCard, tx: AsyncTx) -> int:
    """Async handlers too."""
    return command.order_id


def place(session: Session) -> str:
    """Publishing returns the message id."""
    event = OrderPlaced(order_id=7)
    event.total = Decimal(1)  # type: ignore[misc]  # frozen
    OrderPlaced(7)  # type: ignore[call-arg]  # keywords only
    bill(event, Tx(None), Message("", "", "", "", None, b"", {}))  # type: ignore[arg-type]
    return app.publish(session, lambda: event, key=7)


@app.background(pool="mail", workers=4)
def send_receipt(order_id: int, *, copy: bool = False) -> str:
    """A background function keeps its parameters and its result."""
    return f"{order_id} {copy}"


@app.background(pool="push")
async def push(order_id: int) -> Decimal:
    """Async ones, too."""
    return Decimal(order_id)


async def work_aside(session: Session) -> None:
    """What each way gives."""
    assert_type(send_receipt(7), str)
    assert_type(send_receipt.submit(7, copy=True), Task[str])
    assert_type(await send_receipt.after(session).submit(7), str)
    assert_type(send_receipt.durable(session).submit(7), str)
    assert_type(await push(7), Decimal)
    assert_type(push.submit(7).result(), Decimal)
    send_receipt.submit("7")  # type: ignore[arg-type]
    push.after(session).submit()  # type: ignore[call-arg]


@app.call(deadline="2s", retry=Retry(attempts=3, on=(ConnectionError,)), breaker=Breaker())
def price(order_id: int, *, currency: str = "EUR") -> Decimal:
    """A call keeps its parameters and its result."""
    return Decimal(order_id)


@app.call(repeatable=True)
async def rate(currency: str) -> Decimal:
    """Async ones, too."""
    return Decimal(len(currency))


@rate.done
async def rated(answer: Answer[Decimal], tx: AsyncTx) -> None:
    """The answer has the type of the call's result."""
    assert_type(answer.value, Decimal)


async def ask(session: Session) -> None:
    """What each choice gives."""
    assert_type(price(7, currency="USD"), Decimal)
    assert_type(price.using(on_failure=Ignore())(7), Decimal | None)
    assert_type(price.deferrable(session)(7), Decimal | Deferred[Decimal])
    assert_type(await rate("EUR"), Decimal)
    assert_type(await rate.using(on_failure=Fail())("EUR"), Decimal)
    assert_type(await rate.deferrable(session)("EUR"), Decimal | Deferred[Decimal])
    price("7")  # type: ignore[arg-type]
    rate.deferrable(session)()  # type: ignore[call-arg]
