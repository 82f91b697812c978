"""Asking the cluster: metadata, offsets, settings. Blocking calls, for a worker thread.

One object serves one question and is closed with its connections: a client that has lost a
connection may never ask a group's coordinator again (librdkafka 2.16). It is closed by name, never
left to the garbage collector, which may run in a thread of another client and wait there for ever
(confluent-kafka-python #975, #2131). Invariant: every call has a timeout, and one that fails says
why: a refused login or certificate is reported beside the call, which itself only times out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Self, TypeVar

from confluent_kafka import ConsumerGroupTopicPartitions, KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from duly.brokers.kafka.failures import LastError, cause, mapped
from duly.brokers.kafka.settings import Settings
from duly.errors import BrokerUnavailableError

__all__ = ["Control"]

K = TypeVar("K")

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

    def committed(self, group: str) -> dict[tuple[str, int], int]:
        """The offsets that a group has committed."""
        asked = [ConsumerGroupTopicPartitions(group)]
        found = self.ask(
            f"group {group}",
            lambda: self.client.list_consumer_group_offsets(asked, request_timeout=SINGLE_SECONDS),
        )[group].topic_partitions
        return {(p.topic, p.partition): p.offset for p in found if p.offset >= 0}

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
            passing = all(e.retriable() or e.code() in _PASSING for e in failed)
            if failed and not (passing and time.monotonic() < end):
                refusal = mapped(failed[0], self.settings)
                raise type(refusal)(f"{what}: {refusal.detail}", code=refusal.code)
            if not failed:
                return answers
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
}
