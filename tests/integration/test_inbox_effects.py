"""The external API guard: intent, call, result - and what a second run finds of them."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest

from duly.errors import DulyError
from duly.inbox.effects import NotFound
from duly.inbox.transaction import AsyncTx, Tx
from duly.kernel import failpoints
from duly.observe.facts import EffectInDoubt, EffectReused
from tests.integration.inbox_world import (
    Charge,
    World,
    charge,
)
from tests.integration.test_inbox_single import write, write_async


@pytest.fixture
def world_settings() -> dict[str, Any]:
    return {"effect_wait_seconds": 0.5}


class Provider:
    """The outside world: counts calls, may fail before or after it has done what was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, str]] = []
        self.fail: Exception | None = None
        self.done: dict[str, Decimal] = {}

    def pay(self, order_id: int, idempotency_key: str = "") -> Decimal:
        self.calls.append((order_id, idempotency_key))
        if self.fail is not None:
            error, self.fail = self.fail, None
            raise error
        self.done[idempotency_key] = Decimal("1.50")
        return Decimal("1.50")

    async def pay_async(self, order_id: int, idempotency_key: str = "") -> Decimal:
        return self.pay(order_id, idempotency_key)

    def find(self, key: str) -> Any:
        return self.done.get(key, NotFound)


def register(
    world: World, provider: Provider, *, is_async: bool = False, fail: int = 0, **options: Any
) -> list[Any]:
    """A handler that pays, fails ``fail`` times after it, and then writes; returns the receipts it
    got.
    """
    receipts: list[Any] = []
    left = [fail]

    def after(receipt: Any) -> None:
        receipts.append(receipt)
        if left[0]:
            left[0] -= 1
            raise ValueError

    if is_async:

        @world.handlers.handle(Charge)
        async def charge_async(command: Charge, tx: AsyncTx) -> None:
            after(await tx.effect("pay", provider.pay_async, command.order_id, **options))
            await write_async(tx, command.order_id)

    else:

        @world.handlers.handle(Charge)
        def charge_plain(command: Charge, tx: Tx) -> None:
            after(tx.effect("pay", provider.pay, command.order_id, **options))
            write(tx, command.order_id)

    return receipts


async def rerun(world: World) -> list[str]:
    """What became of the stored message when it was tried again."""
    world.hold_lanes("billing")
    return [v.kind.value + ":" + v.error.partition(":")[0] for v in await world.run_rows("billing")]


@contextlib.contextmanager
def dies_at(name: str) -> Iterator[None]:
    """The first time that ``name`` is reached, everything of the attempt ends there, as if the
    process had.
    """
    armed = [True]

    def stop(reached: str) -> None:
        if reached == name and armed:
            armed.clear()
            raise SystemExit(name)

    failpoints.arm(stop)
    try:
        yield
    finally:
        failpoints.arm(None)


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_handler_that_runs_again_does_not_call_again(world: World, is_async: bool) -> None:
    provider = Provider()
    receipts = register(world, provider, is_async=is_async, fail=1, key_as="idempotency_key")
    await world.feed("billing", charge(1))
    assert await rerun(world) == ["settled:"]
    assert len(provider.calls) == 1
    assert receipts == [Decimal("1.50"), Decimal("1.50")]
    assert {type(receipt) for receipt in receipts} == {Decimal}
    assert world.work() == [1]
    assert [e["state"] for e in world.effects()] == ["done"]
    assert len([f for f in world.facts if isinstance(f, EffectReused)]) == 1


async def test_the_intent_is_committed_before_the_call_and_the_result_after_it(
    world: World,
) -> None:
    """Would be red with the effect inside the transaction: nobody else would see the rows."""
    seen: list[tuple[str, bool]] = []

    def pay(idempotency_key: str) -> int:
        seen.append(
            (world.effects()[0]["state"], world.effects()[0]["provider_key"] == idempotency_key)
        )
        return 5

    @world.handlers.handle(Charge)
    def handler(command: Charge, tx: Tx) -> None:
        tx.effect("pay", pay, key_as="idempotency_key")
        seen.append((world.effects()[0]["state"], bool(world.inbox())))
        write(tx, 1)

    await world.feed("billing", charge(1))
    assert seen == [("intent", True), ("done", False)]


@pytest.mark.parametrize("is_async", [False, True])
async def test_inside_the_transaction_it_is_refused_and_not_called(
    world: World, is_async: bool
) -> None:
    provider = Provider()

    if is_async:

        @world.handlers.handle(Charge)
        async def late_async(command: Charge, tx: AsyncTx) -> None:
            session = tx.session
            with contextlib.suppress(DulyError):
                await tx.effect("pay", provider.pay_async, 1)
            assert session is tx.session

    else:

        @world.handlers.handle(Charge)
        def late(command: Charge, tx: Tx) -> None:
            write(tx, command.order_id)
            with contextlib.suppress(DulyError):
                tx.effect("pay", provider.pay, 1)

    await world.feed("billing", charge(1))
    assert provider.calls == []
    assert world.work() == []
    assert [(r["status"], r["last_error"].partition(":")[0]) for r in world.inbox()] == [
        ("failed", "EFFECT_INSIDE_TRANSACTION")
    ]


async def test_changed_arguments_are_held(world: World) -> None:
    provider, amounts = Provider(), [1, 2]

    @world.handlers.handle(Charge)
    def handler(command: Charge, tx: Tx) -> None:
        tx.effect("pay", provider.pay, amounts.pop(0), key_as="idempotency_key")
        raise ValueError

    await world.feed("billing", charge(1))
    assert await rerun(world) == ["held:EFFECT_ARGUMENTS_CHANGED"]
    assert [order for order, _ in provider.calls] == [1]


@pytest.mark.parametrize(
    "point", [failpoints.EFFECT_INTENT, failpoints.EFFECT_CALLED, failpoints.EFFECT_RECORDED]
)
async def test_keyed_after_a_crash_is_repeated_under_the_same_key(world: World, point: str) -> None:
    provider = Provider()
    register(world, provider, key_as="idempotency_key")
    with dies_at(point):
        await world.feed("billing", charge(1))
    before = len(provider.calls)
    assert await rerun(world) == ["settled:"]
    assert before == (0 if point == failpoints.EFFECT_INTENT else 1)
    assert len(provider.calls) == (2 if point == failpoints.EFFECT_CALLED else 1)
    assert len({key for _, key in provider.calls}) == 1
    assert world.work() == [1]


@pytest.mark.parametrize("point", [failpoints.EFFECT_INTENT, failpoints.EFFECT_CALLED])
async def test_without_a_key_a_crash_is_held_for_a_person(world: World, point: str) -> None:
    provider = Provider()
    register(world, provider)
    with dies_at(point):
        await world.feed("billing", charge(1))
    calls = len(provider.calls)
    assert await rerun(world) == ["held:EFFECT_IN_DOUBT"]
    assert len(provider.calls) == calls
    assert [f.resolution for f in world.facts if isinstance(f, EffectInDoubt)] == ["held"]


@pytest.mark.parametrize("point", [failpoints.EFFECT_INTENT, failpoints.EFFECT_CALLED])
async def test_reconcile_is_asked_and_not_found_by_the_dead_means_call(
    world: World, point: str
) -> None:
    provider = Provider()
    register(world, provider, key_as="idempotency_key", reconcile=provider.find)
    with dies_at(point):
        await world.feed("billing", charge(1))
    assert await rerun(world) == ["settled:"]
    assert len(provider.calls) == 1
    assert [f.resolution for f in world.facts if isinstance(f, EffectInDoubt)] == ["asked"]


async def stranded(world: World, provider: Provider, *, alive: bool, over: bool) -> None:
    """An intent of another process, whose lease or hard deadline may be over."""
    with dies_at(failpoints.EFFECT_INTENT):
        await world.feed("billing", charge(1))
    late = "-100" if over else "+100"
    sqlite = world.database.dialect == "sqlite"
    when = f"unixepoch() {late}" if sqlite else f"now() + interval '{late} s'"
    world.query(f"UPDATE duly_effect SET holder = 'other#1', until = {when}")
    if alive:
        world.ask("lease.join", name="member/other", scopes="x", holder="other", ttl_seconds=60.0)
    provider.calls.clear()


async def test_not_found_is_not_final_while_the_caller_may_still_run(world: World) -> None:
    provider = Provider()
    register(world, provider, key_as="idempotency_key", reconcile=provider.find)
    await stranded(world, provider, alive=False, over=False)
    assert await rerun(world) == ["wait:EFFECT_IS_LIVE"]
    assert provider.calls == []
    world.query("UPDATE duly_effect SET until = created_at")
    assert await rerun(world) == ["settled:"]
    assert len(provider.calls) == 1


async def test_a_live_intent_of_another_process_is_waited_for_and_never_called(
    world: World,
) -> None:
    provider = Provider()
    register(world, provider, key_as="idempotency_key")
    await stranded(world, provider, alive=True, over=False)
    assert await rerun(world) == ["wait:EFFECT_IS_LIVE"]
    assert provider.calls == []
    assert [row["attempts"] for row in world.inbox()] == [1], "waiting uses up no attempt"


async def test_a_second_delivery_meets_the_first_in_its_call_and_takes_its_result(
    world: World,
) -> None:
    inside, go_on, calls = threading.Event(), threading.Event(), []

    def pay(order_id: int) -> int:
        calls.append(order_id)
        inside.set()
        go_on.wait(5)
        return 7

    receipts = []

    @world.handlers.handle(Charge)
    def handler(command: Charge, tx: Tx) -> None:
        receipts.append(tx.effect("pay", pay, command.order_id))
        write(tx, command.order_id)

    message = charge(1)
    feeding = asyncio.create_task(world.feed("billing", message, message))
    await asyncio.to_thread(inside.wait, 5)
    asyncio.get_running_loop().call_later(0.25, go_on.set)
    await feeding
    assert calls == [1]
    assert set(receipts) == {7}
    assert world.work() == [1]


@pytest.mark.parametrize(
    ("options", "again", "calls"),
    [
        ({"key_as": "idempotency_key"}, "settled:", 2),
        ({"repeatable": True}, "settled:", 2),
        ({"not_done": (ConnectionError,)}, "settled:", 2),
        ({"reconcile": lambda key: NotFound}, "settled:", 2),
        ({"reconcile": lambda key: Decimal(3)}, "settled:", 1),
    ],
)
@pytest.mark.parametrize("is_async", [False, True])
async def test_a_call_that_raised(
    world: World, options: dict[str, Any], again: str, calls: int, is_async: bool
) -> None:
    provider = Provider()
    provider.fail = ConnectionError()
    receipts = register(world, provider, is_async=is_async, **options)
    await world.feed("billing", charge(1))
    assert [row["status"] for row in world.inbox()] == ["retry"]
    assert await rerun(world) == [again]
    assert len(provider.calls) == calls
    assert receipts == [Decimal("1.50") if calls == 2 else Decimal(3)]


async def test_a_call_that_raised_without_any_of_them_is_held_at_once(world: World) -> None:
    provider = Provider()
    provider.fail = ConnectionError()
    register(world, provider)
    await world.feed("billing", charge(1))
    assert [(r["status"], r["last_error"]) for r in world.inbox()] == [
        ("held", "EFFECT_IN_DOUBT: pay")
    ]
    assert await rerun(world) == ["held:EFFECT_IN_DOUBT"]
    assert len(provider.calls) == 1


async def test_no_intent_for_a_message_that_is_done(world: World) -> None:
    """The copy passed the first look before the other one committed."""
    provider = Provider()
    release = threading.Event()
    count = []

    @world.handlers.handle(Charge)
    def handler(command: Charge, tx: Tx) -> None:
        count.append(1)
        if len(count) == 2:
            release.wait(5)
            tx.effect("second", provider.pay, 1)
        else:
            threading.Event().wait(0.2)  # both have begun before the first commits
        write(tx, command.order_id)

    message = charge(1)
    feeding = asyncio.create_task(world.feed("billing", message, message))
    for _ in range(500):
        if world.inbox():
            break
        await asyncio.sleep(0.01)
    release.set()
    await feeding
    assert provider.calls == []
    assert world.effects() == []
    assert (world.work(), len(count)) == ([1], 2)


async def test_a_result_without_json_form_is_held(world: World) -> None:
    @world.handlers.handle(Charge)
    def handler(command: Charge, tx: Tx) -> None:
        tx.effect("pay", lambda: object(), key_as=None)

    await world.feed("billing", charge(1))
    assert [(r["status"], r["last_error"].partition(":")[0]) for r in world.inbox()] == [
        ("held", "EFFECT_IN_DOUBT")
    ]
