from __future__ import annotations

from collections.abc import Iterator

import pytest

from duly.brokers.embedded.file import FileStore
from duly.brokers.embedded.log import Log
from duly.brokers.embedded.reader import Reader
from duly.ports import Delivery, TopicSpec
from duly.testing.broker_target import message

TOPIC = TopicSpec("orders", "event")
TTL = 4.0


@pytest.fixture
def log() -> Iterator[Log]:
    log = Log(FileStore(":memory:"))
    log.declare([], [(TOPIC, "g", True)])
    yield log
    log.close()


def reader(log: Log, name: str = "a", *, prefetch: int = 100, now: float = 100.0) -> Reader:
    made = Reader(name, [(1, "g", "orders")], prefetch=prefetch, ttl=TTL)
    made.renew(log, now)
    made.rebalance(log, now)
    return made


def publish(log: Log, count: int, *, keys: int = 16, start: int = 0) -> None:
    batch = [message(TOPIC, n, key=f"k{n % keys}") for n in range(start, start + count)]
    log.publish(batch, wait_seconds=1.0, may_commit=lambda: True)


def read(made: Reader, log: Log) -> list[Delivery]:
    made.look(log)
    return made.fill(log)


def numbers(deliveries: list[Delivery]) -> list[int]:
    return sorted(int(d.message.payload) for d in deliveries)


def left(log: Log) -> int:
    return log.topics()[0].groups[0].lag


def test_it_reads_from_all_sources_up_to_prefetch(log: Log) -> None:
    publish(log, 300)
    made = reader(log, prefetch=100)
    first = read(made, log)
    assert len(first) == 100
    assert len({d.source for d in first}) > 3
    assert read(made, log) == []
    made.ack([d.token for d in first[:49]])
    assert read(made, log) == [], "half of prefetch is still under way"
    made.ack([d.token for d in first[49:50]])
    second = read(made, log)
    assert len(second) == 50
    assert not {d.message.id for d in first} & {d.message.id for d in second}


def test_only_what_is_contiguous_is_stored(log: Log) -> None:
    publish(log, 10, keys=1)
    made = reader(log)
    batch = read(made, log)
    made.ack([d.token for d in batch[5:]])
    made.flush(log)
    assert left(log) == 10
    made.ack([batch[0].token, batch[1].token])
    assert made.unflushed
    made.flush(log)
    assert left(log) == 8
    made.ack([d.token for d in batch])  # again, and the rest
    made.flush(log)
    assert left(log) == 0


def test_a_successor_goes_on_from_the_stored_position_inside_a_chunk(log: Log) -> None:
    publish(log, 10, keys=1)
    one = reader(log)
    batch = read(one, log)
    one.ack([d.token for d in batch[:3]])
    one.close(log)
    two = reader(log, "b")
    assert numbers(read(two, log)) == list(range(3, 10))


def test_a_newcomer_gets_its_share_without_a_message_being_read_twice(log: Log) -> None:
    publish(log, 200)
    one = reader(log)
    under_way = read(one, log)
    two = reader(log, "b")
    one.rebalance(log, 101.0)
    assert read(two, log) == []
    publish(log, 200, start=200)
    one.ack([d.token for d in under_way])
    one.flush(log)
    two.rebalance(log, 101.0)
    got = [*under_way, *drain(one, log), *drain(two, log)]
    assert numbers(got) == list(range(400))


def drain(made: Reader, log: Log) -> list[Delivery]:
    got = []
    while batch := read(made, log):
        got += batch
        made.ack([d.token for d in batch])
        made.flush(log)
    return got


def test_a_share_that_shrinks_and_grows_again_interrupts_nothing(log: Log) -> None:
    publish(log, 100)
    one = reader(log)
    under_way = read(one, log)
    two = reader(log, "b")
    one.rebalance(log, 101.0)
    two.close(log)
    one.rebalance(log, 102.0)
    one.ack([d.token for d in under_way])
    one.flush(log)
    publish(log, 100, start=100)
    assert numbers(drain(one, log)) == list(range(100, 200))


def test_released_sources_go_to_the_others_for_a_second(log: Log) -> None:
    publish(log, 100)
    one = reader(log)
    under_way = read(one, log)
    two = reader(log, "b")
    one.ack([under_way[0].token])
    one.release([d.token for d in under_way[1:]], 101.0)
    one.flush(log)
    one.renew(log, 101.5)
    one.rebalance(log, 101.5)
    two.rebalance(log, 101.5)
    assert len(read(two, log)) == 99
    assert read(one, log) == []


def test_a_lone_reader_gets_released_messages_again_after_a_second(log: Log) -> None:
    publish(log, 20)
    one = reader(log)
    under_way = read(one, log)
    one.release([d.token for d in under_way], 101.0)
    one.flush(log)
    one.renew(log, 101.9)
    one.rebalance(log, 101.9)
    assert read(one, log) == []
    one.renew(log, 102.1)
    one.rebalance(log, 102.1)
    assert numbers(read(one, log)) == list(range(20))


def test_a_lost_lease_voids_what_is_under_way(log: Log) -> None:
    publish(log, 50, keys=1)
    one = reader(log)
    stale = read(one, log)
    two = reader(log, "b", now=105.0)  # one was asleep
    fresh = read(two, log)
    assert numbers(fresh) == list(range(50))
    two.ack([d.token for d in fresh[:10]])
    two.flush(log)
    one.ack([d.token for d in stale])
    one.flush(log)
    assert left(log) == 40
    one.renew(log, 105.5)
    assert all(d.token.held.until == 0 for d in stale)
    one.ack([d.token for d in stale])
    one.release([d.token for d in stale], 105.6)
    assert left(log) == 40


def test_everything_is_void_after_the_file_was_lost(log: Log) -> None:
    publish(log, 10)
    one = reader(log)
    batch = read(one, log)
    one.forget()
    one.ack([d.token for d in batch])
    assert not one.unflushed
    assert read(one, log) == []
