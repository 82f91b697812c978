"""The log: publish, read, positions and retention, as statements on one store.

Invariant: offsets of a source are drawn inside the transaction that stores them, under a lock on
the source that is held to the commit, so offset order is commit order and a reader that has seen
offset n will never find a new row below n.  A publish is one transaction: whole and in order, or
not at all.  Messages are stored in chunks of one source, packed, because a row per message costs
more than everything else together.  Leaves out who may read what (``claims``), every thread
(``engine``) and every driver (``store``).
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import attrgetter
from typing import NamedTuple

import msgspec

from duly.brokers.embedded.store import PARTITIONS, Rows, Store, whole
from duly.errors import BrokerUnavailableError
from duly.kernel.names import place
from duly.message import Message
from duly.ports import CONFIRMED, GroupStatus, Outcome, OutcomeKind, Peeked, TopicSpec, TopicStatus

__all__ = ["CHUNK_BYTES_MAX", "CHUNK_MESSAGES_MAX", "Chunk", "Log", "Moved"]

CHUNK_MESSAGES_MAX = 500
CHUNK_BYTES_MAX = 1_000_000
PRUNE_CHUNKS = 50

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Message]).decode
_Source = tuple[str, str, int]  # kind and name of a topic, and a partition


class Chunk(NamedTuple):
    """Messages of one source; ``first`` is the offset of the first. created_at: seconds since
    1970.
    """

    first: int
    messages: list[Message]
    created_at: float


class Moved(NamedTuple):
    """A position that a group has reached in a source, under the token of its lease."""

    source: int
    group: str
    token: int
    position: int


class _Packed(NamedTuple):
    size: int
    data: bytes


class Log:
    """One open log. Used by one thread."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._spread = 0

    def close(self) -> None:
        """Close the store."""
        self.store.close()

    def epoch(self) -> int:
        """A number that changes when members or free leases change."""
        with self.store.reading() as db:
            return int(db.ask("SELECT value FROM {epoch}")[0][0])

    # --- publish ----------------------------------------------------------------------------------
    def publish(
        self, messages: Sequence[Message], *, wait_seconds: float, may_commit: Callable[[], bool]
    ) -> list[Outcome]:
        """Store a batch in one transaction. may_commit: asked last, False rolls back.

        Raises as ``Store.writing``.
        """
        outcomes = [CONFIRMED] * len(messages)
        packed = self._pack(messages, outcomes)
        with self.store.writing(alone=False, wait_seconds=wait_seconds) as db:
            topics = {t: _routed(db, *t) for t in sorted({(k, t) for k, t, _ in packed})}
            chunks: dict[int, list[_Packed]] = {}
            for (kind, topic, partition), (members, these) in packed.items():
                number = topics[kind, topic]
                if number is not None:
                    chunks[number * PARTITIONS + partition] = these
                    continue
                for i in members:
                    outcomes[i] = Outcome(OutcomeKind.UNROUTED, f"no group reads {topic}")
            if chunks:
                _append(db, chunks)
            if not may_commit():
                raise BrokerUnavailableError("the deadline passed before the commit")
        return outcomes

    def _pack(
        self, messages: Sequence[Message], outcomes: list[Outcome]
    ) -> dict[_Source, tuple[list[int], list[_Packed]]]:
        """The batch by source, encoded before anything is locked. Keyless messages of a batch stay
        together.
        """
        self._spread = (self._spread + 1) % PARTITIONS
        most = self.store.payload_bytes_max
        grouped: dict[_Source, list[int]] = {}
        for i, m in enumerate(messages):
            if len(m.payload) > most or not _is_text(m):
                outcomes[i] = Outcome(
                    OutcomeKind.IMPOSSIBLE, f"not UTF-8 text, or more than {most} bytes"
                )
                continue
            partition = self._spread if m.key is None else place(m.topic, m.key).stripe % PARTITIONS
            grouped.setdefault((m.kind, m.topic, partition), []).append(i)
        return {
            source: (members, list(_chunks([messages[i] for i in members])))
            for source, members in grouped.items()
        }

    # --- declare ----------------------------------------------------------------------------------
    def declare(
        self, topics: Iterable[TopicSpec], groups: Iterable[tuple[TopicSpec, str, bool]]
    ) -> None:
        """Make topics, and groups as (topic, group, from_start).

        A queue is made by who handles it, not by who sends to it, as everywhere else.
        """
        with self.store.writing() as db:
            for topic in topics:
                _declare_topic(db, topic)
            for topic, group, from_start in groups:
                _declare_group(db, _declare_topic(db, topic), group, from_start=from_start)

    def topic_id(self, topic: TopicSpec) -> int:
        """The number of a declared topic."""
        with self.store.reading() as db:
            number = _topic_id(db, topic)
        if number is None:
            raise BrokerUnavailableError(f"{topic.name} is gone from the log")
        return number

    # --- read -------------------------------------------------------------------------------------
    def ends(self, sources: Iterable[int]) -> dict[int, int]:
        """The last offset of each source."""
        text = f"SELECT id, next - 1 FROM {{source}} WHERE id IN ({whole(sources)})"
        with self.store.reading() as db:
            return {row[0]: row[1] for row in db.ask(text)}

    def read(self, source: int, *, after: int, count: int) -> Iterator[Chunk]:
        """Chunks above offset ``after`` until they hold ``count`` messages; the first may begin at
        or below it.
        """
        values = {"source": source, "after": after, "count": count}
        with self.store.reading() as db:
            # First where they end: a row is up to a megabyte, and a server sends all that is asked.
            sizes = db.ask(
                "SELECT last, count FROM {chunk} WHERE source = :source AND last > :after "
                "ORDER BY last LIMIT :count",
                values,
            )
            values["upto"] = _until(sizes, count, start=after)
            rows = db.ask(
                "SELECT last, count, data, created_at FROM {chunk} "
                "WHERE source = :source AND last > :after AND last <= :upto ORDER BY last",
                values,
            )
        for last, size, data, created_at in rows:
            yield Chunk(last - size + 1, _decode(data), created_at)

    def commit(self, moved: Iterable[Moved]) -> list[Moved]:
        """Store positions, each only under the token of its lease; gives back those whose lease was
        lost.
        """
        text = (
            "UPDATE {claim} SET position = {greatest}(position, :position) "
            "WHERE source = :source AND grp = :group AND token = :token"
        )
        with self.store.writing(alone=False) as db:
            return [m for m in sorted(moved) if not db.change(text, m._asdict())]

    # --- retention --------------------------------------------------------------------------------
    def prune(self, older_than_seconds: float) -> int:
        """Delete chunks that every group has read and that are older; a few per source and call.
        Gives their number.
        """
        floors = "SELECT source, min(position) FROM {claim} GROUP BY source ORDER BY source"
        with self.store.writing(alone=False) as db:
            return sum(
                _prune(db, source, floor, older_than_seconds=older_than_seconds)
                for source, floor in db.ask(floors)
            )

    # --- look -------------------------------------------------------------------------------------
    def topics(self) -> list[TopicStatus]:
        """Every topic with its depth, and what each group has yet to read."""
        with self.store.reading() as db:
            rows = db.ask("SELECT id, kind, name FROM {topic} ORDER BY name, kind")
            return [_status(db, number, TopicSpec(name, kind)) for number, kind, name in rows]

    def peek(self, topic: str, *, after: str | None, limit: int) -> list[Peeked]:
        """Stored messages of a topic behind a cursor; without one, the newest ``limit``.

        Each source in its order, the sources merged by the time when a message was stored. A cursor
        says how far each source was seen, so nothing that commits late is passed over.
        """
        numbers = "SELECT id FROM {topic} WHERE name = :name"
        with self.store.reading() as db:
            ids = [row[0] for row in db.ask(numbers, {"name": topic})]
        sources = [number * PARTITIONS + p for number in ids for p in range(PARTITIONS)]
        if not sources:
            return []
        ends = self.ends(sources)
        newest = {source: max(0, end - limit) for source, end in ends.items()}
        seen = newest if after is None else _seen(after)
        parts = [self._after(source, seen.get(source, 0), limit) for source in sources]
        found = list(heapq.merge(*parts, key=attrgetter("created_at")))
        found = found[-limit:] if after is None else found[:limit]
        return [_peeked(f, topic, seen) for f in found]

    def _after(self, source: int, offset: int, count: int) -> list[_Found]:
        return [
            _Found(source, chunk.first + i, chunk.created_at, message)
            for chunk in self.read(source, after=offset, count=count)
            for i, message in enumerate(chunk.messages)
            if chunk.first + i > offset
        ]


class _Found(NamedTuple):
    source: int
    offset: int
    created_at: float
    message: Message


def _is_text(m: Message) -> bool:
    """Whether every text can be encoded; lone surrogates cannot."""
    try:
        f"{m.id}{m.type}{m.topic}{m.key}{m.headers}".encode()
    except UnicodeEncodeError:
        return False
    return True


def _chunks(messages: Sequence[Message]) -> Iterator[_Packed]:
    start = size = 0
    for i, m in enumerate(messages):
        size += len(m.payload)
        if i > start and (size > CHUNK_BYTES_MAX or i - start >= CHUNK_MESSAGES_MAX):
            yield _Packed(i - start, _encode(messages[start:i]))
            start, size = i, len(m.payload)
    yield _Packed(len(messages) - start, _encode(messages[start:]))


def _append(db: Rows, chunks: dict[int, list[_Packed]]) -> None:
    """Store chunks by source: lock the sources in ascending order, then draw the offsets."""
    names = whole(chunks)
    locked = db.ask(
        f"SELECT id, next, {{clock}} FROM {{source}} WHERE id IN ({names}) ORDER BY id{{lock}}",
        {"clock": time.time()},
    )
    rows = []
    ends = ""
    for source, free, now in locked:
        following = free
        for chunk in chunks[source]:
            following += chunk.size
            rows.append(
                {
                    "source": source,
                    "last": following - 1,
                    "count": chunk.size,
                    "created_at": float(now),
                    "data": chunk.data,
                }
            )
        ends += f" WHEN {source} THEN {following}"
    db.change_all(
        "INSERT INTO {chunk} (source, last, count, created_at, data) "
        "VALUES (:source, :last, :count, :created_at, :data)",
        rows,
    )
    db.change(f"UPDATE {{source}} SET next = CASE id{ends} END WHERE id IN ({names})")


def _until(sizes: Iterable[tuple[int, int]], count: int, *, start: int) -> int:
    """The end of the chunks that together hold ``count`` messages, or of all."""
    end = start
    for last, size in sizes:
        end = last
        count -= size
        if count <= 0:
            break
    return end


def _routed(db: Rows, kind: str, name: str) -> int | None:
    """The topic's number when a group reads it: every group has a claim on each of its sources."""
    number = _topic_id(db, TopicSpec(name, kind))
    if number is None:
        return None
    read = db.ask(
        "SELECT 1 FROM {claim} WHERE source = :source LIMIT 1", {"source": number * PARTITIONS}
    )
    return number if read else None


def _topic_id(db: Rows, topic: TopicSpec) -> int | None:
    rows = db.ask(
        "SELECT id FROM {topic} WHERE kind = :kind AND name = :name",
        {"kind": topic.kind, "name": topic.name},
    )
    return int(rows[0][0]) if rows else None


def _declare_topic(db: Rows, topic: TopicSpec) -> int:
    known = _topic_id(db, topic)
    if known is not None:
        return known
    values = {"kind": topic.kind, "name": topic.name}
    db.change("INSERT INTO {topic} (kind, name) VALUES (:kind, :name)", values)
    number = _topic_id(db, topic)
    assert number is not None, "the row that was just inserted"
    sources = [{"id": number * PARTITIONS + p} for p in range(PARTITIONS)]
    db.change_all("INSERT INTO {source} (id, next) VALUES (:id, 1)", sources)
    return number


def _declare_group(db: Rows, topic: int, group: str, *, from_start: bool) -> None:
    begin = "coalesce((SELECT min(last - count) FROM {chunk} WHERE source = s.id), s.next - 1)"
    db.change(
        "INSERT INTO {claim} (source, grp, position) "
        f"SELECT s.id, :group, {begin if from_start else 's.next - 1'} FROM {{source}} s "
        "WHERE s.id BETWEEN :first AND :last AND NOT EXISTS "
        "(SELECT 1 FROM {claim} c WHERE c.source = s.id AND c.grp = :group)",
        {"group": group, **_span(topic)},
    )


def _span(topic: int) -> dict[str, int]:
    return {"first": topic * PARTITIONS, "last": topic * PARTITIONS + PARTITIONS - 1}


def _prune(db: Rows, source: int, floor: int, *, older_than_seconds: float) -> int:
    values = {"source": source, "floor": floor, "few": PRUNE_CHUNKS}
    oldest = db.ask(
        "SELECT last FROM {chunk} WHERE source = :source AND last <= :floor "
        "ORDER BY last LIMIT :few",
        values,
    )
    if not oldest:
        return 0
    return db.change(
        "DELETE FROM {chunk} WHERE source = :source AND last <= :upto "
        "AND created_at < {clock} - :older",
        {
            "source": source,
            "upto": oldest[-1][0],
            "clock": time.time(),
            "older": older_than_seconds,
        },
    )


def _status(db: Rows, number: int, topic: TopicSpec) -> TopicStatus:
    depth = db.ask(
        "SELECT coalesce(sum(count), 0) FROM {chunk} WHERE source BETWEEN :first AND :last",
        _span(number),
    )[0][0]
    groups = db.ask(
        "SELECT c.grp, sum(c.position), sum(s.next - 1 - c.position), count(DISTINCT c.holder) "
        "FROM {claim} c JOIN {source} s ON s.id = c.source "
        "WHERE c.source BETWEEN :first AND :last GROUP BY c.grp ORDER BY c.grp",
        _span(number),
    )
    # Servers give sums as decimals.
    states = tuple(GroupStatus(g, int(read), int(lag), int(n)) for g, read, lag, n in groups)
    return TopicStatus(topic.name, topic.kind, int(depth), states)


def _peeked(found: _Found, topic: str, seen: dict[int, int]) -> Peeked:
    """A message with the cursor behind it; ``seen`` moves on with it."""
    source, offset, created_at, message = found
    seen[source] = offset
    cursor = ".".join(f"{s}-{seen[s]}" for s in sorted(seen) if seen[s])
    return Peeked(cursor, created_at, f"{topic}/{source % PARTITIONS}", str(offset), message)


def _seen(cursor: str) -> dict[int, int]:
    """How far each source was seen; nothing where the cursor is empty."""
    pairs = [part.partition("-") for part in cursor.split(".") if part]
    return {int(source): int(offset) for source, _, offset in pairs}
