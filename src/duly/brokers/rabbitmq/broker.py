"""The asyncio face of RabbitMQ: calls become work of the I/O thread, one hand-over per batch.

Two connections: one publishes, one receives and declares, because a server short of memory stops
reading from whoever publishes, and acks must not wait behind that. Invariant: every await has a
timeout of its own, also when the server, the network or the I/O thread does not answer.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from duly.brokers.rabbitmq.consumer import RabbitMQSubscription
from duly.brokers.rabbitmq.link import FastConnection, Link
from duly.brokers.rabbitmq.publisher import PAYLOAD_BYTES_MAX, Call, Publisher
from duly.brokers.rabbitmq.settings import Settings, parse
from duly.brokers.rabbitmq.thread import IoThread
from duly.brokers.rabbitmq.topology import (
    Steps,
    count_steps,
    declare_steps,
    queue_name,
    run_on_channel,
)
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

__all__ = ["RabbitMQBroker"]

CALL_SECONDS = 10.0
CLOSE_SECONDS = 3.0
GRACE_SECONDS = 1.0

_log = logging.getLogger("duly.brokers.rabbitmq")


class RabbitMQBroker:
    """RabbitMQ 3.8 or newer, with publisher confirms, quorum queues and manual acks.

    url: ``amqp://user:password@host/vhost`` or ``amqps://``, with the options heartbeat,
    connection_timeout, cacertfile, certfile, keyfile, verify, queue_type. Raises
    ConfigurationError.

    Guarantee: at least once; CONFIRMED means a majority of the queue's replicas has it on disk.
    On failure: outcomes say what is known, UNKNOWN when the answer was lost. Idempotence: none, the
    same message published twice is there twice.
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
        _quiet_pika()
        self._io = IoThread(on_panic=self._panic)
        self._publishing = Link(self._io, self._settings, purpose="publish")
        self._consuming = Link(self._io, self._settings, purpose="consume")
        self._publisher = Publisher(self._io, self._publishing)
        self._publishing.users.append(self)
        self._topics: dict[TopicSpec, None] = {}
        self._specs: dict[SubscriptionSpec, None] = {}
        self._subscriptions: list[RabbitMQSubscription] = []

    # --- port ---------------------------------------------------------------------------------
    async def start(self) -> None:
        """Connect in the background; does not wait for the server."""
        self._io.start()
        self._io.post(self._publishing.open)
        self._io.post(self._consuming.open)

    async def declare(
        self, topics: Sequence[TopicSpec], subscriptions: Sequence[SubscriptionSpec]
    ) -> None:
        """Make sure that exchanges and queues exist; they are declared again after a reconnect.

        Raises BrokerUnavailableError (again later), ConfigurationError (login refused, or a queue
        exists with other arguments).
        """
        topics, subscriptions = list(topics), list(subscriptions)
        await self._on_channel(
            lambda channel: declare_steps(
                channel, self._settings, topics=topics, subscriptions=subscriptions
            )
        )
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
        call = Call(messages, time.monotonic() + deadline_seconds, _resolver(loop, answer))
        self._io.post(lambda: self._publisher.submit(call))
        try:
            await asyncio.wait({answer}, timeout=deadline_seconds + GRACE_SECONDS)
        except asyncio.CancelledError:
            self._io.post(lambda: self._publisher.give_up(call, "the caller was cancelled"))
            raise
        if answer.done():
            return answer.result()
        return _all(messages, OutcomeKind.UNKNOWN, "the I/O thread does not answer")

    async def subscribe(self, spec: SubscriptionSpec) -> Subscription:
        """Start receiving for one group; declares what is missing. Raises as ``declare``."""
        await self.declare([], [spec])
        subscription = RabbitMQSubscription(self._consuming, spec)
        self._io.post(subscription.open)
        self._subscriptions.append(subscription)
        return subscription

    async def close(self) -> None:
        """Close subscriptions and connections within a few seconds. Idempotent."""
        for subscription in self._subscriptions:
            await subscription.close()
        self._subscriptions.clear()
        with suppress(BrokerUnavailableError):  # the thread's end closes the sockets
            await self._ask(self._close_links)
        await asyncio.to_thread(self._io.stop, CLOSE_SECONDS)

    def _close_links(self, done: Callable[[DulyError | None], None]) -> None:
        self._publisher.down(BrokerUnavailableError("the broker was closed"))
        links = [self._publishing, self._consuming]

        def closed() -> None:
            links.pop()
            if not links:
                done(None)

        for link in tuple(links):
            link.close(closed)

    # --- look ---------------------------------------------------------------------------------
    async def inspect(self) -> Sequence[Finding]:
        """Version, durability, alarms and TLS of the server, as far as AMQP tells."""
        findings = [_tls(self._settings), _queue_type(self._settings)]
        try:
            connection = await self._control()
        except ConfigurationError as error:
            fix = "Correct user, password and virtual host, or the user's rights on it."
            return [*findings, Finding("RABBITMQ_REFUSED", Severity.RED, error.detail, fix)]
        except DulyError as error:
            fix = "Check host and port in the URL, and that the server runs."
            return [*findings, Finding("RABBITMQ_REACHABLE", Severity.RED, error.detail, fix)]
        facts = {k: str(v) for k, v in connection.server_properties.items() if k == "version"}
        version = facts.get("version", "?")
        findings.append(
            Finding("RABBITMQ_SERVER", Severity.GREEN, f"RabbitMQ {version}", "", facts)
        )
        findings.append(_confirms(bool(connection.publisher_confirms)))
        findings.append(_alarm(self._publishing.blocked))
        return findings

    async def topics(self) -> list[TopicStatus]:
        """What was declared here, with the messages ready in each queue and its consumers.

        A queue's unacked messages are not in the count. Raises BrokerUnavailableError.
        """
        counts: dict[str, tuple[int, int]] = {}
        specs = list(self._specs)
        queues = [queue_name(s.group, t) for s in specs for t in s.topics]
        await self._on_channel(lambda channel: count_steps(channel, queues, counts))
        groups: dict[TopicSpec, list[GroupStatus]] = {t: [] for t in self._topics}
        for spec in specs:
            for topic in spec.topics:
                ready, members = counts[queue_name(spec.group, topic)]
                status = GroupStatus(spec.group, None, ready, members)
                groups.setdefault(topic, []).append(status)
        return [
            TopicStatus(t.name, t.kind, sum(g.lag for g in found), tuple(found))
            for t, found in sorted(groups.items(), key=lambda item: item[0].name)
        ]

    async def peek(self, topic: str, *, after: str | None = None, limit: int = 20) -> list[Peeked]:
        """Raises OperatorError: RabbitMQ shows a message only to who consumes it."""
        del after, limit
        raise OperatorError(
            f"{topic}: RabbitMQ shows a message only to who consumes it; add a group that reads it",
            code="PEEK_UNSUPPORTED",
        )

    # --- in the I/O thread --------------------------------------------------------------------
    def up(self, connection: FastConnection) -> None:
        """Declare again what was declared, then publish: the server may have been replaced."""
        if not self._topics and not self._specs:
            self._publisher.up(connection)
            return

        def declared(error: DulyError | None) -> None:
            if error is not None:
                _log.warning("cannot declare again: %s", error.detail)
            if connection.is_open:
                self._publisher.up(connection)

        topics, specs = list(self._topics), list(self._specs)
        run_on_channel(
            self._io,
            connection,
            lambda channel: declare_steps(
                channel, self._settings, topics=topics, subscriptions=specs
            ),
            done=declared,
            timeout_seconds=CALL_SECONDS,
        )

    def down(self, reason: DulyError) -> None:
        """Answer every call with what is known."""
        self._publisher.down(reason)

    def unblocked(self) -> None:
        """The server takes messages again."""
        self._publisher.unblocked()

    def _panic(self) -> None:
        for link in (self._publishing, self._consuming):
            link.abort("an exception escaped in the I/O thread")

    # --- waiting ------------------------------------------------------------------------------
    async def _control(self) -> FastConnection:
        """The connection to declare on, when the attempt under way ends well; else its error."""
        await self._ask(self._consuming.when_up)
        connection = self._consuming.connection
        if connection is None:
            raise self._consuming.reason
        return connection

    async def _on_channel(self, make: Callable[[Any], Steps]) -> None:
        connection = await self._control()

        def run(done: Callable[[DulyError | None], None]) -> None:
            if connection.is_open:
                run_on_channel(self._io, connection, make, done=done, timeout_seconds=CALL_SECONDS)
            else:
                done(self._consuming.reason)

        await self._ask(run)

    async def _ask(self, question: Callable[[Callable[[DulyError | None], None]], None]) -> None:
        """Run a question in the I/O thread and raise the error it answers with."""
        if not self._io.alive:
            raise BrokerUnavailableError("the broker is not running")
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[DulyError | None] = loop.create_future()
        done = _resolver(loop, answer)
        self._io.post(lambda: question(done))
        try:
            error = await asyncio.wait_for(answer, CALL_SECONDS + GRACE_SECONDS)
        except TimeoutError:
            raise BrokerUnavailableError(f"{self._settings.shown}: no answer") from None
        if error is not None:
            raise type(error)(error.detail)


def _resolver(
    loop: asyncio.AbstractEventLoop, answer: asyncio.Future[Any]
) -> Callable[[Any], None]:
    """A function for the I/O thread that sets the future, if anybody still waits for it."""

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


def _quiet_pika() -> None:
    """pika logs every failed attempt as an error with a traceback; we log each change once."""
    logger = logging.getLogger("pika")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.CRITICAL)


def _tls(settings: Settings) -> Finding:
    code = "RABBITMQ_TLS"
    if settings.tls and settings.verified:
        return Finding(code, Severity.GREEN, "TLS, the server's certificate is verified")
    if settings.tls:
        fix = "Remove verify=verify_none from the URL; name the CA with cacertfile=."
        return Finding(code, Severity.RED, "TLS without verification: anybody can pose as it", fix)
    if settings.local:
        return Finding(code, Severity.GREEN, "no TLS, the server is on this machine")
    fix = "Use amqps://."
    return Finding(code, Severity.WEAK, "no TLS: login and messages can be read on the way", fix)


def _queue_type(settings: Settings) -> Finding:
    code = "RABBITMQ_QUEUE_TYPE"
    if settings.queue_type == "quorum":
        return Finding(code, Severity.GREEN, "quorum queues: a confirm means a majority has it")
    fix = "Remove queue_type=classic from the URL and delete the classic queues."
    return Finding(code, Severity.WEAK, "classic queues: one copy, gone with its node's disk", fix)


def _confirms(offered: bool) -> Finding:
    if offered:
        return Finding("RABBITMQ_CONFIRMS", Severity.GREEN, "the server confirms publishes")
    fix = "Use RabbitMQ itself, 3.8 or newer."
    return Finding("RABBITMQ_CONFIRMS", Severity.RED, "the server does not confirm publishes", fix)


def _alarm(blocked: str | None) -> Finding:
    if blocked is None:
        return Finding("RABBITMQ_ALARM", Severity.GREEN, "the server takes messages")
    fix = "Free memory or disk on the server."
    return Finding("RABBITMQ_ALARM", Severity.RED, f"the server takes no messages: {blocked}", fix)
