"""Faults that a test orders in advance, and the broker that they happen in.

A fault has a name out of a small fixed set and a number of times; it happens at the next places
that ask for it and is gone then.  Invariant: a name that nothing asks for is an error when it is
ordered, and one that never happened is an error at the end - a test must not pass because its fault
did not take place.

    broker.publish          nothing is sent: the broker is not there
    broker.publish_unknown  the messages arrive, the answer is lost
    handler:NAME            the handler raises before its first line
    commit                  the commit of a handler's transaction meets a deadlock: rolled back
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from difflib import get_close_matches
from threading import Lock

from duly.errors import ConfigurationError
from duly.message import Message
from duly.ports import (
    CONFIRMED,
    BrokerFeatures,
    Finding,
    Outcome,
    OutcomeKind,
    Peeked,
    Subscription,
    SubscriptionSpec,
    TopicSpec,
    TopicStatus,
)

__all__ = ["COMMIT", "PUBLISH", "PUBLISH_UNKNOWN", "Faults", "InjectedError", "RecordingBroker"]

PUBLISH = "broker.publish"
PUBLISH_UNKNOWN = "broker.publish_unknown"
COMMIT = "commit"
HANDLER = "handler:"


class InjectedError(Exception):
    """A fault that a test has ordered with ``fail_next``."""


class Faults:
    """The faults that are still to happen. handlers: the names that ``handler:NAME`` may have."""

    def __init__(self, handlers: Collection[str] = ()) -> None:
        self._known = {PUBLISH, PUBLISH_UNKNOWN, COMMIT, *(HANDLER + name for name in handlers)}
        self._left: Counter[str] = Counter()
        self._lock = Lock()

    def order(self, name: str, times: int) -> None:
        """Let the next ``times`` places of this name fail. Raises ConfigurationError."""
        if name not in self._known:
            near = get_close_matches(name, self._known, n=1, cutoff=0.0)
            raise ConfigurationError(f"no fault is named {name!r}; the nearest is {near[0]!r}")
        if times < 1:
            raise ConfigurationError(f"{name} can fail once or more often, not {times} times")
        with self._lock:
            self._left[name] += times

    def strike(self, name: str) -> bool:
        """Whether this place fails now; uses the fault up."""
        with self._lock:
            struck = self._left[name] > 0
            self._left[name] -= struck
            return struck

    @property
    def left(self) -> dict[str, int]:
        """What was ordered and has not happened, by name."""
        with self._lock:
            return {name: times for name, times in self._left.items() if times}


class RecordingBroker:
    """A broker that keeps what arrived, in order; ``AppTest`` hands it on to the handlers.

    arrived: every message as it came, a repeated one twice. Nobody can subscribe to it: a test that
    runs the App for real gives it ``embedded:///file.db`` instead.
    """

    features = BrokerFeatures(ordered_source=True, atomic_batch=True)

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self.arrived: list[Message] = []

    async def start(self) -> None:
        """Nothing to connect to."""

    async def declare(
        self, topics: Sequence[TopicSpec], subscriptions: Sequence[SubscriptionSpec]
    ) -> None:
        """Every topic is there."""

    async def publish(
        self, messages: Sequence[Message], *, deadline_seconds: float
    ) -> Sequence[Outcome]:
        """Keep a batch, unless a fault was ordered."""
        if messages and self._faults.strike(PUBLISH):
            outcome = Outcome(OutcomeKind.UNAVAILABLE, "fail_next")
            return [outcome] * len(messages)
        self.arrived += messages
        if messages and self._faults.strike(PUBLISH_UNKNOWN):
            return [Outcome(OutcomeKind.UNKNOWN, "fail_next")] * len(messages)
        return [CONFIRMED] * len(messages)

    async def subscribe(self, spec: SubscriptionSpec) -> Subscription:
        """Raises ConfigurationError."""
        raise ConfigurationError(
            "this App is under app_test, where drain() delivers; to run it for real, use "
            "app.override(broker='embedded:///broker.db')"
        )

    async def inspect(self) -> Sequence[Finding]:
        """Nothing to say."""
        return []

    async def topics(self) -> list[TopicStatus]:
        """What has arrived, by topic; groups are the test's own business."""
        kinds = {message.topic: message.kind for message in self.arrived}
        counts = Counter(message.topic for message in self.arrived)
        return [TopicStatus(name, kinds[name], counts[name], ()) for name in sorted(kinds)]

    async def peek(self, topic: str, *, after: str | None = None, limit: int = 20) -> list[Peeked]:
        """What has arrived for a topic, in order."""
        start = int(after) + 1 if after else 0
        found = [
            Peeked(str(place), 0.0, topic, str(place), message)
            for place, message in enumerate(self.arrived)
            if message.topic == topic and place >= start
        ]
        return found[-limit:] if after is None else found[:limit]

    async def close(self) -> None:
        """Nothing to close."""
