"""Pipelined publishing with confirms: many messages under way, one answer per call.

Every message sent gets the channel's next delivery tag; a ``_Segment`` remembers which tags belong
to which messages of which call, so that a confirm of thousands is one step. Invariant: a message is
CONFIRMED only after its own ack, and when it did not come back first (``mandatory``); when the
channel goes, what was sent and not answered is UNKNOWN. When a call's deadline passes with bytes of
it still in our buffers, the connection is reset, so that nothing is sent afterwards.

Runs in the I/O thread; leaves out connecting (``link``) and declaring (``topology``).
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from duly.brokers.rabbitmq import frames
from duly.brokers.rabbitmq.link import FastConnection, Link
from duly.brokers.rabbitmq.thread import IoThread
from duly.brokers.rabbitmq.topology import refusal, route
from duly.errors import DulyError
from duly.kernel import failpoints
from duly.message import Message
from duly.ports import CONFIRMED, Outcome, OutcomeKind
from duly.wire.cloudevents import to_headers

__all__ = ["PAYLOAD_BYTES_MAX", "PREFIX", "Call", "Publisher"]

PREFIX = "cloudEvents:"
PAYLOAD_BYTES_MAX = (
    134_217_728  # RabbitMQ's default up to 3.13; a lower one is learnt from its refusal
)

WINDOW_MESSAGES = 4_000
WINDOW_BYTES = 16_000_000
CHUNK_MESSAGES = 64
CHUNK_BYTES = 65_536
MISSING_SECONDS = 1.0
REOPEN_SECONDS = 0.02

_CONTENT_TYPE = PREFIX + "datacontenttype"
_REFUSED = Outcome(OutcomeKind.REFUSED, "RabbitMQ refused it (nack): the queue is full or failed")
_MISSING = re.compile(r"no exchange '([^']*)'")
_REFUSED_EXCHANGE = re.compile(r"access to exchange '([^']*)'")
_TOO_LARGE = re.compile(r"message size (\d+).*max size (\d+)", re.DOTALL)


class Call:
    """One publish call. done: gets the outcomes, once, in the I/O thread."""

    def __init__(
        self,
        messages: Sequence[Message],
        deadline: float,
        done: Callable[[list[Outcome]], None],
    ) -> None:
        self.messages = messages
        self.deadline = deadline  # by time.monotonic
        self.outcomes: list[Outcome | None] = [None] * len(messages)
        self.left = len(messages)
        self.next = 0  # the first message that was not looked at yet
        self.returned: dict[int, str] = {}
        self.cancel_timer: Callable[[], None] = lambda: None
        self._done = done
        self._places: dict[str, list[int]] | None = None

    @property
    def over(self) -> bool:
        """Whether the outcomes were given."""
        return self.left < 0

    def settle(self, index: int, outcome: Outcome) -> None:
        """The outcome of one message; the first one counts."""
        if self.outcomes[index] is None:
            self.outcomes[index] = outcome
            self.left -= 1

    def confirm(self, index: int) -> None:
        """The server has it, or had nowhere to put it."""
        if index in self.returned:
            self.settle(index, Outcome(OutcomeKind.UNROUTED, self.returned[index]))
        else:
            self.settle(index, CONFIRMED)

    def give_back(self, message_id: str, reason: str) -> bool:
        """Note a returned message; False when none of ours with this id waits for an answer."""
        if self._places is None:
            self._places = {}
            for i, m in enumerate(self.messages):
                self._places.setdefault(m.id, []).append(i)
        for i in self._places.get(message_id, ()):
            if i < self.next and self.outcomes[i] is None and i not in self.returned:
                self.returned[i] = reason
                return True
        return False

    def finish(self, reason: str = "") -> None:
        """Give the outcomes; without an answer, sent is UNKNOWN and unsent UNAVAILABLE."""
        if self.over:
            return
        self.left = -1
        self.cancel_timer()
        unknown = Outcome(OutcomeKind.UNKNOWN, f"sent, no answer: {reason}")
        unsent = Outcome(OutcomeKind.UNAVAILABLE, f"not sent: {reason}")
        self._done(
            [o or (unknown if i < self.next else unsent) for i, o in enumerate(self.outcomes)]
        )


class _Segment:
    """Messages sent in one piece: ``indexes[k]`` of the call has the tag ``first + k``."""

    __slots__ = ("_early", "_low", "call", "first", "indexes", "last", "size")

    def __init__(self, call: Call, first: int, indexes: list[int], *, size: int) -> None:
        self.call = call
        self.first = first
        self.last = first + len(indexes) - 1
        self.indexes = indexes
        self.size = size
        self._low = first  # every tag below is answered
        self._early: set[int] = set()  # answered ones above it

    @property
    def answered(self) -> bool:
        """Whether every tag is."""
        return self._low > self.last

    def take(self, first: int, last: int) -> list[int]:
        """The messages with these tags that were not answered before."""
        tags = [t for t in range(max(first, self._low), last + 1) if t not in self._early]
        self._early.update(tags)
        while self._low in self._early:
            self._early.discard(self._low)
            self._low += 1
        return [self.indexes[t - self.first] for t in tags]


class Publisher:
    """The publish channel of a broker."""

    def __init__(self, io: IoThread, link: Link) -> None:
        self._io = io
        self._link = link
        self._channel: Any = None
        self._waiting: deque[Call] = deque()
        self._segments: deque[_Segment] = deque()
        self._methods: dict[tuple[str, str, str], bytes] = {}
        self._missing: dict[str, float] = {}
        self._next_tag = 1
        self._in_flight = 0
        self._in_flight_bytes = 0
        self.payload_bytes_max = PAYLOAD_BYTES_MAX

    # --- calls --------------------------------------------------------------------------------
    def submit(self, call: Call) -> None:
        """Begin a call, or answer it at once when there is no connection."""
        left = call.deadline - time.monotonic()
        if left <= 0:
            call.finish("the deadline had passed")
        elif not (self._link.is_up or self._link.connecting):
            call.finish(self._link.reason.detail)
        else:
            call.cancel_timer = self._io.later(
                left, lambda: self.give_up(call, "the deadline passed")
            )
            self._waiting.append(call)
            self.pump()

    def give_up(self, call: Call, reason: str) -> None:
        """Answer a call with what is known by now, and send no more of it."""
        if call.over:
            return
        if call in self._waiting:
            self._waiting.remove(call)
        if self._link.blocked is not None:
            reason = f"{reason}; RabbitMQ takes no messages: {self._link.blocked}"
        connection = self._link.connection
        sent = any(s.call is call for s in self._segments)
        call.finish(reason)
        if sent and connection is not None and connection.unsent_bytes:
            self._link.abort(reason)

    def pump(self) -> None:
        """Send what the window has room for."""
        connection = self._link.connection
        if self._channel is None or connection is None or self._link.blocked is not None:
            return
        while (
            self._waiting
            and self._in_flight < WINDOW_MESSAGES
            and self._in_flight_bytes < WINDOW_BYTES
        ):
            call = self._waiting[0]
            self._send_some(connection, call)
            if call.next == len(call.messages):
                self._waiting.popleft()
                if call.left == 0:  # nothing of it could be sent
                    call.finish()

    def _send_some(self, connection: FastConnection, call: Call) -> None:
        pieces: list[bytes] = []
        indexes: list[int] = []
        size = 0
        stop = min(call.next + CHUNK_MESSAGES, len(call.messages))
        while call.next < stop and size < CHUNK_BYTES:
            index, message = call.next, call.messages[call.next]
            call.next += 1
            encoded = self._encoded(message, connection.params.frame_max)
            if isinstance(encoded, Outcome):
                call.settle(index, encoded)
            else:
                pieces += encoded
                indexes.append(index)
                size += len(message.payload) + 512
        if indexes:
            self._segments.append(_Segment(call, self._next_tag, indexes, size=size))
            self._next_tag += len(indexes)
            self._in_flight += len(indexes)
            self._in_flight_bytes += size
            connection.emit(b"".join(pieces))

    def _encoded(self, message: Message, frame_max: int) -> list[bytes] | Outcome:
        payload = message.payload
        if len(payload) > self.payload_bytes_max:
            limit = self.payload_bytes_max
            return Outcome(OutcomeKind.IMPOSSIBLE, f"{len(payload)} bytes, RabbitMQ takes {limit}")
        place = (message.kind, message.topic, message.type)
        number = self._channel.channel_number
        try:
            method = self._methods.get(place)
            if method is None:
                if len(self._methods) >= 10_000:
                    self._methods.clear()
                exchange, key = route(*place)
                method = self._methods[place] = frames.publish_method(number, exchange, key)
            if self._missing and self._is_missing(place):
                return Outcome(OutcomeKind.UNROUTED, f"there is no exchange {message.topic}")
            headers = to_headers(message, prefix=PREFIX)
            headers.pop(_CONTENT_TYPE, None)  # AMQP has a property for it
            body = frames.content(number, message.id, headers, payload=payload, frame_max=frame_max)
        except ValueError as error:  # UnicodeEncodeError among them
            return Outcome(OutcomeKind.IMPOSSIBLE, f"not encodable: {error}"[:200])
        return [method, *body]

    def _is_missing(self, place: tuple[str, str, str]) -> bool:
        until = self._missing.get(route(*place)[0], 0.0)
        return until > time.monotonic()

    # --- answers ------------------------------------------------------------------------------
    def frame(self, kind: int, buffer: bytes, span: tuple[int, int]) -> bool:
        """Acks and nacks of the server; everything else is pika's."""
        if kind != frames.METHOD:
            return False
        method = buffer[span[0] : span[0] + 4]
        if method == frames.ACK:
            self._answer(frames.decode_confirm(buffer, span[0] + 4), None)
        elif method == frames.NACK:
            self._answer(frames.decode_confirm(buffer, span[0] + 4), _REFUSED)
        else:
            return False
        return True

    def _answer(self, confirm: frames.Confirm, outcome: Outcome | None) -> None:
        failpoints.hit(failpoints.RELAY_SENT)
        tag = confirm.tag
        if confirm.multiple:
            while self._segments and self._segments[0].first <= tag:
                segment = self._segments[0]
                self._settle(segment, segment.take(segment.first, min(tag, segment.last)), outcome)
                if not segment.answered:
                    break
        else:
            for segment in self._segments:
                if tag <= segment.last:
                    self._settle(segment, segment.take(tag, tag), outcome)
                    break
        if self._waiting and self._in_flight <= WINDOW_MESSAGES - CHUNK_MESSAGES:
            self.pump()

    def _settle(self, segment: _Segment, indexes: list[int], outcome: Outcome | None) -> None:
        """The same answer for some messages of a segment; None is an ack."""
        self._in_flight -= len(indexes)
        if segment.answered:
            self._segments.remove(segment)
            self._in_flight_bytes -= segment.size
        call = segment.call
        if call.over:
            return
        for index in indexes:
            if outcome is None:
                call.confirm(index)
            else:
                call.settle(index, outcome)
        if indexes and call.left == 0:
            call.finish()

    def _returned(self, method: Any, properties: Any) -> None:
        """A message that no queue took; its ack comes after it."""
        reason = f"no queue is bound ({method.reply_text})"
        for segment in self._segments:
            if segment.call.give_back(properties.message_id or "", reason):
                return

    # --- channel ------------------------------------------------------------------------------
    def up(self, connection: FastConnection) -> None:
        """Open the channel; publishing begins when the server has agreed to confirm."""

        def opened(channel: Any) -> None:
            channel.add_on_close_callback(self._closed)
            channel.add_on_return_callback(
                lambda _channel, method, properties, _body: self._returned(method, properties)
            )
            channel.confirm_delivery(lambda _answer: None, callback=lambda _ok: ready(channel))

        def ready(channel: Any) -> None:
            self._methods.clear()  # they hold the channel's number
            self._next_tag = 1
            self._channel = channel
            connection.lanes[channel.channel_number] = self
            self.pump()

        connection.channel(on_open_callback=opened)

    def down(self, reason: DulyError) -> None:
        """Answer every call with what is known; tags mean nothing any more."""
        self._channel = None
        calls = {id(s.call): s.call for s in self._segments} | {id(c): c for c in self._waiting}
        self._waiting.clear()
        self._segments.clear()
        self._in_flight = self._in_flight_bytes = 0
        for call in calls.values():
            call.finish(reason.detail)

    def unblocked(self) -> None:
        """The server takes messages again."""
        self.pump()

    def _closed(self, channel: Any, reason: Any) -> None:
        connection = self._link.connection
        if connection is not None:
            connection.lanes.pop(channel.channel_number, None)
        self._learn(getattr(reason, "reply_code", 0), str(getattr(reason, "reply_text", "")))
        self.down(refusal(reason))
        if connection is not None and connection.is_open:
            self._io.later(REOPEN_SECONDS, lambda: self._reopen(connection))

    def _reopen(self, connection: FastConnection) -> None:
        if connection is self._link.connection and connection.is_open:
            self.up(connection)

    def _learn(self, code: int, text: str) -> None:
        """What the server's reason for closing the channel means for the messages under way."""
        if code == 404 and (missing := _MISSING.search(text)):
            self._missing = {missing[1]: time.monotonic() + MISSING_SECONDS}
            outcome = Outcome(OutcomeKind.UNROUTED, text)
            self._settle_where(lambda m: route(m.kind, m.topic, m.type)[0] == missing[1], outcome)
        elif code == 403 and (refused := _REFUSED_EXCHANGE.search(text)):
            outcome = Outcome(OutcomeKind.REFUSED, text)
            self._settle_where(lambda m: route(m.kind, m.topic, m.type)[0] == refused[1], outcome)
        elif code == 406 and (sizes := _TOO_LARGE.search(text)):
            limit = self.payload_bytes_max = int(sizes[2])
            outcome = Outcome(OutcomeKind.IMPOSSIBLE, text)
            self._settle_where(lambda m: len(m.payload) > limit, outcome)

    def _settle_where(self, applies: Callable[[Message], bool], outcome: Outcome) -> None:
        for segment in list(self._segments):
            messages = segment.call.messages
            for index in segment.indexes:
                if not segment.call.over and applies(messages[index]):
                    segment.call.settle(index, outcome)
