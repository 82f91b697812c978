from __future__ import annotations

from collections.abc import Iterator

import pytest

from duly.brokers.embedded import claims
from duly.brokers.embedded.claims import Claimed, Member
from duly.brokers.embedded.file import FileStore
from duly.brokers.embedded.log import Log, Moved
from duly.brokers.embedded.store import PARTITIONS
from duly.ports import TopicSpec

TOPIC = TopicSpec("orders", "event")
TTL = 4.0


@pytest.fixture
def log() -> Iterator[Log]:
    log = Log(FileStore(":memory:"))
    log.declare([], [(TOPIC, "g", True)])
    yield log
    log.close()


def member(name: str) -> Member:
    return Member(name, ((1, "g"),))


def join(log: Log, name: str, now: float) -> None:
    assert claims.renew(log, member(name), [], now=now, ttl_seconds=TTL) == []


def take(
    log: Log, name: str, held: list[Claimed], now: float
) -> tuple[list[Claimed], dict[tuple[int, str], int]]:
    return claims.claim(log, member(name), held, now=now, ttl_seconds=TTL)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 13])
def test_shares_add_up(count: int) -> None:
    names = [f"m{n}" for n in range(count)]
    for topic in range(1, 20):
        shares = [claims.share(names, name, topic) for name in names]
        assert sum(shares) == PARTITIONS
        assert max(shares) - min(shares) <= 1


def test_the_odd_ones_are_not_always_the_same_member() -> None:
    names = ["a", "b", "c"]
    luckless = {min(names, key=lambda n: claims.share(names, n, topic)) for topic in range(9)}
    assert luckless == set(names)


def test_a_lone_member_takes_all_and_a_second_gets_half(log: Log) -> None:
    join(log, "a", 100.0)
    first, above = take(log, "a", [], 100.0)
    assert (len(first), above) == (PARTITIONS, {})
    join(log, "b", 101.0)
    assert take(log, "b", [], 101.0) == ([], {})
    none, above = take(log, "a", first, 101.0)
    assert (none, above) == ([], {(1, "g"): 4})
    claims.surrender(log, first[:4])
    second, _ = take(log, "b", [], 101.0)
    assert {c.source for c in second} == {c.source for c in first[:4]}
    assert {c.token for c in second} == {2}


def test_a_lease_that_ran_out_is_taken_and_its_holder_is_fenced(log: Log) -> None:
    join(log, "a", 100.0)
    held, _ = take(log, "a", [], 100.0)
    join(log, "b", 103.9)
    assert take(log, "b", [], 103.9)[0] == []
    join(log, "b", 104.1)
    stolen, _ = take(log, "b", [], 104.1)
    assert len(stolen) == PARTITIONS
    lost = claims.renew(log, member("a"), held, now=104.2, ttl_seconds=TTL)
    assert lost == held
    c = held[0]
    moved = Moved(c.source, c.group, c.token, 9)
    assert log.commit([moved]) == [moved]
    claims.surrender(log, held)  # by a token that is not in force: nothing
    assert take(log, "a", [], 104.3)[0] == []


def test_renewing_keeps_a_lease(log: Log) -> None:
    join(log, "a", 100.0)
    held, _ = take(log, "a", [], 100.0)
    for now in (103.0, 106.0, 109.0):
        assert claims.renew(log, member("a"), held, now=now, ttl_seconds=TTL) == []
    join(log, "b", 109.0)
    assert take(log, "b", [], 109.0)[0] == []


def test_a_lease_from_before_a_restart_of_the_machine_counts_as_run_out(log: Log) -> None:
    join(log, "a", 90_000.0)
    take(log, "a", [], 90_000.0)
    join(log, "b", 5.0)
    stolen, _ = take(log, "b", [], 5.0)
    assert len(stolen) == PARTITIONS


def test_the_epoch_grows_when_others_should_look_and_only_then(log: Log) -> None:
    seen = [log.epoch()]

    def grown() -> bool:
        seen.append(log.epoch())
        return seen[-1] > seen[-2]

    join(log, "a", 100.0)
    assert grown()
    held, _ = take(log, "a", [], 100.0)
    join(log, "a", 101.0)
    assert not grown()
    claims.surrender(log, held)
    assert grown()
    claims.leave(log, member("a"))
    assert grown()


def test_who_has_left_or_died_has_no_share(log: Log) -> None:
    for name in ("a", "b", "c"):
        join(log, name, 100.0)
    claims.leave(log, member("b"))
    join(log, "a", 103.0)
    join(log, "a", 104.5)  # c is silent since 100
    assert len(take(log, "a", [], 104.5)[0]) == PARTITIONS


def test_who_is_no_member_takes_nothing(log: Log) -> None:
    assert take(log, "stranger", [], 100.0) == ([], {})
