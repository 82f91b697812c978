"""Lanes taken and given back, when the database answers and when it does not."""

from __future__ import annotations

from typing import Any

import pytest

from duly.errors import DatabaseUnavailableError, OutcomeUnknownError, TransactionConflictError
from duly.kernel.names import LANES
from duly.observe.hooks import Hooks
from duly.ports import Result, Statement
from duly.runtime.leases import Beat
from duly.runtime.ownership import LaneOwnership


class Keeper:
    """A member that lives."""

    holder, until = "me", 1e18

    def __init__(self) -> None:
        self.forfeits = 0

    def remaining(self) -> float:
        return 5.0

    def forfeit(self) -> None:
        self.forfeits += 1


class Lease:
    """The lane rows. trouble: raised by the statement of this name, done or not."""

    def __init__(self) -> None:
        self.owners: dict[int, str | None] = dict.fromkeys(range(LANES))
        self.trouble: dict[str, Exception] = {}

    async def ask(self, statement: Statement) -> Result:
        rows: list[tuple[Any, ...]] = []
        if statement.name == "lease.lanes":
            rows = [(lane, owner, 1) for lane, owner in self.owners.items()]
        elif statement.name == "lease.take":
            rows = [(lane, 1) for lane in statement.params["lanes"]]
            self.owners |= dict.fromkeys(statement.params["lanes"], statement.params["holder"])
        elif statement.name == "lease.release":
            self.owners |= dict.fromkeys(statement.params["lanes"])
        if error := self.trouble.pop(statement.name, None):
            raise error
        return Result(rows, len(rows))


def beat(*members: str) -> Beat:
    return Beat({"outbox": members}, False, 5.0, frozenset(), frozenset(), frozenset())


@pytest.fixture
def lease() -> Lease:
    return Lease()


@pytest.fixture
def keeper() -> Keeper:
    return Keeper()


@pytest.fixture
def own(lease: Lease, keeper: Keeper) -> LaneOwnership:
    return LaneOwnership("outbox", keeper=keeper, connection=lease, hooks=Hooks())  # type: ignore[arg-type]


async def test_a_surplus_is_let_go_at_once_and_then_told(own: LaneOwnership, lease: Lease) -> None:
    await own.rebalance(beat("me"))
    assert len(own.readable) == LANES
    await own.rebalance(beat("me", "other"))
    surplus = own.leaving
    assert len(surplus) == LANES // 2
    let_go = own.let_go(surplus)
    assert not own.leaving
    assert all(own.term(lane) is None for lane in surplus)
    assert None not in lease.owners.values()
    await own.release(let_go)
    assert {lane for lane, owner in lease.owners.items() if owner is None} == surplus


async def test_lanes_that_another_one_lets_go_are_taken_at_the_next_beat(
    own: LaneOwnership, lease: Lease
) -> None:
    lease.owners = dict.fromkeys(range(LANES), "other")
    await own.rebalance(beat("me", "other"))
    assert not own.readable
    lease.owners |= dict.fromkeys(range(LANES // 4))  # some are still under way there
    await own.rebalance(beat("me", "other"))
    assert own.readable == set(range(LANES // 4))
    lease.owners |= dict.fromkeys(range(LANES // 4, LANES // 2))
    await own.rebalance(beat("me", "other"))
    assert own.readable == set(range(LANES // 2))


async def test_who_has_its_share_does_not_look_at_every_beat(
    own: LaneOwnership, lease: Lease
) -> None:
    await own.rebalance(beat("me"))
    lease.trouble["lease.lanes"] = DatabaseUnavailableError("asked")
    for _ in range(5):
        await own.rebalance(beat("me"))
    assert lease.trouble, "nobody has met it"


@pytest.mark.parametrize("error", [DatabaseUnavailableError("gone"), OutcomeUnknownError("gone")])
async def test_a_take_without_an_answer_forfeits_everything(
    own: LaneOwnership, lease: Lease, keeper: Keeper, error: Exception
) -> None:
    """The lanes may be ours in the table and in nobody's hands: nobody would ever read them."""
    lease.trouble["lease.take"] = error
    with pytest.raises(type(error)):
        await own.rebalance(beat("me"))
    assert keeper.forfeits == 1
    assert not own.readable


async def test_a_take_that_did_not_happen_is_tried_again_at_the_next_beat(
    own: LaneOwnership, lease: Lease, keeper: Keeper
) -> None:
    lease.trouble["lease.take"] = TransactionConflictError("deadlock")
    with pytest.raises(TransactionConflictError):
        await own.rebalance(beat("me"))
    lease.owners = dict.fromkeys(range(LANES))  # it was rolled back
    await own.rebalance(beat("me"))
    assert len(own.readable) == LANES
    assert keeper.forfeits == 0


async def test_a_release_that_failed_forfeits_everything(
    own: LaneOwnership, lease: Lease, keeper: Keeper
) -> None:
    """The lane is in nobody's hands any more, and the others wait for it as long as we live."""
    await own.rebalance(beat("me"))
    await own.rebalance(beat("me", "other"))
    lease.trouble["lease.release"] = TransactionConflictError("lock timeout")
    with pytest.raises(TransactionConflictError):
        await own.release(own.let_go(own.leaving))
    assert keeper.forfeits == 1
