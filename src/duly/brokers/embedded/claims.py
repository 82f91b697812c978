"""Who reads which source: members of a group, their fair share, and the leases on sources.

Invariant: a source of a group has at most one holder whose lease has not run out, and every change
of holder raises the token, so that a position written by an earlier holder meets another token and
is dropped. Time is the machine's CLOCK_BOOTTIME, which all processes that can share the file see
alike and nobody can set; an ``until`` further away than any lease could be was written before a
restart of the machine and counts as run out.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import NamedTuple

from duly.brokers.embedded.log import Log
from duly.brokers.embedded.schema import PARTITIONS

__all__ = ["Claimed", "Member", "claim", "leave", "renew", "share", "surrender"]


class Member(NamedTuple):
    """One subscription as the others see it. topics: the number of each topic it reads, with its
    group there.
    """

    holder: str
    topics: tuple[tuple[int, str], ...]


class Claimed(NamedTuple):
    """A lease on a source. position: from which to read on. orphaned: its last holder let it run
    out, so what comes next may have ended a process.
    """

    source: int
    group: str
    token: int
    position: int
    orphaned: bool = False


_ALIVE = "until > :now AND until <= :now + 2 * :ttl"


def share(members: Sequence[str], holder: str, topic: int) -> int:
    """How many of a topic's partitions a member should hold; the shares of all members add up to
    all partitions.
    """
    count = len(members)
    rank = (
        sorted(members).index(holder) + topic
    ) % count  # rotated: the odd ones go to others in each topic
    return PARTITIONS // count + (1 if rank < PARTITIONS % count else 0)


def renew(
    log: Log, member: Member, held: Sequence[Claimed], *, now: float, ttl_seconds: float
) -> list[Claimed]:
    """Prolong the membership and the leases held; gives back the leases that are lost."""
    until = now + ttl_seconds
    with log.writing() as db:
        for topic, group in member.topics:
            _join(db, (topic, group, member.holder), now=now, ttl_seconds=ttl_seconds)
        statement = (
            "UPDATE claim SET until = ? WHERE source = ? AND grp = ? AND token = ? AND holder = ?"
        )
        return [
            c
            for c in held
            if not db.execute(
                statement, (until, c.source, c.group, c.token, member.holder)
            ).rowcount
        ]


def _join(
    db: sqlite3.Connection, row: tuple[int, str, str], *, now: float, ttl_seconds: float
) -> None:
    topic, group, holder = row
    times = {"now": now, "ttl": ttl_seconds, "topic": topic, "grp": group, "holder": holder}
    gone = db.execute(
        f"DELETE FROM member WHERE topic = :topic AND grp = :grp AND NOT ({_ALIVE})", times
    ).rowcount
    mine = "topic = :topic AND grp = :grp AND holder = :holder"
    known = db.execute(f"UPDATE member SET until = :now + :ttl WHERE {mine}", times).rowcount
    if not known:
        db.execute(
            "INSERT INTO member (topic, grp, holder, until) "
            "VALUES (:topic, :grp, :holder, :now + :ttl)",
            times,
        )
    if gone or not known:
        _changed(db)


def claim(
    log: Log, member: Member, held: Sequence[Claimed], *, now: float, ttl_seconds: float
) -> tuple[list[Claimed], dict[tuple[int, str], int]]:
    """Take free sources up to the member's share; gives the new leases, and how many are held above
    each share.
    """
    times = {"now": now, "ttl": ttl_seconds, "holder": member.holder}
    taken: list[Claimed] = []
    above: dict[tuple[int, str], int] = {}
    with log.writing() as db:
        for topic, group in member.topics:
            times |= {"topic": topic, "grp": group, "first": topic * PARTITIONS}
            sql = f"SELECT holder FROM member WHERE topic = :topic AND grp = :grp AND {_ALIVE}"
            members = [row[0] for row in db.execute(sql, times)]
            if member.holder not in members:
                continue  # our own membership has run out; the next renewal brings it back
            mine = sum(1 for c in held if c.group == group and c.source // PARTITIONS == topic)
            wanted = share(members, member.holder, topic) - mine
            if wanted > 0:
                taken += _take(db, times | {"wanted": wanted})
            elif wanted < 0:
                above[topic, group] = -wanted
    return taken, above


def _take(db: sqlite3.Connection, values: dict[str, object]) -> list[Claimed]:
    free = db.execute(
        "SELECT source, grp, token + 1, position, holder IS NOT NULL FROM claim WHERE grp = :grp "
        f"AND source BETWEEN :first AND :first + {PARTITIONS - 1} "
        f"AND (holder IS NULL OR NOT ({_ALIVE})) LIMIT :wanted",
        values,
    ).fetchall()
    for source, _, token, *_ in free:
        db.execute(
            "UPDATE claim SET holder = :holder, token = :token, until = :now + :ttl "
            "WHERE source = :source AND grp = :grp",
            values | {"source": source, "token": token},
        )
    return [Claimed(*row) for row in free]


def surrender(log: Log, held: Sequence[Claimed]) -> None:
    """Give leases up, so that others may take them at once."""
    with log.writing() as db:
        statement = (
            "UPDATE claim SET holder = NULL, until = 0 WHERE source = ? AND grp = ? AND token = ?"
        )
        if sum(db.execute(statement, (c.source, c.group, c.token)).rowcount for c in held):
            _changed(db)


def leave(log: Log, member: Member) -> None:
    """End the membership."""
    with log.writing() as db:
        db.executemany(
            "DELETE FROM member WHERE topic = ? AND grp = ? AND holder = ?",
            [(topic, group, member.holder) for topic, group in member.topics],
        )
        _changed(db)


def _changed(db: sqlite3.Connection) -> None:
    db.execute("UPDATE epoch SET value = value + 1")
