"""NATS JetStream: publishes answered one by one, explicit acks, one stream per topic.

``broker`` is the asyncio face. Everything that touches a connection runs in one thread of ours
(``thread``), so that a blocked event loop costs neither a deadline nor the "in progress" that
keeps a message ours: ``link`` keeps a connection, ``publisher`` counts answers, ``consumer``
pulls, ``api`` asks, ``topology`` names and declares. ``frames`` and ``headers`` are the bytes,
``durability`` what ``check`` says, ``settings`` the URL.
"""

from duly.errors import MissingExtraError

try:
    import nats  # noqa: F401  # the first thing that needs it says which extra is missing
except ImportError:  # pragma: no cover - the extra is installed where this is tested
    raise MissingExtraError("nats", "nats") from None

from duly.brokers.nats.broker import NatsBroker
from duly.brokers.nats.topology import consumer_name, stream_name, subject_of

__all__ = ["NatsBroker", "consumer_name", "stream_name", "subject_of"]
