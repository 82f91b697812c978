"""Trace context across the outbox: from the insert over the publish to the handling.

Owns the two W3C headers ``traceparent`` and ``tracestate``.  A message leaves its transaction long
before it is sent and may be handled days later in a batch with others, so spans of sending and
handling are *linked* to the context in the message and never its children.  The invariant: a broken
or missing header costs the link, never the message; errors show in spans by their code only.
Without OpenTelemetry there are no spans, but what a handler publishes still carries on the context
of the message it handles.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from duly.errors import error_code

if TYPE_CHECKING:
    from opentelemetry.trace import Link, Span

__all__ = ["LINKS_MAX", "extract", "inject", "linked_span"]

LINKS_MAX = 128  # what OpenTelemetry keeps by default

_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
)
_TRACESTATE = re.compile(r"[\x20-\x7e]{1,512}")

_handled: ContextVar[Mapping[str, str]] = ContextVar("duly_handled_trace")


def extract(headers: Mapping[str, str]) -> dict[str, str]:
    """The trace headers of a message, empty when they are missing or broken."""
    parent = headers.get("traceparent", "")
    if not _TRACEPARENT.fullmatch(parent):
        return {}
    state = headers.get("tracestate", "")
    return {"traceparent": parent} | ({"tracestate": state} if _TRACESTATE.fullmatch(state) else {})


def inject(headers: Mapping[str, str]) -> dict[str, str]:
    """A copy of ``headers`` with the current trace context; one that is there already stays."""
    if "traceparent" in headers:
        return dict(headers)
    carrier: dict[str, str] = {}
    if otel := _opentelemetry():
        otel.propagator.inject(carrier)
    found = extract(carrier) if carrier else None
    return {**headers, **(found or _handled.get({}))}


@contextmanager
def linked_span(
    name: str,
    *,
    kind: Literal["producer", "consumer"],
    messages: Sequence[Mapping[str, str]],
    attributes: Mapping[str, str | int] | None = None,
) -> Iterator[None]:
    """A span around the sending or handling of messages, linked to the contexts in their headers.

    messages: the headers of each; the first LINKS_MAX with a valid context are linked. attributes:
    names and counts, never payloads. An error passes through and marks the span with its code.
    """
    contexts = [context for headers in messages if (context := extract(headers))]
    token = _handled.set(contexts[0] if len(contexts) == 1 and kind == "consumer" else {})
    try:
        if otel := _opentelemetry():
            with otel.span(
                name, kind=kind, contexts=contexts[:LINKS_MAX], attributes=attributes or {}
            ) as span:
                try:
                    yield
                except BaseException as error:
                    otel.fail(span, error_code(error))
                    raise
        else:
            yield
    finally:
        _handled.reset(token)


class _OpenTelemetry:
    """The parts of OpenTelemetry's API that are used here."""

    def __init__(self) -> None:
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._trace = trace
        self.propagator = TraceContextTextMapPropagator()

    def span(
        self,
        name: str,
        *,
        kind: str,
        contexts: Sequence[dict[str, str]],
        attributes: Mapping[str, str | int],
    ) -> Any:
        kinds = {
            "producer": self._trace.SpanKind.PRODUCER,
            "consumer": self._trace.SpanKind.CONSUMER,
        }
        return self._trace.get_tracer("duly").start_as_current_span(
            name,
            kind=kinds[kind],
            attributes={"messaging.system": "duly", **attributes},
            links=[self._link(context) for context in contexts],
            # The text of an exception may hold values of the message.
            record_exception=False,
            set_status_on_exception=False,
        )

    def fail(self, span: Span, code: str) -> None:
        span.set_attribute("error.type", code)
        span.set_status(self._trace.Status(self._trace.StatusCode.ERROR, code))

    def _link(self, context: dict[str, str]) -> Link:
        remote = self._trace.get_current_span(self.propagator.extract(context))
        return self._trace.Link(remote.get_span_context())


@cache
def _opentelemetry() -> _OpenTelemetry | None:
    try:
        return _OpenTelemetry()
    except ImportError:  # the extra is not installed: contexts are passed on, spans are not made
        return None
