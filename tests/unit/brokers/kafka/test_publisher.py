from __future__ import annotations

import time
from typing import Any

from confluent_kafka import KafkaError

from duly.brokers.kafka.failures import outcome_of
from duly.brokers.kafka.publisher import Call, Publisher
from duly.brokers.kafka.settings import parse
from duly.message import Message
from duly.ports import Outcome, OutcomeKind

CONFIRMED, UNKNOWN, UNAVAILABLE = (
    OutcomeKind.CONFIRMED,
    OutcomeKind.UNKNOWN,
    OutcomeKind.UNAVAILABLE,
)
MESSAGE = Message("i", "t", "event", "orders", None, b"{}", {})


def call(count: int) -> tuple[Call, list[list[Outcome]]]:
    answers: list[list[Outcome]] = []
    return Call([MESSAGE] * count, time.monotonic() + 5, answers.append), answers


def test_a_call_is_answered_by_reports_and_never_by_the_hand_over() -> None:
    one, answers = call(3)
    one.handed = 3
    assert not answers
    for index in (2, 0):
        one.report(index, None, None)
    assert not answers
    one.report(1, KafkaError(KafkaError._MSG_TIMED_OUT), None)
    assert [o.kind for o in answers[0]] == [CONFIRMED, UNKNOWN, CONFIRMED]


def test_at_the_deadline_what_was_handed_over_is_unknown_and_the_rest_unsent() -> None:
    one, answers = call(4)
    one.handed = 2
    one.report(0, None, None)
    one.report(1, KafkaError(KafkaError._PURGE_INFLIGHT), None)
    one.finish("late")
    assert [o.kind for o in answers[0]] == [CONFIRMED, UNKNOWN, UNAVAILABLE, UNAVAILABLE]
    one.report(1, None, None)
    one.finish("again")
    assert len(answers) == 1


def test_what_an_error_means_for_a_message() -> None:
    kinds = {
        KafkaError.MSG_SIZE_TOO_LARGE: OutcomeKind.IMPOSSIBLE,
        KafkaError.UNKNOWN_TOPIC_OR_PART: OutcomeKind.UNROUTED,
        KafkaError._UNKNOWN_TOPIC: OutcomeKind.UNROUTED,
        KafkaError.TOPIC_AUTHORIZATION_FAILED: OutcomeKind.REFUSED,
        KafkaError._MSG_TIMED_OUT: UNKNOWN,
        KafkaError._PURGE_QUEUE: UNKNOWN,
        KafkaError._PURGE_INFLIGHT: UNKNOWN,
        KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND: UNKNOWN,
        KafkaError.REQUEST_TIMED_OUT: UNKNOWN,
        KafkaError._FATAL: UNKNOWN,
    }
    for code, kind in kinds.items():
        outcome = outcome_of(KafkaError(code), "orders")
        assert outcome.kind is kind
        assert outcome.error


def test_a_publisher_that_is_stopped_answers_what_it_has() -> None:
    publisher = Publisher(parse("kafka://127.0.0.1:1"))
    publisher.start()
    one, answers = call(2)
    publisher.submit(one)
    publisher.stop(5.0)
    assert not publisher.alive
    assert [o.kind for o in answers[0]] == [UNAVAILABLE] * 2


def test_an_order_that_fails_ends_neither_the_thread_nor_the_answers() -> None:
    publisher = Publisher(parse("kafka://127.0.0.1:1"))
    publisher.start()
    broken: Any = lambda: 1 // 0  # noqa: E731
    publisher._orders.put(broken)
    one, answers = call(1)
    publisher.submit(one)
    until = time.monotonic() + 20
    while not answers and time.monotonic() < until:
        time.sleep(0.01)  # the thread answers when it finds nobody there
    assert [o.kind for o in answers[0]] == [UNAVAILABLE]
    publisher.stop(5.0)
