"""The asyncio side of receiving: batches of one or more readers, decoded as they are asked for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from duly.brokers.kafka.consumer import Raw, Reader, Token
from duly.brokers.kafka.records import from_record
from duly.brokers.kafka.settings import Settings
from duly.brokers.kafka.topology import Starts, groups_of
from duly.ports import Delivery, SubscriptionSpec

__all__ = ["KafkaSubscription"]

CLOSE_SECONDS = 3.0


class KafkaSubscription:
    """A running subscription of one group; made by ``KafkaBroker.subscribe``.

    Its event topics are read by one consumer, each command queue by another: a queue has a group of
    its own, whoever reads it.
    """

    def __init__(self, settings: Settings, spec: SubscriptionSpec, starts: Starts) -> None:
        groups = groups_of(spec, settings.prefix)
        self._names = {name: t.name for read in groups.values() for name, t in read.items()}
        self._prefetch = spec.prefetch
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._closed = False
        self._readers = [
            Reader(
                settings,
                group,
                topics=list(read),
                prefetch=max(1, spec.prefetch // len(groups)),
                starts=starts,
                notify=self._notify,
            )
            for group, read in groups.items()
        ]
        for reader in self._readers:
            reader.start()

    def _notify(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._wake.set)
        except RuntimeError:  # the loop was closed without closing us
            self._closed = True

    async def batches(self) -> AsyncIterator[list[Delivery]]:
        """Batches of 1 to ``prefetch`` deliveries, until closed; goes on after every rebalance."""
        while not self._closed:
            self._wake.clear()
            batch: list[Raw] = []
            for reader in self._readers:
                batch += reader.take(self._prefetch - len(batch))
            if batch:
                yield [self._delivery(raw) for raw in batch]
            else:
                await self._wake.wait()

    def _delivery(self, raw: Raw) -> Delivery:
        progress, offset = raw.token
        message = from_record(raw.record, topic=self._names[progress.place[0]])
        return Delivery(message, raw.token, progress.source, str(offset), raw.again)

    async def ack(self, tokens: Sequence[Any]) -> None:
        """These are done. Late acks of a partition that has moved are dropped."""
        self._share(tokens, Reader.ack)

    async def release(self, tokens: Sequence[Any]) -> None:
        """Give back; others get them when the partition moves, else we after a moment."""
        self._share(tokens, Reader.release)

    def _share(self, tokens: Sequence[Token], answer: Any) -> None:
        if len(self._readers) == 1:
            answer(self._readers[0], tokens)
            return
        for reader in self._readers:
            mine = [token for token in tokens if token.progress.place[0] in reader.topics]
            if mine:
                answer(reader, mine)

    async def close(self) -> None:
        """Stop receiving and leave the groups; what is not acked comes to others. Idempotent."""
        self._closed = True
        self._wake.set()
        await asyncio.gather(
            *(asyncio.to_thread(reader.close, CLOSE_SECONDS) for reader in self._readers)
        )
