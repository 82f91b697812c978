"""ActiveMQ Artemis as a participant of global transactions: XA, which STOMP does not have.

XA is spoken by the server's own client, which is Java: ``jvm`` runs it inside this process by JPype
and knows its costs, ``settings`` is the URL, ``session`` one XA session with its errors as ours,
``broker`` what a global transaction asks for.  Leaves out reading: messages are sent in a branch,
never received, and everything but global transactions goes over STOMP.
"""

from duly.brokers.activemq.xa.broker import XaBroker

__all__ = ["XaBroker"]
