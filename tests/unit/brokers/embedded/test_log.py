from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from duly.brokers.embedded.file import PAYLOAD_BYTES_MAX, FileStore
from duly.brokers.embedded.log import CHUNK_BYTES_MAX, CHUNK_MESSAGES_MAX, Log, Moved
from duly.brokers.embedded.store import PARTITIONS
from duly.errors import BrokerUnavailableError
from duly.kernel.names import place
from duly.message import Message
from duly.ports import OutcomeKind, TopicSpec
from duly.testing.broker_target import message

TOPIC = TopicSpec("orders", "event")
QUEUE = TopicSpec("orders", "command")  # the same name: another thing


def database(log: Log) -> sqlite3.Connection:
    assert isinstance(log.store, FileStore)
    return log.store.db


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    log = Log(FileStore(str(tmp_path / "log.db"), busy_seconds=0.2))
    log.declare([TOPIC], [(TOPIC, "readers", True)])
    yield log
    log.close()


def publish(log: Log, messages: list[Message], *, may_commit: bool = True) -> list[OutcomeKind]:
    outcomes = log.publish(messages, wait_seconds=1.0, may_commit=lambda: may_commit)
    return [o.kind for o in outcomes]


def sources(log: Log, topic: TopicSpec = TOPIC) -> list[int]:
    number = log.topic_id(topic)
    return list(range(number * PARTITIONS, number * PARTITIONS + PARTITIONS))


def stored(log: Log) -> dict[int, list[Message]]:
    found = {}
    for source in sources(log):
        chunks = list(log.read(source, after=0, count=10**9))
        found[source] = [m for c in chunks for m in c.messages]
        firsts = [c.first for c in chunks]
        sizes = [len(c.messages) for c in chunks]
        assert firsts == [1 + sum(sizes[:i]) for i in range(len(sizes))], "a gap or an overlap"
    return found


def test_a_key_stays_on_its_partition_and_in_order(log: Log) -> None:
    batches = [[message(TOPIC, 10 * b + n, key=f"k{n % 5}") for n in range(10)] for b in range(4)]
    for batch in batches:
        assert set(publish(log, batch)) == {OutcomeKind.CONFIRMED}
    for source, messages in stored(log).items():
        for key in {m.key for m in messages}:
            assert place("orders", str(key)).stripe % PARTITIONS == source % PARTITIONS
            numbers = [int(m.payload) for m in messages if m.key == key]
            assert numbers == sorted(numbers)
            assert len(numbers) == 8


def test_keyless_messages_of_a_batch_stay_together_and_batches_spread(log: Log) -> None:
    for n in range(PARTITIONS):
        publish(log, [message(TOPIC, 3 * n + i) for i in range(3)])
    assert [len(found) for found in stored(log).values()] == [3] * PARTITIONS


def test_chunks_are_bounded_in_messages_and_bytes(log: Log) -> None:
    publish(log, [message(TOPIC, n, key="k") for n in range(2 * CHUNK_MESSAGES_MAX + 1)])
    big = bytes(CHUNK_BYTES_MAX // 3)
    publish(log, [message(TOPIC, key="k", payload=big) for _ in range(7)])
    rows = database(log).execute("SELECT count, length(data) FROM chunk").fetchall()
    assert max(count for count, _ in rows) == CHUNK_MESSAGES_MAX
    assert max(size for _, size in rows) < CHUNK_BYTES_MAX * 1.5
    assert sum(len(found) for found in stored(log).values()) == 2 * CHUNK_MESSAGES_MAX + 8


def test_reading_stops_at_the_count_and_goes_on_inside_a_chunk(log: Log) -> None:
    for start in range(0, 30, 10):
        publish(log, [message(TOPIC, start + n, key="k") for n in range(10)])
    source = next(s for s, found in stored(log).items() if found)
    assert [c.first for c in log.read(source, after=0, count=15)] == [1, 11]
    assert [c.first for c in log.read(source, after=14, count=5)] == [11]
    assert [c.first for c in log.read(source, after=20, count=5)] == [21]
    assert list(log.read(source, after=30, count=5)) == []


def test_what_nobody_reads_is_unrouted_and_not_stored(log: Log) -> None:
    other = TopicSpec("unread", "event")
    log.declare([other, QUEUE], [])
    batch = [message(TOPIC), message(other), message(QUEUE), message(TopicSpec("x", "event"))]
    confirmed, unrouted = OutcomeKind.CONFIRMED, OutcomeKind.UNROUTED
    assert publish(log, batch) == [confirmed, unrouted, unrouted, unrouted]
    log.declare([], [(QUEUE, "orders", True)])
    assert publish(log, [message(QUEUE)]) == [confirmed]
    assert [(t.name, t.kind, t.depth) for t in log.topics()] == [
        ("orders", "command", 1),
        ("orders", "event", 1),
        ("unread", "event", 0),
    ]


def test_what_cannot_be_stored_is_impossible_and_harms_no_other(log: Log) -> None:
    batch = [
        message(TOPIC, 0),
        message(TOPIC, payload=bytes(PAYLOAD_BYTES_MAX + 1)),
        message(TOPIC, key="\udc00"),
        message(TOPIC, 3),
    ]
    impossible, confirmed = OutcomeKind.IMPOSSIBLE, OutcomeKind.CONFIRMED
    assert publish(log, batch) == [confirmed, impossible, impossible, confirmed]


def test_no_commit_after_the_deadline(log: Log) -> None:
    with pytest.raises(BrokerUnavailableError):
        publish(log, [message(TOPIC)], may_commit=False)
    assert log.topics()[0].depth == 0
    publish(log, [message(TOPIC, key="k")])
    assert sorted(log.ends(sources(log)).values()) == [0] * 7 + [1], "an offset was burnt"


def test_a_locked_file_is_unavailable_within_the_wait(log: Log) -> None:
    other = sqlite3.connect(log.store.name, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    began = time.monotonic()
    with pytest.raises(BrokerUnavailableError, match="locked"):
        log.publish([message(TOPIC)], wait_seconds=0.05, may_commit=lambda: True)
    assert time.monotonic() - began < 1.0
    other.close()
    assert publish(log, [message(TOPIC)]) == [OutcomeKind.CONFIRMED]


def test_a_full_disk_stores_nothing_and_is_not_unknown(log: Log) -> None:
    pages = database(log).execute("PRAGMA page_count").fetchone()[0]
    database(log).execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(BrokerUnavailableError, match="full"):
        publish(log, [message(TOPIC, payload=bytes(500_000))])
    database(log).execute("PRAGMA max_page_count = 1000000")
    assert log.topics()[0].depth == 0
    assert publish(log, [message(TOPIC)]) == [OutcomeKind.CONFIRMED]


def test_groups_begin_at_the_start_or_the_end(log: Log) -> None:
    publish(log, [message(TOPIC, n, key=f"k{n}") for n in range(20)])
    log.declare([], [(TOPIC, "late", True), (TOPIC, "newest", False)])
    log.declare([], [(TOPIC, "newest", True)])  # known by now: nothing changes
    lags = {g.group: (g.read, g.lag) for g in log.topics()[0].groups}
    assert lags == {"readers": (0, 20), "late": (0, 20), "newest": (20, 0)}


def test_a_position_moves_only_under_its_token_and_never_back(log: Log) -> None:
    source = sources(log)[0]
    moved = Moved(source, "readers", 0, 5)
    assert log.commit([moved]) == []
    stale = Moved(source, "readers", 7, 9)
    assert log.commit([stale, moved._replace(position=3)]) == [stale]
    query = "SELECT position FROM claim WHERE source = ?"
    assert database(log).execute(query, (source,)).fetchone() == (5,)


def test_only_what_all_have_read_and_is_old_is_pruned(log: Log) -> None:
    log.declare([], [(TOPIC, "slow", True)])
    for n in range(4):
        publish(log, [message(TOPIC, n, key="k")])
    source = next(s for s, found in stored(log).items() if found)
    log.commit([Moved(source, "readers", 0, 4), Moved(source, "slow", 0, 2)])
    assert log.prune(3600.0) == 0
    time.sleep(0.01)  # the chunks must be older than the limit
    assert log.prune(0.001) == 2
    assert [c.first for c in log.read(source, after=0, count=10)] == [3, 4]
    log.declare([], [(TOPIC, "late", True)])
    late = next(g for g in log.topics()[0].groups if g.group == "late")
    assert late.lag == 2, "what is gone is no lag"


def test_pruning_goes_in_small_steps(log: Log) -> None:
    for n in range(120):
        publish(log, [message(TOPIC, n, key="k")])
    source = next(s for s, found in stored(log).items() if found)
    log.commit([Moved(source, "readers", 0, 120)])
    time.sleep(0.01)  # the chunks must be older than the limit
    assert [log.prune(0.001) for _ in range(4)] == [50, 50, 20, 0]


def test_peek_follows_commit_order_by_cursor(log: Log) -> None:
    for start in range(0, 30, 10):
        publish(log, [message(TOPIC, start + n, key="k") for n in range(10)])
    newest = log.peek("orders", after=None, limit=3)
    assert [int(p.message.payload) for p in newest] == [27, 28, 29]
    seen: list[int] = []
    cursor = ""
    while page := log.peek("orders", after=cursor, limit=7):
        seen += [int(p.message.payload) for p in page]
        cursor = page[-1].cursor
    assert seen == list(range(30))
    assert newest[0].source.startswith("orders/")
    assert newest[0].position == "28"
    assert log.peek("nothing", after=None, limit=5) == []


def test_versions_show_what_others_did(tmp_path: Path) -> None:
    one, two = (Log(FileStore(str(tmp_path / "a.db"))) for _ in range(2))
    before = one.store.version()
    two.declare([TOPIC], [(TOPIC, "g", True)])
    assert one.store.version() != before
    one.close()
    two.close()
