from __future__ import annotations

import logging
import sys

import prometheus_client
import pytest

from duly.errors import ConfigurationError, MissingExtraError
from duly.observe import facts
from duly.observe.metrics import _COUNTED, _OBSERVED, _SHOWN, Metrics
from tests.unit.observe.test_facts import ALL, sample


@pytest.fixture
def registry():
    return prometheus_client.CollectorRegistry()


def value(registry, name, **labels):
    return registry.get_sample_value(name, labels)


@pytest.mark.parametrize("cls", [c for c in ALL if c not in _SHOWN], ids=lambda c: c.__name__)
def test_every_fact_is_counted(cls, registry):
    fact = sample(cls)
    metrics = Metrics(registry=registry)
    metrics(fact)
    metrics(fact)
    counted = _COUNTED[cls]
    labels = {label: getattr(fact, label) for label in counted.labels}
    by = getattr(fact, counted.by) if counted.by else 1
    assert value(registry, f"duly_{counted.name}_total", **labels) == 2 * by


def test_no_label_is_open_to_the_outside():
    """Ids, keys and what a foreign producer wrote would make one time series each."""
    labels = {label for c in _COUNTED.values() for label in c.labels}
    labels |= {label for gs in _SHOWN.values() for g in gs for label in g.labels}
    labels |= {label for os in _OBSERVED.values() for o in os for label in o.labels}
    assert labels <= {
        "box", "call", "choice", "code", "function", "group", "handler", "job", "outcome", "peer",
        "pool", "resolution", "state", "status",
        "step", "stream", "topic", "verb",
        "what"
    }  # fmt: skip


def test_how_far_a_stream_is_behind_is_shown_as_it_is_now(registry):
    metrics = Metrics(registry=registry)
    lagged = facts.CaptureLagged(stream="s", lag_bytes=9, lag_transactions=None, kept_bytes=5)
    metrics(lagged)
    metrics(lagged)
    assert value(registry, "duly_capture_lag_bytes", stream="s") == 9
    assert value(registry, "duly_capture_kept_bytes", stream="s") == 5
    assert value(registry, "duly_capture_lag_transactions", stream="s") is None
    metrics(facts.CaptureLagged(stream="s", lag_bytes=None, lag_transactions=3, kept_bytes=0))
    assert value(registry, "duly_capture_lag_bytes", stream="s") is None
    assert value(registry, "duly_capture_lag_transactions", stream="s") == 3


@pytest.mark.parametrize("code", ["", "no route to 10.0.0.7", "X" * 61, "a\n", "é", "404"])
def test_free_text_in_place_of_a_code_is_one_series(code, registry):
    Metrics(registry=registry)(facts.SendFailed(message_id="1", topic="t", code=code, attempts=1))
    assert value(registry, "duly_send_failures_total", topic="t", code="OTHER") == 1


def test_durations_are_histograms(registry):
    metrics = Metrics(registry=registry)
    metrics(facts.Handled(group="g", handler="h", count=10, seconds=0.2, lag_seconds=30.0))
    assert value(registry, "duly_handled_total", group="g", handler="h") == 10
    assert value(registry, "duly_handle_seconds_sum", group="g", handler="h") == 0.2
    assert value(registry, "duly_lag_seconds_sum", group="g", handler="h") == 30
    assert value(registry, "duly_lag_seconds_bucket", group="g", handler="h", le="10.0") == 0
    assert value(registry, "duly_lag_seconds_bucket", group="g", handler="h", le="60.0") == 1


def test_a_fact_of_somebody_else_is_not_counted(registry):
    class Billed(facts.Fact, frozen=True, kw_only=True):
        name = "shop.billed"

    metrics = Metrics(registry=registry)
    before = prometheus_client.generate_latest(registry)
    metrics(Billed())
    assert prometheus_client.generate_latest(registry) == before


def test_one_registry_takes_one_app(registry):
    Metrics(registry=registry)
    with pytest.raises(ConfigurationError, match="give each App its own"):
        Metrics(registry=registry)
    Metrics(registry=prometheus_client.CollectorRegistry())


def test_the_global_registry_is_the_default(monkeypatch, registry):
    monkeypatch.setattr(prometheus_client, "REGISTRY", registry)
    Metrics()(facts.Published(topic="orders", count=3))
    assert value(registry, "duly_published_total", topic="orders") == 3


def test_a_watched_gauge_is_read_when_the_metrics_are(registry):
    readings = [{("orders",): 5.0}, {("orders",): 7.0, ("billing",): 1.0}]
    reads = iter(readings)
    remove = Metrics(registry=registry).watch(
        "outbox_backlog", "Messages not sent.", labels=("topic",), read=lambda: next(reads)
    )
    assert value(registry, "duly_outbox_backlog", topic="orders") == 5  # registering read nothing
    text = prometheus_client.generate_latest(registry).decode()
    assert 'duly_outbox_backlog{topic="orders"} 7.0' in text
    assert 'duly_outbox_backlog{topic="billing"} 1.0' in text
    remove()
    assert b"outbox_backlog" not in prometheus_client.generate_latest(registry)


def test_a_gauge_that_cannot_be_read_does_not_take_the_others_along(registry, caplog):
    def read():
        raise ConnectionError("postgresql://u:s3cr3t@db")

    metrics = Metrics(registry=registry)
    metrics.watch("backlog", "x", labels=(), read=read)
    metrics(facts.Published(topic="orders", count=1))
    with caplog.at_level(logging.WARNING, "duly.observe"):
        text = prometheus_client.generate_latest(registry).decode()
    assert "duly_published_total" in text
    assert "duly_backlog " not in text
    assert "ConnectionError" in caplog.text
    assert "s3cr3t" not in caplog.text


def test_a_gauge_is_watched_once(registry):
    metrics = Metrics(registry=registry)
    metrics.watch("backlog", "x", labels=(), read=dict)
    with pytest.raises(ConfigurationError, match="watched already"):
        metrics.watch("backlog", "x", labels=(), read=dict)


def test_without_the_package_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(MissingExtraError, match=r"duly\[metrics\]"):
        Metrics()
