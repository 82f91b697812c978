"""Receiving: requests to the group's consumers, explicit acks, batches handed to the event loop.

``Consumer`` lives in the I/O thread. Each source has one request open at a time, for as many
messages as there is room; what it brings is handed over together. While a message is ours the
server is told so, three times within its patience, whatever the handler or the event loop does;
what it hears nothing of it gives to somebody else. Invariants: no more than ``prefetch`` messages
are asked for or unanswered; a message is answered once, and late answers of a closed subscription
are dropped.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, NamedTuple

from duly.brokers.iothread import IoThread
from duly.brokers.nats import frames
from duly.brokers.nats.api import Api
from duly.brokers.nats.headers import MESSAGE_ID, PREFIX, decode, status
from duly.brokers.nats.link import Connection, Link
from duly.brokers.nats.topology import ACK_WAIT_SECONDS, Source, declare, sources_of
from duly.errors import DulyError
from duly.message import Message
from duly.ports import Delivery, SubscriptionSpec
from duly.wire.cloudevents import STRUCTURED_CONTENT_TYPE, from_headers, from_structured

__all__ = ["Consumer", "NatsSubscription"]

BEAT_SECONDS = ACK_WAIT_SECONDS / 3
REQUEST_SECONDS = 5.0
GRACE_SECONDS = 1.0  # past the end of a request, for the word that it ended
REOPEN_SECONDS = 1.0
RELEASE_PAUSE_SECONDS = 1.0
CLOSE_SECONDS = 3.0
_STRUCTURED = STRUCTURED_CONTENT_TYPE.partition("+")[0]
_ENDED, _CONFLICT, _NO_RESPONDERS = 400, 409, 503

_log = logging.getLogger("duly.brokers.nats")


class _Raw(NamedTuple):
    """A delivery as it came: its headers are decoded by who reads it. reply: what ack needs."""

    source: Source
    reply: bytes
    block: bytes | None
    payload: bytes


class _Pull:
    """The requests of one source on one connection."""

    def __init__(self, source: Source, prefetch: int, *, got: Callable[[_Raw], None]) -> None:
        self.source = source
        self.prefetch = prefetch
        self.asked = 0  # messages of the open request that have not come
        self.sid = 0
        self.held: set[bytes] = set()  # delivered and not answered
        self.trouble: Callable[[str], None] = lambda _why: None
        self.ended: Callable[[], None] = lambda: None
        self._got = got
        self._inbox = ""
        self._until = 0.0  # when the open request counts as lost

    def open(self, connection: Connection, inbox: str) -> None:
        self.asked = 0
        self._inbox = inbox
        self.sid = connection.listen(inbox, self._came)
        self.ask(connection)

    def close(self, connection: Connection | None) -> None:
        """End the open request: without a listener the server forgets it."""
        if connection is not None and self.sid:
            connection.unlisten(self.sid)
        self.sid = self.asked = 0

    def ask(self, connection: Connection, *, at_once: bool = True) -> None:
        """Ask for as much as there is room for. at_once: also when that is little."""
        now = asyncio.get_running_loop().time()
        if self.asked and now < self._until:
            return
        room = self.prefetch - len(self.held)
        if self.sid and room >= (1 if at_once else max(1, self.prefetch // 4)):
            self.asked = room
            self._until = now + REQUEST_SECONDS + GRACE_SECONDS
            connection.emit(
                frames.next_request(
                    self.source.stream,
                    self.source.consumer,
                    self._inbox,
                    batch=room,
                    expires=REQUEST_SECONDS,
                )
            )

    def _came(self, frame: frames.Frame) -> None:
        if frame.reply.startswith(b"$JS.ACK."):
            self.asked = max(0, self.asked - 1)
            self.held.add(frame.reply)
            self._got(_Raw(self.source, frame.reply, frame.block, frame.payload))
            return
        code, reason = status(frame.block)
        if code < _ENDED:
            return
        self.asked = 0
        if code in (_CONFLICT, _NO_RESPONDERS) and "max" not in reason.lower():
            self.trouble(reason or "the consumer does not answer")
        elif code != _CONFLICT:  # what the consumer does not allow is asked again by the clock
            self.ended()


class Consumer:
    """The I/O side of a subscription. notify: called in the I/O thread when messages came."""

    def __init__(
        self, link: Link, api: Api, spec: SubscriptionSpec, *, notify: Callable[[], None]
    ) -> None:
        self._link = link
        self._api = api
        self._spec = spec
        self._notify = notify
        self._notified = self._closed = self._paused = False
        self._inboxes = 0
        self._clock: asyncio.Task[None] | None = None
        self._mending: asyncio.Task[None] | None = None
        sources = sources_of(link.settings.prefix, spec)
        each = max(1, spec.prefetch // len(sources))
        self._pulls = [_Pull(source, each, got=self._got) for source in sources]
        self._of = {pull.source: pull for pull in self._pulls}
        for pull in self._pulls:
            pull.trouble, pull.ended = self._trouble, self._soon
        self._late_acks: list[bytes] = []
        self.arrived: deque[_Raw] = deque()

    # --- connection ---------------------------------------------------------------------------
    def open(self) -> None:
        """Begin to receive."""
        self._link.users.append(self)
        self._clock = asyncio.get_running_loop().create_task(self._beat())
        if self._link.connection is not None:
            self.up(self._link.connection)

    def up(self, connection: Connection) -> None:
        """Ask; what was delivered over an earlier connection is still ours to answer."""
        late, self._late_acks = self._late_acks, []
        connection.emit(frames.answers(late, frames.ACK))
        if self._closed or self._paused:
            return
        for pull in self._pulls:
            self._inboxes += 1
            pull.open(connection, f"{self._link.inbox}.s.{id(self):x}.{self._inboxes}")
            pull.ask(connection)

    def down(self, _reason: DulyError) -> None:
        """No request is open any more."""
        for pull in self._pulls:
            pull.close(None)

    def denied(self, action: str, subject: str) -> None:
        """Told by the link in the log; asking again goes on, rights can be given."""

    def close(self) -> None:
        """Stop receiving and give back what is not answered. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if self in self._link.users:
            self._link.users.remove(self)
        for task in (self._clock, self._mending):
            if task is not None:
                task.cancel()
        self._stop_asking()
        self._give_back([reply for pull in self._pulls for reply in pull.held])
        self.arrived.clear()

    # --- deliveries ---------------------------------------------------------------------------
    def _got(self, raw: _Raw) -> None:
        self.arrived.append(raw)
        self._soon()

    def _soon(self) -> None:
        if not self._notified:
            self._notified = True
            asyncio.get_running_loop().call_soon(self._hand_over)  # after the rest of this read

    def _hand_over(self) -> None:
        self._notified = False
        self._ask(at_once=False)
        if self.arrived:
            self._notify()

    def _ask(self, *, at_once: bool) -> None:
        connection = self._link.connection
        if connection is not None and not (self._closed or self._paused):
            for pull in self._pulls:
                pull.ask(connection, at_once=at_once)

    async def _beat(self) -> None:
        """Say that what we have is in progress, and ask again where a request was lost."""
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            connection = self._link.connection
            if connection is not None:
                held = [reply for pull in self._pulls for reply in pull.held]
                if held:
                    connection.emit(frames.answers(held, frames.IN_PROGRESS))
                self._ask(at_once=True)

    def _trouble(self, why: str) -> None:
        """The consumer is gone or has moved: declare again after a moment, then ask."""
        if self._mending is None or self._mending.done():
            self._mending = asyncio.get_running_loop().create_task(self._mend(why))

    async def _mend(self, why: str) -> None:
        await asyncio.sleep(REOPEN_SECONDS)
        _log.warning("group %s is declared again: %s", self._spec.group, why)
        try:
            await declare(self._api, self._link.settings, [self._spec])
        except DulyError as error:
            _log.warning("group %s cannot receive: %s", self._spec.group, error.detail)
        self._ask(at_once=True)

    # --- answers ------------------------------------------------------------------------------
    def ack(self, tokens: Sequence[_Raw]) -> None:
        """These are done; what was answered before is left out."""
        replies = []
        for raw in () if self._closed else tokens:
            held = self._of[raw.source].held
            if raw.reply in held:
                held.discard(raw.reply)
                replies.append(raw.reply)
        connection = self._link.connection
        if connection is None:
            self._late_acks += replies  # the answer to a delivery outlives its connection
        elif replies:
            connection.emit(frames.answers(replies, frames.ACK))
        self._ask(at_once=False)

    def release(self, tokens: Sequence[_Raw]) -> None:
        """Ask for nothing for a second, so that others get what is given back."""
        if self._closed:
            return
        self._stop_asking()
        back = [*tokens, *self.arrived]
        self.arrived.clear()
        self._give_back([raw.reply for raw in back if raw.reply in self._of[raw.source].held])
        if not self._paused:
            self._paused = True
            asyncio.get_running_loop().call_later(RELEASE_PAUSE_SECONDS, self._resume)

    def _resume(self) -> None:
        self._paused = False
        if self._link.connection is not None:
            self.up(self._link.connection)

    def _stop_asking(self) -> None:
        for pull in self._pulls:
            pull.close(self._link.connection)

    def _give_back(self, replies: Sequence[bytes]) -> None:
        connection = self._link.connection
        if connection is not None and replies:
            in_order = sorted(replies, key=_sequence)
            connection.emit(frames.answers(in_order, frames.NAK))
        for pull in self._pulls:
            pull.held.difference_update(replies)


def _sequence(reply: bytes) -> int:
    found = frames.place_of(reply)
    return int(found.sequence) if found is not None else 0


class NatsSubscription:
    """A running subscription of one group; made by ``NatsBroker.subscribe``."""

    def __init__(self, io: IoThread, link: Link, api: Api, *, spec: SubscriptionSpec) -> None:
        self._io = io
        self._spec = spec
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._closed = False
        self._consumer = Consumer(link, api, spec, notify=self._notify)

    def open(self) -> None:
        """Begin to receive; runs in the I/O thread."""
        self._consumer.open()

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
                batch.append(_delivery(raw))
            if batch:
                yield batch
            else:
                self._wake.clear()
                if not arrived and not self._closed:
                    await self._wake.wait()

    async def ack(self, tokens: Sequence[Any]) -> None:
        """These are done. Late acks of a closed subscription are dropped."""
        if tokens:
            self._io.post(self._consumer.ack, list(tokens))

    async def release(self, tokens: Sequence[Any]) -> None:
        """Give back; for a second nothing new is received here, so that others get them."""
        if tokens:
            self._io.post(self._consumer.release, list(tokens))

    async def close(self) -> None:
        """Stop receiving; what is not acked goes to others at once. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._wake.set()
        done = asyncio.Event()

        def closed() -> None:
            self._consumer.close()
            self._loop.call_soon_threadsafe(done.set)

        if self._io.alive:
            self._io.post(closed)
            waiting = asyncio.ensure_future(done.wait())
            await asyncio.wait({waiting}, timeout=CLOSE_SECONDS)
            waiting.cancel()


def _delivery(raw: _Raw) -> Delivery:
    found = frames.place_of(raw.reply)
    sequence = found.sequence if found is not None else raw.reply.decode(errors="replace")
    again = found is not None and found.delivered > 1
    return Delivery(_message(raw, sequence), raw, raw.source.stream, sequence, again)


def _message(raw: _Raw, sequence: str) -> Message:
    """The message of a delivery; without an id it is named by its place in the stream."""
    headers = decode(raw.block or b"")
    fallback = headers.get(MESSAGE_ID) or f"{raw.source.stream}/{sequence}"
    content_type = next((v for n, v in headers.items() if n.lower() == "content-type"), "")
    topic = raw.source.topic.name
    others = {n: v for n, v in headers.items() if not n.lower().startswith("nats-")}
    if content_type.lower().startswith(_STRUCTURED):
        return from_structured(raw.payload, topic=topic, fallback_id=fallback, headers=others)
    return from_headers(others, raw.payload, prefix=PREFIX, topic=topic, fallback_id=fallback)
