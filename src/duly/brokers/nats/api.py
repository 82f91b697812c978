"""Questions to JetStream's own interface: a JSON request, a JSON answer.

Owns the correlation of answers and what JetStream's refusals mean. Invariant: every question ends
within its time, also when the connection goes or the server forbids to ask. Runs in the I/O thread
only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import msgspec

from duly.brokers.nats.frames import Frame
from duly.brokers.nats.headers import status
from duly.brokers.nats.link import RIGHTS, Connection, Link
from duly.errors import BrokerUnavailableError, ConfigurationError, DulyError

__all__ = [
    "CONSUMER_MISSING",
    "MESSAGE_MISSING",
    "STREAM_MISSING",
    "TOPOLOGY",
    "Api",
    "RefusedError",
]

CALL_SECONDS = 5.0
QUIET_SECONDS = 1.0
STREAM_MISSING = 10059
CONSUMER_MISSING = 10014
MESSAGE_MISSING = 10037
NO_JETSTREAM, TOPOLOGY = "NATS_NO_JETSTREAM", "NATS_TOPOLOGY"
_NO_RESPONDERS = 503


class RefusedError(Exception):
    """JetStream's answer to a question was an error. code: of its own list; status: like HTTP's."""

    def __init__(self, subject: str, code: int, *, status_code: int, text: str) -> None:
        super().__init__(f"{subject.removeprefix('$JS.API.')}: {text} ({code})")
        self.code = code
        self.status_code = status_code

    def mapped(self) -> DulyError:
        """As one of our errors."""
        if self.status_code == _NO_RESPONDERS:
            return BrokerUnavailableError(f"JetStream: {self}")
        return ConfigurationError(f"JetStream: {self}", code=TOPOLOGY)


class _Question(NamedTuple):
    subject: str
    answer: asyncio.Future[Any]


class Api:
    """Asks over one link."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._inbox = f"{link.inbox}.api"
        self._open: dict[int, _Question] = {}
        self._last = 0
        self.unfinished = 0  # streams that are being made and may lack their groups yet
        self.finished: list[Callable[[], None]] = []  # called when there is none any more
        self.under_way: list[Callable[[], bool]] = []  # whether something published is unanswered
        link.users.insert(0, self)

    @contextmanager
    def making(self) -> Iterator[Callable[[], Awaitable[None]]]:
        """Gives what to await before a stream is made. Until the end nothing is published: a stream
        keeps a message only for the groups that it has, and confirms it all the same.
        """
        begun: list[bool] = []

        async def begin() -> None:
            self.unfinished += not begun
            begun.append(True)
            loop = asyncio.get_running_loop()
            until = loop.time() + QUIET_SECONDS
            # What is on its way must not arrive in between; answered within a round trip or never.
            while any(under_way() for under_way in self.under_way) and loop.time() < until:  # noqa: ASYNC110
                await asyncio.sleep(0.001)

        try:
            yield begin
        finally:
            self.unfinished -= bool(begun)
            if begun and not self.unfinished:
                for go_on in self.finished:
                    go_on()

    async def ask(self, subject: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The answer. subject: without ``$JS.API.``.

        Raises RefusedError, BrokerUnavailableError, ConfigurationError where it may not be asked.
        """
        connection = await self._link.settled()
        self._last += 1
        number, full = self._last, f"$JS.API.{subject}"
        question = _Question(full, asyncio.get_running_loop().create_future())
        self._open[number] = question
        data = b"" if body is None else msgspec.json.encode(body)
        head = f"PUB {full} {self._inbox}.{number} {len(data)}\r\n"
        connection.emit(b"".join((head.encode(), data, b"\r\n")))
        try:
            async with asyncio.timeout(CALL_SECONDS):
                answer: dict[str, Any] = await question.answer
        except TimeoutError:
            raise BrokerUnavailableError(f"{self._link.settings.shown}: no answer") from None
        finally:
            del self._open[number]
        if error := answer.get("error"):
            raise RefusedError(
                full,
                int(error.get("err_code", 0)),
                status_code=int(error.get("code", 0)),
                text=str(error.get("description", "")),
            )
        return answer

    def up(self, connection: Connection) -> None:
        """Listen for answers."""
        connection.listen(f"{self._inbox}.*", self._answered)

    def down(self, reason: DulyError) -> None:
        """No answer will come any more."""
        for question in self._open.values():
            if not question.answer.done():
                question.answer.set_exception(type(reason)(reason.detail, code=reason.code))

    def denied(self, action: str, subject: str) -> None:
        """The server forbids to ask."""
        for question in self._open.values():
            if not question.answer.done() and question.subject.lower() == subject:
                detail = f"{self._link.settings.shown}: no permission for {action} to {subject}"
                question.answer.set_exception(ConfigurationError(detail, code=RIGHTS))

    def _answered(self, frame: Frame) -> None:
        question = self._open.get(int(frame.subject.rpartition(b".")[2]))
        if question is None or question.answer.done():
            return
        if status(frame.block)[0] == _NO_RESPONDERS:
            detail = f"{self._link.settings.shown}: JetStream is not enabled, or not ready"
            error = BrokerUnavailableError(detail, code=NO_JETSTREAM)
            question.answer.set_exception(error)
            return
        try:
            question.answer.set_result(msgspec.json.decode(frame.payload, type=dict[str, Any]))
        except (msgspec.MsgspecError, ValueError) as error:
            detail = f"{self._link.settings.shown}: unreadable answer: {error}"
            question.answer.set_exception(BrokerUnavailableError(detail))
