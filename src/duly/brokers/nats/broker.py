"""The asyncio face of NATS JetStream: calls become work of the I/O thread, one hand-over per batch.

Two connections: one publishes, one receives, asks and declares, because a publish past its deadline
ends its connection, and acks must not wait behind messages. Invariant: every await has a timeout of
its own, also when the server, the network or the I/O thread does not answer.
"""

from __future__ import annotations

import asyncio
import logging
import time
from base64 import b64decode
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, TypeVar

from duly.brokers.iothread import IoThread
from duly.brokers.nats.api import (
    CALL_SECONDS,
    CONSUMER_MISSING,
    MESSAGE_MISSING,
    STREAM_MISSING,
    Api,
    RefusedError,
)
from duly.brokers.nats.consumer import NatsSubscription
from duly.brokers.nats.durability import judge, read_illness, read_monitor
from duly.brokers.nats.headers import PREFIX, decode
from duly.brokers.nats.link import Connection, Link
from duly.brokers.nats.publisher import PAYLOAD_BYTES_MAX, Call, Publisher
from duly.brokers.nats.settings import parse
from duly.brokers.nats.topology import declare, sources_of, stream_name, subject_of
from duly.errors import BrokerUnavailableError, DulyError
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
from duly.wire.cloudevents import from_headers

__all__ = ["NatsBroker"]

T = TypeVar("T")

DECLARE_SECONDS = 6 * CALL_SECONDS  # some questions for each group, one after the other
CLOSE_SECONDS = 3.0
GRACE_SECONDS = 1.0

_log = logging.getLogger("duly.brokers.nats")


class NatsBroker:
    """NATS 2.9 or newer with JetStream: one stream per topic, explicit acks.

    url: ``nats://user:password@host:4222/prefix`` or ``nats+tls://``, with several hosts between
    commas and the options cacertfile, certfile, connection_timeout, heartbeat, keyfile, monitor,
    replicas, verify. Raises ConfigurationError.

    Guarantee: at least once; CONFIRMED means that a majority of the stream's replicas has written
    it. On failure: outcomes say what is known, UNKNOWN when the answer was lost. Idempotence: the
    server drops what it has stored under the same id within two minutes; later it is there twice.
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
        self._io = IoThread("duly-nats")
        self._publishing = Link(self._settings, purpose="publish")
        self._consuming = Link(self._settings, purpose="consume")
        self._api = Api(self._consuming)
        self._publisher = Publisher(self._publishing, self._api, remake=self._remake)
        self._consuming.users.append(self)
        self._again: asyncio.Task[None] | None = None
        self._topics: dict[TopicSpec, None] = {}
        self._specs: dict[SubscriptionSpec, None] = {}
        self._subscriptions: list[NatsSubscription] = []

    # --- port ---------------------------------------------------------------------------------
    async def start(self) -> None:
        """Connect in the background; does not wait for the server."""
        self._io.start()
        self._io.post(self._publishing.open)
        self._io.post(self._consuming.open)

    async def declare(
        self, topics: Sequence[TopicSpec], subscriptions: Sequence[SubscriptionSpec]
    ) -> None:
        """Make sure that the streams and consumers of groups exist; again after a reconnect.

        A topic without a group has no stream, and a publish to it is UNROUTED. Raises
        BrokerUnavailableError (again later), ConfigurationError (refused, or made otherwise).
        """
        topics, subscriptions = list(topics), list(subscriptions)
        await self._ask(declare(self._api, self._settings, subscriptions), DECLARE_SECONDS)
        self._topics |= dict.fromkeys(topics)
        self._specs |= dict.fromkeys(subscriptions)
        prefix = self._settings.prefix
        streams = [stream_name(prefix, topic) for spec in subscriptions for topic in spec.topics]
        self._publisher.declared |= set(streams)

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
        subscription = NatsSubscription(self._io, self._consuming, self._api, spec=spec)
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
        if self._again is not None:
            self._again.cancel()
        self._publisher.down(BrokerUnavailableError("the broker was closed"))
        await asyncio.gather(self._publishing.close(), self._consuming.close())

    # --- look ---------------------------------------------------------------------------------
    async def inspect(self) -> Sequence[Finding]:
        """Version, durability, streams and TLS of the server, as far as it tells."""
        monitor = await asyncio.to_thread(read_monitor, self._settings)
        illness = await asyncio.to_thread(read_illness, self._settings)
        try:
            info = await self._ask(self._info(), DECLARE_SECONDS)
            streams = await self._ask(self._streams(), DECLARE_SECONDS)
        except BrokerUnavailableError as error:
            fix = "Start the server, with JetStream, or correct the URL."
            return [Finding("NATS_REACHABLE", Severity.RED, error.detail, fix)]
        except DulyError as error:
            fix = "Check the login, its rights on $JS.API and _INBOX, and TLS."
            return [Finding(error.code, Severity.RED, error.detail, fix)]
        return judge(self._settings, info, streams=streams, monitor=monitor, illness=illness)

    async def _info(self) -> dict[str, Any]:
        return dict((await self._consuming.settled())._server_info)

    async def _streams(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        try:
            while True:
                body = {"subject": f"{self._settings.prefix}.>", "offset": len(found)}
                answer = await self._api.ask("STREAM.LIST", body)
                page = [stream["config"] for stream in answer.get("streams") or ()]
                found += page
                if not page or len(found) >= answer.get("total", 0):
                    return found
        except RefusedError as error:
            raise error.mapped() from error

    async def topics(self) -> list[TopicStatus]:
        """What was declared here, with the messages kept and each group's part of them.

        members: open requests, one for each receiver that has room. Raises BrokerUnavailableError.
        """
        groups: dict[TopicSpec, list[GroupStatus]] = {topic: [] for topic in self._topics}
        for spec in list(self._specs):
            for topic in spec.topics:
                status = await self._ask(self._group(spec, topic), DECLARE_SECONDS)
                groups.setdefault(topic, []).append(status)
        found = []
        for topic in sorted(groups, key=lambda t: t.name):
            depth = await self._ask(self._depth(topic), DECLARE_SECONDS)
            found.append(TopicStatus(topic.name, topic.kind, depth, tuple(groups[topic])))
        return found

    async def _depth(self, topic: TopicSpec) -> int:
        try:
            answer = await self._api.ask(f"STREAM.INFO.{stream_name(self._settings.prefix, topic)}")
        except RefusedError as error:
            if error.code == STREAM_MISSING:
                return 0
            raise error.mapped() from error
        return int(answer["state"]["messages"])

    async def _group(self, spec: SubscriptionSpec, topic: TopicSpec) -> GroupStatus:
        lag = members = 0
        for source in sources_of(self._settings.prefix, spec):
            if source.topic != topic:
                continue
            try:
                answer = await self._api.ask(f"CONSUMER.INFO.{source.stream}.{source.consumer}")
            except RefusedError as error:
                if error.code in (STREAM_MISSING, CONSUMER_MISSING):
                    continue
                raise error.mapped() from error
            lag += int(answer["num_pending"]) + int(answer["num_ack_pending"])
            members = max(members, int(answer.get("num_waiting", 0)))
        return GroupStatus(spec.group, None, lag, members)

    async def peek(self, topic: str, *, after: str | None = None, limit: int = 20) -> list[Peeked]:
        """Messages that are stored now; a message that every group has is gone. Raises as
        ``declare``."""
        number = int(after) + 1 if after and after.isdigit() else 1
        return await self._ask(self._peek(topic, number, limit), DECLARE_SECONDS)

    async def _peek(self, name: str, number: int, limit: int) -> list[Peeked]:
        found: list[Peeked] = []
        for kind in ("event", "command"):
            topic = TopicSpec(name, kind)
            stream = stream_name(self._settings.prefix, topic)
            wanted = subject_of(self._settings.prefix, topic, "*")
            while len(found) < limit:
                try:
                    body = {"next_by_subj": wanted, "seq": number}
                    answer = await self._api.ask(f"STREAM.MSG.GET.{stream}", body)
                except RefusedError as error:
                    if error.code in (STREAM_MISSING, MESSAGE_MISSING):
                        break
                    raise error.mapped() from error
                found.append(_peeked(answer["message"], stream, topic=name))
                number = int(answer["message"]["seq"]) + 1
            if found:
                return found
        return found

    # --- in the I/O thread --------------------------------------------------------------------
    def up(self, connection: Connection) -> None:
        """Declare again what was declared: the server may have been replaced."""
        self._remake()

    def _remake(self) -> None:
        if self._specs and (self._again is None or self._again.done()):
            self._again = asyncio.get_running_loop().create_task(self._declare_again())

    async def _declare_again(self) -> None:
        try:
            await declare(self._api, self._settings, list(self._specs))
        except DulyError as error:
            _log.warning("cannot declare again: %s", error.detail)

    def down(self, reason: DulyError) -> None:
        """The next connection declares again."""
        if self._again is not None:
            self._again.cancel()

    def denied(self, action: str, subject: str) -> None:
        """Who asked or published is told; nothing here depends on it."""

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


def _peeked(stored: dict[str, Any], stream: str, *, topic: str) -> Peeked:
    sequence = str(stored["seq"])
    headers = decode(b64decode(stored.get("hdrs", "")))
    others = {n: v for n, v in headers.items() if not n.lower().startswith("nats-")}
    message = from_headers(
        others,
        b64decode(stored.get("data", "")),
        prefix=PREFIX,
        topic=topic,
        fallback_id=f"{stream}/{sequence}",
    )
    moment = datetime.fromisoformat(str(stored["time"])[:19] + "+00:00").timestamp()
    return Peeked(sequence, moment, stream, sequence, message)
