"""Many nodes that join, leave and crash: the shares settle, and then nothing moves any more."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from duly.kernel.lanes import fair_share, plan


class Cluster:
    def __init__(self, lanes: int, seed: int) -> None:
        self.owners: dict[int, str | None] = dict.fromkeys(range(lanes))
        self.members: list[str] = []
        self.chance = random.Random(seed)
        self.taken = self.released = 0

    def mine(self, node: str) -> frozenset[int]:
        return frozenset(lane for lane, owner in self.owners.items() if owner == node)

    def round(self) -> int:
        """Every node plans on one snapshot and acts in any order: takes collide. Returns how many
        lanes moved.
        """
        snapshot, members, moved = dict(self.owners), list(self.members), 0
        for node in self.chance.sample(members, len(members)):
            todo = plan(self.mine(node), snapshot, members, me=node)
            assert not (todo.release and todo.take)
            for lane in todo.release:
                assert self.owners[lane] == node
                self.owners[lane] = None
                moved += 1
            for lane in todo.take:
                if self.owners[lane] is None:  # the lease decides
                    self.owners[lane] = node
                    moved += 1
        return moved

    def leave(self, node: str) -> None:
        self.members.remove(node)
        for lane in self.mine(node):
            self.owners[lane] = None


@settings(max_examples=60, deadline=None)
@given(
    lanes=st.integers(1, 64),
    joins=st.lists(st.booleans(), min_size=1, max_size=25),
    pauses=st.lists(st.integers(0, 3), min_size=25, max_size=25),
    seed=st.integers(0, 1000),
)
def test_it_settles_after_every_change(lanes, joins, pauses, seed):
    cluster = Cluster(lanes, seed)
    names = 0
    for joins_now, pause in zip(joins, pauses, strict=False):
        if joins_now or len(cluster.members) < 2:
            cluster.members.append(f"n{cluster.chance.random()}")
            names += 1
        else:
            cluster.leave(cluster.chance.choice(cluster.members))
        for _ in range(pause):
            cluster.round()
    rounds = 0
    while cluster.round():
        rounds += 1
        assert rounds < 2 * len(cluster.members) + 5, "does not settle"
    assert None not in cluster.owners.values()
    for node in cluster.members:
        assert len(cluster.mine(node)) == fair_share(lanes, cluster.members, node)
    assert cluster.round() == 0


@given(
    lanes=st.integers(1, 64),
    before=st.integers(1, 12),
    after=st.integers(1, 12),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_a_lane_moves_once_per_change_of_membership(lanes, before, after, seed):
    """While the members stand still no lane is released that was taken in the same time: no
    oscillation.
    """
    cluster = Cluster(lanes, seed)
    cluster.members = [f"n{i}" for i in range(before)]
    while cluster.round():
        pass
    cluster.members = [f"n{i}" for i in range(after)]
    for lane, owner in cluster.owners.items():
        if owner not in cluster.members:
            cluster.owners[lane] = None
    changes = dict.fromkeys(cluster.owners, 0)
    earlier = dict(cluster.owners)
    for _ in range(2 * (before + after) + 5):
        cluster.round()
        for lane, owner in cluster.owners.items():
            changes[lane] += owner is not None and owner != earlier[lane]
        earlier = dict(cluster.owners)
    assert max(changes.values()) <= 1
