"""A stream that feeds a sink, from the claim of its row to what a person decides."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from duly import Change
from duly.cdc.explain import explain
from duly.cdc.offsets import State
from duly.errors import (
    ConfigurationError,
    SinkLostError,
    SinkRefusedError,
    SinkUnavailableError,
)
from duly.kernel.backoff import Retry
from duly.kernel.upserts import Clear, Put
from duly.observe.facts import Captured
from duly.outbox.operator import By
from duly.sink import Batch, Fed, Feed
from duly.testing.changes import deleted, transaction_of
from tests.unit.cdc.world import World, created, until

BY = By("anna", "a test")
STREAM = "shop_copy"


class MemorySink:
    """Rows by id. errors: raised by the next batches. refused: an id it does not take."""

    snapshots = True
    place = "memory"

    def __init__(self) -> None:
        self.rows: dict[int, Mapping[str, Any]] = {}
        self.fed = Fed()
        self.feeds: list[Feed] = []
        self.batches: list[tuple[str, int]] = []
        self.errors: list[Exception] = []
        self.refused: int | None = None
        self.closed = 0
        self.seen: set[int] = set()  # every id that ever was there

    def look(self, name: str) -> Fed:
        return self.fed

    def open(self, feed: Feed) -> None:
        self.feeds.append(feed)
        self.fed = Fed(feed.epoch, self.fed.place if feed.epoch == self.fed.epoch else "")

    def apply(self, batch: Batch) -> None:
        operations = list(batch.operations)
        if self.errors:
            raise self.errors.pop(0)
        if any(getattr(one, "key", {}).get("id", -1) == self.refused for one in operations):
            raise SinkRefusedError("not that one")
        for one in operations:
            if isinstance(one, Clear):
                self.rows.clear()
            elif isinstance(one, Put):
                self.rows[one.key["id"]] = one.row
            else:
                self.rows.pop(one.key["id"], None)
            self.seen |= self.rows.keys()
        self.batches.append((batch.place, len(operations)))
        self.fed = Fed(self.fed.epoch, batch.place)

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def feed(world: World, **options: Any) -> MemorySink:
    sink = MemorySink()

    @world.app.cdc(table="orders", into=sink, **options)
    def copy(change: Change) -> Any:
        if change.after is None or change.after["status"] == "broken":
            raise ZeroDivisionError
        return None if change.after["status"] == "hidden" else change.after

    return sink


def order(id_: int, status: str = "placed") -> Change:
    return created("orders", {"id": id_, "status": status})


def rows(*ids: int) -> dict[int, Any]:
    return {id_: {"id": id_, "status": "placed"} for id_ in ids}


async def test_a_sink_begins_with_what_is_there_and_follows(world: World) -> None:
    sink = feed(world)
    world.source.rows["orders"] = [{"id": n, "status": "placed"} for n in (1, 2, 3)]
    async with world.running():
        await until(lambda: sink.rows == rows(1, 2, 3))
        world.source.commit(order(4), order(5, "hidden"), deleted("orders", {"id": 1}))
        await until(lambda: sink.rows == rows(2, 3, 4))
        await until(lambda: world.source.confirmed == sink.fed.place)
    state = world.offset().state
    assert (state.epoch, state.fed, sink.fed.epoch) == (1, 1, 1)
    assert world.offset().position == sink.fed.place
    await until(lambda: sink.closed)
    assert not world.rows()
    told = [fact for fact in world.facts if isinstance(fact, Captured)]
    assert sum(fact.changes for fact in told) >= 5
    assert all(fact.stream == STREAM for fact in told)


async def test_what_a_sink_has_is_not_applied_again(world: World) -> None:
    sink = feed(world)
    async with world.running():
        await until(lambda: sink.feeds)
        first = world.source.commit(order(1))
        await until(lambda: sink.fed.place == first.commit)
    second = world.source.commit(order(2), order(3))
    sink.fed = Fed(1, second.commit)  # applied, and killed before that was stored
    third = world.source.commit(order(4))
    async with world.running():
        await until(lambda: sink.fed.place == third.commit)
    assert sink.rows == rows(1, 4)


async def test_killed_again_while_it_catches_up_nothing_is_applied_again(world: World) -> None:
    sink = feed(world)
    async with world.running():
        await until(lambda: sink.feeds)
        first = world.source.commit(order(1))
        await until(lambda: sink.fed.place == first.commit)
    second, third = world.source.commit(order(2)), world.source.commit(order(3))
    sink.fed = Fed(1, third.commit)  # both were applied, and killed before that was stored
    sink.batches.clear()
    async with world.running(batch=1):  # reads one after the other what the sink has
        await until(lambda: world.offset().position == third.commit)
    assert {place for place, _ in sink.batches} == {third.commit}, second.commit
    assert sink.rows == rows(1)


async def test_what_an_older_reader_applied_before_it_was_put_out_is_known(world: World) -> None:
    sink = feed(world)
    async with world.running():
        await until(lambda: sink.feeds)
        first = world.source.commit(order(1))
        await until(lambda: sink.fed.place == first.commit)
    second = world.source.commit(order(2))

    def late(feed: Feed, opened: Any = sink.open) -> None:
        sink.fed = Fed(1, second.commit)  # it was at it when we looked
        opened(feed)

    sink.open = late  # type: ignore[method-assign]
    third = world.source.commit(order(3))
    async with world.running():
        await until(lambda: sink.fed.place == third.commit)
    assert sink.rows == rows(1, 3)


@pytest.mark.parametrize("quiet", [False, True], ids=["with more to come", "with nothing to come"])
async def test_a_copy_begins_anew_behind_what_the_sink_has(world: World, quiet: bool) -> None:
    sink = feed(world)
    world.source.rows["orders"] = [{"id": 1, "status": "placed"}]
    async with world.running():
        await until(lambda: sink.rows == rows(1))
    world.source.commit(order(2))
    last = world.source.commit(deleted("orders", {"id": 2}))
    sink.fed = Fed(1, last.commit)  # both were applied, and killed before that was stored
    world.app.streams().snapshot("orders", by=BY)
    if not quiet:
        world.source.commit(order(3))
    async with world.running():
        await until(lambda: sink.fed.epoch == 2)
        await until(lambda: world.offset().state.tables["orders"].done)
    assert sink.seen == ({1} if quiet else {1, 3})  # 2 did not come back for a moment
    assert [one.epoch for one in sink.feeds] == [1, 1, 2]


async def test_a_sink_that_was_emptied_is_filled_anew(world: World) -> None:
    sink = feed(world)
    world.source.rows["orders"] = [{"id": 1, "status": "placed"}]
    async with world.running():
        await until(lambda: sink.rows == rows(1))
        sink.rows, sink.fed = {}, Fed()
        sink.errors.append(SinkLostError("emptied"))
        world.source.commit(order(2))
        world.source.rows["orders"] = [{"id": n, "status": "placed"} for n in (1, 2)]
        await until(lambda: sink.rows == rows(1, 2))
    assert world.offset().state.epoch == 2


async def test_a_sink_that_is_away_is_waited_for_and_said_so(world: World) -> None:
    sink = feed(world, retry=Retry(attempts=1, base=0.01, max=0.01))
    async with world.running():
        await until(lambda: sink.feeds)
        sink.errors = [SinkUnavailableError("away"), SinkUnavailableError("away")]
        world.source.commit(order(1))
        await until(lambda: (trouble := world.offset().state.trouble) and trouble.tries == 2)
        await until(lambda: sink.rows == rows(1))
        await until(lambda: world.offset().state.trouble is None)
    assert world.offset().state.epoch == 1


async def test_only_what_a_sink_refuses_is_held_up_and_can_be_skipped(world: World) -> None:
    sink = feed(world, retry=Retry(attempts=2, base=0.01, max=0.01))
    sink.refused = 2
    async with world.running():
        await until(lambda: sink.feeds)
        world.source.commit(order(1))
        bad = world.source.commit(order(2))
        world.source.commit(order(3))
        await until(lambda: (trouble := world.offset().state.trouble) and trouble.stopped)
        trouble = world.offset().state.trouble
        assert trouble is not None
        assert (trouble.code, trouble.position, trouble.tries) == ("SINK_REFUSED", bad.commit, 2)
        assert sink.rows == rows(1)
        world.app.streams().skip(bad.commit, by=BY)
        await until(lambda: sink.rows == rows(1, 3))
        assert world.offset().state.trouble is None


@pytest.mark.parametrize(
    ("made", "cause"), [(order(2, "broken"), "ZeroDivisionError"), (order(2), "NOT_A_ROW")]
)
async def test_a_projection_that_raises_holds_its_stream(
    world: World, made: Change, cause: str
) -> None:
    sink = MemorySink()

    @world.app.cdc(table="orders", into=sink)
    def copy(change: Change) -> Any:
        assert change.after is not None
        return 1 / 0 if change.after["status"] == "broken" else change.after["id"]

    async with world.running():
        await until(lambda: sink.feeds)
        world.source.commit(made)
        await until(lambda: world.offset().state.trouble)
        trouble = world.offset().state.trouble
        assert trouble is not None
        assert trouble.code == "RULE_FAILED"
        assert cause in trouble.detail


async def test_a_large_transaction_is_one_batch(world: World) -> None:
    sink = feed(world)
    async with world.running(lazy=3):
        await until(lambda: sink.feeds)
        made = world.source.commit(*(order(number) for number in range(5)))
        await until(lambda: sink.fed.place == made.commit)
    assert (made.commit, 5) in sink.batches


async def test_what_a_person_asks_for_begins_a_new_copy(world: World) -> None:
    sink = feed(world)
    world.source.rows["orders"] = [{"id": 1, "status": "placed"}]
    async with world.running():
        await until(lambda: sink.rows == rows(1))
        world.app.streams().snapshot("orders", by=BY)
        await until(lambda: [one.epoch for one in sink.feeds] == [1, 2])
        await until(lambda: world.offset().state.tables["orders"].done)
        world.app.streams().rewind("start", by=BY)
        await until(lambda: world.offset().state.fed == 3)
        await until(lambda: world.offset().state.tables["orders"].done)
        world.app.streams().rewind(world.offset().position, by=BY)
        await until(lambda: world.offset().state.fed == 4)
    assert sink.fed.epoch == 4
    assert State().anew() == State()


def test_a_rule_with_a_sink_has_a_stream_of_its_own(world: World) -> None:
    world.paid_rule()
    feed(world)
    found = world.app.captures.streams
    assert [stream.name for stream in found] == ["shop", STREAM]
    assert found[1].tables()[0].before_image is False
    assert found[1].initial() == ["orders"]
    lines = world.app.streams().declared()
    assert [(line.stream, line.sink) for line in lines] == [("shop", ""), (STREAM, "memory")]
    with pytest.raises(ConfigurationError, match="two rules"):
        feed(world)
    world.app.source(STREAM, "sqlite:///other.db")
    with pytest.raises(ConfigurationError, match="would be called as the source"):
        _ = world.app.captures.streams


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"transaction": True}, "into= goes without transaction"),
        ({"mask": ["a"], "on_snapshot": True}, "into= goes without mask, on_snapshot"),
        ({"tables": ["lines"]}, "into= is fed from one table"),
        ({"name": "a" * 40}, "too long"),
    ],
)
def test_what_goes_not_with_a_sink(world: World, options: Any, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        feed(world, **options)


def test_a_projection_takes_no_tx(world: World) -> None:
    with pytest.raises(ConfigurationError, match="into= goes without tx"):

        @world.app.cdc(table="orders", into=MemorySink())
        def copy(change: Change, tx: Any) -> None:
            pass


def test_a_dry_run_says_what_the_sink_would_be_told(world: World) -> None:
    feed(world)
    changes = [order(1), order(2, "hidden"), deleted("orders", {"id": 3})]
    lines = explain(world.app.captures.stream(), [transaction_of(changes)], world.app.registry)
    assert [line.emitted[0][0] for line in lines] == ["a row", "no row", "no row"]


async def test_a_sink_is_closed_when_its_stream_ends(world: World) -> None:
    sink = feed(world)
    async with world.running():
        await until(lambda: sink.feeds)
        assert not sink.closed
    await until(lambda: sink.closed)
    assert sink.closed == 1
