"""Two holders, one lease, late and lost answers, clocks that lag: every interleaving up to a bound.

The database is a model here (its statement belongs to the stores); the holder's side is the
kernel's own code.  The same explorer must find the two classic mistakes, or it proves nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from duly.kernel.lease import LeaseTerm, may_act, safe_until

TTL, MARGIN, LAST_TICK = 3, 1, 5


class Asked(NamedTuple):
    at: int  # by the holder's clock
    token: int  # 0: wants to take it
    granted: int | None = None  # the token granted, 0 refused, None not processed yet


class Holder(NamedTuple):
    clock: int = 0
    lag: int = 0
    token: int = 0
    until: float = -1
    asked: Asked | None = None

    def acts(self) -> bool:
        return bool(self.token) and may_act(LeaseTerm("x", self.token, self.until), self.clock)


class World(NamedTuple):
    now: int = 0  # the database's clock
    owner: int = -1
    token: int = 0
    until: int = 0
    holders: tuple[Holder, Holder] = (Holder(), Holder())

    def having(self, who: int, holder: Holder) -> World:
        pair = (holder, self.holders[1]) if who == 0 else (self.holders[0], holder)
        return self._replace(holders=pair)


Until = Callable[[Asked, Holder], float]


def right(asked: Asked, holder: Holder) -> float:
    return safe_until(asked.at, TTL, MARGIN)


def ticks(world: World) -> Iterator[World]:
    """One tick of the database's clock; a holder's clock may fall behind by less than the margin
    allows in all.
    """
    if world.now == LAST_TICK:
        return
    for lags in ((0, 0), (1, 0), (0, 1), (1, 1)):
        if all(h.lag + lag <= MARGIN for h, lag in zip(world.holders, lags, strict=True)):
            moved = [
                h._replace(clock=h.clock + 1 - lag, lag=h.lag + lag)
                for h, lag in zip(world.holders, lags, strict=True)
            ]
            yield world._replace(now=world.now + 1, holders=(moved[0], moved[1]))


def processed(world: World, who: int, holder: Holder, asked: Asked) -> World:
    if asked.token and world.owner == who and world.token == asked.token:
        granted, world = world.token, world._replace(until=world.now + TTL)
    elif not asked.token and world.now >= world.until:
        granted = world.token + 1
        world = world._replace(owner=who, token=granted, until=world.now + TTL)
    else:
        granted = 0
    return world.having(who, holder._replace(asked=asked._replace(granted=granted)))


def steps(world: World, until: Until) -> Iterator[World]:
    yield from ticks(world)
    for who, holder in enumerate(world.holders):
        asked = holder.asked
        if asked is None:
            yield world.having(who, holder._replace(asked=Asked(holder.clock, holder.token)))
            continue
        yield world.having(who, holder._replace(asked=None))  # request or answer lost
        if asked.granted is None:
            yield processed(world, who, holder, asked)
        elif asked.granted:
            ends = max(until(asked, holder), holder.until if holder.token == asked.granted else -1)
            yield world.having(who, Holder(holder.clock, holder.lag, asked.granted, ends))
        else:
            yield world.having(who, Holder(holder.clock, holder.lag))


def explore(until: Until) -> tuple[int, World | None, int]:
    """(worlds seen, the first in which both may act, worlds in which somebody may)."""
    seen = {World()}
    todo = [World()]
    working = 0
    while todo:
        world = todo.pop()
        acting = [h for h in world.holders if h.acts()]
        working += bool(acting)
        if len(acting) > 1 or any(h.token != world.token for h in acting):
            return len(seen), world, working
        for following in steps(world, until):
            if following not in seen:
                seen.add(following)
                todo.append(following)
    return len(seen), None, working


def test_two_holders_never_act_at_once():
    seen, broken, working = explore(right)
    assert broken is None
    assert seen > 10_000
    assert working > 1_000  # it is not safe merely because nobody ever works


def test_counting_from_the_answer_is_found():
    _, broken, _ = explore(lambda asked, holder: safe_until(holder.clock, TTL, MARGIN))
    assert broken is not None


def test_a_missing_margin_is_found():
    _, broken, _ = explore(lambda asked, holder: safe_until(asked.at, TTL, 0))
    assert broken is not None
