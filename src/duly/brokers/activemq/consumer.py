"""Receiving: one subscription per queue, acks one by one, batches handed to the event loop.

``Consumer`` lives in the I/O thread. The server's window is in bytes, so what it sends ahead waits
here, and no more than ``prefetch`` messages are handed out and unanswered. A delivery belongs to
its connection: when that goes, the server gives it to somebody else, and its late ack is dropped.
Nothing is ever rejected (NACK), which on this server throws a message away: what is given back goes
by ending the subscription, when nothing else of it is in hand.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, NamedTuple

from duly.brokers.activemq.api import Api
from duly.brokers.activemq.entries import decode
from duly.brokers.activemq.frames import Frame, ack
from duly.brokers.activemq.link import Connection, Link
from duly.brokers.activemq.topology import Source, declare, sources_of
from duly.brokers.iothread import IoThread
from duly.errors import DulyError
from duly.ports import Delivery, SubscriptionSpec

__all__ = ["ActiveMQSubscription", "Consumer"]

BYTES_AHEAD_PER_MESSAGE = 2_048
BYTES_AHEAD_MIN, BYTES_AHEAD_MAX = 32_768, 8_000_000
REOPEN_SECONDS = 1.0
RELEASE_PAUSE_SECONDS = 1.0
CLOSE_SECONDS = 3.0

_log = logging.getLogger("duly.brokers.activemq")


class Raw(NamedTuple):
    """A delivery as it came: its headers are decoded by who reads it. name: what ack needs."""

    connection: Connection
    source: Source
    name: str
    frame: Frame


class Consumer:
    """A group's receiver. notify: called when ``arrived`` has something."""

    def __init__(
        self, link: Link, api: Api, spec: SubscriptionSpec, *, notify: Callable[[], None]
    ) -> None:
        self._link = link
        self._api = api
        self._spec = spec
        self._notify = notify
        self._lanes: list[str] = []
        self._held: set[str] = set()  # delivered on this connection and not answered
        self._released: set[str] = set()
        self._opening: asyncio.Task[None] | None = None
        self._closed = False
        self.paused = False
        self.arrived: deque[Raw] = deque()
        ahead = BYTES_AHEAD_PER_MESSAGE * spec.prefetch
        self._window = str(min(BYTES_AHEAD_MAX, max(BYTES_AHEAD_MIN, ahead)))

    # --- life ---------------------------------------------------------------------------------
    def open(self) -> None:
        """Begin to receive, now and after every reconnect."""
        self._link.users.append(self)
        if self._link.connection is not None:
            self.up(self._link.connection)

    def up(self, connection: Connection) -> None:
        """Declare, then subscribe; the server may have been replaced."""
        self._stop_opening()
        self._opening = asyncio.get_running_loop().create_task(self._subscribe(connection))

    async def _subscribe(self, connection: Connection) -> None:
        while connection.usable:
            try:
                await declare(self._api, self._link.settings, [self._spec])
            except DulyError as error:
                _log.warning("group %s cannot receive: %s", self._spec.group, error.detail)
                await asyncio.sleep(REOPEN_SECONDS)
            else:
                self._listen(connection)
                return

    def _listen(self, connection: Connection) -> None:
        for source in sources_of(self._link.settings.prefix, self._spec):
            where = {
                "destination": f"{source.address}::{source.queue}",
                "ack": "client-individual",
                "consumer-window-size": self._window,
            }

            def came(frame: Frame, source: Source = source) -> None:
                self._came(Raw(connection, source, frame.header("ack"), frame))

            self._lanes.append(connection.listen(where, came, lambda _refusal: None))

    def down(self, reason: DulyError) -> None:
        """What is not answered is the server's again."""
        del reason
        self._stop_opening()
        self._lanes.clear()
        self._forget()
        self.paused = False

    def _stop_opening(self) -> None:
        if self._opening is not None:
            self._opening.cancel()
            self._opening = None

    def _forget(self) -> None:
        self._held.clear()
        self._released.clear()
        self.arrived.clear()

    def close(self, done: Callable[[], None]) -> None:
        """Stop receiving and give back what is not answered, then call ``done``."""
        self._closed = True
        if self in self._link.users:
            self._link.users.remove(self)
        self._stop_opening()
        self._unsubscribe(done)

    def _unsubscribe(self, done: Callable[[], None]) -> None:
        """End the subscriptions; ``done`` follows when the server has everything back."""
        connection, lanes = self._link.connection, self._lanes
        self._lanes = []
        self._forget()
        left = len(lanes)
        if connection is None or not left:
            done()
            return

        def ended(_refusal: str) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                done()

        for lane in lanes:
            connection.unlisten(lane, ended)

    # --- deliveries ---------------------------------------------------------------------------
    def _came(self, raw: Raw) -> None:
        self._held.add(raw.name)
        self.arrived.append(raw)
        self._notify()

    # --- answers ------------------------------------------------------------------------------
    def ack(self, tokens: Sequence[Raw]) -> None:
        """These are done; what was answered before, or on an earlier connection, is left out."""
        connection = self._link.connection
        names = []
        for raw in tokens:
            if raw.connection is connection and raw.name in self._held:
                self._held.discard(raw.name)
                self._released.discard(raw.name)
                names.append(raw.name)
        if connection is not None and names:
            connection.emit(ack(names))
        self._give_back()

    def release(self, tokens: Sequence[Raw]) -> None:
        """Hand out nothing more, and give all back when nothing is in hand."""
        for raw in tokens:
            if raw.connection is self._link.connection and raw.name in self._held:
                self._released.add(raw.name)
        self.paused = self.paused or bool(self._released)
        self._give_back()

    def _give_back(self) -> None:
        if not self._released or len(self._held) > len(self._released) + len(self.arrived):
            return
        self._unsubscribe(self._pause)

    def _pause(self) -> None:
        asyncio.get_running_loop().call_later(RELEASE_PAUSE_SECONDS, self._resume)

    def _resume(self) -> None:
        self.paused = False
        connection = self._link.connection
        if connection is not None and not (self._closed or self._lanes):
            self.up(connection)


class ActiveMQSubscription:
    """A running subscription of one group; made by ``ActiveMQBroker.subscribe``."""

    def __init__(self, io: IoThread, link: Link, api: Api, *, spec: SubscriptionSpec) -> None:
        self._io = io
        self._spec = spec
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._closed = False
        self._handed_out: set[tuple[Connection, str]] = set()
        self._consumer = Consumer(link, api, spec, notify=self._notify)

    def open(self) -> None:
        """Begin to receive; runs in the I/O thread."""
        self._consumer.open()

    def _notify(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._wake.set)
        except RuntimeError:  # the loop was closed without closing us
            self._consumer.close(lambda: None)

    async def batches(self) -> AsyncIterator[list[Delivery]]:
        """Batches of 1 to ``prefetch`` deliveries, until closed; goes on after every reconnect."""
        consumer = self._consumer
        while not self._closed:
            self._wake.clear()
            batch: list[Delivery] = []
            while not consumer.paused and len(self._handed_out) < self._spec.prefetch:
                try:
                    raw = consumer.arrived.popleft()
                except IndexError:
                    break
                self._handed_out.add((raw.connection, raw.name))
                batch.append(_delivery(raw))
            if batch:
                yield batch
            else:
                await self._wake.wait()

    async def ack(self, tokens: Sequence[Any]) -> None:
        """These are done. Late acks of a lost connection are dropped."""
        self._answer(self._consumer.ack, tokens)

    async def release(self, tokens: Sequence[Any]) -> None:
        """Give back; nothing new is received here until they are, and a second longer."""
        self._answer(self._consumer.release, tokens)

    def _answer(self, answer: Callable[[Sequence[Raw]], None], tokens: Sequence[Raw]) -> None:
        if tokens:
            self._handed_out.difference_update([(raw.connection, raw.name) for raw in tokens])
            self._wake.set()
            self._io.post(answer, list(tokens))

    async def close(self) -> None:
        """Stop receiving; what is not acked goes to others at once. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._wake.set()
        done = asyncio.Event()

        def closed() -> None:
            self._loop.call_soon_threadsafe(done.set)

        if self._io.alive:
            self._io.post(self._consumer.close, closed)
            waiting = asyncio.ensure_future(done.wait())
            await asyncio.wait({waiting}, timeout=CLOSE_SECONDS)
            waiting.cancel()


def _delivery(raw: Raw) -> Delivery:
    """The delivery of a frame; a message without an id is named by its place in the server."""
    place = raw.frame.header("message-id").rpartition(",")[2]
    fallback = f"{raw.source.queue}/{place}"
    message = decode(raw.frame, topic=raw.source.topic.name, fallback_id=fallback)
    again = raw.frame.header("redelivered") == "true"
    return Delivery(message, raw, raw.source.queue, place, again)
