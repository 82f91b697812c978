"""Sending without the outbox: after the commit, under a policy.

Owns the way of ``publish(..., outbox=False)`` messages: from the committing thread, which is not
held up, to a broker connection of their own on a portal's loop.  What a policy says happens when
the broker does not confirm:

    Ignore      counted as dropped
    Retry       sent again under the same id, as often as the policy says, then counted as dropped
    FailureLog  written to ``duly_failure``, where it is tried again or handled by a person

The invariant is only this: a message is confirmed, counted as dropped, or in the failure log -
unless the process dies first.  What must not be lost then belongs into the outbox.  Bounded: past
``in_flight_max`` messages nothing new is sent, and the policy decides at once.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from collections.abc import Callable

from duly.errors import DulyError
from duly.message import Message
from duly.observe.facts import DroppedByPolicy
from duly.observe.hooks import Hooks
from duly.outbox.after_commit import FailureLog, Ignore, Policy
from duly.outbox.failure_log import add_failure
from duly.outbox.send import send
from duly.ports import Broker, Database, Outcome, OutcomeKind
from duly.runtime.connection import ConnectionThread
from duly.runtime.portal import Portal

__all__ = ["FAILURE_SOURCE", "UnstoredSender"]

FAILURE_SOURCE = "after-commit"  # of the entries in the failure log
IN_FLIGHT_MAX = 1000
RETRY_DELAY_SECONDS = 5.0  # until the failure log tries it for the first time
_BUSY = Outcome(OutcomeKind.UNAVAILABLE, "TOO_MANY_IN_FLIGHT")
_log = logging.getLogger("duly.unstored")


class UnstoredSender:
    """Sends messages of one App that are not stored. make_broker: called once, on first use."""

    def __init__(
        self,
        make_broker: Callable[[], Broker],
        database: Database,
        *,
        hooks: Hooks,
        send_timeout_seconds: float,
        in_flight_max: int = IN_FLIGHT_MAX,
    ) -> None:
        self._make_broker, self._hooks = make_broker, hooks
        self._timeout_seconds, self._in_flight_max = send_timeout_seconds, in_flight_max
        self._failures = ConnectionThread(database, "failures")
        self._portal: Portal | None = None
        self._broker: Broker | None = None
        self._in_flight = 0
        self._lock = threading.Lock()

    def deliver(self, message: Message, policy: Policy) -> None:
        """Start sending and return at once. From any thread, and from inside an event loop."""
        with self._lock:
            full = self._in_flight >= self._in_flight_max
            self._in_flight += not full
            if self._portal is None:
                self._portal = Portal("unstored")
        if full:
            self._portal.spawn(self._give_up(message, policy, _BUSY))
        else:
            self._portal.spawn(self._send(message, policy))

    def close(self) -> None:
        """Wait a little for what is under way, then close. Idempotent."""
        with self._lock:
            portal, self._portal = self._portal, None
        if portal is not None:
            portal.finish()
            if self._broker is not None:
                portal.call(self._broker.close(), timeout_seconds=5.0)
                self._broker = None
            portal.close()
        self._failures.close()

    async def _send(self, message: Message, policy: Policy) -> None:
        try:
            outcome = await self._attempt(message)
            attempt = 1
            while outcome.kind is not OutcomeKind.CONFIRMED and not isinstance(
                policy, Ignore | FailureLog
            ):
                if policy.exhausted(attempt):
                    break
                await asyncio.sleep(policy.delay(attempt, random.random()))
                outcome = await self._attempt(message)
                attempt += 1
            if outcome.kind is not OutcomeKind.CONFIRMED:
                await self._give_up(message, policy, outcome)
        finally:
            with self._lock:
                self._in_flight -= 1

    async def _attempt(self, message: Message) -> Outcome:
        if self._broker is None:
            broker = self._make_broker()
            try:
                await broker.start()
            except DulyError as error:
                return Outcome(OutcomeKind.UNAVAILABLE, f"{error.code}: {error.detail}")
            self._broker = broker
        publish = self._broker.publish
        (outcome,) = await send(publish, [message], deadline_seconds=self._timeout_seconds)
        return outcome

    async def _give_up(self, message: Message, policy: Policy, outcome: Outcome) -> None:
        code = outcome.kind.name
        if isinstance(policy, FailureLog):
            error = f"{code}: {outcome.error}"
            steps = lambda: add_failure(  # noqa: E731  # made anew for each run
                FAILURE_SOURCE, message, error, delay_seconds=RETRY_DELAY_SECONDS
            )
            try:
                await self._failures.run(steps)
            except DulyError as lost:
                _log.error(
                    "%s was not sent and not logged: %s",
                    message.id,
                    lost,
                    extra={"code": lost.code},
                )
            else:
                return
        self._hooks.emit(DroppedByPolicy(topic=message.topic, code=code, count=1))
