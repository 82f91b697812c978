"""RabbitMQ over AMQP 0-9-1: confirmed publishing, manual acks, quorum queues.

``broker`` is the asyncio face. Everything that touches a connection runs in one thread of ours
(``thread``), so that a blocked event loop costs neither a heartbeat nor a deadline: ``link`` keeps
a connection, ``publisher`` counts confirms, ``consumer`` receives, ``topology`` declares.
``frames`` is the fast lane beside pika, ``settings`` the URL.
"""

from duly.errors import MissingExtraError

try:
    import pika  # noqa: F401  # the first thing that needs it says which extra is missing
except ImportError:  # pragma: no cover - the extra is installed where this is tested
    raise MissingExtraError("pika", "rabbitmq") from None

from duly.brokers.rabbitmq.broker import RabbitMQBroker
from duly.brokers.rabbitmq.topology import queue_name

__all__ = ["RabbitMQBroker", "queue_name"]
