"""The asyncio face of Redis Streams: calls become work of threads, one hand-over per batch.

Owns what was declared and the connection for everything that is rare. Invariant: every await has a
timeout of its own, also when the server or the network does not answer.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from duly.brokers.redis import inspection
from duly.brokers.redis.consumer import RedisSubscription
from duly.brokers.redis.link import CALL_SECONDS, Link
from duly.brokers.redis.publisher import PAYLOAD_BYTES_MAX, Call, Publisher
from duly.brokers.redis.settings import Settings, parse
from duly.brokers.redis.status import peek, statuses
from duly.brokers.redis.topology import declare, group_name, make_group, stream_name
from duly.errors import BrokerUnavailableError, ConfigurationError, DulyError
from duly.message import Message
from duly.ports import (
    BrokerFeatures,
    Finding,
    Loss,
    Outcome,
    OutcomeKind,
    Peeked,
    Severity,
    Subscription,
    SubscriptionSpec,
    TopicSpec,
    TopicStatus,
)

__all__ = ["RedisBroker"]

CLOSE_SECONDS = 3.0
GRACE_SECONDS = 1.0
TOLD_MAX = 20
HISTORY_LOST = "REDIS_HISTORY_LOST"

_log = logging.getLogger("duly.brokers.redis")
T = TypeVar("T")


class RedisBroker:
    """Redis Streams with consumer groups, on Redis 6.2 or newer, or Valkey.

    url: ``redis://user:password@host:6379/0`` or ``rediss://``, with the options prefix, retention,
    lease, connection_timeout, cacertfile, certfile, keyfile, verify. Raises ConfigurationError.

    Guarantee: at least once; what CONFIRMED is worth is the server's setting, told by ``inspect``.
    On failure: outcomes say what is known, UNKNOWN when the answer was lost. Idempotence: none, the
    same message published twice is there twice.
    """

    def __init__(self, url: str) -> None:
        self._settings: Settings = parse(url)
        self.features = BrokerFeatures(
            durable=True,
            ordered_source=True,
            atomic_batch=True,
            reports_unrouted=True,
            redelivers=True,
            late_subscriber_sees_history=True,
            payload_bytes_max=PAYLOAD_BYTES_MAX,
        )
        self._publisher = Publisher(self._settings, on_lost=self._restore)
        self._control = Link(self._settings, purpose="declaring")
        self._asking = threading.Lock()
        self._closed = False
        self._groups: dict[str, dict[str, None]] = {}
        self._subscriptions: list[RedisSubscription] = []
        self._told: list[Finding] = []
        self._report: Callable[[Loss], None] = lambda loss: None

    # --- port -------------------------------------------------------------------------------------
    async def start(self) -> None:
        """Ready to connect; does not wait for the server."""
        self._publisher.start()

    async def declare(
        self, topics: Sequence[TopicSpec], subscriptions: Sequence[SubscriptionSpec]
    ) -> None:
        """Make sure that streams and groups exist. Idempotent.

        Raises BrokerUnavailableError (again later), ConfigurationError (login refused, rights
        missing, or a key of that name holds something else).
        """
        topics, subscriptions = list(topics), list(subscriptions)
        prefix = self._settings.prefix
        await self._ask(
            lambda link: declare(link, prefix, topics=topics, subscriptions=subscriptions)
        )
        for spec in subscriptions:
            for topic in spec.topics:
                groups = self._groups.setdefault(stream_name(prefix, topic), {})
                groups[group_name(spec.group, topic)] = None
        self._publisher.expect(set(self._groups))

    async def publish(
        self, messages: Sequence[Message], *, deadline_seconds: float
    ) -> Sequence[Outcome]:
        """Store a batch and wait for its confirms; one outcome per message, in order.

        deadline_seconds: past it nothing of the batch is sent any more, unanswered is UNKNOWN.
        """
        if not messages:
            return []
        if not self._publisher.alive:
            return _all(messages, OutcomeKind.UNAVAILABLE, "the broker is not running")
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[list[Outcome]] = loop.create_future()
        call = Call(messages, time.monotonic() + deadline_seconds, _resolver(loop, answer))
        self._publisher.submit(call)
        try:
            await asyncio.wait({answer}, timeout=deadline_seconds + GRACE_SECONDS)
        finally:
            call.abandoned = not answer.done()
        if answer.done():
            return answer.result()
        return _all(messages, OutcomeKind.UNKNOWN, "the publishing thread does not answer")

    async def subscribe(self, spec: SubscriptionSpec) -> Subscription:
        """Start receiving for one group; declares what is missing. Raises as ``declare``."""
        await self.declare([], [spec])
        subscription = RedisSubscription(self._settings, spec, tell=self._tell)
        subscription.start()
        self._subscriptions.append(subscription)
        return subscription

    async def close(self) -> None:
        """Close subscriptions and connections within a few seconds. Idempotent."""
        self._closed = True
        await asyncio.gather(*(one.close() for one in self._subscriptions))
        self._subscriptions.clear()
        await asyncio.to_thread(self._publisher.stop, CLOSE_SECONDS)
        self._control.interrupt()
        await asyncio.to_thread(self._drop_control)

    def _drop_control(self) -> None:
        if self._asking.acquire(timeout=CLOSE_SECONDS):
            self._control.drop()
            self._asking.release()

    # --- look -------------------------------------------------------------------------------------
    async def inspect(self) -> Sequence[Finding]:
        """Durability, eviction, role, version, rights and TLS of the server, and what was lost."""
        try:
            found = await self._ask(lambda link: inspection.inspect(link, self._settings))
        except ConfigurationError as error:
            fix = "Correct the URL, or the server's settings for this login."
            return [Finding("REDIS_REFUSED", Severity.RED, error.detail, fix)]
        except DulyError as error:
            fix = "Check the URL, the login and the server."
            found = [inspection.tls(self._settings)]
            return [*found, Finding("REDIS_REACHABLE", Severity.RED, error.detail, fix)]
        return [*found, *self._told]

    async def topics(self) -> list[TopicStatus]:
        """Every stream that was declared under our prefix, with its groups: what each has read, has
        yet to do, and how many receivers it has. Raises BrokerUnavailableError.
        """
        return await self._ask(lambda link: statuses(link, self._settings))

    async def peek(self, topic: str, *, after: str | None = None, limit: int = 20) -> list[Peeked]:
        """Stored messages of a topic or queue in order, consuming nothing.

        after: the cursor of the last one seen; "" from the oldest kept; None for the newest
        ``limit``.
        """
        return await self._ask(
            lambda link: peek(link, self._settings, topic, after=after, limit=limit)
        )

    # --- losses -----------------------------------------------------------------------------------
    def report_losses(self, tell: Callable[[Loss], None]) -> None:
        """Call ``tell`` for every loss found from now on, from one of our threads."""
        self._report = tell

    def _tell(self, loss: Loss) -> None:
        """A loss, found in one of our threads."""
        whose = f" for {loss.group}" if loss.group else ""
        what = "was gone" if loss.messages is None else f"lost {loss.messages} entries"
        text = f"{loss.place}{whose} {what}: the server has lost data, or somebody deleted it"
        _log.error("%s: %s", HISTORY_LOST, text, extra={"code": HISTORY_LOST})
        fix = "Look at the server's persistence; resend what is missing (duly outbox resend)."
        if len(self._told) < TOLD_MAX:
            self._told.append(Finding(HISTORY_LOST, Severity.WEAK, text, fix))
        self._report(loss)

    def _restore(self, link: Link, streams: set[str]) -> None:
        """Make the groups of lost streams anew, as far as they were declared here."""
        for stream in sorted(streams):
            self._tell(Loss(stream, "", None))
            for group in list(self._groups.get(stream, ())):
                make_group(link, stream, group, start="0")

    # --- asking -----------------------------------------------------------------------------------
    async def _ask(self, question: Callable[[Link], T]) -> T:
        """Ask on the connection for what is rare. Raises what the answer is mapped to."""

        def work() -> T:
            if self._closed or not self._asking.acquire(timeout=CALL_SECONDS):
                raise BrokerUnavailableError("the broker is not running, or busy")
            try:
                self._control.open()
                return question(self._control)
            finally:
                self._asking.release()

        return await asyncio.to_thread(work)


def _resolver(
    loop: asyncio.AbstractEventLoop, answer: asyncio.Future[Any]
) -> Callable[[Any], None]:
    """A function for another thread that sets the future, if anybody still waits for it."""

    def set_result(value: Any) -> None:
        if not answer.done():
            answer.set_result(value)

    def resolve(value: Any) -> None:
        try:
            loop.call_soon_threadsafe(set_result, value)
        except RuntimeError:
            _log.debug("an answer came after its event loop was closed")

    return resolve


def _all(messages: Sequence[Message], kind: OutcomeKind, why: str) -> list[Outcome]:
    return [Outcome(kind, why)] * len(messages)
