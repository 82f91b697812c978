"""Receiving: one channel per subscription, manual acks, batches handed to the event loop.

``Consumer`` lives in the I/O thread: it declares, consumes, and gathers what one read of the socket
brought into one hand-over - the first message at once when idle, up to ``prefetch`` under load.
``RabbitMQSubscription`` is its asyncio side. Invariant: only deliveries of the channel that is open
now are acked; acks and releases of an earlier one are dropped, because its deliveries went back to
the queue when it closed.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any

import msgspec

from duly.brokers.rabbitmq import frames
from duly.brokers.rabbitmq.envelopes import Envelopes
from duly.brokers.rabbitmq.link import FastConnection, Link
from duly.brokers.rabbitmq.topology import declare_steps, drive, queue_name, refusal
from duly.errors import DulyError
from duly.ports import Delivery, SubscriptionSpec

__all__ = ["Consumer", "RabbitMQSubscription", "Token"]

REOPEN_SECONDS = 1.0
RELEASE_PAUSE_SECONDS = 1.0
CLOSE_SECONDS = 3.0

_log = logging.getLogger("duly.brokers.rabbitmq")


class Token(msgspec.Struct, frozen=True, gc=False):
    """What ack needs. channel: counts the channels this subscription has had."""

    channel: int
    tag: int


class _Raw(msgspec.Struct, frozen=True, gc=False):
    """A delivery as it came: its content header is decoded by who reads it."""

    token: Token
    source: int
    redelivered: bool
    header: bytes
    body: bytes


class Acks:
    """Which deliveries of a channel are answered, to answer many at once. Pure."""

    def __init__(self) -> None:
        self._low = 0  # every tag up to it is answered
        self._early: set[int] = set()

    def take(self, tags: Sequence[int]) -> tuple[int, list[int]]:
        """The tag to answer with ``multiple``, or 0, and those to answer one by one."""
        fresh = self.fresh(tags)
        upto = max((t for t in fresh if t <= self._low), default=0)
        return upto, [t for t in fresh if t > upto]

    def fresh(self, tags: Iterable[int]) -> list[int]:
        """Those not answered before, in order; they count as answered from now on."""
        fresh = sorted({t for t in tags if t > self._low and t not in self._early})
        self._early.update(fresh)
        while self._low + 1 in self._early:
            self._low += 1
            self._early.discard(self._low)
        return fresh


class Consumer:
    """The I/O side of a subscription. notify: called in the I/O thread when messages came."""

    def __init__(self, link: Link, spec: SubscriptionSpec, notify: Callable[[], None]) -> None:
        self._link = link
        self._io = link.io
        self._spec = spec
        self._notify = notify
        self._notified = False
        self._channel: Any = None
        self._number = 0
        self._acks = Acks()
        self._parts: list[bytes] = []
        self._missing_bytes = 0
        self._method = frames.Delivered(b"", 0, False)
        self._header = b""
        self._closed = False
        self._opening = False
        self._active = 0  # consumers that the server may deliver to
        self._cancelling = False
        self._returning: list[int] = []
        self.queues = [queue_name(spec.group, topic) for topic in spec.topics]
        self.arrived: deque[_Raw] = deque()

    # --- channel ------------------------------------------------------------------------------
    def up(self, connection: FastConnection) -> None:
        """Open a channel, declare, consume."""
        if self._closed or self._opening or self._channel is not None:
            return
        self._opening = True

        def opened(channel: Any) -> None:
            channel.add_on_close_callback(self._on_closed)
            channel.add_on_cancel_callback(lambda _method: channel.close(320, "queue is gone"))
            steps = declare_steps(
                channel, self._link.settings, topics=[], subscriptions=[self._spec]
            )
            drive(channel, steps, lambda: self._consume(connection, channel))

        connection.channel(on_open_callback=opened)

    def _consume(self, connection: FastConnection, channel: Any) -> None:
        self._opening = False
        if self._closed:
            channel.close()
            return
        self._number += 1
        self._acks = Acks()
        self._channel = channel
        connection.lanes[channel.channel_number] = self
        each = max(1, self._spec.prefetch // len(self.queues))
        channel.basic_qos(prefetch_count=min(each, 65_535), callback=lambda _ok: self._start())

    def _start(self) -> None:
        channel = self._channel
        if channel is not None and channel.is_open and not self._closed:
            self._active = len(self.queues)
            for i, queue in enumerate(self.queues):
                channel.basic_consume(queue, lambda *_: None, consumer_tag=str(i))

    def down(self, _reason: DulyError) -> None:
        """Everything delivered went back to the queues."""
        self._opening = False
        self._channel = None
        self._active = 0
        self._cancelling = False
        self._returning = []
        self.arrived.clear()

    def _on_closed(self, channel: Any, reason: Any) -> None:
        connection = self._link.connection
        if connection is not None:
            connection.lanes.pop(channel.channel_number, None)
        self.down(refusal(reason))
        if not self._closed and connection is not None and connection.is_open:
            _log.warning("%s stopped: %s", ", ".join(self.queues), refusal(reason).detail)
            self._io.later(REOPEN_SECONDS, self._reopen)

    def _reopen(self) -> None:
        connection = self._link.connection
        if connection is not None and connection.is_open:
            self.up(connection)

    def close(self) -> None:
        """Stop receiving; closing the channel gives back what is not acked."""
        self._closed = True
        if self in self._link.users:
            self._link.users.remove(self)
        if self._channel is not None and self._channel.is_open:
            self._leave(self._channel)
        self.arrived.clear()

    @staticmethod
    def _leave(channel: Any) -> None:
        """Give everything back before the server chooses the heir of an ordered queue: pika would
        cancel first, and the heir begin behind what is still ours.
        """
        channel._consumers.clear()
        channel.close()

    # --- deliveries ---------------------------------------------------------------------------
    def frame(self, kind: int, buffer: bytes, span: tuple[int, int]) -> bool:
        """Deliveries; everything else is pika's."""
        start, end = span
        if kind == frames.BODY:
            self._parts.append(buffer[start:end])
            self._missing_bytes -= end - start
            if self._missing_bytes <= 0:
                self._deliver()
        elif kind == frames.HEADER:
            self._header = buffer[start:end]
            self._missing_bytes = int.from_bytes(self._header[4:12], "big")
            if not self._missing_bytes:
                self._deliver()
        elif buffer[start : start + 4] == frames.DELIVER:
            self._method = frames.decode_deliver(buffer, start + 4)
        else:
            return False
        return True

    def _deliver(self) -> None:
        consumer, tag, redelivered = self._method
        parts, self._parts = self._parts, []
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        token = Token(self._number, tag)
        self.arrived.append(_Raw(token, int(consumer), redelivered, self._header, body))
        if not self._notified:
            self._notified = True
            self._io.loop.add_callback(self._hand_over)  # after the rest of this read

    def _hand_over(self) -> None:
        self._notified = False
        if self.arrived:
            self._notify()

    # --- answers ------------------------------------------------------------------------------
    def ack(self, tokens: Sequence[Token]) -> None:
        """Ack those of the channel that is open now."""
        channel, connection = self._channel, self._link.connection
        if channel is None or connection is None or not channel.is_open:
            return
        upto, single = self._acks.take([t.tag for t in tokens if t.channel == self._number])
        number = channel.channel_number
        out = [frames.ack(number, upto, multiple=True)] if upto else []
        out += [frames.ack(number, tag, multiple=False) for tag in single]
        if out:
            connection.emit(b"".join(out))

    def release(self, tokens: Sequence[Token]) -> None:
        """Stop consuming for a second, so that others get what is given back. In order, so of an
        ordered group all that is in hand: the channel is opened anew.
        """
        channel = self._channel
        tags = [t.tag for t in tokens if t.channel == self._number]
        if not tags or channel is None or not channel.is_open:
            return
        if self._spec.ordered:
            self._leave(channel)
            return
        self._returning += tags
        if self._active == 0:
            self._give_back(channel)
        elif not self._cancelling:
            self._cancelling = True
            for i in range(len(self.queues)):
                channel.basic_cancel(str(i), callback=lambda _ok: self._cancelled(channel))

    def _cancelled(self, channel: Any) -> None:
        if self._channel is channel and channel.is_open:
            self._active -= 1
            if self._active == 0:
                self._cancelling = False
                self._give_back(channel)
                self._io.later(RELEASE_PAUSE_SECONDS, lambda: self._resume(channel))

    def _give_back(self, channel: Any) -> None:
        """Requeue what was released and what nobody has seen yet, in the order it came."""
        connection = self._link.connection
        tags = sorted({*self._returning, *(raw.token.tag for raw in self.arrived)})
        self._returning = []
        self.arrived.clear()
        fresh = self._acks.fresh(tags)
        if fresh and connection is not None:
            number = channel.channel_number
            connection.emit(b"".join(frames.requeue(number, tag) for tag in fresh))

    def _resume(self, channel: Any) -> None:
        if self._channel is channel:
            self._start()


class RabbitMQSubscription:
    """A running subscription of one group; made by ``RabbitMQBroker.subscribe``."""

    def __init__(self, link: Link, spec: SubscriptionSpec) -> None:
        self._io = link.io
        self._spec = spec
        self._link = link
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._closed = False
        self._consumer = Consumer(link, spec, self._notify)
        envelopes = [Envelopes(topic.name) for topic in spec.topics]
        self._sources = list(zip(self._consumer.queues, envelopes, strict=True))

    def open(self) -> None:
        """Begin to receive; runs in the I/O thread."""
        self._link.users.append(self._consumer)
        connection = self._link.connection
        if self._link.is_up and connection is not None:
            self._consumer.up(connection)

    def _notify(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._wake.set)
        except RuntimeError:  # the loop was closed without closing us
            self._consumer.close()

    async def batches(self) -> AsyncIterator[list[Delivery]]:
        """Batches of 1 to ``prefetch`` deliveries, until closed; goes on after every reconnect."""
        arrived = self._consumer.arrived
        while not self._closed:
            batch: list[Delivery] = []
            while arrived and len(batch) < self._spec.prefetch:
                try:
                    raw = arrived.popleft()
                except IndexError:  # the I/O thread has cleared it
                    break
                queue, envelopes = self._sources[raw.source]
                message = envelopes.read(raw.header, raw.body)
                # No position: a delivery tag is not the same when the message comes again.
                batch.append(Delivery(message, raw.token, queue, "", raw.redelivered))
            if batch:
                yield batch
            else:
                self._wake.clear()
                if not arrived:
                    await self._wake.wait()

    async def ack(self, tokens: Sequence[Any]) -> None:
        """These are done. Late acks of a lost channel are dropped."""
        if tokens and self._io.alive:
            acked: list[Token] = list(tokens)
            self._io.post(lambda: self._consumer.ack(acked))

    async def release(self, tokens: Sequence[Any]) -> None:
        """Give back; for a second nothing new is received here, so that others get them."""
        if tokens and self._io.alive:
            released: list[Token] = list(tokens)
            self._io.post(lambda: self._consumer.release(released))

    async def close(self) -> None:
        """Stop receiving; what is not acked goes back to the queues. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._wake.set()
        if self._io.alive:
            asking = asyncio.wrap_future(self._io.ask(self._consumer.close))
            await asyncio.wait({asking}, timeout=CLOSE_SECONDS)
