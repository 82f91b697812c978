"""duly as a Django application: ``INSTALLED_APPS += ["duly.frameworks.django"]``.

Owns what a Django project calls: ``from_settings`` (the App on Django's database), ``publish`` and
``send`` inside ``transaction.atomic()``.  The invariant: a message commits with the rows of the
block it was published in, and a handler's ORM work commits with the record that it handled the
message.  Left out: async handlers, whose ORM calls Django runs on other threads' connections.

    DULY = {"app": "shop.messages:app", "broker": "amqp://..."}        # settings.py
    app = App("shop", **from_settings())                               # shop/messages.py
    with transaction.atomic():                                         # anywhere
        order.save()
        publish(OrderPlaced(order_id=order.pk), key=order.customer_id)
"""

from __future__ import annotations

from typing import Any

from duly.frameworks.django.configuration import current_app, from_settings
from duly.frameworks.django.source import DjangoDatabase

__all__ = ["DjangoDatabase", "current_app", "from_settings", "publish", "send"]


def publish(message: Any, *, using: str | None = None, **options: Any) -> str:
    """Publish an event with the innermost ``atomic()`` block and return its id.

    message: an event, or a callable that gives one, which is called at once. using: the alias of
    the connection; by default where the router writes ``duly.OutboxMessage``. options: ``key``,
    ``headers``, ``outbox``, ``policy`` of ``App.publish``. Guarantee: committed together, or not at
    all. On failure: the block is marked for rollback. Idempotence: none.
    Raises NotInTransactionError (NOT_IN_ATOMIC) and what ``App.publish`` raises.
    """
    return str(current_app().publish(_connection(using), message, **options))


def send(message: Any, *, using: str | None = None, **options: Any) -> str:
    """Send a command with the innermost ``atomic()`` block; as ``publish``."""
    return str(current_app().send(_connection(using), message, **options))


def _connection(using: str | None) -> Any:
    from django.db import connections, router

    from duly.frameworks.django.models import OutboxMessage

    return connections[using or router.db_for_write(OutboxMessage)]
