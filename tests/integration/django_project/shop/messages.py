"""The App of the shop: an order is billed once, whatever dies in between."""

import os
import signal
import threading
from datetime import UTC, datetime
from decimal import Decimal

from django.db import connections, transaction

from duly import App, Command, Event, Retry, Tx
from duly.frameworks.django import from_settings, publish

app = App("shop", **from_settings())


class OrderPlaced(Event, name="order.placed", topic="orders"):
    number: int


class Billed(Event, name="order.billed", topic="bills"):
    number: int


class Ship(Command, name="shipping.ship", queue="shipping"):
    number: int


@app.on(OrderPlaced, group="billing")
def bill(event: OrderPlaced, tx: Tx) -> None:
    from shop.models import Invoice, Order

    _begun(event.number)
    with tx.read():
        known = Order.objects.filter(number=event.number).count()  # SELECT before the transaction
    assert tx.using == "default"
    invoice = Invoice.objects.create(
        number=event.number, total=Decimal("12.50"), details={"known": known, "list": [1, None]}
    )
    try:
        with transaction.atomic():
            Invoice.objects.create(number=event.number, total=1)
            publish(Billed(number=-1))
            raise LookupError
    except LookupError:
        pass  # the savepoint has taken its rows and messages along
    invoice.refresh_from_db()
    assert (invoice.total, invoice.paid) == (Decimal("12.50"), False)
    assert invoice.details == {"known": known, "list": [1, None]}
    assert abs((datetime.now(UTC) - invoice.billed_at).total_seconds()) < 60
    tx.publish(Billed(number=event.number))
    transaction.on_commit(lambda: _committed(event.number))
    _worked(event.number)


@app.on(Billed, group="misuse", retry=Retry(attempts=1))
def misuse(event: Billed, tx: Tx) -> None:
    """Whatever a handler tries, the transaction stays duly's; told by what is in the inbox."""
    from shop.models import Archived, Invoice

    Invoice.objects.filter(number=event.number).update(paid=True)
    Archived.objects.create(number=event.number)
    ways = os.environ.get("SHOP_MISUSE", "").split(",")
    way = ways[event.number % len(ways)]
    if way == "commit":
        transaction.commit()
    elif way == "close":
        connections["default"].close()
    elif way == "durable":
        with transaction.atomic(durable=True):
            pass
    elif way == "set_rollback":
        transaction.set_rollback(True)
    elif way == "driver":
        connections["default"].connection.commit()


# Where the test asks for it, this process is killed at the one moment when order 1 is committed and
# not yet acknowledged, and order 2 has done its work and is not committed.
KILLED = "SHOP_KILLED" in os.environ
COMMITTED = threading.Event()


def _begun(number: int) -> None:
    if KILLED and number == 2:
        assert COMMITTED.wait(30)


def _committed(number: int) -> None:
    if KILLED and number == 1:
        COMMITTED.set()
        threading.Event().wait(30)


def _worked(number: int) -> None:
    if KILLED and number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
