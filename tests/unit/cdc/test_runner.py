from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from duly import Change, Command, Emit, Intent, Transaction
from duly.errors import OutcomeUnknownError
from duly.kernel import failpoints
from duly.observe.facts import Captured, CaptureStopped
from duly.observe.health import RoleState
from duly.outbox.operator import By
from duly.ports import Connection, Steps
from tests.unit.cdc.fake_source import FakeSource, place
from tests.unit.cdc.world import Paid, Seen, World, created, until, updated

ME = By("me", "a test")
NEW = {"id": 1, "status": "placed"}
PAID = {"id": 1, "status": "paid"}


class Block(Command, name="users.block", queue="users"):
    user_id: int


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def health(world: World) -> str:
    roles = {role.role: role for role in world.app.health.report().roles}
    role = roles.get("stream shop")
    if role is None:
        return "not begun"
    return role.code if role.state is RoleState.DEGRADED else role.state.value


async def test_a_change_becomes_a_message_and_is_confirmed_after_it_is_stored(
    world: World,
) -> None:
    world.paid_rule()
    world.source.commit(created("orders", NEW))  # before the stream began: not its business
    async with world.running():
        await until(lambda: world.source.opened)
        world.source.commit(updated("orders", NEW, PAID), intents=(Intent("Checkout"),))
        await until(lambda: world.source.confirmed == place(2))
        (row,) = world.rows()
    assert (row["message_type"], row["key"], row["kind"]) == ("order.paid", "1", "event")
    change = world.source.log[1].changes[0]
    assert row["message_id"] == change.event_id("paid")
    assert '"cdcposition":"' + place(2) in row["headers"]
    assert '"cdcordinal":"0"' in row["headers"]
    assert '"cdcsource":"memory:1"' in row["headers"]
    assert world.offset().position == place(2)
    assert any(isinstance(fact, Captured) and fact.messages == 1 for fact in world.facts)


async def test_a_position_with_nothing_to_tell_is_stored_now_and_then(world: World) -> None:
    world.paid_rule()
    async with world.running():
        await until(lambda: world.source.opened)
        world.source.commit(created("orders", NEW))
        await until(lambda: world.source.confirmed == place(1))
    assert (world.rows(), world.offset().position) == ([], place(1))


async def test_it_goes_on_where_it_was(world: World) -> None:
    world.paid_rule()
    async with world.running():
        await until(lambda: world.source.opened)
        world.source.commit(updated("orders", NEW, PAID))
        await until(lambda: len(world.rows()) == 1)
    world.source.commit(updated("orders", {**NEW, "id": 2}, {**PAID, "id": 2}))
    async with world.running():
        await until(lambda: len(world.rows()) == 2)
    assert world.source.opened == [place(0), place(1)]
    assert [payload["order_id"] for payload in world.payloads()] == [1, 2]


async def test_many_small_transactions_are_one_write(world: World) -> None:
    world.paid_rule()
    world.source.log.clear()
    async with world.running():
        await until(lambda: world.source.opened)
        for n in range(300):
            world.source.commit(updated("orders", {**NEW, "id": n}, {**PAID, "id": n}))
        await until(lambda: world.source.confirmed == place(300))
    captured = [fact for fact in world.facts if isinstance(fact, Captured)]
    assert sum(fact.transactions for fact in captured) == 300
    assert len(captured) < 60
    assert [p["order_id"] for p in world.payloads()] == list(range(300))


async def test_a_large_transaction_is_written_piece_by_piece_and_whole(world: World) -> None:
    world.paid_rule()
    async with world.running(lazy=50) as role:
        await until(lambda: world.source.opened)
        small = updated("orders", {**NEW, "id": 9000}, {**PAID, "id": 9000})
        many = [updated("orders", {**NEW, "id": n}, {**PAID, "id": n}) for n in range(2500)]
        world.source.commit(small)
        world.source.commit(*many)
        world.source.commit(small)
        await until(lambda: role.is_past(place(3)))
    assert [p["order_id"] for p in world.payloads()] == [9000, *range(2500), 9000]
    assert len({row["message_id"] for row in world.rows()}) == 2502


@pytest.mark.parametrize("where", [failpoints.CDC_STORED, failpoints.CDC_READ])
async def test_a_reader_that_dies_there_loses_and_doubles_nothing(world: World, where: str) -> None:
    world.paid_rule()
    died: list[str] = []

    def die(name: str) -> None:
        if name == where and world.offset().position >= place(0) and len(died) < 3:
            died.append(name)
            raise OutcomeUnknownError("the process ends here")

    failpoints.arm(die)
    try:
        for n in range(1, 6):
            world.source.commit(updated("orders", {**NEW, "id": n}, {**PAID, "id": n}))
        world.source.prepare = _from_the_start  # type: ignore[method-assign]
        async with world.running(batch=1):
            await until(lambda: world.source.confirmed == place(5))
    finally:
        failpoints.arm(None)
    assert len(died) == 3
    assert [p["order_id"] for p in world.payloads()] == [1, 2, 3, 4, 5]


async def _from_the_start(_tables: object) -> str:
    return place(0)


async def test_a_rule_that_raises_stops_the_stream_there_and_loses_nothing(world: World) -> None:
    broken = [True]

    @world.app.cdc(table="orders")
    def fragile(change: Change) -> Iterator[Paid]:
        if change.key["id"] == 2 and broken[0]:
            raise ZeroDivisionError("secret of the row")
        yield Paid(order_id=change.key["id"])

    async with world.running():
        await until(lambda: world.source.opened)
        for n in (1, 2, 3):
            world.source.commit(created("orders", {"id": n}))
        await until(lambda: world.offset().state.trouble)
        trouble = world.offset().state.trouble
        assert trouble is not None
        assert (trouble.code, trouble.position) == ("RULE_FAILED", place(2))
        assert "ZeroDivisionError" in trouble.detail
        assert "secret" not in trouble.detail
        await until(lambda: health(world) == "RULE_FAILED")
        assert [p["order_id"] for p in world.payloads()] == [1]
        (status,) = await _status(world)
        assert status.state == "failing"
        broken[0] = False
        await until(lambda: len(world.rows()) == 3)
        await until(lambda: health(world) == "healthy")
    assert [p["order_id"] for p in world.payloads()] == [1, 2, 3]
    assert world.offset().state.trouble is None
    assert any(isinstance(f, CaptureStopped) and f.code == "RULE_FAILED" for f in world.facts)


async def _status(world: World):  # type: ignore[no-untyped-def]
    streams = world.app.streams()
    streams._make_source = lambda _: world.source
    return await streams.status()


async def test_what_it_yields_must_be_sendable(world: World) -> None:
    @world.app.cdc(table="orders")
    def wrong(change: Change) -> Iterator[object]:
        yield {"not": "an event"}

    async with world.running():
        await until(lambda: world.source.opened)
        world.source.commit(created("orders", NEW))
        await until(lambda: world.offset().state.trouble)
    trouble = world.offset().state.trouble
    assert trouble is not None
    assert "UNKNOWN_TYPE" in trouble.detail


async def test_a_person_skips_the_transaction_that_cannot_be_handled(world: World) -> None:
    @world.app.cdc(table="orders")
    def fragile(change: Change) -> Iterator[Paid]:
        if change.key["id"] == 1:
            raise KeyError
        yield Paid(order_id=change.key["id"])

    async with world.running(lazy=1):
        await until(lambda: world.source.opened)
        world.source.commit(created("orders", {"id": 1}))
        world.source.commit(created("orders", {"id": 2}))
        await until(lambda: world.offset().state.trouble)
        world.app.streams().skip(place(1), by=ME)
        await until(lambda: world.rows())
    assert [p["order_id"] for p in world.payloads()] == [2]
    assert world.rows("SELECT name FROM duly_meta WHERE name LIKE 'cdc/%'") == []


async def test_lost_history_stops_this_stream_until_a_person_decides(world: World) -> None:
    world.paid_rule()
    async with world.running():
        await until(lambda: world.source.opened)
        world.source.commit(updated("orders", NEW, PAID))
        await until(lambda: world.source.confirmed == place(1))
    world.source.commit(updated("orders", NEW, PAID))
    world.source.kept_from = 2
    async with world.running() as role:
        await until(lambda: world.offset().state.trouble)
        trouble = world.offset().state.trouble
        assert trouble is not None
        assert (trouble.code, trouble.stopped) == ("CDC_PURGED", True)
        await until(lambda: health(world) == "CDC_PURGED")
        await until(lambda: role.is_past(place(99)))  # nobody waits for it
        opened = len(world.source.opened)
        world.app.streams().rewind("start", by=ME)
        await until(lambda: len(world.source.opened) > opened)
        world.source.commit(updated("orders", NEW, PAID))
        await until(lambda: len(world.rows()) == 2)
        await until(lambda: health(world) == "healthy")
    assert world.offset().state.trouble is None


async def test_another_database_under_the_same_name_is_a_gap(world: World) -> None:
    world.paid_rule()
    async with world.running():
        await until(lambda: world.source.opened)
    world.source = FakeSource()
    world.source.name = "memory:2"
    async with world.running():
        await until(lambda: world.offset().state.trouble)
        trouble = world.offset().state.trouble
        assert trouble is not None
        assert trouble.code == "CDC_OTHER_SOURCE"


async def test_a_source_that_is_away_is_waited_for(world: World) -> None:
    world.paid_rule()
    world.source.away = True
    async with world.running():
        await until(lambda: health(world) == "DATABASE_UNAVAILABLE")
        world.source.away = False
        await until(lambda: world.source.opened)
        world.source.commit(updated("orders", NEW, PAID))
        await until(lambda: world.rows())
        await until(lambda: health(world) == "healthy")
    assert world.offset().position == place(1)


async def test_a_rewind_puts_the_reader_out_and_repeats_the_same_ids(world: World) -> None:
    world.paid_rule()
    async with world.running():
        await until(lambda: world.source.opened)
        world.source.commit(updated("orders", NEW, PAID))
        await until(lambda: world.source.confirmed == place(1))
        world.source.confirmed = ""
        world.app.streams().rewind(place(0), by=ME)
        await until(lambda: len(world.rows()) == 2)
    first, second = world.rows()
    assert first["message_id"] == second["message_id"]
    audited = world.rows("SELECT verb, target, actor, detail FROM duly_audit")
    assert [(a["verb"], a["target"], a["actor"]) for a in audited] == [("rewind", "cdc/shop", "me")]


async def test_one_reader_at_a_time_and_the_next_takes_over(world: World) -> None:
    world.paid_rule()
    first, second = world.role(), world.role()
    one = asyncio.create_task(first.run())
    await until(lambda: world.source.opened)
    two = asyncio.create_task(second.run())
    await until(lambda: second.is_past(place(10**6)))  # it knows that it is not its turn
    assert len(world.source.opened) == 1
    first.stop()
    await one
    world.source.commit(updated("orders", NEW, PAID))
    await until(lambda: world.rows())
    second.stop()
    await two
    assert len(world.source.opened) == 2


async def test_what_an_older_reader_has_in_hand_is_dropped(world: World) -> None:
    world.paid_rule()
    role = world.role()
    taken: list[int] = []
    run = type(world.app.database.connect()).run

    def overtaken(connection: Connection, steps: Steps[object]) -> object:
        """Another node claims the stream just before this one's messages are stored."""
        if world.source.log and not taken:
            taken.append(1)
            with world.app.database.engine().begin() as other:
                other.exec_driver_sql("UPDATE duly_offset SET token = token + 1")
        return run(connection, steps)  # type: ignore[arg-type]

    task = asyncio.create_task(role.run())
    await until(lambda: world.source.opened)
    writer = await role._connection.run(_nothing)
    assert writer is None
    connection = role._connection._connection
    assert connection is not None
    connection.run = lambda steps: overtaken(connection, steps)  # type: ignore[method-assign]
    world.source.commit(updated("orders", NEW, PAID))
    await until(lambda: len(world.source.opened) == 2)
    await until(lambda: world.rows())
    role.stop()
    await task
    assert (taken, len(world.rows())) == ([1], 1)


def _nothing() -> Steps[None]:
    yield from ()


# --- snapshots ------------------------------------------------------------------------------------
def snapshot_rule(world: World, **options: object) -> None:
    @world.app.cdc(table="orders", on_snapshot=True, **options)  # type: ignore[arg-type]
    def seen(change: Change) -> Iterator[Seen]:
        if change.op in ("read", "create"):
            yield Seen(order_id=change.key["id"])


async def test_a_stream_begins_with_what_is_there(world: World) -> None:
    snapshot_rule(world)
    world.source.rows["orders"] = [{"id": n} for n in range(5)]
    async with world.running():
        await until(lambda: len(world.rows()) == 5)
        world.source.commit(created("orders", {"id": 5}))
        await until(lambda: len(world.rows()) == 6)
        await until(lambda: world.source.released == 3)
    assert [p["order_id"] for p in world.payloads()] == list(range(6))
    assert world.offset().state.tables["orders"].done
    async with world.running():
        await until(lambda: len(world.source.opened) == 2)
    assert len(world.rows()) == 6


async def test_a_snapshot_goes_on_behind_its_last_chunk(world: World) -> None:
    snapshot_rule(world)
    world.source.rows["orders"] = [{"id": n} for n in range(7)]
    stored: list[str] = []

    def die(name: str) -> None:
        if name == failpoints.CDC_STORED and len(world.rows()) >= 2 and not stored:
            stored.append(name)
            raise OutcomeUnknownError("the process ends here")

    failpoints.arm(die)
    try:
        async with world.running(batch=1):
            await until(lambda: len(world.rows()) == 7)
    finally:
        failpoints.arm(None)
    assert stored
    assert [p["order_id"] for p in world.payloads()] == list(range(7))


async def test_a_person_asks_for_a_snapshot_of_a_running_stream(world: World) -> None:
    snapshot_rule(world, snapshot="never")
    world.source.rows["orders"] = [{"id": n} for n in range(3)]
    async with world.running():
        await until(lambda: world.source.opened)
        world.source.commit(created("orders", {"id": 9}))
        await until(lambda: world.rows())
        world.app.streams().snapshot("orders", by=ME)
        await until(lambda: len(world.rows()) == 4)
        await until(lambda: world.offset().state.tables["orders"].done)
    assert sorted(p["order_id"] for p in world.payloads()) == [0, 1, 2, 9]
    assert world.rows("SELECT name FROM duly_meta WHERE name LIKE 'cdc/%'") == []


async def test_snapshots_of_a_quiet_table_have_ids_of_their_own(world: World) -> None:
    snapshot_rule(world)
    world.source.rows["orders"] = [{"id": n} for n in range(3)]
    async with world.running():
        for asked in range(3):
            await until(lambda: len(world.rows()) == 3 * (asked + 1))  # noqa: B023  # asked now
            await until(lambda: world.offset().state.tables["orders"].done)
            if asked < 2:
                world.app.streams().snapshot("orders", by=ME)
    ids = {row["message_id"] for row in world.rows()}
    assert len(ids) == 9  # else consumers would drop the later ones as handled before


# --- the way of a result into the outbox ----------------------------------------------------------
async def test_keys_headers_commands_and_whole_transactions(world: World) -> None:
    @world.app.cdc(table="logins", before=False)
    def failed(change: Change) -> object:
        return Emit(Block(user_id=change.key["id"]), key="u", headers={"why": "logins"})

    @world.app.cdc(transaction=True, tables=["orders", "lines"])
    def whole(transaction: Transaction) -> Iterator[Paid]:
        yield Paid(order_id=len(list(transaction.of("lines"))))

    async with world.running():
        await until(lambda: world.source.opened)
        world.source.commit(
            created("logins", {"id": 7}), created("orders", NEW), created("lines", {"id": 1})
        )
        world.source.commit(created("logins", {"id": 8}))
        await until(lambda: len(world.rows()) == 3)
    block, paid, other = world.rows()
    assert (block["kind"], block["topic"], block["key"]) == ("command", "users", "u")
    assert '"why":"logins"' in block["headers"]
    assert (paid["message_type"], paid["key"]) == ("order.paid", None)
    assert other["message_type"] == "users.block"
    assert [spec.name for spec in world.source.specs] == ["lines", "logins", "orders"]
    assert [spec.before_image for spec in world.source.specs] == [True, False, True]
