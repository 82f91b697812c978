"""Addresses and queues: their names, their settings, and how they are declared.

An event topic is a multicast address with one durable queue per group; a command queue is an
anycast address with one queue of its own name. They are made with the first group that reads: until
then a publish finds no queue and says so. A group with order reads an exclusive queue, so that one
receiver has all of it until it is gone; without order, message groups are switched off, so that a
key does not stick to one receiver. Invariants: nothing is put aside for a number of deliveries -
the inbox counts, and the server's default is ten; two different topics or groups never share a
name: '~' is in no name.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

from duly.brokers.activemq.api import Api, RefusedError
from duly.brokers.activemq.settings import Settings
from duly.errors import ConfigurationError
from duly.ports import SubscriptionSpec, TopicSpec

__all__ = [
    "TOPOLOGY",
    "Source",
    "address_of",
    "declare",
    "queue_name",
    "queues_at",
    "sources_of",
    "stranded",
]

TOPOLOGY = "ACTIVEMQ_TOPOLOGY"
UNLIMITED = -1
PAGE = 1000
_ROUTING = {"event": "MULTICAST", "command": "ANYCAST"}


class Source(NamedTuple):
    """One queue to read from."""

    topic: TopicSpec
    address: str
    queue: str


def address_of(prefix: str, topic: TopicSpec) -> str:
    """The address of a topic."""
    return f"{prefix}.{topic.kind}.{topic.name}"


def queue_name(prefix: str, group: str, topic: TopicSpec) -> str:
    """The queue that a group reads."""
    if topic.kind == "command":
        return address_of(prefix, topic)
    return f"{prefix}.group.{group}~{topic.name}"


def routing_of(topic: TopicSpec) -> str:
    """The server's word for a kind of topic."""
    return _ROUTING[topic.kind]


def sources_of(prefix: str, spec: SubscriptionSpec) -> list[Source]:
    """What a subscription reads."""
    return [
        Source(topic, address_of(prefix, topic), queue_name(prefix, spec.group, topic))
        for topic in dict.fromkeys(spec.topics)
    ]


async def queues_at(api: Api, address: str) -> list[dict[str, Any]]:
    """The queues of an address as the server lists them. Raises as ``Api.call``."""
    wanted = json.dumps({"field": "address", "operation": "EQUALS", "value": address})
    listed = json.loads(await api.call("listQueues", wanted, 1, 1000))
    return [queue for queue in listed["data"] if queue["address"] == address]


async def stranded(api: Api, prefix: str) -> dict[str, int]:
    """How many messages of each of our queues are under way to nobody. Raises as ``Api.call``.

    A receiver of its own may have taken one between the two questions: ask again before it counts.
    """
    ours = f"{prefix}."
    named = {"operation": "CONTAINS", "value": ours}
    taken: Counter[str] = Counter()
    for consumer in await _listed(api, "listConsumers", {"field": "queue", **named}):
        taken[consumer["queue"]] += int(consumer["messagesInTransit"])
    queues = await _listed(api, "listQueues", {"field": "name", **named})
    left = {str(q["name"]): int(q["deliveringCount"]) - taken[q["name"]] for q in queues}
    return {name: n for name, n in left.items() if n > 0 and name.startswith(ours)}


async def _listed(api: Api, what: str, wanted: dict[str, str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while True:
        page = len(found) // PAGE + 1
        listed = json.loads(await api.call(what, json.dumps(wanted), page, PAGE))
        found += listed["data"]
        if len(listed["data"]) < PAGE:
            return found


async def declare(api: Api, settings: Settings, specs: Iterable[SubscriptionSpec]) -> None:
    """Make or check the queues of subscriptions. Idempotent.

    Raises BrokerUnavailableError, ConfigurationError.
    """
    try:
        for spec in specs:
            for source in sources_of(settings.prefix, spec):
                await _deliver_for_ever(api, source.address)
                await _queue(api, settings, source, ordered=spec.ordered)
    except RefusedError as error:
        raise ConfigurationError(f"{settings.shown}: {error}", code=TOPOLOGY) from error


async def _deliver_for_ever(api: Api, address: str) -> None:
    found = json.loads(await api.call("getAddressSettingsAsJSON", address))
    if found.get("maxDeliveryAttempts") != UNLIMITED:
        wanted = json.dumps({"maxDeliveryAttempts": UNLIMITED})
        await api.call("addAddressSettings", address, wanted)


async def _queue(api: Api, settings: Settings, source: Source, *, ordered: bool) -> None:
    wanted: dict[str, Any] = {
        "name": source.queue,
        "address": source.address,
        "routing-type": routing_of(source.topic),
        "durable": True,
        "exclusive": ordered,
        "group-buckets": -1 if ordered else 0,
        "auto-delete": False,
        "auto-create-address": True,
    }
    await api.call("createQueue", json.dumps(wanted), True)
    for found in await queues_at(api, source.address):
        if found["name"] == source.queue:
            _check(settings, found, ordered=ordered)


def _check(settings: Settings, found: dict[str, Any], *, ordered: bool) -> None:
    """What cannot be changed under a running group is refused."""
    wanted = {"durable": "true", "lastValue": "false", "ringSize": "-1", "filter": ""}
    wanted["exclusive"] = "true" if ordered else "false"
    for part, value in wanted.items():
        if found.get(part, value) != value:
            raise ConfigurationError(
                f"{settings.shown}: queue {found['name']} has {part} {found[part]}, not {value}; "
                "delete it, or make it as it should be",
                code=TOPOLOGY,
            )
