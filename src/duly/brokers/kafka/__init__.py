"""Apache Kafka: idempotent publishing with acks from all in-sync replicas, offsets as a watermark.

``broker`` is the asyncio face. ``publisher`` runs in a thread of its own, each group's ``consumer``
in another, ``control`` asks the cluster; a blocked event loop costs neither a heartbeat nor a
deadline. ``progress`` decides what is delivered and how far is committed, ``topology`` what is
declared, ``verdicts`` what it is worth, ``records`` how a message looks on the wire, ``settings``
the URL. No Kafka transactions: a handler's effects are in a database, which they do not cover.
"""

from duly.errors import MissingExtraError

try:
    import confluent_kafka  # noqa: F401  # the first thing that needs it says which extra is missing
except ImportError:  # pragma: no cover - the extra is installed where this is tested
    raise MissingExtraError("confluent_kafka", "kafka") from None

from duly.brokers.kafka.broker import KafkaBroker
from duly.brokers.kafka.topology import topic_name

__all__ = ["KafkaBroker", "topic_name"]
