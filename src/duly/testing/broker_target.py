"""What the broker suite works with: the broker under test, a receiver, and the steps of its tests.

Invariant: every wait has a limit and fails with what it waited for, so that a broker that hangs
fails one test in seconds instead of stopping the run.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from uuid import uuid4

from duly.message import HEADER_SOURCE, HEADER_TIME, Message, new_id
from duly.ports import (
    Broker,
    BrokerFeatures,
    Delivery,
    Outcome,
    OutcomeKind,
    Subscription,
    SubscriptionSpec,
    TopicSpec,
)

__all__ = [
    "CLOSE_SECONDS",
    "PUBLISH_SECONDS",
    "QUIET_SECONDS",
    "RECEIVE_SECONDS",
    "Receiver",
    "Target",
    "command",
    "event",
    "join",
    "message",
    "out_of_order",
    "pair",
    "publish",
    "quiet",
    "send",
    "started",
    "twice",
    "unrouted",
]

PUBLISH_SECONDS = 10.0
RECEIVE_SECONDS = 15.0
QUIET_SECONDS = 0.5
CLOSE_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is tested.

    make: a new broker object, not started, on the same server each time. features: those it must
    have. restart: stop the server hard and start it again on its data; needed when durable.
    stalled: a started broker whose server does not answer while the block runs. shared: whether two
    objects see the same messages (False: in memory). payload_bytes: of the largest message sent.
    settle_seconds: how long after it was declared the server may still forget a queue.
    """

    make: Callable[[], Broker]
    features: BrokerFeatures
    restart: Callable[[], Awaitable[None]] | None = None
    stalled: Callable[[], AbstractAsyncContextManager[Broker]] | None = None
    shared: bool = True
    payload_bytes: int = 4_000_000
    settle_seconds: float = 0.0


def message(
    topic: TopicSpec, number: int = 0, *, key: str | None = None, payload: bytes | None = None
) -> Message:
    """A message for a topic; its number is its payload."""
    return Message(
        id=new_id(),
        type="conformance.sent",
        kind=topic.kind,
        topic=topic.name,
        key=key,
        payload=b"%d" % number if payload is None else payload,
        headers={HEADER_SOURCE: "conformance", HEADER_TIME: "2026-01-02T03:04:05.678901Z"},
    )


def event(word: str = "orders") -> TopicSpec:
    """An event topic that no other test uses."""
    return TopicSpec(f"{word}-{uuid4().hex[:12]}", "event")


def command(word: str = "work") -> TopicSpec:
    """A command queue that no other test uses."""
    return TopicSpec(f"{word}-{uuid4().hex[:12]}", "command")


async def send(broker: Broker, messages: Sequence[Message]) -> None:
    """Publish until every message is confirmed, as a relay would; at most 30 s."""
    left = list(messages)
    end = time.monotonic() + 30.0
    while left:
        outcomes = await broker.publish(left, deadline_seconds=PUBLISH_SECONDS)
        assert len(outcomes) == len(left)
        pairs = zip(left, outcomes, strict=True)
        left = [m for m, o in pairs if o.kind is not OutcomeKind.CONFIRMED]
        assert not left or time.monotonic() < end, f"not confirmed: {outcomes[:3]}"
        if left:
            await asyncio.sleep(0.2)


class Receiver:
    """Reads a subscription in the background. acking: whether everything is acked at once."""

    def __init__(self, subscription: Subscription, *, acking: bool = True) -> None:
        self.subscription = subscription
        self.deliveries: list[Delivery] = []
        self.largest_batch = 0
        self._acking = acking
        self._news = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async for batch in self.subscription.batches():
            assert batch, "an empty batch"
            self.largest_batch = max(self.largest_batch, len(batch))
            self.deliveries += batch
            if self._acking:
                await self.subscription.ack([d.token for d in batch])
            self._news.set()

    @property
    def messages(self) -> list[Message]:
        """What was received, in order."""
        return [d.message for d in self.deliveries]

    @property
    def ids(self) -> list[str]:
        """The ids of what was received, in order."""
        return [d.message.id for d in self.deliveries]

    async def until(
        self, enough: Callable[[], bool], seconds: float = RECEIVE_SECONDS, what: str = "messages"
    ) -> None:
        """Wait until ``enough()``; fails after the time."""
        end = time.monotonic() + seconds
        while not enough():
            left = end - time.monotonic()
            assert left > 0, f"{what} did not come; got {len(self.deliveries)}"
            if self._task.done():
                self._task.result()
            self._news.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), min(left, 0.1))

    async def receive(self, count: int, seconds: float = RECEIVE_SECONDS) -> list[Message]:
        """Wait for ``count`` messages, and a moment for what should not come."""
        await self.until(lambda: len(self.deliveries) >= count, seconds, f"{count} messages")
        return self.messages

    async def ack_all(self) -> None:
        """Ack everything received so far."""
        await self.subscription.ack([d.token for d in self.deliveries])

    async def close(self) -> None:
        """Close the subscription; its iteration must end by itself."""
        await asyncio.wait_for(self.subscription.close(), CLOSE_SECONDS)
        await asyncio.wait_for(self._task, CLOSE_SECONDS)


# --- steps ----------------------------------------------------------------------------------------
@asynccontextmanager
async def started(target: Target) -> AsyncIterator[Broker]:
    """A broker of the target, closed at the end."""
    broker = target.make()
    await broker.start()
    try:
        yield broker
    finally:
        await asyncio.wait_for(broker.close(), 2 * CLOSE_SECONDS)


@asynccontextmanager
async def pair(target: Target) -> AsyncIterator[tuple[Broker, Broker]]:
    """Two broker objects, as two processes would have; one twice where objects share nothing."""
    async with started(target) as one:
        if not target.shared:
            yield one, one
            return
        async with started(target) as two:
            yield one, two


async def join(
    broker: Broker,
    group: str,
    topic: TopicSpec,
    *,
    acking: bool = True,
    ordered: bool = False,
    prefetch: int = 1000,
    from_start: bool = True,
) -> Receiver:
    """Declare a group on a topic and read for it."""
    spec = SubscriptionSpec(
        group, (topic,), ordered=ordered, prefetch=prefetch, from_start=from_start
    )
    await broker.declare([topic], [spec])
    return Receiver(await broker.subscribe(spec), acking=acking)


async def publish(
    broker: Broker, messages: Sequence[Message], *, deadline_seconds: float
) -> Sequence[Outcome]:
    """A publish as a coroutine, for a task."""
    return await broker.publish(messages, deadline_seconds=deadline_seconds)


async def quiet(receiver: Receiver, count: int) -> None:
    """Nothing more than ``count`` comes for a moment."""
    await asyncio.sleep(QUIET_SECONDS)
    assert len(receiver.deliveries) == count, f"{len(receiver.deliveries)} instead of {count}"


def unrouted(target: Target) -> OutcomeKind:
    """The outcome for what nobody reads, as the target declares it."""
    reported = target.features.reports_unrouted
    return OutcomeKind.UNROUTED if reported else OutcomeKind.CONFIRMED


def twice(ids: Iterable[str]) -> list[str]:
    """Those that are there more than once."""
    return [one for one, count in Counter(ids).items() if count > 1]


def out_of_order(messages: Iterable[Message]) -> list[tuple[str | None, int, int]]:
    """(key, number before, number after) wherever a key's numbers do not grow."""
    last: dict[str | None, int] = {}
    wrong = []
    for m in messages:
        number = int(m.payload)
        if number <= last.get(m.key, -1):
            wrong.append((m.key, last[m.key], number))
        last[m.key] = number
    return wrong
