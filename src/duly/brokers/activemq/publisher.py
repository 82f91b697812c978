"""Publishing: a local transaction per destination and chunk, and the receipt of its COMMIT.

Transactions follow each other on the connection without waiting, each with messages of one
destination only, so that a destination that is refused takes no other with it. The server answers
COMMIT when all of it is written; an ERROR ends the connection, and does not say what it was about:
what is unanswered then is UNKNOWN, and for a while each message to those destinations goes by
itself with a receipt of its own, which tells exactly. Whether anybody reads a destination is asked
before, at most once a second.

Invariants: nothing of a call is written after its deadline, and what may still be on its way then
is discarded with the connection; CONFIRMED is a receipt and nothing else. Runs in the I/O thread
only.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from duly.brokers.activemq.api import Api, RefusedError
from duly.brokers.activemq.entries import send
from duly.brokers.activemq.link import Connection, Link, is_about_rights
from duly.brokers.activemq.topology import address_of, queues_at, routing_of
from duly.errors import DulyError
from duly.kernel import failpoints
from duly.message import Message
from duly.ports import CONFIRMED, Outcome, OutcomeKind, TopicSpec

__all__ = ["PAYLOAD_BYTES_MAX", "Call", "Publisher"]

PAYLOAD_BYTES_MAX = 20_000_000  # the server holds a whole frame in its memory, several times

WINDOW_MESSAGES = 4_000
WINDOW_BYTES = 16_000_000
CHUNK_MESSAGES = 500
CHUNK_BYTES = 1_000_000
ROUTE_SECONDS = 1.0  # how long it is believed that a queue is there, or is not
CAREFUL_SECONDS = 30.0
DENIED_SECONDS = 1.0
ROUTES_MAX = 10_000


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
            if self.left == 0:
                self.finish()

    def finish(self, reason: str = "") -> None:
        """Give the outcomes; without an answer, sent is UNKNOWN and unsent UNAVAILABLE."""
        if self.over:
            return
        self.left = -1
        if self.timer is not None:
            self.timer.cancel()
        unknown = Outcome(OutcomeKind.UNKNOWN, f"sent, no answer: {reason}")
        unsent = Outcome(OutcomeKind.UNAVAILABLE, f"not sent: {reason}")
        self._done(
            [o or (unknown if i < self.next else unsent) for i, o in enumerate(self.outcomes)]
        )


@dataclass(slots=True)
class _Route:
    """A destination. Times are by time.monotonic, 0.0 for never."""

    topic: TopicSpec
    address: str
    head: str  # the first lines of its SEND frames
    head_within: str  # the same in a transaction
    read: bool = False  # whether it has a queue
    known_until: float = 0.0
    careful_until: float = 0.0
    denied_until: float = 0.0
    denial: str = ""


@dataclass(slots=True)
class _Sent:
    """What one receipt answers for. places: indexes in the call."""

    call: Call
    route: _Route
    places: list[int] = field(default_factory=list)
    pieces: list[bytes] = field(default_factory=list)
    size: int = 0


class Publisher:
    """The publishing side of a broker. api: to ask whether a destination is read."""

    def __init__(self, link: Link, api: Api) -> None:
        self._link = link
        self._api = api
        self._waiting: deque[Call] = deque()
        self._sent: dict[int, _Sent] = {}
        self._last = 0
        self._in_flight = 0
        self._in_flight_bytes = 0
        self._routes: dict[tuple[str, str], _Route] = {}
        self._asking: asyncio.Task[None] | None = None
        link.users.append(self)

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
            call.timer = loop.call_later(left, self.give_up, call, "the deadline passed")
            self._waiting.append(call)
            self.pump()

    def give_up(self, call: Call, reason: str) -> None:
        """Answer a call with what is known by now, and send no more of it."""
        if call.over:
            return
        if call in self._waiting:
            self._waiting.remove(call)
        call.finish(reason)
        mine = [number for number, sent in self._sent.items() if sent.call is call]
        for number in mine:
            self._forget(number)
        connection = self._link.connection
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
            and self._in_flight < WINDOW_MESSAGES
            and self._in_flight_bytes < WINDOW_BYTES
        ):
            call = self._waiting[0]
            stop = min(call.next + CHUNK_MESSAGES, len(call.messages))
            routes = [self._route(message) for message in call.messages[call.next : stop]]
            if stale := self._stale(routes):
                self._ask(stale)
                return
            self._send_chunk(connection, call, routes)
            if call.over or call.next == len(call.messages):
                self._waiting.popleft()

    def _send_chunk(self, connection: Connection, call: Call, routes: Sequence[_Route]) -> None:
        by_route: dict[str, _Sent] = {}
        begun = call.next
        size, now = 0, time.monotonic()
        for route in routes:
            if size >= CHUNK_BYTES:
                break
            index, message = call.next, call.messages[call.next]
            call.next += 1
            encoded = _encoded(message, route, now=now)
            if isinstance(encoded, Outcome):
                call.settle(index, encoded)
                continue
            size += len(encoded)
            sent = by_route.get(route.address)
            if sent is None:
                sent = by_route[route.address] = _Sent(call, route)
            sent.places.append(index)
            sent.pieces.append(encoded)
        assert call.next > begun or call.over
        for sent in by_route.values():
            self._emit(connection, sent, now=now)

    def _emit(self, connection: Connection, sent: _Sent, *, now: float) -> None:
        if sent.route.careful_until > now:
            for place, piece in zip(sent.places, sent.pieces, strict=True):
                receipt = self._expect(connection, _Sent(sent.call, sent.route, [place], [piece]))
                connection.emit(piece.replace(b"\n", b"\nreceipt:%s\n" % receipt.encode(), 1))
            return
        pieces = sent.pieces
        receipt = self._expect(connection, sent)
        commit = f"COMMIT\ntransaction:t\nreceipt:{receipt}\n\n\0".encode()
        connection.emit(b"".join((b"BEGIN\ntransaction:t\n\n\0", *pieces, commit)))

    def _expect(self, connection: Connection, sent: _Sent) -> str:
        self._last += 1
        number = self._last
        sent.size = sum(map(len, sent.pieces))
        sent.pieces = []
        self._sent[number] = sent
        self._in_flight += len(sent.places)
        self._in_flight_bytes += sent.size
        return connection.expect(lambda refusal: self._answered(number, refusal))

    def _forget(self, number: int) -> _Sent | None:
        sent = self._sent.pop(number, None)
        if sent is not None:
            self._in_flight -= len(sent.places)
            self._in_flight_bytes -= sent.size
        return sent

    # --- routes -------------------------------------------------------------------------------
    def _route(self, message: Message) -> _Route:
        route = self._routes.get((message.kind, message.topic))
        if route is None:
            if len(self._routes) >= ROUTES_MAX:
                self._routes.clear()
            topic = TopicSpec(message.topic, message.kind)
            address = address_of(self._link.settings.prefix, topic)
            head = f"SEND\ndestination:{address}\ndestination-type:{routing_of(topic)}\n"
            head += "persistent:true\n"
            route = _Route(topic, address, head, f"{head}transaction:t\n")
            self._routes[message.kind, message.topic] = route
        return route

    @staticmethod
    def _stale(routes: Sequence[_Route]) -> list[_Route]:
        now = time.monotonic()
        stale = {r.address: r for r in routes if r.known_until <= now}
        return list(stale.values())

    def _ask(self, routes: Sequence[_Route]) -> None:
        if self._asking is None or self._asking.done():
            self._asking = asyncio.get_running_loop().create_task(self._find_out(routes))

    async def _find_out(self, routes: Sequence[_Route]) -> None:
        try:
            asked = [queues_at(self._api, route.address) for route in routes]
            for route, queues in zip(routes, await asyncio.gather(*asked), strict=True):
                route.read = bool(queues)
                # Counted from here for all of them: however long it took, none is stale at once.
                route.known_until = time.monotonic() + ROUTE_SECONDS
        except (DulyError, RefusedError) as error:
            reason = error.detail if isinstance(error, DulyError) else str(error)
            waiting = list(self._waiting)
            self._waiting.clear()
            for call in waiting:
                self._end(call, f"nobody could say who reads it: {reason}")
            return
        asyncio.get_running_loop().call_soon(self.pump)

    def _end(self, call: Call, reason: str) -> None:
        """End a call that is sent in part: its answers may still come, what is left may not go."""
        for index in range(call.next, len(call.messages)):
            call.settle(index, Outcome(OutcomeKind.UNAVAILABLE, f"not sent: {reason}"))
        call.next = len(call.messages)

    # --- answers ------------------------------------------------------------------------------
    def _answered(self, number: int, refusal: str) -> None:
        failpoints.hit(failpoints.RELAY_SENT)
        sent = self._forget(number)
        if sent is None:
            return  # given up meanwhile
        outcome = _refusal(sent, refusal) if refusal else CONFIRMED
        for place in sent.places:
            sent.call.settle(place, outcome)
        if self._waiting and self._in_flight <= WINDOW_MESSAGES - CHUNK_MESSAGES:
            self.pump()

    # --- connection ---------------------------------------------------------------------------
    def up(self, connection: Connection) -> None:
        """Send what waits."""
        del connection
        self.pump()

    def down(self, reason: DulyError) -> None:
        """Answer every call with what is known; be careful where an answer is missing."""
        now = time.monotonic()
        calls = {id(c): c for c in self._waiting}
        for sent in self._sent.values():
            calls[id(sent.call)] = sent.call
            sent.route.careful_until = now + CAREFUL_SECONDS
        self._waiting.clear()
        self._sent.clear()
        self._in_flight = self._in_flight_bytes = 0
        for call in calls.values():
            call.finish(reason.detail)


def _encoded(message: Message, route: _Route, *, now: float) -> bytes | Outcome:
    if route.denied_until > now:
        return Outcome(OutcomeKind.REFUSED, route.denial)
    if not route.read:
        return Outcome(OutcomeKind.UNROUTED, f"no group reads it: {route.address} has no queue")
    if len(message.payload) > PAYLOAD_BYTES_MAX:
        text = f"{len(message.payload)} bytes, at most {PAYLOAD_BYTES_MAX}"
        return Outcome(OutcomeKind.IMPOSSIBLE, text)
    try:
        return send(message, route.head if route.careful_until > now else route.head_within)
    except ValueError as error:  # UnicodeEncodeError among them
        return Outcome(OutcomeKind.IMPOSSIBLE, f"not encodable: {error}"[:200])


def _refusal(sent: _Sent, text: str) -> Outcome:
    """What an ERROR with a receipt of ours means: nothing of it was stored."""
    text = f"{sent.route.address} takes nothing from this login, or is full: {text}"[:300]
    if is_about_rights(text):
        sent.route.denied_until = time.monotonic() + DENIED_SECONDS
        sent.route.denial = text
    sent.route.careful_until = time.monotonic() + CAREFUL_SECONDS
    return Outcome(OutcomeKind.REFUSED, text)
