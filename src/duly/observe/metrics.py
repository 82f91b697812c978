"""Facts as Prometheus metrics; needs the extra ``metrics``.

Owns the names, labels and buckets.  The invariant: every label takes few values, and only such as
the program itself chose - topics, groups, handlers, codes.  Message ids, keys and what a foreign
producer wrote (types, sources) are never labels, or one sender could fill the memory of the server.
What is counted here is what this process did; how much is waiting is asked of the database when the
metrics are read, through ``watch``.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from duly.errors import ConfigurationError, MissingExtraError
from duly.observe import facts
from duly.observe.facts import Fact

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import GaugeMetricFamily

__all__ = ["Metrics", "Read"]

_log = logging.getLogger("duly.observe")

_CODE = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,59}", re.ASCII)
_SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0, 300.0)
_LAG_SECONDS = (0.01, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0, 600.0, 3_600.0, 86_400.0)


class Read(Protocol):
    """Reads a gauge: label values in the order of the labels -> value."""

    def __call__(self) -> Mapping[tuple[str, ...], float]:
        """The values now."""
        ...


class _Counted(NamedTuple):
    """A counter. labels: fields of the fact; by: the field that is added, or one per fact."""

    name: str
    help: str
    labels: tuple[str, ...]
    by: str = ""


class _Shown(NamedTuple):
    """A gauge of one field of the fact; absent while that is None."""

    name: str
    help: str
    labels: tuple[str, ...]
    field: str


class _Observed(NamedTuple):
    """A histogram of one field of the fact."""

    name: str
    help: str
    labels: tuple[str, ...]
    field: str
    buckets: tuple[float, ...] = _SECONDS


_HANDLER = ("group", "handler")
_JOB = ("job",)
_STEP_SECONDS = (0.1, 1.0, 10.0, 60.0, 600.0, 3_600.0, 14_400.0)
_STEP = ("group", "handler", "step")
_TASK = ("pool", "function")
_CALL = ("call", "code", "outcome", "choice")
_COUNTED: dict[type[Fact], _Counted] = {
    facts.Published: _Counted("published", "Messages committed.", ("topic",), "count"),
    facts.Relayed: _Counted("relayed", "Messages confirmed and settled.", ("topic",), "count"),
    facts.SendFailed: _Counted("send_failures", "Sends not confirmed.", ("topic", "code")),
    facts.Unrouted: _Counted("unrouted", "Events nobody is bound to.", ("topic",), "count"),
    facts.DroppedByPolicy: _Counted("dropped", "Let go by policy.", ("topic", "code"), "count"),
    facts.AfterCommitFailed: _Counted("after_commit_failures", "Hooks that raised.", ("code",)),
    facts.Held: _Counted("held", "Messages held.", ("box", "topic", "group", "code"), "count"),
    facts.Failed: _Counted("failed", "Messages given up.", ("box", "topic", "group", "code")),
    facts.OperatorActed: _Counted("operator_actions", "Rows acted on.", ("box", "verb"), "count"),
    facts.StillStuck: _Counted("stuck_reports", "Reports of stuck work.", ("what", "code")),
    facts.HistoryLost: _Counted("history_losses", "Losses by the broker.", ("group",)),
    facts.Received: _Counted("received", "Messages from the broker.", ("group",), "count"),
    facts.Handled: _Counted("handled", "Messages handled.", _HANDLER, "count"),
    facts.Duplicate: _Counted("duplicates", "Messages handled before.", _HANDLER, "count"),
    facts.Skipped: _Counted("skipped", "Messages of other types.", ("group",), "count"),
    facts.HandlerFailed: _Counted("handler_failures", "Handler errors.", (*_HANDLER, "code")),
    facts.EffectCalled: _Counted("effect_calls", "Outside calls made.", _STEP),
    facts.EffectReused: _Counted("effect_reuses", "Outside calls not repeated.", _STEP),
    facts.EffectInDoubt: _Counted("effects_in_doubt", "Unknown outcomes.", (*_STEP, "resolution")),
    facts.Called: _Counted("calls", "Calls answered.", ("call",)),
    facts.CallFailed: _Counted("call_failures", "Calls not answered well.", _CALL),
    facts.CallDeferred: _Counted("calls_deferred", "Calls stored for later.", ("call",)),
    facts.BreakerMoved: _Counted("breaker_moves", "Changes of breakers.", ("call", "state")),
    facts.CallInTransaction: _Counted("calls_in_transaction", "Under a long one.", ("call",)),
    facts.Captured: _Counted("captured", "Changes stored.", ("stream",), "changes"),
    facts.CaptureStopped: _Counted("capture_stops", "Streams that stopped.", ("stream", "code")),
    facts.BatchScheduled: _Counted("batch_scheduled", "Instances due by time.", _JOB, "count"),
    facts.BatchBegan: _Counted("batch_attempts", "Attempts begun.", _JOB),
    facts.BatchEnded: _Counted("batch_ends", "Attempts ended.", ("job", "status")),
    facts.BatchStepEnded: _Counted("batch_steps", "Steps ended.", ("job", "step")),
    facts.TaskFailed: _Counted("task_failures", "Calls that raised.", (*_TASK, "code")),
    facts.TaskNotQueued: _Counted("tasks_not_queued", "No place in a pool.", (*_TASK, "outcome")),
    facts.TaskOverdue: _Counted("tasks_overdue", "Calls past their timeout.", _TASK),
    facts.TaskRan: _Counted("tasks", "Calls in the background that ended.", _TASK),
    facts.GlobalTransactionRecovered: _Counted(
        "global_transactions_recovered", "Ended by recovery.", ("outcome",)
    ),
    facts.LeaseTaken: _Counted("leases_taken", "Takings of leases.", ("what",)),
    facts.LeaseLost: _Counted("leases_lost", "Losses of leases.", ("what",)),
    facts.Connected: _Counted("connections", "Connections made.", ("peer",)),
    facts.Disconnected: _Counted("disconnections", "Connections lost.", ("peer", "code")),
}
_OBSERVED: dict[type[Fact], tuple[_Observed, ...]] = {
    facts.Relayed: (_Observed("relay_seconds", "Batch, send to settled.", ("topic",), "seconds"),),
    facts.Handled: (
        _Observed("handle_seconds", "Batch, begin to commit.", _HANDLER, "seconds"),
        _Observed("lag_seconds", "Publish to handled.", _HANDLER, "lag_seconds", _LAG_SECONDS),
    ),
    facts.Captured: (
        _Observed("capture_seconds", "Batch, rules to stored.", ("stream",), "seconds"),
        _Observed(
            "capture_lag_seconds", "Commit to stored.", ("stream",), "lag_seconds", _LAG_SECONDS
        ),
    ),
    facts.BatchStepEnded: (
        _Observed("batch_step_seconds", "Of a step.", ("job", "step"), "seconds", _STEP_SECONDS),
    ),
    facts.Called: (_Observed("call_seconds", "A call with its retries.", ("call",), "seconds"),),
    facts.TaskRan: (
        _Observed("task_wait_seconds", "Submitted to begun.", _TASK, "wait_seconds"),
        _Observed("task_seconds", "Begun to ended.", _TASK, "seconds"),
    ),
    facts.EffectCalled: (_Observed("effect_seconds", "An outside call.", _STEP, "seconds"),),
}
_STREAM = ("stream",)
_SHOWN: dict[type[Fact], tuple[_Shown, ...]] = {
    facts.BatchProgressed: (
        _Shown("batch_rows", "Of the step under way.", ("job", "step"), "rows"),
        _Shown("batch_bytes", "Of the step under way.", ("job", "step"), "size_bytes"),
    ),
    facts.CaptureLagged: (
        _Shown("capture_lag_bytes", "Of log, not yet captured.", _STREAM, "lag_bytes"),
        _Shown("capture_lag_transactions", "Not yet captured.", _STREAM, "lag_transactions"),
        _Shown("capture_kept_bytes", "Of log, kept for us.", _STREAM, "kept_bytes"),
    ),
}


class Metrics:
    """A hook that counts: ``hooks.add(Metrics())``.

    registry: of prometheus-client, by default its global one; two Apps in one process need one
    each. Raises MissingExtraError without prometheus-client, ConfigurationError where the names are
    taken.
    """

    def __init__(self, *, registry: CollectorRegistry | None = None) -> None:
        try:
            import prometheus_client
        except ImportError as error:
            raise MissingExtraError("prometheus_client", "metrics") from error
        self._registry = prometheus_client.REGISTRY if registry is None else registry
        try:
            self._counters = {
                fact: prometheus_client.Counter(
                    f"duly_{c.name}", c.help, c.labels, registry=self._registry
                )
                for fact, c in _COUNTED.items()
            }
            self._histograms = {
                o: prometheus_client.Histogram(
                    f"duly_{o.name}", o.help, o.labels, buckets=o.buckets, registry=self._registry
                )
                for observed in _OBSERVED.values()
                for o in observed
            }
            self._gauges = {
                g: prometheus_client.Gauge(
                    f"duly_{g.name}", g.help, g.labels, registry=self._registry
                )
                for shown in _SHOWN.values()
                for g in shown
            }
        except ValueError as error:
            raise ConfigurationError(
                "this registry has duly's metrics already; give each App its own"
            ) from error

    def __call__(self, fact: Fact) -> None:
        """Count one fact; a type that is not in the table is not counted."""
        for shown in _SHOWN.get(type(fact), ()):
            self._show(fact, shown)
        counted = _COUNTED.get(type(fact))
        if counted is None:
            return
        by = getattr(fact, counted.by) if counted.by else 1
        self._counters[type(fact)].labels(*_values(fact, counted.labels)).inc(by)
        for observed in _OBSERVED.get(type(fact), ()):
            histogram = self._histograms[observed].labels(*_values(fact, observed.labels))
            histogram.observe(getattr(fact, observed.field))

    def _show(self, fact: Fact, shown: _Shown) -> None:
        gauge, value = self._gauges[shown], getattr(fact, shown.field)
        if value is None:
            gauge.remove(*_values(fact, shown.labels))
        else:
            gauge.labels(*_values(fact, shown.labels)).set(value)

    def watch(
        self, name: str, meaning: str, *, labels: tuple[str, ...], read: Read
    ) -> Callable[[], None]:
        """Add the gauge ``duly_<name>``, read whenever the metrics are; returns a function that
        removes it.

        read: must be quick and have its own timeout; while it raises, the gauge is absent and a
        warning is logged.
        """
        collector = _Gauge(f"duly_{name}", meaning, labels=labels, read=read)
        try:
            self._registry.register(collector)
        except ValueError as error:
            raise ConfigurationError(f"the metric duly_{name} is watched already") from error
        return lambda: self._registry.unregister(collector)


class _Gauge:
    """A collector of one gauge family."""

    def __init__(self, name: str, meaning: str, *, labels: tuple[str, ...], read: Read) -> None:
        self._name, self._meaning, self._labels, self._read = name, meaning, labels, read

    def _family(self) -> GaugeMetricFamily:
        from prometheus_client.core import GaugeMetricFamily

        return GaugeMetricFamily(self._name, self._meaning, labels=self._labels)

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """The name without a value: registering must not read."""
        return [self._family()]

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """The values, or nothing while they cannot be read: one gauge must not fail the whole
        scrape.
        """
        family = self._family()
        try:
            values = self._read()
        except Exception as error:  # noqa: BLE001  # whatever a database may raise
            _log.warning("%s cannot be read: %s", self._name, type(error).__name__)
            return []
        for labels, value in values.items():
            family.add_metric(labels, value)
        return [family]


def _values(fact: Fact, labels: tuple[str, ...]) -> list[Any]:
    return [_code(fact) if label == "code" else getattr(fact, label) for label in labels]


def _code(fact: Any) -> str:
    """The code; a server's free text that slipped in as one would be a time series each."""
    return fact.code if _CODE.fullmatch(fact.code) else "OTHER"
