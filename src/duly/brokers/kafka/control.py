"""Asking the cluster: metadata, offsets, settings. Blocking calls, for a worker thread.

One object serves one question and is closed with its connections: a client that has lost a
connection may never ask a group's coordinator again (librdkafka 2.16). It is closed by name, never
left to the garbage collector, which may run in a thread of another client and wait there for ever
(confluent-kafka-python #975, #2131). A group's offsets are read and set by a consumer that joins
nothing: the admin client ends the process when the coordinator has moved (librdkafka #5040).
Invariant: every call has a timeout, and one that fails says why: a refused login or certificate is
reported beside the call, which itself only times out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Self, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from duly.brokers.kafka.failures import LastError, cause, mapped
from duly.brokers.kafka.progress import LEFT
from duly.brokers.kafka.settings import Settings
from duly.errors import BrokerUnavailableError

__all__ = ["Control", "Place"]

K = TypeVar("K")
Place = tuple[str, int]  # a topic and the number of a partition

CALL_SECONDS = 10.0
SINGLE_SECONDS = 3.0
AGAIN_SECONDS = 0.05
SLICE_SECONDS = 0.3


class Control:
    """A client for one question, used by one thread, in a ``with`` block."""

    timeout = SINGLE_SECONDS

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._errors = LastError(settings)
        self.client = AdminClient(settings.client() | {"error_cb": self._errors.report})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.__exit__(None, None, None)

    def metadata(self) -> Any:
        """Brokers and topics. Raises BrokerUnavailableError, ConfigurationError (the login is
        refused).
        """
        end = time.monotonic() + CALL_SECONDS
        self._errors.clear()
        while True:
            try:
                return self.client.list_topics(timeout=SLICE_SECONDS)
            except KafkaException as error:
                self.client.poll(0)  # brings the reason
                if self._errors.final or time.monotonic() > end:
                    raise self._errors.as_error() from error

    def partitions(self) -> tuple[Mapping[str, int], int]:
        """How many partitions each topic has, and how many brokers there are."""
        found = self.metadata()
        known = {
            name: len(topic.partitions)
            for name, topic in found.topics.items()
            if topic.error is None and all(p.leader >= 0 for p in topic.partitions.values())
        }
        return known, len(found.brokers)

    def committed(self, group: str, places: Collection[Place]) -> dict[Place, int]:
        """The offsets that a group has committed in these partitions, where it has."""
        asked = [TopicPartition(*place) for place in places]
        found = self._of_group(group, lambda one: one.committed(asked, timeout=SINGLE_SECONDS))
        return {(p.topic, p.partition): p.offset for p in found if p.offset >= 0}

    def commit(self, group: str, offsets: Mapping[Place, int]) -> bool:
        """Set the first offsets of a group, of which nobody has had anything; False for one with
        receivers, who set them themselves.
        """
        told = [TopicPartition(*place, offset, LEFT) for place, offset in offsets.items()]
        found = self._of_group(
            group, lambda one: one.commit(offsets=told, asynchronous=False), known=_HAS_MEMBERS
        )
        return bool(found)

    def _of_group(
        self,
        group: str,
        question: Callable[[Consumer], list[TopicPartition]],
        *,
        known: Collection[int] = (),
    ) -> list[TopicPartition]:
        """The answer to a question about the offsets of a group, asked again as in ``ask``.

        known: codes that are an answer too, told as an empty list.
        """
        named = {
            "group.id": group,
            "enable.auto.commit": False,
            "session.timeout.ms": int(SINGLE_SECONDS * 1000),  # of a commit: it has no other
            "error_cb": self._errors.report,
        }
        end = time.monotonic() + CALL_SECONDS
        consumer = Consumer(self.settings.client() | named)
        try:
            while True:
                try:
                    found = question(consumer)
                    failed = next((one.error for one in found if one.error is not None), None)
                except KafkaException as error:
                    failed = cause(error)
                    if failed is None:
                        raise
                if failed is None:
                    return found
                if failed.code() in known:
                    return []
                self._go_on(f"group {group}", [failed], end)
        finally:
            consumer.close()

    def members(self, groups: Sequence[str]) -> dict[str, int]:
        """How many receivers each group has now."""
        if not groups:
            return {}
        found = self.ask(
            f"groups {', '.join(groups)}",
            lambda: self.client.describe_consumer_groups(
                list(groups), request_timeout=SINGLE_SECONDS
            ),
        )
        return {group: len(one.members) for group, one in found.items()}

    def ask(
        self,
        what: str,
        question: Callable[[], Mapping[K, Future[Any]]],
        *,
        known: Collection[int] = (),
    ) -> dict[K, Any]:
        """The answers to a question, asked again while a broker starts or a leader moves.

        what: it is about, for the error. known: codes that are an answer too, given as the error.
        Raises BrokerUnavailableError, ConfigurationError.
        """
        end = time.monotonic() + CALL_SECONDS
        while True:
            answers: dict[K, Any] = {}
            for key, future in question().items():
                try:
                    answers[key] = future.result(SINGLE_SECONDS + 1.0)
                except KafkaException as error:
                    answers[key] = error
                except TimeoutError as error:
                    raise BrokerUnavailableError(f"{self.settings.shown}: no answer") from error
            failed = [e for e in map(cause, answers.values()) if e and e.code() not in known]
            if not failed:
                return answers
            self._go_on(what, failed, end)

    def _go_on(self, what: str, failed: Sequence[KafkaError], end: float) -> None:
        """Wait a moment before what failed is asked again; raise it where that is of no use."""
        passing = all(e.retriable() or e.code() in _PASSING for e in failed)
        if not (passing and time.monotonic() < end):
            refusal = mapped(failed[0], self.settings)
            raise type(refusal)(f"{what}: {refusal.detail}", code=refusal.code)
        time.sleep(AGAIN_SECONDS)


_PASSING = {
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.NOT_COORDINATOR,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.UNKNOWN_LEADER_EPOCH,
    KafkaError.REPLICA_NOT_AVAILABLE,
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.UNKNOWN_TOPIC_OR_PART,  # it was made a moment ago
    KafkaError._TIMED_OUT,
    KafkaError._TRANSPORT,
    KafkaError._WAIT_COORD,
}
_HAS_MEMBERS = {
    KafkaError.UNKNOWN_MEMBER_ID,
    KafkaError.NON_EMPTY_GROUP,
    KafkaError.REBALANCE_IN_PROGRESS,
    KafkaError.ILLEGAL_GENERATION,
}
