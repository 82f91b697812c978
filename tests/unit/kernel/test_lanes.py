from __future__ import annotations

from duly.kernel.lanes import Plan, fair_share, plan


def test_shares_add_up_and_differ_by_one_at_most():
    for lanes in (0, 1, 5, 64):
        for count in (1, 2, 3, 7, 64, 100):
            members = [f"n{i}" for i in range(count)]
            shares = [fair_share(lanes, members, m) for m in members]
            assert sum(shares) == lanes
            assert max(shares) - min(shares) <= 1


def test_the_list_may_be_in_any_order_and_repeat():
    assert fair_share(64, ["c", "a", "b", "a"], "a") == 22
    assert fair_share(64, ["b", "c", "a"], "b") == 21


def test_a_stranger_has_no_share():
    assert fair_share(64, ["a"], "b") == 0
    assert fair_share(64, [], "b") == 0


def test_takes_only_free_lanes_up_to_the_share():
    owners = {0: None, 1: "b", 2: None, 3: None}
    assert plan(frozenset(), owners, ["a", "b"], me="a") == Plan((), (0, 2))
    assert plan(frozenset({0}), owners, ["a", "b"], me="a") == Plan((), (2,))


def test_takes_nothing_from_an_owner():
    owners = {0: "b", 1: "b", 2: "b", 3: "b"}
    assert plan(frozenset(), owners, ["a", "b"], me="a") == Plan((), ())


def test_a_lane_the_table_calls_mine_but_i_do_not_hold_is_left_alone():
    assert plan(frozenset(), {0: "a", 1: "a"}, ["a"], me="a") == Plan((), ())


def test_a_lane_i_hold_is_not_taken_again_where_the_table_is_older():
    assert plan(frozenset({0}), {0: None, 1: None}, ["a"], me="a") == Plan((), (1,))


def test_releases_the_surplus_and_takes_nothing_meanwhile():
    owners: dict[int, str | None] = {0: "a", 1: "a", 2: "a", 3: "a", 4: None}
    assert plan(frozenset({0, 1, 2, 3}), owners, ["a", "b"], me="b") == Plan((2, 3), ())


def test_a_stranger_releases_everything():
    assert plan(frozenset({0, 1}), {0: "x", 1: "x"}, ["a"], me="x") == Plan((0, 1), ())


def test_members_begin_at_different_lanes():
    owners: dict[int, str | None] = dict.fromkeys(range(64))
    members = ["a", "b", "c", "d"]
    taken = [set(plan(frozenset(), owners, members, me=m).take) for m in members]
    assert set.union(*taken) == set(range(64))
    assert sum(map(len, taken)) == 64
