from __future__ import annotations

import pytest

from duly.errors import ConfigurationError
from duly.kernel.lease import (
    MARGIN_SECONDS,
    RENEW_SECONDS,
    TTL_SECONDS,
    LeaseTerm,
    check_lease,
    margin_seconds,
    may_act,
    merge,
    safe_until,
)


def term(name: str, token: int = 1, until: float = 10.0) -> LeaseTerm:
    return LeaseTerm(name, token, until)


def test_the_holder_counts_from_before_it_asked():
    assert safe_until(100.0, 5.0, 0.5) == 104.5


def test_may_act_ends_with_the_term_and_leaves_room_for_the_work():
    t = term("lane.1", until=10.0)
    assert may_act(t, 9.99)
    assert not may_act(t, 10.0)
    assert may_act(t, 6.9, 3.0)
    assert not may_act(t, 7.0, 3.0)


def test_the_constants_fit_each_other():
    assert margin_seconds(TTL_SECONDS) == MARGIN_SECONDS
    check_lease(TTL_SECONDS, RENEW_SECONDS)
    check_lease(0.5, 0.15)  # the short lease of the crash runs


@pytest.mark.parametrize(("ttl", "renew"), [(5.0, 1.51), (5.0, 5.0), (1.0, 1.5)])
def test_too_seldom_a_renewal_is_refused(ttl, renew):
    with pytest.raises(ConfigurationError, match="renew_every"):
        check_lease(ttl, renew)


def test_merge_prolongs_what_was_renewed_and_names_what_was_lost():
    held = {"a": term("a"), "b": term("b")}
    result = merge(held, {"a": 1, "b": 1}, renewed={("a", 1)}, until_monotonic=20.0)
    assert result.held == {"a": term("a", until=20.0)}
    assert result.lost == {"b"}


def test_merge_keeps_what_was_taken_while_the_renewal_was_under_way():
    held = {"a": term("a"), "new": term("new", token=7)}
    result = merge(held, {"a": 1}, renewed={("a", 1)}, until_monotonic=20.0)
    assert result.held["new"] == term("new", token=7)
    assert result.lost == set()


def test_merge_keeps_a_lease_lost_and_taken_again_meanwhile():
    result = merge({"a": term("a", token=2)}, {"a": 1}, renewed=set(), until_monotonic=20.0)
    assert result.held == {"a": term("a", token=2)}
    assert result.lost == set()


def test_merge_brings_nothing_back_that_was_released_meanwhile():
    result = merge({}, {"a": 1}, renewed={("a", 1)}, until_monotonic=20.0)
    assert result == ({}, frozenset())


def test_merge_takes_another_token_for_a_loss():
    result = merge({"a": term("a")}, {"a": 1}, renewed={("a", 2)}, until_monotonic=20.0)
    assert result.lost == {"a"}


def test_an_older_slower_renewal_shortens_nothing():
    result = merge({"a": term("a", until=30.0)}, {"a": 1}, renewed={("a", 1)}, until_monotonic=20.0)
    assert result.held["a"].until_monotonic == 30.0
