"""Looking without consuming: how far groups are, and the stored messages of a topic.

A cursor holds the next offset of every partition that a topic has here, so that going on behind it
neither skips nor repeats. Invariant: nothing here joins a group or commits. Runs in a worker
thread.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from heapq import merge
from typing import Any, NamedTuple

from confluent_kafka import Consumer, KafkaError, TopicPartition
from confluent_kafka.admin import OffsetSpec

from duly.brokers.kafka.control import Control, Place
from duly.brokers.kafka.failures import mapped
from duly.brokers.kafka.records import from_record
from duly.brokers.kafka.settings import Settings
from duly.brokers.kafka.topology import ends_of, group_id, topic_name
from duly.errors import NotFoundError, OperatorError
from duly.ports import GroupStatus, Peeked, SubscriptionSpec, TopicSpec, TopicStatus

__all__ = ["peek", "statuses"]

READ_SECONDS = 8.0


def statuses(
    control: Control, topics: Sequence[TopicSpec], specs: Sequence[SubscriptionSpec]
) -> list[TopicStatus]:
    """What is kept in each topic, and how far each group is."""
    known, _ = control.partitions()
    prefix = control.settings.prefix
    names = {topic: topic_name(topic.kind, topic.name, prefix) for topic in topics}
    places = [(name, n) for name in names.values() for n in range(known.get(name, 0))]
    low = ends_of(control, places, OffsetSpec.earliest())
    high = ends_of(control, places, OffsetSpec.latest())
    groups = sorted({group_id(spec.group, t, prefix) for spec in specs for t in spec.topics})
    committed = {group: control.committed(group, places) for group in groups}
    members = control.members(groups)
    found = []
    for topic, name in names.items():
        its = [place for place in places if place[0] == name]
        readers = []
        for spec in specs:
            if topic in spec.topics:
                group = group_id(spec.group, topic, prefix)
                at = {p: max(committed[group].get(p, 0), low[p]) for p in its}
                read = sum(at[p] - low[p] for p in its)
                lag = sum(high[p] - at[p] for p in its)
                readers.append(GroupStatus(spec.group, read, lag, members[group]))
        depth = sum(high[p] - low[p] for p in its)
        found.append(TopicStatus(topic.name, topic.kind, depth, tuple(readers)))
    return found


def peek(control: Control, topic: str, *, after: str | None, limit: int) -> list[Peeked]:
    """Stored messages behind a cursor, by the time they came; without one, the newest ``limit``.

    Raises NotFoundError, OperatorError (no cursor of this topic).
    """
    known, _ = control.partitions()
    names = [topic_name(kind, topic, control.settings.prefix) for kind in ("event", "command")]
    places = [(name, number) for name in names for number in range(known.get(name, 0))]
    if not places:
        raise NotFoundError(f"topic {topic}")
    low = ends_of(control, places, OffsetSpec.earliest())
    high = ends_of(control, places, OffsetSpec.latest())
    if after is None:
        begin = [max(low[place], high[place] - limit) for place in places]
    else:
        begin = _offsets(after, len(places))
        begin = [max(low[place], offset) for place, offset in zip(places, begin, strict=True)]
    wanted = {p: (offset, high[p]) for p, offset in zip(places, begin, strict=True)}
    records = list(merge(*_read(control.settings, wanted, limit), key=lambda one: one.order))
    found = list(_peeked(records, topic, places, at=dict(zip(places, begin, strict=True))))
    return found[-limit:] if after is None else found[:limit]


class _Record(NamedTuple):
    order: float  # the time it came, never less than that of the one before it in its partition
    created_at: float
    record: Any


def _offsets(cursor: str, count: int) -> list[int]:
    if not cursor:
        return [0] * count
    try:
        found = [int(part) for part in cursor.split(",")]
    except ValueError:
        raise OperatorError(f"{cursor[:40]!r} is no cursor of this topic") from None
    return (found + [0] * count)[:count]  # partitions that were added since begin at 0


def _peeked(
    records: Sequence[_Record], topic: str, places: Sequence[Place], *, at: dict[Place, int]
) -> Iterator[Peeked]:
    for one in records:
        record = one.record
        at[record.topic(), record.partition()] = record.offset() + 1
        yield Peeked(
            ",".join(str(at[place]) for place in places),
            one.created_at,
            f"{record.topic()}/{record.partition()}",
            str(record.offset()),
            from_record(record, topic=topic),
        )


def _read(
    settings: Settings, wanted: dict[Place, tuple[int, int]], limit: int
) -> list[list[_Record]]:
    """Up to ``limit`` records of each partition, from an offset to below another."""
    found: dict[Place, list[_Record]] = {p: [] for p, (begin, end) in wanted.items() if begin < end}
    if not found:
        return []
    consumer = Consumer(
        settings.client()
        | {
            "group.id": "duly-peek",  # the client wants a name; nothing is joined or committed
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",
            "fetch.wait.max.ms": 100,
        }
    )
    try:
        consumer.assign([TopicPartition(*place, wanted[place][0]) for place in found])
        unfinished = set(found)
        end = time.monotonic() + READ_SECONDS
        while unfinished and time.monotonic() < end:
            for record in consumer.consume(limit, 0.05):
                place = (record.topic(), record.partition())
                error = record.error()
                if error is None:
                    _keep(found[place], record, limit)
                    if record.offset() + 1 >= wanted[place][1] or len(found[place]) >= limit:
                        unfinished.discard(place)
                elif error.code() == KafkaError._PARTITION_EOF:
                    unfinished.discard(place)
                else:
                    raise mapped(error, settings)
    finally:
        consumer.close()
    return list(found.values())


def _keep(records: list[_Record], record: Any, limit: int) -> None:
    if len(records) < limit:
        created_at = record.timestamp()[1] / 1000
        order = max(created_at, records[-1].order) if records else created_at
        records.append(_Record(order, created_at, record))
