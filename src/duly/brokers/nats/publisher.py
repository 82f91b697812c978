"""Publishing: every message is answered by the stream that stored it, and only that settles it.

One reply inbox per connection; the last word of a reply subject is the number of the message.
Within one call the outcomes of all messages are collected and handed over once. Invariants: nothing
of a call is written after its deadline, and what was written by then and may still be on its way is
discarded with the connection; a message is CONFIRMED by the answer of its own stream and by nothing
else. "No responders" means that nobody stored it: whether the stream is missing or only away is
asked before it is told. Runs in the I/O thread only.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from zlib import crc32

import msgspec

from duly.brokers.nats import frames
from duly.brokers.nats.api import STREAM_MISSING, Api, RefusedError
from duly.brokers.nats.headers import encode, status
from duly.brokers.nats.link import Connection, Link
from duly.brokers.nats.topology import PARTITIONS, partition_of, stream_name, subject_of
from duly.errors import DulyError
from duly.kernel import failpoints
from duly.message import Message
from duly.ports import CONFIRMED, Outcome, OutcomeKind, TopicSpec

__all__ = ["PAYLOAD_BYTES_MAX", "Call", "Publisher"]

PAYLOAD_BYTES_MAX = 67_108_864  # what a server can be set to; a lower one is learnt from its INFO

WINDOW_MESSAGES = 4_000
WINDOW_BYTES = 16_000_000
CHUNK_MESSAGES = 256
CHUNK_BYTES = 262_144
MISSING_SECONDS = 1.0
DENIED_SECONDS = 1.0

_NO_RESPONDERS = 503
# Nothing else tells: the server goes on, and its stream is silent until it is restarted.
_NO_ANSWER = "the deadline passed; a stream that cannot write (a full disk) does not answer either"
_TOO_LARGE = 10054
# Full streams are the destination's fault; every other 503 and 429 is the server's, for now.
_FULL = 10077
_BUSY = (429, 503)


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
        self.not_stored: set[int] = set()  # sent, and known to have found nobody
        self.timer: asyncio.TimerHandle | None = None
        self._done = done

    @property
    def over(self) -> bool:
        """Whether the outcomes were given."""
        return self.left < 0

    def settle(self, index: int, outcome: Outcome) -> None:
        """The outcome of one message; the first one counts."""
        if not self.over and self.outcomes[index] is None:
            self.outcomes[index] = outcome
            self.left -= 1

    def finish(self, reason: str = "") -> None:
        """Give the outcomes; without an answer, sent is UNKNOWN and unsent UNAVAILABLE."""
        if self.over:
            return
        self.left = -1
        if self.timer is not None:
            self.timer.cancel()
        unknown = Outcome(OutcomeKind.UNKNOWN, f"sent, no answer: {reason}")
        unsent = Outcome(OutcomeKind.UNAVAILABLE, f"not sent: {reason}")
        nobody = Outcome(OutcomeKind.UNAVAILABLE, f"no stream took it: {reason}")
        self._done(
            [
                o or (nobody if i in self.not_stored else unknown if i < self.next else unsent)
                for i, o in enumerate(self.outcomes)
            ]
        )


class _Sent(NamedTuple):
    """A message under way. place: its index in the call."""

    call: Call
    place: int
    size: int
    route: _Route


class _Route(NamedTuple):
    """Where the messages of a topic go. stored: how the answer of its stream begins."""

    topic: TopicSpec
    stream: str
    subjects: tuple[str, ...]
    stored: bytes


class Publisher:
    """The publishing side of a broker.

    api: to ask whether a stream is there. remake: makes what is declared here once more. declared:
    the streams of our own groups; one that is missing was lost by the server, not left unread.
    """

    def __init__(self, link: Link, api: Api, *, remake: Callable[[], None]) -> None:
        self._remake = remake
        self.declared: set[str] = set()
        self._link = link
        self._api = api
        self._inbox = f"{link.inbox}.pub"
        self._waiting: deque[Call] = deque()
        self._sent: dict[int, _Sent] = {}
        self._last = 0
        self._in_flight_bytes = 0
        self._routes: dict[tuple[str, str], _Route] = {}
        self._missing: dict[str, float] = {}  # streams that are not there, until when
        self._denied: dict[str, float] = {}  # subjects in lower case, until when
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._nobody: dict[str, list[_Sent]] = {}  # by stream, waiting for what was asked
        self.payload_bytes_max = PAYLOAD_BYTES_MAX  # headers included, once connected
        link.users.append(self)
        api.finished.append(self.pump)
        api.under_way.append(lambda: bool(self._sent))

    # --- calls --------------------------------------------------------------------------------
    def submit(self, call: Call) -> None:
        """Begin a call, or answer it at once when there is no connection."""
        left = call.deadline - time.monotonic()
        if left <= 0:
            call.finish("the deadline had passed")
        elif self._link.connection is None and not self._link.connecting:
            call.finish(self._link.reason.detail)
        else:
            loop = asyncio.get_running_loop()
            call.timer = loop.call_later(left, self.give_up, call, _NO_ANSWER)
            self._waiting.append(call)
            self.pump()

    def give_up(self, call: Call, reason: str) -> None:
        """Answer a call with what is known by now, and send no more of it."""
        if call.over:
            return
        if call in self._waiting:
            self._waiting.remove(call)
        connection = self._link.connection
        call.finish(reason)
        mine = [number for number, sent in self._sent.items() if sent.call is call]
        for number in mine:
            self._in_flight_bytes -= self._sent.pop(number).size
        if mine and connection is not None and connection.unsent_bytes:
            self._link.abort(reason)
        self.pump()

    def pump(self) -> None:
        """Send what the window has room for."""
        connection = self._link.connection
        while (
            connection is not None
            and connection.usable
            and self._waiting
            and not self._api.unfinished
            and len(self._sent) < WINDOW_MESSAGES
            and self._in_flight_bytes < WINDOW_BYTES
        ):
            call = self._waiting[0]
            self._send_some(connection, call)
            if call.next == len(call.messages):
                self._waiting.popleft()
                if call.left == 0:  # nothing of it could be sent
                    call.finish()

    def _send_some(self, connection: Connection, call: Call) -> None:
        pieces: list[bytes] = []
        size = 0
        stop = min(call.next + CHUNK_MESSAGES, len(call.messages))
        while call.next < stop and size < CHUNK_BYTES:
            index, message = call.next, call.messages[call.next]
            call.next += 1
            route = self._route(message)
            encoded = self._encoded(message, route)
            if isinstance(encoded, Outcome):
                call.settle(index, encoded)
                continue
            pieces += encoded
            bytes_of = len(encoded[1]) + len(encoded[2])
            self._sent[self._last] = _Sent(call, index, bytes_of, route)
            size += bytes_of
        if pieces:
            self._in_flight_bytes += size
            connection.emit(b"".join(pieces))

    def _route(self, message: Message) -> _Route:
        route = self._routes.get((message.kind, message.topic))
        if route is None:
            if len(self._routes) >= 10_000:
                self._routes.clear()
            prefix, topic = self._link.settings.prefix, TopicSpec(message.topic, message.kind)
            stream = stream_name(prefix, topic)
            subjects = tuple(subject_of(prefix, topic, n) for n in range(PARTITIONS))
            stored = b'{"stream":"%s"' % stream.encode()
            route = _Route(topic, stream, subjects, stored)
            self._routes[message.kind, message.topic] = route
        return route

    def _encoded(self, message: Message, route: _Route) -> tuple[bytes, ...] | Outcome:
        if self._missing and self._missing.get(route.stream, 0.0) > time.monotonic():
            return _unrouted(route)
        try:
            subject = route.subjects[_partition(message)]
            if self._denied and self._denied.get(subject.lower(), 0.0) > time.monotonic():
                return _forbidden(subject)
            block = encode(message)
        except ValueError as error:  # UnicodeEncodeError among them
            return Outcome(OutcomeKind.IMPOSSIBLE, f"not encodable: {error}"[:200])
        size, limit = len(block) + len(message.payload), self.payload_bytes_max
        if size > limit:
            text = f"{size} bytes with headers, NATS takes {limit}"
            return Outcome(OutcomeKind.IMPOSSIBLE, text)
        self._last += 1
        reply = f"{self._inbox}.{self._last}"
        return frames.publish(subject, reply, block=block, payload=message.payload)

    # --- answers ------------------------------------------------------------------------------
    def _answered(self, frame: frames.Frame) -> None:
        failpoints.hit(failpoints.RELAY_SENT)
        sent = self._sent.pop(int(frame.subject[len(self._inbox) + 1 :]), None)
        if sent is None:
            return  # given up meanwhile
        self._in_flight_bytes -= sent.size
        if frame.payload.startswith(sent.route.stored):
            self._settle(sent, CONFIRMED)
        elif status(frame.block)[0] == _NO_RESPONDERS:
            sent.call.not_stored.add(sent.place)
            self._find_out(sent)
        else:
            self._settle(sent, _refusal(frame.payload, sent.route))
        if self._waiting and len(self._sent) <= WINDOW_MESSAGES - CHUNK_MESSAGES:
            self.pump()

    def _settle(self, sent: _Sent, outcome: Outcome) -> None:
        call = sent.call
        call.settle(sent.place, outcome)
        if call.left == 0:
            call.finish()

    def _find_out(self, sent: _Sent) -> None:
        """Whether the stream is missing, or away for a moment: asked once for all that wait."""
        stream = sent.route.stream
        self._nobody.setdefault(stream, []).append(sent)
        if stream not in self._asking:
            task = asyncio.get_running_loop().create_task(self._ask_for(sent.route))
            self._asking[stream] = task

    async def _ask_for(self, route: _Route) -> None:
        outcome = Outcome(OutcomeKind.UNAVAILABLE, f"stream {route.stream} is away for now")
        try:
            await self._api.ask(f"STREAM.INFO.{route.stream}")
        except RefusedError as error:
            if error.code == STREAM_MISSING and route.stream in self.declared:
                outcome = Outcome(OutcomeKind.UNAVAILABLE, f"{route.stream} was lost, made again")
                self._remake()
            elif error.code == STREAM_MISSING:
                outcome = _unrouted(route)
                if len(self._missing) >= 10_000:
                    self._missing.clear()
                self._missing[route.stream] = time.monotonic() + MISSING_SECONDS
        except DulyError as error:
            outcome = Outcome(OutcomeKind.UNAVAILABLE, f"no stream took it: {error.detail}")
        finally:
            del self._asking[route.stream]
            for sent in self._nobody.pop(route.stream, ()):
                self._settle(sent, outcome)

    # --- connection ---------------------------------------------------------------------------
    def up(self, connection: Connection) -> None:
        """Listen for answers, then send what waits."""
        self.payload_bytes_max = min(PAYLOAD_BYTES_MAX, connection.max_payload)
        self._missing.clear()
        self._denied.clear()
        connection.listen(f"{self._inbox}.*", self._answered)
        self.pump()

    def down(self, reason: DulyError) -> None:
        """Answer every call with what is known."""
        calls = {id(s.call): s.call for s in self._sent.values()}
        calls |= {id(c): c for c in self._waiting}
        self._waiting.clear()
        self._sent.clear()
        self._in_flight_bytes = 0
        for call in calls.values():
            call.finish(reason.detail)

    def denied(self, action: str, subject: str) -> None:
        """The server forbids to publish there."""
        if len(self._denied) >= 10_000:
            self._denied.clear()
        known = self._denied.get(subject, 0.0) > time.monotonic()
        self._denied[subject] = time.monotonic() + DENIED_SECONDS
        for number, sent in () if known else list(self._sent.items()):
            place = sent.route.subjects[_partition(sent.call.messages[sent.place])]
            if place.lower() == subject:
                self._in_flight_bytes -= self._sent.pop(number).size
                self._settle(sent, _forbidden(place))


def _partition(message: Message) -> int:
    """Without a key any place will do, but the same one when it is sent again."""
    if message.key:
        return partition_of(message.topic, message.key)
    return crc32(message.id.encode()) % PARTITIONS


def _unrouted(route: _Route) -> Outcome:
    return Outcome(OutcomeKind.UNROUTED, f"no group reads it: there is no stream {route.stream}")


def _forbidden(subject: str) -> Outcome:
    return Outcome(OutcomeKind.REFUSED, f"NATS: no permission to publish to {subject}")


def _refusal(data: bytes, route: _Route) -> Outcome:
    """What an answer means that is no plain confirm of the right stream."""
    try:
        answer: dict[str, Any] = msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.MsgspecError, ValueError):
        return Outcome(OutcomeKind.UNKNOWN, "sent, and answered by something that is no stream")
    error = answer.get("error")
    if not isinstance(error, dict):
        if answer.get("stream") == route.stream:
            return CONFIRMED
        other = ascii(answer.get("stream"))[:100]
        return Outcome(OutcomeKind.REFUSED, f"stored by stream {other}, not by {route.stream}")
    text = f"NATS: {error.get('description')} ({error.get('err_code')})"[:300]
    if error.get("err_code") == _TOO_LARGE:
        return Outcome(OutcomeKind.IMPOSSIBLE, text)
    if error.get("code") in _BUSY and error.get("err_code") != _FULL:
        return Outcome(OutcomeKind.UNAVAILABLE, text)
    return Outcome(OutcomeKind.REFUSED, text)
