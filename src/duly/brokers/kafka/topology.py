"""Topics and groups: their names, how they are declared, and where a new group begins.

An event topic is the Kafka topic of its name, a command queue the topic ``_command.<queue>``; no
name of duly's begins with '_', so the two never meet. A prefix of the URL stands before the names.
A group of events is the consumer group of its name; a command queue has one group, named as its
topic, whoever reads it. Invariant: a group has a committed offset in every partition before
anything is relayed, so that what is published from then on is read, however late its first receiver
comes. Runs in a worker thread.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence

from confluent_kafka import KafkaError, TopicPartition
from confluent_kafka.admin import NewTopic, OffsetSpec

from duly.brokers.kafka.control import Control, Place
from duly.errors import BrokerUnavailableError
from duly.ports import SubscriptionSpec, TopicSpec

__all__ = ["COMMANDS", "Starts", "declare", "ends_of", "group_id", "groups_of", "topic_name"]

COMMANDS = "_command."
VISIBLE_SECONDS = 5.0
REPLICATION_WANTED = 3
MIN_INSYNC_WANTED = 2

# Where a group begins in partitions that it has no offset in, and cannot be given one from outside.
Starts = dict[tuple[str, str, int], int]


def topic_name(kind: str, topic: str, prefix: str = "") -> str:
    """The Kafka topic of an event topic or a command queue."""
    return f"{COMMANDS}{prefix}{topic}" if kind == "command" else prefix + topic


def group_id(group: str, topic: TopicSpec, prefix: str = "") -> str:
    """The consumer group that reads a topic for ``group``; of a command queue the same for all."""
    return topic_name("command", topic.name, prefix) if topic.kind == "command" else prefix + group


def groups_of(spec: SubscriptionSpec, prefix: str = "") -> dict[str, dict[str, TopicSpec]]:
    """The consumer groups of a subscription, each with the Kafka topics that it reads."""
    found: dict[str, dict[str, TopicSpec]] = {}
    for topic in spec.topics:
        topics = found.setdefault(group_id(spec.group, topic, prefix), {})
        topics[topic_name(topic.kind, topic.name, prefix)] = topic
    return found


def declare(
    control: Control, topics: Iterable[TopicSpec], subscriptions: Sequence[SubscriptionSpec]
) -> Starts:
    """Make topics that are missing and give new groups their first offsets.

    Raises BrokerUnavailableError, ConfigurationError (rights, replication, a name that collides).
    """
    prefix = control.settings.prefix
    wanted = {topic_name(t.kind, t.name, prefix) for t in topics}
    wanted |= {topic_name(t.kind, t.name, prefix) for spec in subscriptions for t in spec.topics}
    partitions = _make_topics(control, wanted)
    starts: Starts = {}
    for spec in subscriptions:
        for group, read in groups_of(spec, prefix).items():
            places = [(name, number) for name in read for number in range(partitions[name])]
            starts |= _begin_group(control, group, places, from_start=spec.from_start)
    return starts


def _make_topics(control: Control, wanted: set[str]) -> Mapping[str, int]:
    """How many partitions each topic has, after those that are missing were made."""
    known, brokers = control.partitions()
    missing = sorted(wanted - set(known))
    if not missing:
        return known
    settings = control.settings
    replication = settings.replication or min(REPLICATION_WANTED, brokers)
    configuration = {"min.insync.replicas": str(min(MIN_INSYNC_WANTED, max(1, replication - 1)))}
    made = [
        NewTopic(name, settings.partitions, replication, config=configuration) for name in missing
    ]
    control.ask(
        f"topics {', '.join(missing)}",
        lambda: control.client.create_topics(made, request_timeout=control.timeout),
        known={KafkaError.TOPIC_ALREADY_EXISTS},
    )
    end = time.monotonic() + VISIBLE_SECONDS
    while wanted - set(known):
        if time.monotonic() > end:
            names = ", ".join(sorted(wanted - set(known)))
            raise BrokerUnavailableError(f"{settings.shown}: topics are not there yet: {names}")
        time.sleep(0.02)
        known, _ = control.partitions()
    return known


def _begin_group(
    control: Control, group: str, places: Sequence[Place], *, from_start: bool
) -> Starts:
    """Give a group its first offset in topics that it has none of.

    A topic of which it has some has got a new partition, which its receivers read from the start.
    """
    known = {topic for topic, _ in control.committed(group, places)}
    fresh = [place for place in places if place[0] not in known]
    if not fresh:
        return {}
    begin = ends_of(control, fresh, OffsetSpec.earliest() if from_start else OffsetSpec.latest())
    if control.commit(group, begin):
        return {}
    # It has receivers, who commit for themselves; those of ours begin where it began now.
    return {(group, *place): offset for place, offset in begin.items()}


def ends_of(control: Control, places: Collection[Place], which: OffsetSpec) -> dict[Place, int]:
    """The first or the next offset of partitions."""
    asked = {TopicPartition(*place): which for place in places}
    if not asked:
        return {}
    answers = control.ask(
        f"topics {', '.join(sorted({name for name, _ in places}))}",
        lambda: control.client.list_offsets(asked, request_timeout=control.timeout),
    )
    return {(one.topic, one.partition): answer.offset for one, answer in answers.items()}
