"""Who reads which source: members of a group, their fair share, and the leases on sources.

Invariant: a source of a group has at most one holder whose lease has not run out, and every change
of holder raises the token, so that a position written by an earlier holder meets another token and
is dropped. Time is that of the store: the machine's CLOCK_BOOTTIME for a file, the server's clock
for a server; an ``until`` further away than any lease could be was written before the clock was set
back (or the machine restarted) and counts as run out.  ``now`` in the parameters is that of a file.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from duly.brokers.embedded.log import Log
from duly.brokers.embedded.store import PARTITIONS, Rows, whole

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


_ALIVE = "until > {now} AND until <= {now} + 2 * :ttl"


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
    times = {"now": now, "ttl": ttl_seconds, "holder": member.holder}
    groups: dict[str, list[Claimed]] = {}
    for c in held:
        groups.setdefault(c.group, []).append(c)
    with log.store.writing() as db:
        for topic, group in member.topics:
            _join(db, {**times, "topic": topic, "group": group})
        lost = []
        for group in sorted(groups):
            lost += _prolong(db, groups[group], {**times, "group": group})
    return lost


def _prolong(db: Rows, held: Sequence[Claimed], values: dict[str, object]) -> list[Claimed]:
    """Leases of one group. A holder takes a source once, so its name stands for the token."""
    mine = f"holder = :holder AND grp = :group AND source IN ({whole(c.source for c in held)})"
    if db.change(f"UPDATE {{claim}} SET until = {{now}} + :ttl WHERE {mine}", values) == len(held):
        return []
    left = set(db.ask(f"SELECT source, token FROM {{claim}} WHERE {mine}", values))
    return [c for c in held if (c.source, c.token) not in left]


def _join(db: Rows, values: dict[str, object]) -> None:
    group = "topic = :topic AND grp = :group"
    gone = db.change(f"DELETE FROM {{member}} WHERE {group} AND NOT ({_ALIVE})", values)
    mine = f"{group} AND holder = :holder"
    known = db.change(f"UPDATE {{member}} SET until = {{now}} + :ttl WHERE {mine}", values)
    if not known:
        db.change(
            "INSERT INTO {member} (topic, grp, holder, until) "
            "VALUES (:topic, :group, :holder, {now} + :ttl)",
            values,
        )
    if gone or not known:
        _changed(db)


def claim(
    log: Log, member: Member, held: Sequence[Claimed], *, now: float, ttl_seconds: float
) -> tuple[list[Claimed], dict[tuple[int, str], int]]:
    """Take free sources up to the member's share; gives the new leases, and how many are held above
    each share.
    """
    taken: list[Claimed] = []
    above: dict[tuple[int, str], int] = {}
    with log.store.writing() as db:
        for topic, group in member.topics:
            values: dict[str, object] = {"now": now, "ttl": ttl_seconds, "holder": member.holder}
            values |= {"topic": topic, "group": group}
            text = (
                f"SELECT holder FROM {{member}} WHERE topic = :topic AND grp = :group AND {_ALIVE}"
            )
            members = [row[0] for row in db.ask(text, values)]
            if member.holder not in members:
                continue  # our own membership has run out; the next renewal brings it back
            mine = sum(1 for c in held if c.group == group and c.source // PARTITIONS == topic)
            wanted = share(members, member.holder, topic) - mine
            if wanted > 0:
                taken += _take(db, topic, {**values, "wanted": wanted})
            elif wanted < 0:
                above[topic, group] = -wanted
    return taken, above


def _take(db: Rows, topic: int, values: dict[str, object]) -> list[Claimed]:
    span = {"first": topic * PARTITIONS, "last": topic * PARTITIONS + PARTITIONS - 1}
    free = db.ask(
        "SELECT source, grp, token + 1, position, holder IS NOT NULL FROM {claim} "
        "WHERE grp = :group AND source BETWEEN :first AND :last "
        f"AND (holder IS NULL OR NOT ({_ALIVE})) ORDER BY source LIMIT :wanted",
        values | span,
    )
    for source, _, token, *_ in free:
        db.change(
            "UPDATE {claim} SET holder = :holder, token = :token, until = {now} + :ttl "
            "WHERE source = :source AND grp = :group",
            values | {"source": source, "token": token},
        )
    return [Claimed(*row) for row in free]


def surrender(log: Log, held: Iterable[Claimed]) -> None:
    """Give leases up, so that others may take them at once."""
    text = (
        "UPDATE {claim} SET holder = NULL, until = 0 "
        "WHERE source = :source AND grp = :group AND token = :token"
    )
    with log.store.writing() as db:
        if sum(db.change(text, c._asdict()) for c in sorted(held)):
            _changed(db)


def leave(log: Log, member: Member) -> None:
    """End the membership."""
    text = "DELETE FROM {member} WHERE topic = :topic AND grp = :group AND holder = :holder"
    rows = [{"topic": t, "group": g, "holder": member.holder} for t, g in member.topics]
    with log.store.writing() as db:
        db.change_all(text, rows)
        _changed(db)


def _changed(db: Rows) -> None:
    db.change("UPDATE {epoch} SET value = value + 1")
    db.ring()
