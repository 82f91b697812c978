"""Trace context across the outbox: from the insert over the send to the handling.

Owns the two W3C headers ``traceparent`` and ``tracestate``, and the spans, named and attributed by
OpenTelemetry's messaging conventions:

    create TOPIC    producer   one published message; its context travels in the message's headers
    send TOPIC      client     one batch to the broker, linked to the contexts of its messages
    process TOPIC   consumer   one attempt of a handler, up to its commit, linked likewise

A message leaves its transaction long before it is sent and may be handled days later in a batch
with others, so sending and handling are *linked* to the context in the message and never its
children.  The invariant: a broken or missing header costs the link, never the message; errors show
in spans by their code only.  Where nobody collects spans there are none, but what a handler
publishes still carries on the context of the message it handles.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from duly.errors import error_code

if TYPE_CHECKING:
    from opentelemetry.trace import Link, Span

    from duly.message import Message

__all__ = [
    "LINKS_MAX",
    "collecting",
    "create",
    "extract",
    "inject",
    "linked_span",
    "processing",
    "sending",
]

LINKS_MAX = 128  # what OpenTelemetry keeps by default

_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
)
_TRACESTATE = re.compile(r"[\x20-\x7e]{1,512}")

Kind = Literal["producer", "client", "consumer"]
Failed = Callable[[str], None]
Expected = tuple[type[BaseException], ...]

_handled: ContextVar[Mapping[str, str]] = ContextVar("duly_handled_trace")


# --- headers --------------------------------------------------------------------------------------
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
    if (otel := _opentelemetry()) and otel.has_context:
        otel.propagator.inject(carrier)
    found = extract(carrier) if carrier else None
    return {**headers, **(found or _handled.get({}))}


# --- spans ----------------------------------------------------------------------------------------
def collecting() -> bool:
    """Whether the program has set OpenTelemetry up, so that a span would go somewhere."""
    otel = _opentelemetry()
    return otel is not None and otel.collecting


def create(topic: str) -> dict[str, str]:
    """The trace headers of a message that is published now, of a span of its own where spans are
    collected.

    topic: empty where it is not known yet.
    """
    otel = _opentelemetry()
    if otel is None or not otel.collecting:
        return inject({})
    with otel.span(
        _named("create", topic),
        kind="producer",
        attributes=_attributes("create", topic),
        root=False,
    ):
        return inject({})


@contextmanager
def sending(messages: Sequence[Message]) -> Iterator[Failed]:
    """A span around one publish to the broker; gives a function that marks it with a code."""
    topics = {message.topic for message in messages}
    topic = topics.pop() if len(topics) == 1 else ""
    attributes = _attributes("send", topic) | {"messaging.batch.message_count": len(messages)}
    headers = [message.headers for message in messages]
    with _span(_named("send", topic), "client", headers, attributes=attributes) as failed:
        yield failed


def processing(
    messages: Sequence[Message], *, group: str, batch: bool, expected: Expected = ()
) -> AbstractContextManager[Any]:
    """A span around one attempt to handle messages of one type.

    expected: signals that pass through the block and are no failure.
    """
    if not collecting():
        if len(messages) != 1 or "traceparent" not in messages[0].headers:
            return nullcontext()
        return _carried(extract(messages[0].headers))
    topic = messages[0].topic
    attributes = _attributes("process", topic) | {"messaging.consumer.group.name": group}
    if batch:
        attributes["messaging.batch.message_count"] = len(messages)
    else:
        attributes["messaging.message.id"] = messages[0].id
    headers = [message.headers for message in messages]
    return _span(
        _named("process", topic), "consumer", headers, attributes=attributes, expected=expected
    )


@contextmanager
def linked_span(
    name: str,
    *,
    kind: Kind,
    messages: Sequence[Mapping[str, str]],
    attributes: Mapping[str, str | int] | None = None,
) -> Iterator[None]:
    """A span of your own around the sending or handling of messages, linked to the contexts in
    their headers.

    messages: the headers of each; the first LINKS_MAX with a valid context are linked. attributes:
    names and counts, never payloads. An error passes through and marks the span with its code.
    """
    with _span(name, kind, messages, attributes=attributes or {}, root=False):
        yield


@contextmanager
def _span(
    name: str,
    kind: Kind,
    messages: Sequence[Mapping[str, str]],
    *,
    attributes: Mapping[str, str | int],
    expected: Expected = (),
    root: bool = True,
) -> Iterator[Failed]:
    contexts = [context for headers in messages if (context := extract(headers))]
    alone = contexts[0] if len(contexts) == 1 and kind == "consumer" else {}
    otel = _opentelemetry()
    with _carried(alone):
        if otel is None or not otel.collecting:
            yield lambda _code: None
            return
        links = contexts[:LINKS_MAX]
        with otel.span(name, kind=kind, contexts=links, attributes=attributes, root=root) as span:
            try:
                yield lambda code: otel.fail(span, code)
            except expected:
                raise
            except BaseException as error:
                otel.fail(span, error_code(error))
                raise


@contextmanager
def _carried(context: Mapping[str, str]) -> Iterator[None]:
    token = _handled.set(context)
    try:
        yield
    finally:
        _handled.reset(token)


def _named(operation: str, topic: str) -> str:
    return f"{operation} {topic}" if topic else operation


def _attributes(operation: str, topic: str) -> dict[str, str | int]:
    found: dict[str, str | int] = {
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
    }
    return found | ({"messaging.destination.name": topic} if topic else {})


class _OpenTelemetry:
    """The parts of OpenTelemetry's API that are used here."""

    def __init__(self) -> None:
        from opentelemetry import context, trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._trace, self._context = trace, context
        self._root = context.Context()
        self._tracer: tuple[Any, Any] | None = None
        self._idle = (trace.ProxyTracerProvider, trace.NoOpTracerProvider)
        self.propagator = TraceContextTextMapPropagator()

    @property
    def has_context(self) -> bool:
        """Whether anything is open here, which for most messages nothing is."""
        return bool(self._context.get_current())

    @property
    def collecting(self) -> bool:
        return not isinstance(self._trace.get_tracer_provider(), self._idle)

    def span(
        self,
        name: str,
        *,
        kind: Kind,
        attributes: Mapping[str, str | int],
        contexts: Sequence[dict[str, str]] = (),
        root: bool = True,
    ) -> Any:
        """root: not a child of whatever span was open when this process's roles were started."""
        kinds = {
            "producer": self._trace.SpanKind.PRODUCER,
            "client": self._trace.SpanKind.CLIENT,
            "consumer": self._trace.SpanKind.CONSUMER,
        }
        return self._tracer_now().start_as_current_span(
            name,
            context=self._root if root else None,
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

    def _tracer_now(self) -> Any:
        provider = self._trace.get_tracer_provider()
        if self._tracer is None or self._tracer[0] is not provider:
            self._tracer = provider, provider.get_tracer("duly")
        return self._tracer[1]

    def _link(self, context: dict[str, str]) -> Link:
        remote = self._trace.get_current_span(self.propagator.extract(context))
        return self._trace.Link(remote.get_span_context())


@cache
def _opentelemetry() -> _OpenTelemetry | None:
    try:
        return _OpenTelemetry()
    except ImportError:  # the extra is not installed: contexts are passed on, spans are not made
        return None
