"""The asyncio face of the embedded broker: calls become jobs of an engine's thread, one per batch.

Invariant: a publish that its caller has given up on is never committed afterwards, unless the
commit had begun - then its outcome was unknown. Owns the deadline of a publish and the hand-over of
batches to the loop; leaves out the URL (``places``), every statement (``log``, ``claims``) and
every decision about sources (``reader``).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from secrets import token_hex
from typing import Any, TypeVar

from duly.brokers.embedded.engine import Engine, Feed
from duly.brokers.embedded.log import Log
from duly.brokers.embedded.places import place_of
from duly.brokers.embedded.reader import Reader, Token
from duly.brokers.embedded.store import boot_seconds
from duly.errors import BrokerUnavailableError, ConfigurationError, DulyError, OutcomeUnknownError
from duly.kernel import failpoints
from duly.message import Message
from duly.ports import (
    Delivery,
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

__all__ = ["EmbeddedBroker", "EmbeddedSubscription"]

T = TypeVar("T")

CALL_SECONDS = 10.0
CLOSE_SECONDS = 4.0
_UNKNOWN = Outcome(OutcomeKind.UNKNOWN, "no answer before the deadline")


class EmbeddedBroker:
    """A durable log with consumer groups in a SQLite file, for many processes on one machine, or in
    tables of PostgreSQL, MySQL or MariaDB.

    url: ``embedded:///relative.db``, ``embedded:////absolute.db``, ``embedded:///:memory:`` (this
    object only), ``embedded+postgresql://...`` or ``embedded+mysql://...``. lease_seconds: after a
    crash, until another process takes over. retention_seconds: how long messages that every group
    has read are kept; both of the URL where not given. prefix: of the tables on a server. Raises
    ConfigurationError for a bad URL or a limit that is not above zero, MissingExtraError for a
    driver that is not installed.

    Guarantee: at least once, in order per key; a confirmed batch is committed, whole. On failure:
    nothing of a batch is stored unless its outcome is UNKNOWN. Idempotence: none, a batch published
    twice is there twice.
    """

    def __init__(
        self,
        url: str,
        *,
        lease_seconds: float | None = None,
        retention_seconds: float | None = None,
        prefix: str = "duly_",
    ) -> None:
        place = place_of(url, prefix=prefix)
        lease = place.lease_seconds if lease_seconds is None else lease_seconds
        keep = place.retention_seconds if retention_seconds is None else retention_seconds
        if not lease > 0 or not keep > 0:
            raise ConfigurationError(
                "embedded broker: lease_seconds and retention_seconds must be above 0"
            )
        self.features = place.features
        self._place = place
        self._engine = Engine(
            lambda: Log(place.open(listening=True)),
            name=place.name,
            lease_seconds=lease,
            retention_seconds=keep,
        )
        self._sender = self._engine
        if place.own_sender:
            self._sender = Engine(
                lambda: Log(place.open(listening=False)),
                name=place.name,
                lease_seconds=lease,
                retention_seconds=None,
            )
        self._subscriptions: list[EmbeddedSubscription] = []

    async def start(self) -> None:
        """Open the log in the background. Raises ConfigurationError when the folder of its file
        does not exist.
        """
        await asyncio.to_thread(self._place.check)
        for engine in {self._engine, self._sender}:
            engine.start()

    async def declare(
        self, topics: Sequence[TopicSpec], subscriptions: Sequence[SubscriptionSpec]
    ) -> None:
        """Make sure that topics and groups exist. Idempotent.

        Raises BrokerUnavailableError (again later), ConfigurationError (the file is not a log, or
        cannot be written).
        """
        groups = [
            (topic, _group(spec, topic), spec.from_start)
            for spec in subscriptions
            for topic in spec.topics
        ]
        await self._call(lambda log: log.declare(topics, groups))

    async def publish(
        self, messages: Sequence[Message], *, deadline_seconds: float
    ) -> Sequence[Outcome]:
        """Store a batch in one transaction; one outcome per message, in order.

        deadline_seconds: past it nothing of the batch is stored any more; UNKNOWN only when the
        commit had begun.
        """
        if not messages:
            return []
        if not self._sender.alive:
            return _unavailable(messages, "the broker is not running")
        attempt = _Attempt(deadline_seconds)
        future = self._sender.submit(lambda log: self._publish(log, messages, attempt))
        waiting = asyncio.wrap_future(future)
        waiting.add_done_callback(_seen)
        try:
            await asyncio.wait({waiting}, timeout=deadline_seconds)
        finally:
            abandoned = not waiting.done() and attempt.abandon()
        if abandoned:
            return _unavailable(messages, "the deadline passed before the commit")
        if not waiting.done():
            return [_UNKNOWN] * len(messages)
        try:
            return waiting.result()
        except OutcomeUnknownError as error:
            return [Outcome(OutcomeKind.UNKNOWN, error.detail)] * len(messages)
        except DulyError as error:
            return _unavailable(messages, error.detail)

    def _publish(self, log: Log, messages: Sequence[Message], attempt: _Attempt) -> list[Outcome]:
        outcomes = log.publish(
            messages, wait_seconds=attempt.left_seconds(), may_commit=attempt.may_commit
        )
        failpoints.hit(failpoints.RELAY_SENT)
        self._engine.post(self._engine.news)
        if self._sender is not self._engine:
            self._sender.submit(_ring)  # behind the answer: a hint must not cost an outcome
        return outcomes

    async def subscribe(self, spec: SubscriptionSpec) -> Subscription:
        """Start receiving for one group; declares what is missing. Raises as ``declare``."""
        await self.declare([], [spec])
        subscription = EmbeddedSubscription(self._engine, spec)
        await self._call(subscription.open)
        self._subscriptions.append(subscription)
        return subscription

    async def inspect(self) -> Sequence[Finding]:
        """The durability verdict, and whether the log can be used."""
        try:
            return await self._call(lambda log: log.store.inspect())
        except DulyError as error:
            fix = "Check the path, its owner and the disk, or the server and its URL."
            return [Finding("EMBEDDED_LOG", Severity.RED, error.detail, fix)]

    async def topics(self) -> list[TopicStatus]:
        """Every topic with its depth, and per group what is read and what is left. Raises
        BrokerUnavailableError.
        """
        return await self._call(lambda log: log.topics())

    async def peek(self, topic: str, *, after: str | None = None, limit: int = 20) -> list[Peeked]:
        """Stored messages, each source in order, consuming nothing.

        after: the cursor of the last one seen; "" from the oldest kept; None for the newest
        ``limit``.
        """
        return await self._call(lambda log: log.peek(topic, after=after, limit=limit))

    async def close(self) -> None:
        """Close subscriptions and the log within a few seconds. Idempotent."""
        end = time.monotonic() + CLOSE_SECONDS
        for subscription in list(self._subscriptions):
            with contextlib.suppress(TimeoutError):  # a server that is silent: leases run out
                await asyncio.wait_for(subscription.close(), max(0.1, end - time.monotonic()))
        self._subscriptions.clear()
        for engine in {self._engine, self._sender}:
            engine.stop()
        for engine in {self._engine, self._sender}:
            await asyncio.to_thread(engine.close, end - time.monotonic())

    async def _call(self, work: Callable[[Log], T]) -> T:
        return await _wait(self._engine, self._engine.submit(work))


class EmbeddedSubscription:
    """A running subscription of one group; made by ``EmbeddedBroker.subscribe``."""

    def __init__(self, engine: Engine, spec: SubscriptionSpec) -> None:
        self._engine = engine
        self._spec = spec
        self._loop = asyncio.get_running_loop()
        self._arrived: list[list[Delivery]] = []
        self._wake = asyncio.Event()
        self._closed = False
        self._feed: Feed | None = None

    def open(self, log: Log) -> None:
        """Join the group; runs in the engine's thread."""
        topics = [(log.topic_id(t), _group(self._spec, t), t.name) for t in self._spec.topics]
        holder = f"{os.getpid()}-{token_hex(6)}"
        reader = Reader(
            holder, topics, prefetch=self._spec.prefetch, ttl=self._engine.lease_seconds
        )
        self._feed = Feed(reader, self._deliver)
        self._engine.add(self._feed)

    def _deliver(self, batch: list[Delivery]) -> bool:
        try:
            self._loop.call_soon_threadsafe(self._arrive, batch)
        except RuntimeError:  # the loop was closed without closing us
            return False
        return True

    def _arrive(self, batch: list[Delivery]) -> None:
        self._arrived.append(batch)
        self._wake.set()

    async def batches(self) -> AsyncIterator[list[Delivery]]:
        """Batches of 1 to ``prefetch`` deliveries, until closed."""
        while not self._closed:
            await self._wake.wait()
            self._wake.clear()
            arrived, self._arrived = self._arrived, []
            batch = await self._still_ours([d for part in arrived for d in part])
            if batch and not self._closed:
                yield batch

    async def _still_ours(self, arrived: list[Delivery]) -> list[Delivery]:
        """Without those whose lease has run out: a process that was stopped must not hand out what
        another may have taken over. They are given back, or nobody would read them again."""
        now = boot_seconds()
        lost = {held for held in {d.token.held for d in arrived} if held.until <= now}
        if not lost:
            return arrived
        await self.release([d.token for d in arrived if d.token.held in lost])
        return [d for d in arrived if d.token.held not in lost]

    async def ack(self, tokens: Sequence[Any]) -> None:
        """These are done; their positions are stored within some ten milliseconds, or at close."""
        feed = self._feed
        if feed is not None and tokens:
            acked: list[Token] = list(tokens)
            self._engine.post(lambda: feed.reader.ack(acked))

    async def release(self, tokens: Sequence[Any]) -> None:
        """Give back: the sources of these go to other members at once, or come back to us after a
        second.
        """
        feed = self._feed
        if feed is not None and tokens:
            released: list[Token] = list(tokens)
            self._engine.post(lambda: feed.reader.release(released, boot_seconds()))

    async def close(self) -> None:
        """Store positions, give back what is not acked, leave the group. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._wake.set()
        feed = self._feed
        if feed is not None and self._engine.alive:
            with contextlib.suppress(DulyError):  # the leases run out by themselves
                await _wait(
                    self._engine, self._engine.submit(lambda log: self._engine.remove(feed, log))
                )


class _Attempt:
    """One publish, given up by its caller or committed by the engine, never both."""

    def __init__(self, deadline_seconds: float) -> None:
        self._deadline = time.monotonic() + deadline_seconds
        self._lock = threading.Lock()
        self._abandoned = False
        self.committing = False

    def left_seconds(self) -> float:
        return max(0.001, self._deadline - time.monotonic())

    def may_commit(self) -> bool:
        with self._lock:
            self.committing = not self._abandoned and time.monotonic() < self._deadline
            return self.committing

    def abandon(self) -> bool:
        with self._lock:
            self._abandoned = not self.committing
            return self._abandoned


async def _wait(engine: Engine, future: Future[T]) -> T:
    if not engine.alive:
        raise BrokerUnavailableError("the embedded broker is not running")
    try:
        return await asyncio.wait_for(asyncio.wrap_future(future), CALL_SECONDS)
    except TimeoutError:
        raise BrokerUnavailableError(
            f"embedded broker {engine.name}: no answer in {CALL_SECONDS:.0f} s"
        ) from None


def _seen(waiting: asyncio.Future[Any]) -> None:
    """Look at the exception of a publish that nobody waits for any more."""
    if not waiting.cancelled():
        waiting.exception()


def _group(spec: SubscriptionSpec, topic: TopicSpec) -> str:
    """A command queue has one group, whoever reads it."""
    return topic.name if topic.kind == "command" else spec.group


def _unavailable(messages: Sequence[Message], why: str) -> list[Outcome]:
    return [Outcome(OutcomeKind.UNAVAILABLE, why)] * len(messages)


def _ring(log: Log) -> None:
    with log.store.reading() as db:
        db.ring()
