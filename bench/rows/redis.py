"""PostgreSQL and Redis Streams: the relay; and the ground that peers are measured on too.

Both sides write to a server whose settings are read back and printed, every XADD is answered with
its id before a row goes, and the stream must hold all of it at the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from urllib.parse import parse_qs, urlsplit

import redis

from bench.load import TOPIC, check_effects, fill_postgres, fill_queue, prepare_postgres
from bench.measure import Row, Sample, Scale, Sides
from bench.places import database, redis_prefix
from bench.process import run_side

__all__ = ["ROWS", "Ground", "server_facts"]

BACKLOG = 100_000
RAW_PART = 4  # the raw client shows its speed on a quarter
SETTINGS = ("appendonly", "appendfsync")


class Ground:
    """A database and a stream. backlog: how many messages wait for a side."""

    def __init__(self, url: str, broker: str, backlog: int) -> None:
        self._url, self._broker, self._backlog = url, broker, backlog
        self._client = redis.Redis.from_url(broker.partition("?")[0], socket_timeout=60)
        prefix = parse_qs(urlsplit(broker).query)["prefix"][0]
        self._stream = f"{prefix}event:{TOPIC}"
        prepare_postgres(url)

    def relay(self, module: str, *, ours: bool, **arguments: Any) -> Sample:
        """Drain the outbox of a side; all of it must be in the stream then."""
        count = self._backlog // RAW_PART if arguments.get("raw") else self._backlog
        fill_postgres(self._url, 0 if arguments.get("raw") else count, ours=ours)
        self._client.delete(self._stream)
        fill_queue(self._broker, 0)
        if not ours:
            arguments["stream"] = self._stream
        sample = run_side(module, database=self._url, broker=self._broker, count=count, **arguments)
        if (there := self._client.xlen(self._stream)) != count:
            raise RuntimeError(f"{there} messages are in the stream, not {count}")
        return Sample(sample.figure, {**sample.facts, **server_facts(self._client)})

    def consume(self) -> Sample:
        """Handle the backlog in batches; each message must have its one effect then."""
        count = self._backlog
        fill_postgres(self._url, 0, ours=True)
        self._client.delete(self._stream)
        fill_queue(self._broker, count)
        given = {"count": count, "batch": True, "connections": 1}
        sample = run_side("ours.consume", database=self._url, broker=self._broker, **given)
        check_effects(self._url, count)
        return Sample(sample.figure, {**sample.facts, **server_facts(self._client)})


def server_facts(client: Any) -> dict[str, str]:
    """What Redis says of how it keeps what it has confirmed."""
    return {name: client.config_get(name)[name] for name in SETTINGS}


@contextmanager
def _relay(scale: Scale) -> Iterator[Sides]:
    backlog = scale.of(BACKLOG, least=1000) // 1000 * 1000
    # In one transaction: with appendfsync always that is one write to disk per batch, and faster.
    by_hand = "reference.redis_relay"
    given = {"ours": False, "transaction": True}
    with database() as url, redis_prefix() as broker:
        ground = Ground(url, broker, backlog)
        yield Sides(
            ours=partial(ground.relay, "ours.relay", ours=True),
            reference=partial(ground.relay, by_hand, raw=False, **given),
            raw=partial(ground.relay, by_hand, raw=True, **given),
            share_least=0.4,
        )


ROWS = (
    Row(
        "postgres relay redis",
        "messages/s",
        "hand-written loop: select 1000, one pipelined transaction of XADDs (redis-py, hiredis), "
        "delete",
        _relay,
    ),
)
