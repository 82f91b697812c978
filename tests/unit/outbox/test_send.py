from __future__ import annotations

from collections.abc import Sequence

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from duly.message import Message
from duly.outbox.send import send
from duly.ports import CONFIRMED, Outcome, OutcomeKind

MESSAGES = [Message(str(n), "order.placed", "event", "orders", None, b"{}", {}) for n in range(3)]


class Broker:
    def __init__(self, *outcomes: Outcome) -> None:
        self.outcomes, self.calls = outcomes, 0

    async def publish(
        self, messages: Sequence[Message], *, deadline_seconds: float
    ) -> Sequence[Outcome]:
        assert (messages, deadline_seconds) == (MESSAGES[: len(self.outcomes)], 3.0)
        self.calls += 1
        return self.outcomes


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    return exporter


async def test_the_outcomes_are_the_brokers_own_where_nobody_traces() -> None:
    broker = Broker(CONFIRMED, Outcome(OutcomeKind.REFUSED, "no"))
    outcomes = await send(broker.publish, MESSAGES[:2], deadline_seconds=3.0)
    assert (outcomes, broker.calls) == (broker.outcomes, 1)


@pytest.mark.parametrize(
    ("kinds", "code"),
    [
        ((OutcomeKind.CONFIRMED,), None),
        ((OutcomeKind.CONFIRMED, OutcomeKind.UNROUTED), None),
        ((OutcomeKind.CONFIRMED, OutcomeKind.REFUSED, OutcomeKind.UNKNOWN), "REFUSED"),
        ((OutcomeKind.UNAVAILABLE, OutcomeKind.UNAVAILABLE), "UNAVAILABLE"),
    ],
)
async def test_the_span_has_the_first_outcome_that_is_no_success(
    spans: InMemorySpanExporter, kinds: tuple[OutcomeKind, ...], code: str | None
) -> None:
    broker = Broker(*(Outcome(kind, "s3cr3t") for kind in kinds))
    outcomes = await send(broker.publish, MESSAGES[: len(kinds)], deadline_seconds=3.0)
    assert outcomes is broker.outcomes
    (span,) = spans.get_finished_spans()
    attributes = dict(span.attributes or {})
    assert (span.name, attributes["messaging.batch.message_count"]) == ("send orders", len(kinds))
    assert attributes.get("error.type") == code
    assert "s3cr3t" not in span.to_json()


async def test_nothing_sent_is_no_span(spans: InMemorySpanExporter) -> None:
    broker = Broker()
    assert await send(broker.publish, [], deadline_seconds=3.0) == ()
    assert (broker.calls, spans.get_finished_spans()) == (1, ())
