"""The asyncio face of Kafka: publishing and each group have a thread, questions a worker thread.

Invariant: every await has a timeout of its own, also when no server answers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

from duly.brokers.kafka import browse, topology, verdicts
from duly.brokers.kafka.control import Control
from duly.brokers.kafka.publisher import PAYLOAD_BYTES_MAX, Call, Publisher
from duly.brokers.kafka.settings import parse
from duly.brokers.kafka.subscription import KafkaSubscription
from duly.errors import BrokerUnavailableError, DulyError
from duly.message import Message
from duly.ports import (
    BrokerFeatures,
    Finding,
    Outcome,
    OutcomeKind,
    Peeked,
    Severity,
    Subscription,
    SubscriptionSpec,
    TopicSpec,
    TopicStatus,
)

__all__ = ["KafkaBroker"]

CALL_SECONDS = 25.0
GRACE_SECONDS = 1.0
CLOSE_SECONDS = 3.0

T = TypeVar("T")


class KafkaBroker:
    """Apache Kafka 2.4 or newer, or what speaks its protocol.

    url: ``kafka://user:password@host:9092,host:9092/prefix`` or ``kafkas://`` for TLS, with the
    options cacertfile, certfile, keyfile, verify, mechanism, partitions, replication,
    session_timeout. Raises ConfigurationError.

    Guarantee: at least once; CONFIRMED means that every in-sync replica has it (in memory; a write
    to disk is Kafka's own affair). On failure: outcomes say what is known, UNKNOWN when the answer
    was lost. Idempotence: none across calls, the same message published twice is there twice.
    """

    def __init__(self, url: str) -> None:
        self._settings = parse(url)
        if self._settings.tls:
            self._settings.check_files()
        self.features = BrokerFeatures(
            durable=True,
            ordered_source=True,
            atomic_batch=False,
            reports_unrouted=False,
            redelivers=True,
            late_subscriber_sees_history=True,
            payload_bytes_max=PAYLOAD_BYTES_MAX,
        )
        self._publisher = Publisher(self._settings)
        self._workers = ThreadPoolExecutor(2, thread_name_prefix="duly-kafka-ask")
        self._running = False
        self._topics: dict[TopicSpec, None] = {}
        self._specs: dict[SubscriptionSpec, None] = {}
        self._starts: topology.Starts = {}
        self._subscriptions: list[KafkaSubscription] = []

    async def start(self) -> None:
        """Get ready; the clients connect when they are first needed."""
        self._running = True
        self._publisher.start()

    async def declare(
        self, topics: Sequence[TopicSpec], subscriptions: Sequence[SubscriptionSpec]
    ) -> None:
        """Make sure that topics exist and that every group has a place to begin.

        Raises BrokerUnavailableError (again later), ConfigurationError (the login is refused,
        rights are missing, or a topic cannot be made as asked).
        """
        topics, subscriptions = list(topics), list(subscriptions)
        starts = await self._ask(lambda control: topology.declare(control, topics, subscriptions))
        self._starts = starts | self._starts  # where a group began first stays
        self._topics |= dict.fromkeys(topics)
        self._specs |= dict.fromkeys(subscriptions)

    async def publish(
        self, messages: Sequence[Message], *, deadline_seconds: float
    ) -> Sequence[Outcome]:
        """Send a batch and wait for its reports; one outcome per message, in order.

        deadline_seconds: past it nothing of the batch is sent any more, unanswered is UNKNOWN.
        """
        if not messages:
            return []
        if not self._publisher.alive:
            return [Outcome(OutcomeKind.UNAVAILABLE, "the broker is not running")] * len(messages)
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[list[Outcome]] = loop.create_future()
        call = Call(messages, time.monotonic() + deadline_seconds, _resolver(loop, answer))
        self._publisher.submit(call)
        try:
            await asyncio.wait({answer}, timeout=deadline_seconds + GRACE_SECONDS)
        except asyncio.CancelledError:
            self._publisher.give_up(call, "the caller was cancelled")
            raise
        if answer.done():
            return answer.result()
        return [Outcome(OutcomeKind.UNKNOWN, "the publisher does not answer")] * len(messages)

    async def subscribe(self, spec: SubscriptionSpec) -> Subscription:
        """Start receiving for one group; declares what is missing. Raises as ``declare``."""
        await self.declare([], [spec])
        subscription = KafkaSubscription(self._settings, spec, self._starts)
        self._subscriptions.append(subscription)
        return subscription

    async def close(self) -> None:
        """Leave the groups and close the connections within a few seconds. Idempotent."""
        self._running = False
        subscriptions, self._subscriptions = self._subscriptions, []
        await asyncio.gather(
            asyncio.to_thread(self._publisher.stop, CLOSE_SECONDS),
            *(subscription.close() for subscription in subscriptions),
        )
        self._workers.shutdown(wait=False, cancel_futures=True)

    # --- look ---------------------------------------------------------------------------------
    async def inspect(self) -> Sequence[Finding]:
        """Reach, TLS, and what the cluster's and the declared topics' settings are worth."""
        findings = [verdicts.tls(self._settings)]
        prefix = self._settings.prefix
        topics = [topology.topic_name(t.kind, t.name, prefix) for t in self._known_topics()]
        try:
            return findings + await self._ask(lambda control: verdicts.inspect(control, topics))
        except DulyError as error:
            fix = "Check the URL, the login, its rights and the server."
            text = f"{error.code}: {error.detail}"
            return [*findings, Finding("KAFKA_REACHABLE", Severity.RED, text, fix)]

    async def topics(self) -> list[TopicStatus]:
        """What was declared here: messages kept, and how far each group is.

        Raises BrokerUnavailableError.
        """
        specs, topics = list(self._specs), self._known_topics()
        return await self._ask(lambda control: browse.statuses(control, topics, specs))

    async def peek(self, topic: str, *, after: str | None = None, limit: int = 20) -> list[Peeked]:
        """Stored messages, consuming nothing, by the time they came.

        after: the cursor of the last one seen; "" from the oldest kept; None for the newest
        ``limit``. Raises NotFoundError.
        """
        return await self._ask(
            lambda control: browse.peek(control, topic, after=after, limit=limit)
        )

    def _known_topics(self) -> list[TopicSpec]:
        read = [topic for spec in self._specs for topic in spec.topics]
        return sorted({*self._topics, *read}, key=lambda t: (t.name, t.kind))

    async def _ask(self, question: Callable[[Control], T]) -> T:
        if not self._running:
            raise BrokerUnavailableError("the broker is not running")

        def ask() -> T:
            with Control(self._settings) as control:
                return question(control)

        asked = asyncio.get_running_loop().run_in_executor(self._workers, ask)
        try:
            return await asyncio.wait_for(asked, CALL_SECONDS)
        except TimeoutError:
            raise BrokerUnavailableError(f"{self._settings.shown}: no answer") from None


def _resolver(
    loop: asyncio.AbstractEventLoop, answer: asyncio.Future[Any]
) -> Callable[[Any], None]:
    """A function for the publisher's thread that sets the future, if anybody still waits for it."""

    def set_result(value: Any) -> None:
        if not answer.done():
            answer.set_result(value)

    def resolve(value: Any) -> None:
        with suppress(RuntimeError):  # a loop that was closed has nobody left who waits
            loop.call_soon_threadsafe(set_result, value)

    return resolve
