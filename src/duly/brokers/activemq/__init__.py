"""ActiveMQ Artemis over STOMP 1.2: local transactions with a receipt each, acks one by one.

``broker`` is the asyncio face. Everything that touches a connection runs in one thread of ours
(``thread``), so that a blocked event loop costs neither a heartbeat nor a deadline: ``link`` keeps
a connection, ``publisher`` counts receipts, ``consumer`` receives, ``api`` asks the server's
management, ``topology`` names and declares. ``frames`` and ``entries`` are the bytes, ``verdicts``
what ``check`` says, ``settings`` the URL. No driver is needed: STOMP is text in a socket.
"""

from duly.brokers.activemq.broker import ActiveMQBroker
from duly.brokers.activemq.topology import address_of, queue_name

__all__ = ["ActiveMQBroker", "address_of", "queue_name"]
