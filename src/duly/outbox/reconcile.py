"""Does what was stored, sent, handled, held and dropped add up?

Owns the arithmetic over outbox and inbox.  Two proofs are possible.  **History**: where sent rows
are kept, every stored message has one status, and every sent one of a type that a group handles is
found in the group's inbox by its id (or was edited there).  **Source**: a query that counts what
should have become messages is compared with the distinct messages found in the outbox or in a
group's inbox.  The invariant: "adds up" is only said where one of them shows it; anything else is
"does not add up" or "not provable", never silence.  What is on its way through the broker is
missing on both sides until it arrives: reconcile when the lag is 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from enum import Enum
from typing import Any, NamedTuple

from duly.errors import ConfigurationError
from duly.kernel.lifecycle import INBOX_STATUSES, OUTBOX_STATUSES
from duly.kernel.names import check_name
from duly.ports import Database, Statement, Steps

__all__ = ["GroupSum", "Reconciliation", "SourceSum", "TopicSum", "Verdict", "reconcile"]


class Verdict(Enum):
    """What the figures prove."""

    ADDS_UP = "adds up"
    DIFFERS = "does not add up"
    NOT_PROVABLE = "not provable"


class TopicSum(NamedTuple):
    """stored: rows of a topic; by_status: where they stand. unknown: rows in a status that no code
    knows.
    """

    topic: str
    stored: int
    by_status: Mapping[str, int]
    unknown: int


class GroupSum(NamedTuple):
    """sent: messages that the group should have; found: those in its inbox; missing: the others.
    by_status: the group's rows of these types, also from other Apps.
    """

    group: str
    sent: int
    found: int
    missing: int
    by_status: Mapping[str, int]


class SourceSum(NamedTuple):
    """counted: by the source's query; accounted: distinct messages in the outbox or the group's
    inbox.
    """

    topic: str
    group: str
    counted: int
    accounted: int


class Reconciliation(NamedTuple):
    """verdict, the reason where it is not ``ADDS_UP``, and the figures it rests on."""

    verdict: Verdict
    reason: str
    topics: tuple[TopicSum, ...] = ()
    groups: tuple[GroupSum, ...] = ()
    source: SourceSum | None = None


def reconcile(
    database: Database,
    *,
    history: bool,
    groups: Mapping[str, Sequence[str]] | None = None,
    source: tuple[str, str, str] | None = None,
) -> Reconciliation:
    """Add up what the tables hold, in one transaction.

    history: whether sent rows are kept (``keep_sent``). groups: the message types each group
    handles. source: (query, topic, group) - SQL on the App's database that gives one whole number,
    the number of messages of this topic that should exist; group may be "".
    Raises ConfigurationError when the query gives something else, and what the database raises.
    """
    if not history and source is None:
        return Reconciliation(
            Verdict.NOT_PROVABLE,
            "sent rows are not kept; set keep_sent, or name a source query to compare with",
        )
    counted = _ask_source(database, source[0]) if source else 0
    with closing(database.connect()) as connection:
        if source is not None:
            return connection.run(_by_source(counted, source[1], source[2]))
        return connection.run(_by_history(groups or {}))


def _by_history(groups: Mapping[str, Sequence[str]]) -> Steps[Reconciliation]:
    topics = _topic_sums((yield Statement("reconcile.stored")).rows)
    sums = []
    for group, types in sorted(groups.items()):
        values = {"group": group, "types": list(types)}
        sent, found = (yield Statement("reconcile.expected", values)).rows[0]
        statuses = dict((yield Statement("reconcile.handled", values)).rows)
        sums.append(GroupSum(group, sent, int(found), sent - int(found), statuses))
    problems = [
        f"topic {t.topic}: {t.unknown} rows in no known status" for t in topics if t.unknown
    ]
    problems += [
        f"group {g.group}: {g.missing} of {g.sent} sent are missing" for g in sums if g.missing
    ]
    for each in sums:
        unknown = sum(n for status, n in each.by_status.items() if status not in INBOX_STATUSES)
        if unknown:
            problems.append(f"group {each.group}: {unknown} rows in no known status")
    verdict = Verdict.DIFFERS if problems else Verdict.ADDS_UP
    return Reconciliation(verdict, "; ".join(problems), topics, tuple(sums))


def _by_source(counted: int, topic: str, group: str) -> Steps[Reconciliation]:
    check_name(topic, "topic")
    values = {"topic": topic, "group": group}
    accounted = int((yield Statement("reconcile.accounted", values)).rows[0][0])
    found = SourceSum(topic, group, counted, accounted)
    if counted == accounted:
        return Reconciliation(Verdict.ADDS_UP, "", source=found)
    word = "missing" if counted > accounted else "too many"
    reason = f"topic {topic}: {abs(counted - accounted)} {word}"
    return Reconciliation(Verdict.DIFFERS, reason, source=found)


def _topic_sums(rows: Sequence[tuple[str, str, int]]) -> tuple[TopicSum, ...]:
    by_topic: dict[str, dict[str, int]] = {}
    for topic, status, count in rows:
        by_topic.setdefault(topic, {})[status] = count
    return tuple(
        TopicSum(
            topic,
            sum(statuses.values()),
            statuses,
            sum(count for status, count in statuses.items() if status not in OUTBOX_STATUSES),
        )
        for topic, statuses in by_topic.items()
    )


def _ask_source(database: Database, query: str) -> int:
    from sqlalchemy import text
    from sqlalchemy.exc import SQLAlchemyError

    try:
        with database.engine().connect() as connection:
            rows: Sequence[Any] = connection.execute(text(query)).fetchmany(2)
    except SQLAlchemyError as error:
        cause = getattr(error, "orig", None) or error
        shown = str(cause).splitlines()[0][:200]
        raise ConfigurationError(f"the source query failed: {shown}") from error
    if len(rows) != 1 or len(rows[0]) != 1 or not isinstance(rows[0][0], int):
        raise ConfigurationError("the source query must give one whole number")
    return int(rows[0][0])
