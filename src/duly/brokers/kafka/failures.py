"""What Kafka's error codes mean: for a message, an outcome; for a call, one of our errors.

The only place that reads them. Invariant: a code that is not listed is UNKNOWN for a message that
was handed over, never "not done": the client sends again by itself, and what timed out may be
there.
"""

from __future__ import annotations

import threading

from confluent_kafka import KafkaError, KafkaException

from duly.brokers.kafka.settings import Settings
from duly.errors import BrokerUnavailableError, ConfigurationError, DulyError
from duly.ports import Outcome, OutcomeKind

__all__ = ["LastError", "cause", "mapped", "outcome_of"]

_LOGIN = {KafkaError._AUTHENTICATION, KafkaError.SASL_AUTHENTICATION_FAILED}
_RIGHTS = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
}
_SETTINGS = {
    KafkaError.INVALID_CONFIG,
    KafkaError.INVALID_PARTITIONS,
    KafkaError.INVALID_REPLICATION_FACTOR,
    KafkaError.POLICY_VIOLATION,
    KafkaError.TOPIC_EXCEPTION,
    KafkaError.UNSUPPORTED_SASL_MECHANISM,
    KafkaError._INVALID_ARG,
}
_NO_TOPIC = {
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_TOPIC,
    KafkaError._UNKNOWN_PARTITION,
}
_TOO_LARGE = {KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE}
_REFUSED = _RIGHTS | {
    KafkaError.POLICY_VIOLATION,
    KafkaError.TOPIC_EXCEPTION,
    KafkaError.INVALID_REQUIRED_ACKS,
    KafkaError.INVALID_RECORD,
}


class LastError:
    """The most telling error that a client reported, for those of its calls that only time out.

    Pass ``report`` as ``error_cb``. down: whether every server known was out of reach at last.
    Safe to use from any thread.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._told: KafkaError | None = None
        self.down = False
        self.fatal = False

    def report(self, error: KafkaError) -> None:
        """What a client calls when something is wrong with it or its connections."""
        with self._lock:
            if error.fatal():
                self.fatal = True
            if error.code() == KafkaError._ALL_BROKERS_DOWN:
                self.down = True
            elif self._told is None or not _is_final(self._told):
                self._told = error

    def clear(self) -> None:
        """The cluster has answered."""
        with self._lock:
            self._told, self.down = None, False

    @property
    def final(self) -> bool:
        """Whether waiting will not help: the login or the certificate is refused, or nobody is
        there.
        """
        return self.down or (self._told is not None and _is_final(self._told))

    def as_error(self) -> DulyError:
        """It as one of ours."""
        told = self._told
        if told is None:
            return BrokerUnavailableError(f"{self._settings.shown}: no answer")
        return mapped(told, self._settings)


def mapped(error: KafkaError, settings: Settings) -> DulyError:
    """A client's error as one of ours."""
    detail = f"{settings.shown}: {settings.censor(error.str())[:400]}"
    code = error.code()
    if code in _LOGIN:
        return ConfigurationError(detail, code="BROKER_LOGIN_REFUSED")
    if code in _RIGHTS:
        return ConfigurationError(detail, code="BROKER_RIGHTS_MISSING")
    if code in _SETTINGS:
        return ConfigurationError(detail)
    if code == KafkaError._SSL:
        return BrokerUnavailableError(detail, code="BROKER_TLS_REFUSED")
    return BrokerUnavailableError(detail)


def cause(error: object) -> KafkaError | None:
    """The client's error within its exception; None for anything else."""
    inner = error.args[0] if isinstance(error, KafkaException) and error.args else None
    return inner if isinstance(inner, KafkaError) else None


def outcome_of(error: KafkaError, topic: str) -> Outcome:
    """What became of a message whose delivery report is this error."""
    code, text = error.code(), error.str()[:200]
    if code in _NO_TOPIC:
        return Outcome(OutcomeKind.UNROUTED, f"there is no topic {topic}")
    if code in _TOO_LARGE:
        return Outcome(OutcomeKind.IMPOSSIBLE, f"topic {topic}: {text}")
    if code in _REFUSED:
        return Outcome(OutcomeKind.REFUSED, f"topic {topic}: {text}")
    return Outcome(OutcomeKind.UNKNOWN, f"{error.name()}: {text}")


def _is_final(error: KafkaError) -> bool:
    return error.code() in _LOGIN or error.code() == KafkaError._SSL
