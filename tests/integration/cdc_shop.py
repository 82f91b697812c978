"""A program that captures: run as a process of its own, killed where its environment says."""

from __future__ import annotations

import os
from collections.abc import Iterator

from duly import App, Change, Event
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

    @app.cdc(table="orders")
    def paid(change: Change) -> Iterator[OrderPaid]:
        if change.became("status", "paid"):
            yield OrderPaid(order_id=change.key["id"])

    return app


if __name__ == "__main__":
    arm_from_environment()
    make_app().run(["cdc"])
