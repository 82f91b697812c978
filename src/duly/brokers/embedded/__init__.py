"""The embedded broker: a durable log with consumer groups in a SQLite file, shared by many
processes.

``broker`` is its asyncio face, ``engine`` the thread that owns the file, ``log`` what is stored and
in which order, ``claims`` who reads what, ``reader`` how far each group is, ``schema`` the file
itself.
"""

from duly.brokers.embedded.broker import EmbeddedBroker

__all__ = ["EmbeddedBroker"]
