"""Redis 6.2 or newer: Streams with consumer groups, and Pub/Sub for what may be lost.

``broker`` is the asyncio face of Streams. One thread publishes (``publisher``); a subscription has
one that reads (``reader``) and one that answers (``keeper``), so that a blocked event loop costs no
lease. ``link`` keeps a connection, ``scripts`` holds what must happen in one step on the server,
``entries`` is the wire format, ``topology`` names and declares, ``inspection`` judges the server.
"""

from duly.errors import MissingExtraError

try:
    import redis  # noqa: F401  # the first thing that needs it says which extra is missing
except ImportError:  # pragma: no cover - the extra is installed where this is tested
    raise MissingExtraError("redis", "redis") from None

from duly.brokers.redis.broker import RedisBroker
from duly.brokers.redis.pubsub import RedisPubSubBroker
from duly.brokers.redis.topology import stream_name

__all__ = ["RedisBroker", "RedisPubSubBroker", "stream_name"]
