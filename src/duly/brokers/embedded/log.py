"""The log: publish, read, positions and retention, as statements on one connection.

Invariant: offsets of a source are drawn inside the one write transaction that stores them, so
offset order is commit order and a reader that has seen offset n will never find a new row below n.
A publish is one transaction: whole and in order, or not at all. Messages are stored in chunks of
one source, packed, because a row per message costs more than everything else together. Leaves out
who may read what (``claims``) and every thread (``engine``).
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import msgspec

from duly.brokers.embedded.schema import PARTITIONS, map_error, open_file
from duly.errors import BrokerUnavailableError, OutcomeUnknownError
from duly.kernel.names import place
from duly.message import Message
from duly.ports import CONFIRMED, GroupStatus, Outcome, OutcomeKind, Peeked, TopicSpec, TopicStatus

__all__ = ["CHUNK_BYTES_MAX", "CHUNK_MESSAGES_MAX", "PAYLOAD_BYTES_MAX", "Chunk", "Log", "Moved"]

PAYLOAD_BYTES_MAX = 100_000_000
CHUNK_MESSAGES_MAX = 500
CHUNK_BYTES_MAX = 1_000_000
PRUNE_CHUNKS = 50

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Message]).decode


class Chunk(NamedTuple):
    """Messages of one source; ``first`` is the offset of the first."""

    first: int
    messages: list[Message]


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
    """One open log file. path: of the file, or ``:memory:``. Used by one thread."""

    def __init__(self, path: str, *, busy_seconds: float = 5.0) -> None:
        self.path = path
        self._busy_seconds = busy_seconds
        self.db = open_file(path, busy_seconds=busy_seconds)
        self._spread = 0

    def close(self) -> None:
        """Close the file."""
        self.db.close()

    def version(self) -> int:
        """A number that changes when another connection has committed."""
        return int(self.db.execute("PRAGMA data_version").fetchone()[0])

    def epoch(self) -> int:
        """A number that changes when members or free leases change."""
        return int(self.db.execute("SELECT value FROM epoch").fetchone()[0])

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A write transaction, begun at once; committed at the end, rolled back on any exception.

        Raises BrokerUnavailableError and ConfigurationError (nothing is stored),
        OutcomeUnknownError.
        """
        try:
            self.db.execute("BEGIN IMMEDIATE")
            try:
                yield self.db
                self._commit()
            finally:
                if self.db.in_transaction:
                    self.db.execute("ROLLBACK")
        except sqlite3.Error as error:
            raise map_error(error, self.path) from error

    def _commit(self) -> None:
        try:
            self.db.execute("COMMIT")
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorname", "") in ("SQLITE_FULL", "SQLITE_BUSY"):
                raise  # the commit frame was never written
            raise OutcomeUnknownError(
                f"embedded broker {self.path}: commit failed: {error}"
            ) from error

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """The connection for reads, its errors as ours."""
        try:
            yield self.db
        except sqlite3.Error as error:
            raise map_error(error, self.path) from error

    # --- publish ----------------------------------------------------------------------------------
    def publish(
        self, messages: Sequence[Message], *, wait_seconds: float, may_commit: Callable[[], bool]
    ) -> list[Outcome]:
        """Store a batch in one transaction. may_commit: asked last, False rolls back.

        Raises as ``writing``.
        """
        outcomes = [CONFIRMED] * len(messages)
        sources = self._pack(messages, outcomes)
        self.db.execute(
            f"PRAGMA busy_timeout = {max(1, int(min(wait_seconds, self._busy_seconds) * 1000))}"
        )
        try:
            with self.writing() as db:
                topics: dict[tuple[str, str], int | None] = {}
                for (kind, topic, partition), (members, chunks) in sources.items():
                    if (kind, topic) not in topics:
                        topics[kind, topic] = _routed(db, kind, topic)
                    number = topics[kind, topic]
                    if number is None:
                        _mark(
                            outcomes,
                            members,
                            Outcome(OutcomeKind.UNROUTED, f"no group reads {topic}"),
                        )
                    else:
                        _append(db, number * PARTITIONS + partition, chunks)
                if not may_commit():
                    raise BrokerUnavailableError("the deadline passed before the commit")
        finally:
            self.db.execute(f"PRAGMA busy_timeout = {int(self._busy_seconds * 1000)}")
        return outcomes

    def _pack(
        self, messages: Sequence[Message], outcomes: list[Outcome]
    ) -> dict[tuple[str, str, int], tuple[list[int], list[_Packed]]]:
        """The batch by source, encoded before the write lock is taken. Keyless messages of a batch
        stay together.
        """
        self._spread = (self._spread + 1) % PARTITIONS
        grouped: dict[tuple[str, str, int], list[int]] = {}
        for i, m in enumerate(messages):
            if len(m.payload) > PAYLOAD_BYTES_MAX or not _is_text(m):
                outcomes[i] = Outcome(
                    OutcomeKind.IMPOSSIBLE,
                    f"not UTF-8 text, or more than {PAYLOAD_BYTES_MAX} bytes",
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
        with self.writing() as db:
            for topic in topics:
                _declare_topic(db, topic)
            for topic, group, from_start in groups:
                _declare_group(db, _declare_topic(db, topic), group, from_start=from_start)

    def topic_id(self, topic: TopicSpec) -> int:
        """The number of a declared topic."""
        with self.reading() as db:
            row = db.execute(
                "SELECT id FROM topic WHERE kind = ? AND name = ?", (topic.kind, topic.name)
            ).fetchone()
            return int(row[0])

    # --- read -------------------------------------------------------------------------------------
    def ends(self, sources: Sequence[int]) -> dict[int, int]:
        """The last offset of each source."""
        marks = ",".join("?" * len(sources))
        with self.reading() as db:
            return dict(
                db.execute(
                    f"SELECT id, next - 1 FROM source WHERE id IN ({marks})", sources
                ).fetchall()
            )

    def read(self, source: int, *, after: int, count: int) -> Iterator[Chunk]:
        """Chunks above offset ``after`` until they hold ``count`` messages; the first may begin at
        or below it.
        """
        with self.reading() as db:
            rows = db.execute(
                "SELECT last, count, data FROM chunk WHERE source = ? AND last > ? "
                "ORDER BY last LIMIT ?",
                (source, after, count),
            )
            for last, size, data in rows:
                yield Chunk(last - size + 1, _decode(data))
                count -= size
                if count <= 0:
                    return

    def commit(self, moved: Sequence[Moved]) -> list[Moved]:
        """Store positions, each only under the token of its lease; gives back those whose lease was
        lost.
        """
        with self.writing() as db:
            statement = (
                "UPDATE claim SET position = max(position, ?) "
                "WHERE source = ? AND grp = ? AND token = ?"
            )
            return [
                m
                for m in moved
                if not db.execute(statement, (m.position, m.source, m.group, m.token)).rowcount
            ]

    # --- retention --------------------------------------------------------------------------------
    def prune(self, older_than_seconds: float) -> int:
        """Delete chunks that every group has read and that are older; a few per source and call.
        Gives their number.
        """
        with self.writing() as db:
            floors = db.execute(
                "SELECT source, min(position) FROM claim GROUP BY source"
            ).fetchall()
            before = time.time() - older_than_seconds
            return sum(
                db.execute(
                    "DELETE FROM chunk WHERE created_at < ? AND id IN "
                    "(SELECT id FROM chunk WHERE source = ? AND last <= ? ORDER BY last LIMIT ?)",
                    (before, source, floor, PRUNE_CHUNKS),
                ).rowcount
                for source, floor in floors
            )

    # --- look -------------------------------------------------------------------------------------
    def topics(self) -> list[TopicStatus]:
        """Every topic with its depth, and what each group has yet to read."""
        with self.reading() as db:
            rows = db.execute("SELECT id, kind, name FROM topic ORDER BY name, kind").fetchall()
            return [_status(db, number, TopicSpec(name, kind)) for number, kind, name in rows]

    def peek(self, topic: str, *, after: str | None, limit: int) -> list[Peeked]:
        """Stored messages of a topic in commit order, after a cursor; without one, the newest
        ``limit``.
        """
        with self.reading() as db:
            sql = (
                "SELECT c.id, c.source, c.last - c.count + 1, c.created_at, c.data "
                f"FROM chunk c JOIN topic t ON t.id = c.source / {PARTITIONS} WHERE t.name = ?"
            )
            if after is None:
                rows = db.execute(f"{sql} ORDER BY c.id DESC LIMIT ?", (topic, limit)).fetchall()
                return [p for row in reversed(rows) for p in _peeked(row, topic)][-limit:]
            chunk, index = _cursor(after)
            rows = db.execute(
                f"{sql} AND c.id >= ? ORDER BY c.id LIMIT ?", (topic, chunk, limit + 1)
            ).fetchall()
            found = [p for row in rows for p in _peeked(row, topic)]
            return [p for p in found if _cursor(p.cursor) > (chunk, index)][:limit]


def _is_text(m: Message) -> bool:
    """Whether every text can be encoded; lone surrogates cannot."""
    try:
        f"{m.id}{m.type}{m.key}{m.headers}".encode()
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


def _append(db: sqlite3.Connection, source: int, chunks: Sequence[_Packed]) -> None:
    next_offset = db.execute("SELECT next FROM source WHERE id = ?", (source,)).fetchone()[0]
    now = time.time()
    rows = []
    for chunk in chunks:
        next_offset += chunk.size
        rows.append((source, next_offset - 1, chunk.size, now, chunk.data))
    db.executemany(
        "INSERT INTO chunk (source, last, count, created_at, data) VALUES (?, ?, ?, ?, ?)", rows
    )
    db.execute("UPDATE source SET next = ? WHERE id = ?", (next_offset, source))


def _mark(outcomes: list[Outcome], members: Iterable[int], outcome: Outcome) -> None:
    for i in members:
        outcomes[i] = outcome


def _routed(db: sqlite3.Connection, kind: str, name: str) -> int | None:
    """The topic's number when a group reads it: every group has a claim on each of its sources."""
    row = db.execute(
        f"SELECT id FROM topic WHERE kind = ? AND name = ? "
        f"AND EXISTS (SELECT 1 FROM claim WHERE source = topic.id * {PARTITIONS})",
        (kind, name),
    ).fetchone()
    return None if row is None else int(row[0])


def _declare_topic(db: sqlite3.Connection, topic: TopicSpec) -> int:
    row = db.execute(
        "SELECT id FROM topic WHERE kind = ? AND name = ?", (topic.kind, topic.name)
    ).fetchone()
    if row is not None:
        return int(row[0])
    number = (
        db.execute(
            "INSERT INTO topic (kind, name) VALUES (?, ?)", (topic.kind, topic.name)
        ).lastrowid
        or 0
    )
    sources = [(number * PARTITIONS + p,) for p in range(PARTITIONS)]
    db.executemany("INSERT INTO source (id, next) VALUES (?, 1)", sources)
    return number


def _declare_group(db: sqlite3.Connection, topic: int, group: str, *, from_start: bool) -> None:
    begin = "coalesce((SELECT min(last - count) FROM chunk WHERE source = s.id), s.next - 1)"
    db.execute(
        "INSERT INTO claim (source, grp, position) "
        f"SELECT s.id, ?, {begin if from_start else 's.next - 1'} FROM source s "
        "WHERE s.id BETWEEN ? AND ? "
        "ON CONFLICT (source, grp) DO NOTHING",
        (group, topic * PARTITIONS, topic * PARTITIONS + PARTITIONS - 1),
    )


def _status(db: sqlite3.Connection, number: int, topic: TopicSpec) -> TopicStatus:
    span = (number * PARTITIONS, number * PARTITIONS + PARTITIONS - 1)
    depth = db.execute(
        "SELECT coalesce(sum(count), 0) FROM chunk WHERE source BETWEEN ? AND ?", span
    ).fetchone()[0]
    groups = db.execute(
        "SELECT c.grp, sum(c.position), sum(s.next - 1 - c.position), count(DISTINCT c.holder) "
        "FROM claim c JOIN source s ON s.id = c.source WHERE c.source BETWEEN ? AND ? "
        "GROUP BY c.grp ORDER BY c.grp",
        span,
    ).fetchall()
    return TopicStatus(topic.name, topic.kind, depth, tuple(GroupStatus(*row) for row in groups))


def _peeked(row: tuple[int, int, int, float, bytes], topic: str) -> list[Peeked]:
    chunk, source, first, created_at, data = row
    return [
        Peeked(
            f"{chunk}.{i}", created_at, f"{topic}/{source % PARTITIONS}", str(first + i), message
        )
        for i, message in enumerate(_decode(data))
    ]


def _cursor(text: str) -> tuple[int, int]:
    chunk, _, index = text.partition(".")
    return (int(chunk or 0), int(index) if index else -1)
