from __future__ import annotations

from typing import Any

import pytest

from duly.errors import ConfigurationError, InvalidNameError
from duly.inbox.handlers import BATCH_DEFAULT, HandlerRegistry
from duly.inbox.transaction import AsyncTx, Tx
from duly.kernel.backoff import Retry
from duly.message import Command, Event, Message, Registry


class Placed(Event, name="h.placed", topic="h-orders"):
    order_id: int


class PlacedTwo(Event, name="h.placed", version=2, topic="h-orders"):
    order_id: int


class Shipped(Event, name="h.shipped", topic="h-parcels"):
    order_id: int


class Charge(Command, name="h.charge", queue="h-billing"):
    order_id: int


class Refund(Command, name="h.refund", queue="h-billing", handled_by="bank"):
    order_id: int


def make() -> HandlerRegistry:
    return HandlerRegistry(Registry())


def test_a_handler_stays_a_plain_function_and_gets_a_stable_name() -> None:
    handlers = make()

    @handlers.on(Placed, group="billing")
    def bill(event: Placed) -> int:
        return event.order_id

    assert bill(Placed(order_id=3)) == 3
    (handler,) = handlers.of_group("billing")
    assert (handler.name, handler.order, handler.batch) == ("billing.h.placed", "none", None)
    assert (handler.retry, handler.on_exhausted, handler.is_async) == (Retry(), "skip", False)
    assert handlers.find("billing", "h.placed", 1) is handler
    assert handlers.find("billing", "h.placed", 2) is None
    assert handlers.handles("billing", "h.placed")
    assert not handlers.handles("billing", "h.shipped")


def test_the_group_of_a_command_is_its_queue() -> None:
    handlers = make()
    handlers.handle(Charge, name="charging")(lambda command: None)
    assert [h.name for h in handlers.of_group("h-billing")] == ["charging"]
    assert handlers.named("h-billing", "charging") == handlers.of_group("h-billing")


def no_parameters() -> None: ...
def keyword_only(*, event: Any) -> None: ...
def starts_with_tx(tx: Any) -> None: ...
def other_name(event: Any, session: Any) -> None: ...
def star(event: Any, *args: Any) -> None: ...
def stars(event: Any, **kwargs: Any) -> None: ...
def generator(event: Any) -> Any:
    yield event


@pytest.mark.parametrize(
    "function", [no_parameters, keyword_only, starts_with_tx, other_name, star, stars, generator, 5]
)
def test_wrong_functions_are_refused_when_they_are_registered(function: Any) -> None:
    with pytest.raises(ConfigurationError):
        make().on(Placed, group="billing")(function)


@pytest.mark.parametrize(
    "options",
    [
        {"order": "strict"},
        {"on_exhausted": "drop"},
        {"batch": 0},
        {"batch": True},
        {"batch": 10, "order": "key"},
        {"concurrency": -1},
        {"concurrency": 10_000},
        {"dedupe": "order_id"},
        {"retry": 5},
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        make().on(Placed, group="billing", **options)(lambda event: None)


def test_names_are_checked() -> None:
    with pytest.raises(InvalidNameError):
        make().on(Placed, group="no spaces")
    with pytest.raises(InvalidNameError):
        make().on(Placed, group="g", name="a\n")(lambda event: None)


def test_the_wrong_verb() -> None:
    with pytest.raises(ConfigurationError, match="use handle"):
        make().on(Charge, group="g")
    with pytest.raises(ConfigurationError, match="use on"):
        make().handle(Placed)


def test_two_handlers_of_one_event_in_a_group() -> None:
    handlers = make()
    handlers.on(Placed, group="g")(lambda event: None)
    handlers.on(Placed, group="other")(lambda event: None)
    handlers.on(PlacedTwo, group="g")(lambda event: None)
    with pytest.raises(ConfigurationError) as caught:
        handlers.on(Placed, group="g")(lambda event: None)
    assert caught.value.code == "TWO_HANDLERS"
    with pytest.raises(ConfigurationError, match="two handlers named"):
        handlers.on(Shipped, group="g", name="g.h.placed")(lambda event: None)


def test_one_order_mode_per_group() -> None:
    handlers = make()
    handlers.on(Placed, group="g", order="key")(lambda event: None)
    with pytest.raises(ConfigurationError) as caught:
        handlers.on(Shipped, group="g")(lambda event: None)
    assert caught.value.code == "MIXED_ORDER"
    assert handlers.order_of("g") == "key"


def test_check_tells_of_commands_with_two_handlers_and_with_none() -> None:
    registry = Registry()
    handlers = HandlerRegistry(registry)
    registry.of(Refund)
    registry.of(Charge)
    assert [(f.code, "h.charge" in f.message) for f in handlers.check()] == [("NO_HANDLER", True)]
    handlers.handle(Charge)(lambda command: None)
    assert handlers.check() == []
    handlers.handle(Charge)(lambda command: None)
    assert [f.code for f in handlers.check()] == ["TWO_HANDLERS"]


def test_batch_handlers_are_known_by_their_annotation_their_option_or_msgs() -> None:
    handlers = make()

    @handlers.on(Placed, group="a")
    def by_annotation(events: list[Placed]) -> None: ...

    @handlers.on(Placed, group="b", batch=7)
    def by_option(events: Any) -> None: ...

    @handlers.on(Placed, group="c")
    def by_messages(events: Any, msgs: Any) -> None: ...

    @handlers.on(Placed, group="d")
    def unresolvable(events: list[NotThere]) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    assert [handlers.of_group(g)[0].batch for g in "abcd"] == [
        BATCH_DEFAULT,
        7,
        BATCH_DEFAULT,
        BATCH_DEFAULT,
    ]


def test_annotations_that_contradict_are_told_at_the_start() -> None:
    handlers = make()

    @handlers.on(Placed, group="a")
    def wrong_colour(event: Placed, tx: AsyncTx) -> None: ...

    @handlers.on(Placed, group="b")
    async def wrong_too(event: Placed, tx: Tx) -> None: ...

    @handlers.on(Placed, group="c", batch=7)
    def no_list(event: Placed) -> None: ...

    @handlers.on(Placed, group="d")
    def msg_of_many(events: list[Placed], msg: Message) -> None: ...

    assert [f.message.partition(":")[0] for f in handlers.check()] == [
        "a/a.h.placed", "b/b.h.placed", "c/c.h.placed", "d/d.h.placed"
    ]  # fmt: skip


def test_objects_that_are_called_are_handlers_too() -> None:
    class Bill:
        async def __call__(self, events: list[Placed], tx: AsyncTx) -> None: ...

    handlers = make()
    handlers.on(Placed, group="g")(Bill())
    (handler,) = handlers.of_group("g")
    assert (handler.is_async, handler.batch, handlers.check()) == (True, BATCH_DEFAULT, [])


def test_only_what_is_asked_for_is_given() -> None:
    handlers = make()
    message = Message("1", "h.placed", "event", "h-orders", None, b"{}", {})

    @handlers.on(Placed, group="a")
    def all_of_it(event: Placed, msg: Message, tx: Tx) -> None: ...

    handlers.on(Placed, group="b")(lambda event: None)
    assert handlers.of_group("a")[0].arguments(tx=5, messages=[message]) == {
        "tx": 5,
        "msg": message,
    }
    assert handlers.of_group("b")[0].arguments(tx=5, messages=[message]) == {}


def test_the_subscription_names_the_topics_once() -> None:
    handlers = make()
    handlers.on(Placed, group="g", order="key")(lambda event: None)
    handlers.on(PlacedTwo, group="g", order="key")(lambda event: None)
    handlers.on(Shipped, group="g", order="key")(lambda event: None)
    spec = handlers.subscription("g", prefetch=50)
    assert [t.name for t in spec.topics] == ["h-orders", "h-parcels"]
    assert (spec.ordered, spec.prefetch, spec.group) == (True, 50, "g")
    assert handlers.groups == ["g"]


def test_twice_the_largest_batch_is_received_ahead() -> None:
    handlers = make()

    @handlers.on(Placed, group="g", batch=3000)
    def many(events: list[Placed]) -> None: ...

    assert handlers.subscription("g", prefetch=50).prefetch == 6000
    assert handlers.subscription("g", prefetch=9000).prefetch == 9000
