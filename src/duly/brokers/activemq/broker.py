"""The asyncio face of ActiveMQ: calls become work of the I/O thread, one hand-over per batch.

Two connections: one publishes, one receives, asks and declares, because a publish past its deadline
ends its connection, and acks must not wait behind messages. Invariant: every await has a timeout of
its own, also when the server, the network or the I/O thread does not answer.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from duly.brokers.activemq.api import CALL_SECONDS, Api, RefusedError
from duly.brokers.activemq.consumer import ActiveMQSubscription
from duly.brokers.activemq.link import Link
from duly.brokers.activemq.publisher import PAYLOAD_BYTES_MAX, Call, Publisher
from duly.brokers.activemq.settings import parse
from duly.brokers.activemq.topology import (
    address_of,
    declare,
    queue_name,
    queues_at,
    stranded,
)
from duly.brokers.activemq.verdicts import judge
from duly.brokers.iothread import IoThread
from duly.errors import BrokerUnavailableError, ConfigurationError, DulyError, OperatorError
from duly.message import Message
from duly.ports import (
    BrokerFeatures,
    Finding,
    GroupStatus,
    Outcome,
    OutcomeKind,
    Peeked,
    Severity,
    Subscription,
    SubscriptionSpec,
    TopicSpec,
    TopicStatus,
)

__all__ = ["ActiveMQBroker"]

T = TypeVar("T")

DECLARE_SECONDS = 6 * CALL_SECONDS  # some questions for each group, one after the other
CLOSE_SECONDS = 3.0
GRACE_SECONDS = 1.0
LOOK_AGAIN_SECONDS = 1.0
_ATTRIBUTES = (
    "version",
    "persistenceEnabled",
    "journalSyncTransactional",
    "journalSyncNonTransactional",
)


class ActiveMQBroker:
    """ActiveMQ Artemis 2.20 or newer over STOMP 1.2: a durable queue per group and topic.

    url: ``stomp://user:password@host:61613/prefix`` or ``stomp+tls://``, with several hosts between
    commas and the options cacertfile, certfile, connection_timeout, heartbeat, keyfile, verify.
    Raises ConfigurationError.

    Guarantee: at least once; CONFIRMED means that the server has answered COMMIT with a receipt.
    On failure: outcomes say what is known, UNKNOWN when the receipt was lost. Idempotence: none of
    the server's; a message that is sent again is there twice, and the inbox sees to it.
    """

    def __init__(self, url: str) -> None:
        self._settings = parse(url)
        if self._settings.tls:
            self._settings.tls_context()  # unreadable files are an error now, not later
        self.features = BrokerFeatures(
            durable=True,
            ordered_source=True,
            atomic_batch=False,
            reports_unrouted=True,
            redelivers=True,
            late_subscriber_sees_history=False,
            payload_bytes_max=PAYLOAD_BYTES_MAX,
        )
        self._io = IoThread("duly-activemq")
        self._publishing = Link(self._settings, purpose="publish")
        self._consuming = Link(self._settings, purpose="consume")
        self._api = Api(self._consuming)
        self._publisher = Publisher(self._publishing, self._api)
        self._topics: dict[TopicSpec, None] = {}
        self._specs: dict[SubscriptionSpec, None] = {}
        self._subscriptions: list[ActiveMQSubscription] = []

    # --- port ---------------------------------------------------------------------------------
    async def start(self) -> None:
        """Connect in the background; does not wait for the server."""
        self._io.start()
        self._io.post(self._publishing.open)
        self._io.post(self._consuming.open)

    async def declare(
        self, topics: Sequence[TopicSpec], subscriptions: Sequence[SubscriptionSpec]
    ) -> None:
        """Make sure that the queues of groups exist; who receives declares again at a reconnect.

        A topic without a group has no queue, and a publish to it is UNROUTED. Raises
        BrokerUnavailableError (again later), ConfigurationError (refused, or made otherwise).
        """
        topics, subscriptions = list(topics), list(subscriptions)
        await self._ask(declare(self._api, self._settings, subscriptions), DECLARE_SECONDS)
        self._topics |= dict.fromkeys(topics)
        self._specs |= dict.fromkeys(subscriptions)

    async def publish(
        self, messages: Sequence[Message], *, deadline_seconds: float
    ) -> Sequence[Outcome]:
        """Send a batch and wait for its confirms; one outcome per message, in order.

        deadline_seconds: past it nothing of the batch is sent any more, unanswered is UNKNOWN.
        """
        if not messages:
            return []
        if not self._io.alive:
            return _all(messages, OutcomeKind.UNAVAILABLE, "the broker is not running")
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[list[Outcome]] = loop.create_future()

        def done(outcomes: list[Outcome]) -> None:
            with suppress(RuntimeError):  # the caller's loop was closed
                loop.call_soon_threadsafe(_resolve, answer, outcomes)

        call = Call(messages, time.monotonic() + deadline_seconds, done)
        self._io.post(self._publisher.submit, call)
        try:
            await asyncio.wait({answer}, timeout=deadline_seconds + GRACE_SECONDS)
        except asyncio.CancelledError:
            self._io.post(self._publisher.give_up, call, "the caller was cancelled")
            raise
        if answer.done():
            return answer.result()
        return _all(messages, OutcomeKind.UNKNOWN, "the I/O thread does not answer")

    async def subscribe(self, spec: SubscriptionSpec) -> Subscription:
        """Start receiving for one group; declares what is missing. Raises as ``declare``."""
        await self.declare([], [spec])
        subscription = ActiveMQSubscription(self._io, self._consuming, self._api, spec=spec)
        self._io.post(subscription.open)
        self._subscriptions.append(subscription)
        return subscription

    async def close(self) -> None:
        """Close subscriptions and connections within a few seconds. Idempotent."""
        for subscription in self._subscriptions:
            await subscription.close()
        self._subscriptions.clear()
        with suppress(DulyError):  # the thread's end closes the sockets
            await self._ask(self._close_links(), CLOSE_SECONDS)
        await asyncio.to_thread(self._io.stop, CLOSE_SECONDS)

    async def _close_links(self) -> None:
        self._publisher.down(BrokerUnavailableError("the broker was closed"))
        await asyncio.gather(self._publishing.close(), self._consuming.close())

    # --- look ---------------------------------------------------------------------------------
    async def inspect(self) -> Sequence[Finding]:
        """Version, durability, full and expiring addresses, and TLS, as far as the server tells."""
        try:
            broker, address, nobodys = await self._ask(self._facts(), DECLARE_SECONDS)
        except BrokerUnavailableError as error:
            fix = "Start the server with a STOMP acceptor, or correct the URL."
            return [Finding("ACTIVEMQ_REACHABLE", Severity.RED, error.detail, fix)]
        except DulyError as error:
            fix = "Check the login, its rights on activemq.management and our prefix, and TLS."
            return [Finding(error.code, Severity.RED, error.detail, fix)]
        return judge(self._settings, broker, address, stranded=nobodys)

    async def _facts(self) -> tuple[dict[str, Any], dict[str, Any], dict[str, int]]:
        sample = address_of(self._settings.prefix, TopicSpec("check", "event"))
        try:
            broker = {name: await self._api.read(name) for name in _ATTRIBUTES}
            address = json.loads(await self._api.call("getAddressSettingsAsJSON", sample))
            nobodys = await stranded(self._api, self._settings.prefix)
            if nobodys:
                await asyncio.sleep(LOOK_AGAIN_SECONDS)
                still = await stranded(self._api, self._settings.prefix)
                nobodys = {
                    queue: min(n, still[queue]) for queue, n in nobodys.items() if queue in still
                }
        except RefusedError as error:
            raise ConfigurationError(f"{self._settings.shown}: {error}") from error
        return broker, address, nobodys

    async def topics(self) -> list[TopicStatus]:
        """What was declared here, with the messages in each group's queue, those under way too.

        Raises BrokerUnavailableError, ConfigurationError.
        """
        topics = dict.fromkeys([*self._topics, *(t for s in self._specs for t in s.topics)])
        return [await self._status(t) for t in sorted(topics, key=lambda t: (t.name, t.kind))]

    async def _status(self, topic: TopicSpec) -> TopicStatus:
        prefix = self._settings.prefix
        found = await self._ask(self._queues(address_of(prefix, topic)), DECLARE_SECONDS)
        groups = []
        for spec in self._specs:
            queue = found.get(queue_name(prefix, spec.group, topic))
            if topic in spec.topics and queue is not None:
                lag, members = int(queue["messageCount"]), int(queue["consumerCount"])
                groups.append(GroupStatus(spec.group, None, lag, members))
        depth = sum(int(queue["messageCount"]) for queue in found.values())
        return TopicStatus(topic.name, topic.kind, depth, tuple(groups))

    async def _queues(self, address: str) -> dict[str, dict[str, Any]]:
        try:
            return {str(q["name"]): q for q in await queues_at(self._api, address)}
        except RefusedError as error:
            raise ConfigurationError(f"{self._settings.shown}: {error}") from error

    async def peek(self, topic: str, *, after: str | None = None, limit: int = 20) -> list[Peeked]:
        """Raises OperatorError: over STOMP, ActiveMQ shows a message only to who consumes it."""
        del after, limit
        raise OperatorError(
            f"{topic}: over STOMP, ActiveMQ shows a message only to who consumes it; add a group "
            "that reads it, or look with the server's console",
            code="PEEK_UNSUPPORTED",
        )

    # --- waiting ------------------------------------------------------------------------------
    async def _ask(self, question: Coroutine[Any, Any, T], timeout_seconds: float) -> T:
        """Run a question in the I/O thread. Raises its errors as new ones: they belong to it."""
        try:
            return await self._io.ask(question, timeout_seconds)
        except TimeoutError:
            raise BrokerUnavailableError(f"{self._settings.shown}: no answer") from None
        except DulyError as error:
            raise type(error)(error.detail, code=error.code) from error


def _resolve(answer: asyncio.Future[list[Outcome]], outcomes: list[Outcome]) -> None:
    if not answer.done():
        answer.set_result(outcomes)


def _all(messages: Sequence[Message], kind: OutcomeKind, why: str) -> list[Outcome]:
    return [Outcome(kind, why)] * len(messages)
