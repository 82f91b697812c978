"""The asyncio side of a subscription: batches out, answers in.

``RedisSubscription`` joins its threads - one that reads per group name, one that answers - with the
event loop: one hand-over per read. Invariant: what was read long ago and may belong to somebody
else by now is not handed out (``hand``); after ``close`` an acknowledgement changes nothing.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import AsyncIterator, Sequence
from secrets import token_hex
from typing import Any

from duly.brokers.redis.entries import message_of
from duly.brokers.redis.hand import Hand, Token
from duly.brokers.redis.keeper import Keeper
from duly.brokers.redis.lane import Arrived, Lane, Source, Tell
from duly.brokers.redis.link import boot_seconds
from duly.brokers.redis.reader import make_reader
from duly.brokers.redis.scripts import CONSUMER
from duly.brokers.redis.settings import Settings
from duly.brokers.redis.topology import group_name, lease_name, stream_name
from duly.ports import Delivery, SubscriptionSpec

__all__ = ["RedisSubscription"]

CLOSE_SECONDS = 4.0
READER_SECONDS = 1.0


class RedisSubscription:
    """A running subscription of one group; made by ``RedisBroker.subscribe``."""

    def __init__(self, settings: Settings, spec: SubscriptionSpec, *, tell: Tell) -> None:
        self._spec = spec
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._closed = False
        self._arrived: deque[Arrived] = deque()
        self._hand = Hand(len(spec.topics), prefetch=spec.prefetch)
        self._streams = [stream_name(settings.prefix, topic) for topic in spec.topics]
        lanes = _lanes(settings, spec, tell=tell)
        self._readers = [make_reader(lane, self._hand, self._deliver) for lane in lanes]
        self._keeper = Keeper(settings, lanes, self._hand)
        self._ordered = spec.ordered

    def start(self) -> None:
        """Begin to receive."""
        self._keeper.start()
        for reader in self._readers:
            reader.start()

    def _deliver(self, arrived: list[Arrived]) -> None:
        self._arrived.extend(arrived)
        try:
            self._loop.call_soon_threadsafe(self._wake.set)
        except RuntimeError:  # the loop was closed without closing us: the leases run out
            for reader in self._readers:
                reader.pause()

    async def batches(self) -> AsyncIterator[list[Delivery]]:
        """Batches of 1 to ``prefetch`` deliveries, until closed; goes on after every reconnect."""
        arrived = self._arrived
        while not self._closed:
            batch: list[Delivery] = []
            now = boot_seconds()
            while arrived and len(batch) < self._spec.prefetch:
                one = arrived.popleft()
                if self._hand.give(Token(one.source, one.id), epoch=one.epoch, now=now):
                    batch.append(self._delivery(one))
            if batch:
                yield batch
            elif not arrived:
                self._wake.clear()
                if not arrived:
                    await self._wake.wait()

    def _delivery(self, one: Arrived) -> Delivery:
        stream = self._streams[one.source]
        position = one.id.decode()
        message = message_of(
            one.fields,
            topic=self._spec.topics[one.source].name,
            fallback_id=f"{stream}/{position}",
        )
        return Delivery(message, Token(one.source, one.id), stream, position, one.again)

    async def ack(self, tokens: Sequence[Any]) -> None:
        """These are done. After ``close`` it changes nothing."""
        if tokens and not self._closed:
            self._keeper.ack(tokens)

    async def release(self, tokens: Sequence[Any]) -> None:
        """Give back. For a moment nothing is read here, so that others get them; in an ordered
        group the streams of these go to others as a whole, or come back to us, in order.
        """
        if not tokens or self._closed:
            return
        if self._ordered:
            for source in {token.source for token in tokens}:
                self._hand.turn(source)
            self._hand.drop(tokens)
        else:
            for reader in self._readers:
                reader.pause()
            self._keeper.give_back(tokens)

    async def close(self) -> None:
        """Stop receiving; what is not acknowledged is free for others at once. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._wake.set()
        await asyncio.to_thread(self._keeper.stop, CLOSE_SECONDS, before=self._stop_reading)

    def _stop_reading(self) -> None:
        for reader in self._readers:
            reader.stop(READER_SECONDS)


def _lanes(settings: Settings, spec: SubscriptionSpec, *, tell: Tell) -> list[Lane]:
    """One lane per group name: a command queue has its own."""
    consumer = f"{CONSUMER}{os.getpid()}-{token_hex(6)}"
    sources: dict[str, list[Source]] = {}
    for number, topic in enumerate(spec.topics):
        group, stream = group_name(spec.group, topic), stream_name(settings.prefix, topic)
        lease = lease_name(settings.prefix, group, stream)
        sources.setdefault(group, []).append(Source(number, stream, lease))
    return [
        Lane(settings, group, consumer, spec.ordered, tuple(some), tell)
        for group, some in sources.items()
    ]
