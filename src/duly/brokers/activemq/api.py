"""Questions to the server's own management, over STOMP: a JSON list out, a JSON list back.

Owns the correlation of answers and what refusals mean. Invariant: every question ends within its
time, also when the connection goes or the login may not ask. Runs in the I/O thread only.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from duly.brokers.activemq.frames import Frame
from duly.brokers.activemq.link import RIGHTS, Connection, Link, is_about_rights
from duly.errors import BrokerUnavailableError, ConfigurationError, DulyError
from duly.message import new_id

__all__ = ["CALL_SECONDS", "Api", "RefusedError"]

CALL_SECONDS = 5.0
MANAGEMENT = "activemq.management"


class RefusedError(Exception):
    """The management's answer was an error."""


class Api:
    """Asks over one link."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._inbox = f"{link.settings.prefix}.reply.{new_id()}"
        self._open: dict[str, asyncio.Future[Any]] = {}
        self._last = 0
        link.users.insert(0, self)

    async def call(self, operation: str, *values: Any, of: str = "broker") -> Any:
        """The result of an operation. of: the resource, by the server's name for it.

        Raises RefusedError, BrokerUnavailableError, ConfigurationError where the login may not ask.
        """
        body = msgspec.json.encode(values)
        return await self._ask({"_AMQ_ResourceName": of, "_AMQ_OperationName": operation}, body)

    async def read(self, attribute: str, *, of: str = "broker") -> Any:
        """An attribute of a resource. Raises as ``call``."""
        return await self._ask({"_AMQ_ResourceName": of, "_AMQ_Attribute": attribute}, b"")

    async def _ask(self, headers: dict[str, str], body: bytes) -> Any:
        connection = await self._link.settled()
        self._last += 1
        number = str(self._last)
        question: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._open[number] = question
        shown = self._link.settings.shown

        def taken(refusal: str) -> None:
            if refusal and not question.done():
                question.set_exception(_refused(shown, refusal))

        address = {"destination": MANAGEMENT, "reply-to": self._inbox, "correlation-id": number}
        connection.command("SEND", address | headers, taken, body=body)
        try:
            async with asyncio.timeout(CALL_SECONDS):
                succeeded, result = await question
        except TimeoutError:
            raise BrokerUnavailableError(f"{shown}: no answer") from None
        finally:
            del self._open[number]
        if not succeeded:
            what = headers.get("_AMQ_OperationName") or headers["_AMQ_Attribute"]
            raise RefusedError(f"{what}: {result}"[:400])
        return result

    def up(self, connection: Connection) -> None:
        """Listen for answers; what the server refuses ends the connection, with its reason."""
        where = {"destination": self._inbox, "subscription-type": "MULTICAST", "ack": "auto"}
        connection.listen(where, self._answered, lambda _refusal: None)

    def down(self, reason: DulyError) -> None:
        """No answer will come any more."""
        for question in self._open.values():
            if not question.done():
                question.set_exception(type(reason)(reason.detail, code=reason.code))

    def _answered(self, frame: Frame) -> None:
        question = self._open.get(frame.header("correlation-id"))
        if question is None or question.done():
            return
        try:
            results = msgspec.json.decode(frame.body or b"[null]", type=list[Any])
        except (msgspec.MsgspecError, ValueError) as error:
            detail = f"{self._link.settings.shown}: unreadable answer: {error}"
            question.set_exception(BrokerUnavailableError(detail))
            return
        succeeded = frame.header("_AMQ_OperationSucceeded") == "true"
        question.set_result((succeeded, results[0] if results else None))


def _refused(shown: str, text: str) -> DulyError:
    if is_about_rights(text):
        detail = f"{shown}: may not ask {MANAGEMENT}; see the rights a login needs"
        return ConfigurationError(f"{detail} ({text})", code=RIGHTS)
    return BrokerUnavailableError(f"{shown}: {text}")
