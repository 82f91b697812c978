"""Publishing: one transaction of pipelined XADDs per call, one answer per message.

Owns the thread that publishes and what each answer means. Invariants: a message is CONFIRMED only
by the id that its own XADD gave; a call is stored whole and in order, or not at all - one of more
than TRANSACTION_BYTES in several transactions, of which none begins before the one ahead of it is
confirmed; when the deadline passes the connection is reset, so that nothing is sent afterwards.

    answer                                   outcome
    an id                                    CONFIRMED
    nil: nobody has made the stream          UNROUTED
    no memory, replica, loading, failover    UNAVAILABLE: the server's matter, not the message's
    no right, a key of another type          REFUSED
    none, and EXEC was sent                  UNKNOWN
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from redis import exceptions

from duly.brokers.redis.entries import add_command
from duly.brokers.redis.link import Link, is_later
from duly.brokers.redis.settings import Settings
from duly.brokers.redis.topology import stream_name
from duly.errors import DulyError, OutcomeUnknownError
from duly.kernel import failpoints
from duly.message import Message
from duly.ports import CONFIRMED, Outcome, OutcomeKind, TopicSpec

__all__ = ["PAYLOAD_BYTES_MAX", "Call", "Publisher"]

PAYLOAD_BYTES_MAX = 100_000_000
TRANSACTION_BYTES = 16_000_000
ROUNDS_MAX = 4
_MULTI = b"*1\r\n$5\r\nMULTI\r\n"
_EXEC = b"*1\r\n$4\r\nEXEC\r\n"

_log = logging.getLogger("duly.brokers.redis")


class Call:
    """One publish call. done: gets the outcomes, once, in the publishing thread."""

    def __init__(
        self,
        messages: Sequence[Message],
        deadline: float,
        done: Callable[[list[Outcome]], None],
    ) -> None:
        self.messages = messages
        self.deadline = deadline  # by time.monotonic
        self.outcomes: list[Outcome | None] = [None] * len(messages)
        self.abandoned = False
        self._done = done

    @property
    def left_seconds(self) -> float:
        """Until the deadline."""
        return self.deadline - time.monotonic()

    def finish(self, reason: str) -> None:
        """Give the outcomes; what has none was not sent."""
        unsent = Outcome(OutcomeKind.UNAVAILABLE, f"not sent: {reason}")
        self._done([outcome or unsent for outcome in self.outcomes])


class _Add(NamedTuple):
    """A message to be added. place: in the call."""

    place: int
    stream: str
    data: bytes


class _Aborted(Exception):  # noqa: N818  # never raised: stands where an answer would
    """Not executed because of another command of the transaction."""


class Publisher:
    """The publishing thread. on_lost: told the streams that were there and are gone, to make their
    groups anew on the given link."""

    def __init__(self, settings: Settings, *, on_lost: Callable[[Link, set[str]], None]) -> None:
        self._settings = settings
        self._on_lost = on_lost
        self._link = Link(settings, purpose="publish")
        self._calls: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._names: dict[tuple[str, str], str] = {}
        self._known: set[str] = set()
        self._payload_bytes_max = PAYLOAD_BYTES_MAX
        self._generation = 0
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="duly-redis-publish", daemon=True)

    def start(self) -> None:
        """Start the thread; it connects when there is something to send."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether a call would be answered."""
        return self._thread.is_alive() and not self._stopping

    def submit(self, call: Call) -> None:
        """Queue a call; from any thread."""
        self._calls.put(call)

    def expect(self, streams: set[str]) -> None:
        """These exist: one that is gone later was lost."""
        self._known |= streams

    def stop(self, timeout_seconds: float) -> None:
        """End the thread; what is queued is answered as not sent. Idempotent."""
        if self._thread.is_alive():
            self._stopping = True
            self._calls.put(None)
            self._link.interrupt()
            self._thread.join(timeout_seconds)

    def _run(self) -> None:
        while not self._stopping and (call := self._calls.get()) is not None:
            try:
                reason = self._handle(call)
            except Exception as error:  # noqa: BLE001  # a fault of ours: told, and the thread lives
                _log.exception("a publish failed unexpectedly")
                self._link.drop()
                reason = f"unexpected {type(error).__name__}"
            call.finish(reason)
        self._link.drop()
        with suppress(queue.Empty):
            while (left := self._calls.get_nowait()) is not None:
                left.finish("the broker was closed")

    # --- one call ---------------------------------------------------------------------------------
    def _handle(self, call: Call) -> str:
        """Send what can be sent; gives the reason for what was not."""
        if call.abandoned or call.left_seconds <= 0:
            return "the deadline had passed"
        try:
            self._link.open(call.left_seconds)
            if self._generation != self._link.generation:
                self._learn(call.left_seconds)
        except DulyError as error:
            return error.detail
        for chunk in self._chunks(call):
            if call.left_seconds <= 0:
                return "the deadline passed"
            if reason := self._store(call, chunk):
                return reason
        return ""

    def _learn(self, timeout_seconds: float) -> None:
        """The largest value that this server takes: it ends the connection over a larger one."""
        asked = [("CONFIG", "GET", "proto-max-bulk-len")]
        answer = self._link.ask_all(asked, timeout_seconds=timeout_seconds)[0]
        most = (
            int(answer[1]) if isinstance(answer, list) and len(answer) == 2 else PAYLOAD_BYTES_MAX
        )
        self._payload_bytes_max = min(most, PAYLOAD_BYTES_MAX)
        self._generation = self._link.generation

    def _chunks(self, call: Call) -> Iterator[list[_Add]]:
        chunk: list[_Add] = []
        size = 0
        for index, message in enumerate(call.messages):
            made = self._encoded(index, message)
            if isinstance(made, Outcome):
                call.outcomes[index] = made
                continue
            if chunk and size + len(made.data) > TRANSACTION_BYTES:
                yield chunk
                chunk, size = [], 0
            chunk.append(made)
            size += len(made.data)
        if chunk:
            yield chunk

    def _encoded(self, index: int, message: Message) -> _Add | Outcome:
        size, most = len(message.payload), self._payload_bytes_max
        if size > most:
            return Outcome(OutcomeKind.IMPOSSIBLE, f"{size} bytes, at most {most} are taken")
        place = (message.kind, message.topic)
        name = self._names.get(place)
        if name is None:
            if len(self._names) >= 10_000:
                self._names.clear()
            topic = TopicSpec(message.topic, message.kind)
            name = self._names[place] = stream_name(self._settings.prefix, topic)
        try:
            return _Add(index, name, add_command(message, name))
        except UnicodeEncodeError as error:
            return Outcome(OutcomeKind.IMPOSSIBLE, f"not encodable: {error}"[:200])

    def _store(self, call: Call, adds: list[_Add]) -> str:
        """Add them; gives the reason when not all of them have an outcome."""
        for _ in range(ROUNDS_MAX):
            if not adds:
                return ""
            try:
                answers = self._transaction(adds, max(0.001, call.left_seconds))
            except OutcomeUnknownError as error:
                for add in adds:
                    call.outcomes[add.place] = Outcome(
                        OutcomeKind.UNKNOWN, f"sent, no answer: {error.detail}"
                    )
                return error.detail
            except DulyError as error:
                return error.detail
            reason, again = self._judge(call, adds, answers)
            if reason:
                return reason
            adds = again
        return "the server keeps refusing the transaction" if adds else ""

    def _exchange(self, data: bytes, replies: int, timeout_seconds: float) -> list[Any]:
        until = time.monotonic() + timeout_seconds
        self._link.send(data, timeout_seconds=timeout_seconds)
        failpoints.hit(failpoints.RELAY_SENT)
        return self._link.receive(replies, until=until)

    def _transaction(self, adds: list[_Add], timeout_seconds: float) -> list[Any]:
        """The answer to each."""
        if len(adds) == 1:
            return self._exchange(adds[0].data, 1, timeout_seconds)
        data = b"".join([_MULTI, *[add.data for add in adds], _EXEC])
        opened, *queued, result = self._exchange(data, len(adds) + 2, timeout_seconds)
        if isinstance(result, list):
            return result
        if isinstance(opened, Exception):  # no right to MULTI: each was executed by itself
            return queued
        return [one if isinstance(one, Exception) else _Aborted() for one in queued]

    def _judge(self, call: Call, adds: list[_Add], answers: list[Any]) -> tuple[str, list[_Add]]:
        """Outcomes by answers; gives a reason to stop, or what is to be sent again."""
        again: list[_Add] = []
        gone: list[_Add] = []
        there: set[str] = set()
        stop = ""
        for add, answer in zip(adds, answers, strict=True):
            if isinstance(answer, bytes):
                call.outcomes[add.place] = CONFIRMED
                there.add(add.stream)
            elif answer is None and add.stream in self._known:
                gone.append(add)
            elif answer is None:
                reason = f"nobody reads {call.messages[add.place].topic}"
                call.outcomes[add.place] = Outcome(OutcomeKind.UNROUTED, reason)
            elif isinstance(answer, _Aborted):
                again.append(add)
            elif isinstance(answer, Exception) and is_later(answer):
                stop = self._link.mapped(answer).detail
                if isinstance(answer, exceptions.ReadOnlyError):
                    self._link.drop()  # the name may lead to the new primary
            else:
                detail = self._link.mapped(answer).detail
                call.outcomes[add.place] = Outcome(OutcomeKind.REFUSED, detail)
        self._known |= there
        if gone and not stop:
            again = self._restored(call, gone) + again
        return stop, again

    def _restored(self, call: Call, gone: list[_Add]) -> list[_Add]:
        """The server lost these streams: their groups are made anew, and the messages are kept for
        whoever reads there, instead of being taken for unread.
        """
        self._on_lost(self._link, {add.stream for add in gone})
        return [
            add._replace(
                data=add_command(call.messages[add.place], add.stream, only_existing=False)
            )
            for add in gone
        ]
