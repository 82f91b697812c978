"""A user's program as type checkers see it; `make types` checks it, nothing runs it."""

from __future__ import annotations

from decimal import Decimal
from typing import assert_type

from sqlalchemy.orm import Session

from duly import App, AsyncTx, Command, Event, Message, Retry, Tx

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
