"""A plain Kafka client, which knows nothing of duly, writes to and reads from our topics."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

from confluent_kafka import Consumer, Producer

from duly.brokers.kafka import KafkaBroker
from duly.ports import Peeked
from duly.testing.broker_target import command, event, join, message, send


async def test_a_plain_client_reads_what_we_publish(kafka_url: str) -> None:
    topic, queue, gone = event(), command(), event()
    broker = KafkaBroker(kafka_url)
    await broker.start()
    await broker.declare([topic, queue, gone], [])
    tombstone = message(gone, key="customer-1", payload=b"")
    sent = [message(topic, 7, key="customer-1"), message(queue, 8), tombstone]
    await send(broker, sent)
    await broker.close()
    parts = urlsplit(kafka_url)
    prefix = parts.path[1:]
    names = [f"{prefix}.{topic.name}", f"_command.{prefix}.{queue.name}", f"{prefix}.{gone.name}"]
    records = await asyncio.to_thread(read, parts.netloc, names)
    one, two, none = (records[name] for name in names)
    assert (none.key(), none.value()) == (b"customer-1", None)  # what compaction removes a key for
    assert (one.key(), one.value()) == (b"customer-1", b"7")
    headers = dict(one.headers())
    assert headers["ce_id"].decode() == sent[0].id
    assert headers["ce_type"] == b"conformance.sent"
    assert headers["content-type"] == b"application/json"
    assert dict(two.headers())["ce_dulykind"] == b"command"


def read(servers: str, names: list[str]) -> dict[str, Any]:
    given = {"bootstrap.servers": servers, "group.id": uuid4().hex, "enable.auto.commit": False}
    consumer = Consumer(given | {"auto.offset.reset": "earliest"})
    consumer.subscribe(names)
    found: dict[str, Any] = {}
    for _ in range(60):
        record = consumer.poll(0.5)
        if record is not None and record.error() is None:
            found[record.topic()] = record
        if len(found) == len(names):
            break
    consumer.close()
    return found


async def test_we_read_what_a_plain_client_writes(kafka_url: str) -> None:
    topic = event()
    broker = KafkaBroker(f"{kafka_url}?partitions=1")
    await broker.start()
    receiver = await join(broker, "readers", topic)
    parts = urlsplit(kafka_url)
    name = f"{parts.path[1:]}.{topic.name}"
    producer = Producer({"bootstrap.servers": parts.netloc})
    attributes = {"ce_specversion": "1.0", "ce_id": "a-1", "ce_source": "/shop", "ce_type": "sold"}
    producer.produce(name, b'{"n":1}', "k1", headers=[*attributes.items(), ("trace", "on")])
    body = b'{"specversion":"1.0","id":"a-2","source":"/s","type":"sold","data":{"n":2}}'
    producer.produce(name, body, headers={"content-type": "application/cloudevents+json"})
    producer.produce(name, b"no envelope at all", "k3")
    assert await asyncio.to_thread(producer.flush, 20) == 0
    one, two, three = await receiver.receive(3)
    assert (one.id, one.type, one.source, one.key, one.payload) == (
        "a-1",
        "sold",
        "/shop",
        "k1",
        b'{"n":1}',
    )
    assert one.headers["trace"] == "on"
    assert (two.id, two.payload) == ("a-2", b'{"n":2}')
    assert (three.id, three.key, three.payload) == (f"{name}/0/2", "k3", b"no envelope at all")
    await broker.close()


async def test_looking_goes_on_behind_a_cursor_and_misses_nothing(kafka_url: str) -> None:
    topic = event()
    broker = KafkaBroker(kafka_url)
    await broker.start()
    await broker.declare([topic], [])
    sent = [message(topic, n, key=f"k{n}") for n in range(50)]
    await send(broker, sent)
    newest = await broker.peek(topic.name, limit=5)
    assert len(newest) == 5
    assert await broker.peek(topic.name, after=newest[-1].cursor) == []
    found: list[Peeked] = []
    cursor = ""
    while more := await broker.peek(topic.name, after=cursor, limit=7):
        found += more
        cursor = more[-1].cursor
    assert sorted(one.message.id for one in found) == sorted(m.id for m in sent)
    await broker.close()
