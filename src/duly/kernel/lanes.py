"""Who reads which lanes.

Every node sees the same list of living members and works out its own share, without asking anybody.
A node above its share releases the surplus, a node below it takes lanes that are free; nobody takes
a lane from an owner.  The invariant: the shares add up to the number of lanes exactly, so while the
membership stands still each node only releases or only takes, and once every lane is owned by its
share nothing moves any more.  Ownership itself is a lease (``kernel.lease``); two nodes that go for
the same free lane are told apart there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

__all__ = ["Plan", "fair_share", "plan"]


class Plan(NamedTuple):
    """What a node should do now: the lanes to drain and release, and the free lanes to try to take,
    in this order.
    """

    release: tuple[int, ...]
    take: tuple[int, ...]


def fair_share(lanes: int, members: Sequence[str], me: str) -> int:
    """How many of ``lanes`` belong to ``me``: the same for all, and one more for the first by name
    where it is uneven.

    0 for a node that is not among the members.
    """
    names = sorted(set(members))
    if me not in names:
        return 0
    each, over = divmod(lanes, len(names))
    return each + (names.index(me) < over)


def plan(
    mine: frozenset[int], owners: Mapping[int, str | None], members: Sequence[str], *, me: str
) -> Plan:
    """What ``me`` should release and take.

    mine: the lanes in hand. owners: every lane with its owner as last read, None where it is free.
    members: the living. A lane that is neither mine nor free is left alone, whoever the table says
    it belongs to.
    """
    share = fair_share(len(owners), members, me)
    if len(mine) >= share:
        return Plan(tuple(sorted(mine)[share:]), ())
    free = sorted(lane for lane, owner in owners.items() if owner is None and lane not in mine)
    return Plan((), tuple(_from_my_corner(free, members, me)[: share - len(mine)]))


def _from_my_corner(free: list[int], members: Sequence[str], me: str) -> list[int]:
    """The free lanes, begun at another place by every member, so that they do not all go for the
    same ones.
    """
    names = sorted(set(members))
    start = len(free) * names.index(me) // len(names)
    return free[start:] + free[:start]
