"""A program that captures: run as a process of its own, killed where its environment says."""

from __future__ import annotations

import os
from collections.abc import Iterator

from sqlalchemy import text

from duly import App, Change, ChangeTx, Event
from duly.testing.failpoints import arm_from_environment


class OrderPaid(Event, name="order.paid", topic="orders"):
    order_id: int


def make_app() -> App:
    app = App(
        "shop",
        database=os.environ["CDC_DATABASE"],
        broker="embedded:///:memory:",
        allow_unsafe={"EMBEDDED_MEMORY": "nothing is relayed here"},
        lease_ttl=float(os.environ.get("CDC_LEASE_SECONDS", "5")),
        renew_every=0.4,
        send_timeout=1.0,
    )

    if "CDC_WRITES" in os.environ:
        app.cdc(table="orders", name="paid")(paid_and_booked)
    else:
        app.cdc(table="orders")(paid)
    return app


def paid(change: Change) -> Iterator[OrderPaid]:
    if change.became("status", "paid"):
        yield OrderPaid(order_id=change.key["id"])


def paid_and_booked(change: Change, tx: ChangeTx) -> Iterator[OrderPaid]:
    """Its effect can be seen twice: nothing but the commit keeps it from that."""
    if change.became("status", "paid"):
        tx.session.execute(text("INSERT INTO booked VALUES (:id)"), {"id": change.key["id"]})
        yield from paid(change)


if __name__ == "__main__":
    arm_from_environment()
    make_app().run(["cdc"])
