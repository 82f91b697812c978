"""PostgreSQL and NATS JetStream: the relay.

File storage, one replica, the server's own sync interval, every publish answered by the stream, on
both sides.  The stream is emptied before each measurement, and counted after it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import nats
from nats.js.api import StreamInfo

from bench.load import TOPIC, fill_postgres, fill_queue, prepare_postgres
from bench.measure import Row, Sample, Scale, Sides
from bench.places import database, nats_prefix
from bench.process import run_side

__all__ = ["ROWS"]

BACKLOG = 100_000
RAW_PART = 4  # the raw client shows its speed on a quarter


class _Ground:
    """A database and a stream with one reader, who reads nothing."""

    def __init__(self, url: str, broker: str, backlog: int) -> None:
        self._url, self._broker, self._backlog = url, broker, backlog
        prepare_postgres(url)
        fill_queue(broker, 0)

    def relay(self, module: str, *, ours: bool, **arguments: Any) -> Sample:
        """Drain the outbox of a side; all of it must be in the stream then."""
        raw = max(1000, self._backlog // RAW_PART // 1000 * 1000)
        count = raw if arguments.get("raw") else self._backlog
        fill_postgres(self._url, 0 if arguments.get("raw") else count, ours=ours)
        asyncio.run(self._stream(purge=True))
        sample = run_side(module, database=self._url, broker=self._broker, count=count, **arguments)
        found = asyncio.run(self._stream())
        if found.state.messages != count:
            raise RuntimeError(f"{found.state.messages} messages are in the stream, not {count}")
        config = found.config
        facts = {"storage": str(config.storage), "num_replicas": config.num_replicas}
        return Sample(sample.figure, {**sample.facts, **facts})

    async def _stream(self, *, purge: bool = False) -> StreamInfo:
        parts = urlsplit(self._broker)
        client = await nats.connect(parts._replace(path="").geturl())
        try:
            streams, name = client.jetstream(timeout=60), f"{parts.path[1:]}-event-{TOPIC}"
            if purge:
                await streams.purge_stream(name)
            return await streams.stream_info(name)
        finally:
            await client.close()


@contextmanager
def _relay(scale: Scale) -> Iterator[Sides]:
    backlog = scale.of(BACKLOG, least=1000) // 1000 * 1000
    with database() as url, nats_prefix() as broker:
        ground = _Ground(url, broker, backlog)
        yield Sides(
            ours=partial(ground.relay, "ours.relay", ours=True),
            reference=partial(ground.relay, "reference.nats_relay", ours=False, raw=False),
            raw=partial(ground.relay, "reference.nats_relay", ours=False, raw=True),
            share_least=0.3,
        )


ROWS = (
    Row(
        "postgres relay nats",
        "messages/s",
        "hand-written loop: select 1000, publish with one reply inbox per batch (nats-py, "
        "JetStream file storage), delete",
        _relay,
    ),
)
