from __future__ import annotations

import asyncio
import sys

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from duly.errors import UndecodableError
from duly.message import Message
from duly.observe import tracing
from duly.observe.tracing import (
    LINKS_MAX,
    collecting,
    create,
    extract,
    inject,
    linked_span,
    processing,
    sending,
)

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OTHER = "00-1bf7651916cd43dd8448eb211c80319c-c7ad6b7169203331-01"


@pytest.fixture
def spans(monkeypatch):
    """OpenTelemetry with spans kept in memory; its global provider can be set only once, so it is
    replaced.
    """
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    return exporter


@pytest.fixture
def without_package(monkeypatch):
    for name in [n for n in sys.modules if n.split(".")[0] == "opentelemetry"]:
        monkeypatch.setitem(sys.modules, name, None)
    tracing._opentelemetry.cache_clear()
    yield
    tracing._opentelemetry.cache_clear()


# --- headers --------------------------------------------------------------------------------------
def test_extract_takes_the_two_headers_and_nothing_else():
    headers = {"traceparent": PARENT, "tracestate": "a=b", "tenant": "x"}
    assert extract(headers) == {"traceparent": PARENT, "tracestate": "a=b"}
    assert extract({"traceparent": PARENT}) == {"traceparent": PARENT}


@pytest.mark.parametrize(
    "broken",
    [
        "",
        "x",
        PARENT + "\n",
        PARENT.upper(),
        PARENT[:-1],
        PARENT + "-more",
        "ff" + PARENT[2:],
        "00-" + "0" * 32 + "-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-" + "0" * 16 + "-01",
    ],
)
def test_a_broken_traceparent_costs_the_link_only(broken, spans):
    assert extract({"traceparent": broken, "tracestate": "a=b"}) == {}
    with linked_span("handle", kind="consumer", messages=[{"traceparent": broken}]):
        pass
    (span,) = spans.get_finished_spans()
    assert span.links == ()


@pytest.mark.parametrize("state", ["", "a\nb", "x" * 513, "ä"])
def test_a_broken_tracestate_is_left_out(state):
    assert extract({"traceparent": PARENT, "tracestate": state}) == {"traceparent": PARENT}


# --- with the package -----------------------------------------------------------------------------
def test_inject_writes_the_current_span(spans):
    tracer = trace.get_tracer_provider().get_tracer("user")
    with tracer.start_as_current_span("request") as span:
        headers = inject({"tenant": "x"})
    context = span.get_span_context()
    parent = headers.pop("traceparent")
    assert headers == {"tenant": "x"}
    assert parent.startswith(f"00-{context.trace_id:032x}-{context.span_id:016x}-0")


def test_inject_leaves_what_the_user_gave_and_adds_nothing_outside_a_span(spans):
    assert inject({"traceparent": OTHER}) == {"traceparent": OTHER}
    given = {"tenant": "x"}
    assert inject(given) == given
    assert inject(given) is not given


def test_a_handling_is_linked_to_its_messages_and_is_not_their_child(spans):
    messages = [{"traceparent": PARENT, "tracestate": "a=b"}, {}, {"traceparent": OTHER}]
    with linked_span("handle orders", kind="consumer", messages=messages, attributes={"count": 3}):
        published = inject({})
    (span,) = spans.get_finished_spans()
    assert span.parent is None
    assert span.kind is trace.SpanKind.CONSUMER
    assert [f"{link.context.trace_id:032x}" for link in span.links] == [PARENT[3:35], OTHER[3:35]]
    assert span.links[0].context.trace_state["a"] == "b"
    assert span.attributes == {"messaging.system": "duly", "count": 3}
    assert f"{span.context.span_id:016x}" in published["traceparent"]


def test_a_sending_is_a_producer_span(spans):
    with linked_span("send orders", kind="producer", messages=[{"traceparent": PARENT}]):
        pass
    assert spans.get_finished_spans()[0].kind is trace.SpanKind.PRODUCER


def message(topic: str = "orders", *, id: str = "1", parent: str = PARENT) -> Message:
    headers = {"traceparent": parent} if parent else {}
    return Message(id, "order.placed", "event", topic, None, b"{}", headers)


def test_a_published_message_has_a_producer_span_whose_context_travels(spans):
    with trace.get_tracer_provider().get_tracer("user").start_as_current_span("request") as request:
        headers = create("orders")
    made, _ = spans.get_finished_spans()
    assert (made.name, made.kind) == ("create orders", trace.SpanKind.PRODUCER)
    assert made.parent.span_id == request.get_span_context().span_id
    assert headers["traceparent"][36:52] == f"{made.context.span_id:016x}"
    assert made.attributes == {
        "messaging.system": "duly",
        "messaging.operation.name": "create",
        "messaging.operation.type": "create",
        "messaging.destination.name": "orders",
    }


def test_a_batch_to_the_broker_is_one_client_span_with_a_link_for_each_context(spans):
    with (
        trace.get_tracer_provider().get_tracer("user").start_as_current_span("whoever started us"),
        sending([message(), message(parent=""), message(parent=OTHER)]),
    ):
        pass
    sent, _ = spans.get_finished_spans()
    assert (sent.name, sent.kind, sent.parent) == ("send orders", trace.SpanKind.CLIENT, None)
    assert [f"{link.context.trace_id:032x}" for link in sent.links] == [PARENT[3:35], OTHER[3:35]]
    assert sent.attributes["messaging.batch.message_count"] == 3
    assert sent.attributes["messaging.destination.name"] == "orders"


def test_a_batch_of_several_topics_names_none(spans):
    with sending([message("orders"), message("stock")]) as failed:
        failed("UNAVAILABLE")
    (sent,) = spans.get_finished_spans()
    assert sent.name == "send"
    assert "messaging.destination.name" not in sent.attributes
    assert sent.attributes["error.type"] == "UNAVAILABLE"
    assert not sent.status.is_ok


def test_handling_is_a_consumer_span_of_its_group(spans):
    with processing([message(id="7")], group="billing", batch=False):
        pass
    with processing([message(), message()], group="billing", batch=True):
        pass
    one, many = spans.get_finished_spans()
    assert (one.name, one.kind, one.parent) == ("process orders", trace.SpanKind.CONSUMER, None)
    assert one.attributes["messaging.message.id"] == "7"
    assert one.attributes["messaging.consumer.group.name"] == "billing"
    assert many.attributes["messaging.batch.message_count"] == 2
    assert "messaging.message.id" not in many.attributes


def test_a_signal_of_ours_is_no_failed_handling(spans):
    class Signal(BaseException):
        pass

    with (
        pytest.raises(Signal),
        processing([message()], group="billing", batch=False, expected=(Signal,)),
    ):
        raise Signal
    (span,) = spans.get_finished_spans()
    assert "error.type" not in span.attributes


def test_links_are_bounded(spans):
    with linked_span("send", kind="producer", messages=[{"traceparent": PARENT}] * 1_000):
        pass
    assert len(spans.get_finished_spans()[0].links) == LINKS_MAX


def test_an_error_passes_and_shows_by_its_code_only(spans):
    with (
        pytest.raises(UndecodableError),
        linked_span("handle", kind="consumer", messages=[]),
    ):
        raise UndecodableError("s3cr3t value")
    (span,) = spans.get_finished_spans()
    assert span.attributes["error.type"] == "UNDECODABLE"
    assert not span.status.is_ok
    assert "s3cr3t" not in span.to_json()


# --- without it -----------------------------------------------------------------------------------
def test_without_the_package_the_context_of_the_handled_message_is_passed_on(without_package):
    assert inject({"tenant": "x"}) == {"tenant": "x"}
    with linked_span("handle", kind="consumer", messages=[{"traceparent": PARENT, "x": "y"}]):
        assert inject({"tenant": "x"}) == {"tenant": "x", "traceparent": PARENT}
        assert inject({"traceparent": OTHER}) == {"traceparent": OTHER}
    assert inject({}) == {}


def test_without_the_package_nothing_is_collected_and_a_handler_passes_the_context_on(
    without_package,
):
    assert not collecting()
    assert create("orders") == {}
    with processing([message()], group="billing", batch=False):
        assert create("orders") == {"traceparent": PARENT}
    with processing([message(), message()], group="billing", batch=True):
        assert create("orders") == {}
    with sending([message()]) as failed:
        failed("UNAVAILABLE")


def test_the_package_without_a_provider_collects_nothing(monkeypatch):
    monkeypatch.setattr(trace, "get_tracer_provider", trace.NoOpTracerProvider)
    assert not collecting()
    with processing([message()], group="billing", batch=False):
        assert create("orders") == {"traceparent": PARENT}


def test_without_the_package_a_batch_has_no_single_context_to_pass_on(without_package):
    two = [{"traceparent": PARENT}, {"traceparent": OTHER}]
    with linked_span("handle", kind="consumer", messages=two):
        assert inject({}) == {}


def test_without_the_package_errors_pass_and_nothing_leaks(without_package):
    with (
        pytest.raises(KeyError),
        linked_span("handle", kind="consumer", messages=[{"traceparent": PARENT}]),
    ):
        raise KeyError
    assert inject({}) == {}


async def test_contexts_of_tasks_do_not_mix(without_package):
    async def handle(parent: str) -> dict[str, str]:
        with linked_span("handle", kind="consumer", messages=[{"traceparent": parent}]):
            await asyncio.sleep(0.001)
            return inject({})

    results = await asyncio.gather(*(handle(p) for p in (PARENT, OTHER) * 20))
    assert [r["traceparent"] for r in results] == [PARENT, OTHER] * 20


def test_with_the_api_but_no_sdk_the_context_is_passed_on_too():
    """The API's own no-op tracer makes spans without a context."""
    with linked_span("handle", kind="consumer", messages=[{"traceparent": PARENT}]):
        assert inject({}) == {"traceparent": PARENT}
