"""What an observer of a whole App gets: the spans of a message from publish to commit, and the
facts of its way, also of those that go wrong.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy.orm import Session

from duly import AsyncTx, Retry, Tx
from duly.errors import ConfigurationError
from duly.observe import facts
from duly.observe.facts import Fact
from tests.acceptance.conftest import MakeShop
from tests.acceptance.shop_app import Charge, Placed, Shop


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict[str, ReadableSpan]]:
    """Spans by name; OpenTelemetry's global provider can be set only once, so it is replaced."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    return lambda: {span.name: span for span in exporter.get_finished_spans()}


def told(shop: Shop, *kinds: type[Fact]) -> list[Any]:
    """A list that fills with facts."""
    heard: list[Any] = []
    shop.app.hooks.add(lambda fact: heard.append(fact) if isinstance(fact, kinds) else None)
    return heard


def linked(span: ReadableSpan, to: ReadableSpan) -> bool:
    return [link.context.span_id for link in span.links] == [to.context.span_id]


async def test_a_message_is_traced_from_its_transaction_to_the_commit_of_its_handler(
    make_shop: MakeShop, spans: Callable[[], dict[str, ReadableSpan]]
) -> None:
    shop = make_shop()

    @shop.app.on(Placed, group="sales")
    def bill(event: Placed, tx: Tx) -> None:
        tx.send(Charge(order_id=event.order_id))

    @shop.app.handle(Charge)
    async def charge(command: Charge, tx: AsyncTx) -> None:
        await tx.connection()

    shop.prepare()
    tracer = trace.get_tracer_provider().get_tracer("shop")
    with tracer.start_as_current_span("POST /orders") as request:
        shop.place(7)
    with tracer.start_as_current_span("whoever starts the roles"):
        await shop.app.run_once(timeout="30s")
    found = spans()
    created, sent, processed = (found[f"{what} orders"] for what in ("create", "send", "process"))
    assert created.parent is not None
    assert created.parent.span_id == request.get_span_context().span_id
    assert sent.parent is processed.parent is None
    assert linked(sent, created)
    assert linked(processed, created)
    follow_up, charged = found["create billing"], found["process billing"]
    assert follow_up.parent is not None
    assert follow_up.parent.span_id == processed.context.span_id
    assert linked(charged, follow_up)
    kinds = [span.kind.name for span in (created, sent, processed)]
    assert kinds == ["PRODUCER", "CLIENT", "CONSUMER"]
    assert (processed.attributes or {})["messaging.consumer.group.name"] == "sales"
    assert all(span.status.is_ok or span.status.is_unset for span in found.values())


async def test_a_handler_that_fails_and_one_that_gives_up_are_told_with_what_comes_next(
    local: Shop, spans: Callable[[], dict[str, ReadableSpan]]
) -> None:
    heard = told(local, facts.HandlerFailed, facts.Failed)
    tries: list[int] = []

    @local.app.on(Placed, group="sales", retry=Retry(attempts=3, base="50ms", max="60ms"))
    def bill(event: Placed) -> None:
        tries.append(event.order_id)
        raise ValueError("s3cr3t")

    local.prepare()
    local.place(1)
    await local.app.run_once(timeout="30s")
    assert tries == [1, 1, 1]
    attempts = [fact for fact in heard if isinstance(fact, facts.HandlerFailed)]
    assert [(fact.code, fact.attempts) for fact in attempts] == [
        ("ValueError", n) for n in (1, 2, 3)
    ]
    due = [fact.due_in_seconds for fact in attempts]
    assert due[2] is None
    assert all(seconds is not None and 0.02 < seconds <= 0.06 for seconds in due[:2])
    (failed,) = [fact for fact in heard if isinstance(fact, facts.Failed)]
    assert (failed.box, failed.attempts, failed.handler) == ("inbox", 3, "sales.order.placed")
    assert isinstance(heard[-1], facts.Failed)
    span = spans()["process orders"]
    assert (span.attributes or {})["error.type"] == "ValueError"
    assert "s3cr3t" not in span.to_json()


async def test_a_single_attempt_is_told_as_given_up(local: Shop) -> None:
    heard = told(local, facts.HandlerFailed, facts.Failed)

    @local.app.on(Placed, group="sales", retry=Retry(attempts=1))
    def bill(event: Placed) -> None:
        raise ValueError

    local.prepare()
    local.place(1)
    await local.app.run_once(timeout="30s")
    assert [(type(fact).__name__, fact.attempts) for fact in heard] == [
        ("HandlerFailed", 1),
        ("Failed", 1),
    ]
    assert heard[0].due_in_seconds is None


async def test_commits_and_servers_are_told(make_shop: MakeShop) -> None:
    shop = make_shop()
    shop.app.on(Placed, group="sales")(lambda event: None)
    shop.prepare()
    heard = told(shop, facts.Published, facts.Connected, facts.Disconnected)
    shop.place(1, 2, 3)
    with Session(shop.engine) as session:
        shop.app.publish(session, Placed(order_id=4))
        session.rollback()
    assert heard == [facts.Published(topic="orders", count=3)]
    async with shop.app.running() as running:
        await asyncio.wait_for(running.settled(), 30)
        async with asyncio.timeout(20):
            while len(heard) < 3:
                await asyncio.sleep(0.05)
    connected = {fact.peer: fact.url for fact in heard[1:]}
    assert set(connected) == {"database", "broker"}
    assert connected == shop.app.peers
    assert not any("guest" in url or "password" in url for url in connected.values())


# --- where a loop runs ----------------------------------------------------------------------------
async def test_what_blocks_says_so_inside_an_event_loop(local: Shop) -> None:
    for call, instead in (
        (local.app.check, "await asyncio.to_thread(app.check)"),
        (local.app.run, "async with app.running()"),
    ):
        with pytest.raises(ConfigurationError) as caught:
            call()
        assert caught.value.code == "INSIDE_EVENT_LOOP"
        assert instead in str(caught.value)
    assert await asyncio.to_thread(local.app.check) is not None
