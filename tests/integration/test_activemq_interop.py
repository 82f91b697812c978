"""A STOMP client that is not ours reads what we write, and writes what we read."""

from __future__ import annotations

import queue
from typing import Any
from urllib.parse import urlsplit

import stomp

from duly.brokers.activemq import ActiveMQBroker, address_of, queue_name
from duly.brokers.activemq.settings import parse
from duly.message import HEADER_SOURCE
from duly.ports import SubscriptionSpec
from duly.testing.broker_target import event, join, message, send


class Listener(stomp.ConnectionListener):  # type: ignore[misc]  # stomp.py ships no types
    def __init__(self) -> None:
        self.got: queue.Queue[Any] = queue.Queue()

    def on_message(self, frame: Any) -> None:
        self.got.put(frame)


def foreign(url: str) -> tuple[Any, Listener]:
    parts = urlsplit(url)
    client = stomp.Connection12([(parts.hostname, parts.port)], auto_decode=False)
    listener = Listener()
    client.set_listener("", listener)
    client.connect(parts.username, parts.password, wait=True)
    return client, listener


async def test_a_plain_client_reads_what_we_send(activemq_url: str) -> None:
    topic, prefix = event(), parse(activemq_url).prefix
    broker = ActiveMQBroker(activemq_url)
    await broker.start()
    await broker.declare([topic], [SubscriptionSpec("warehouse", (topic,))])
    one = message(topic, 7, key="k:7")
    await send(broker, [one])
    await broker.close()
    client, listener = foreign(activemq_url)
    place = f"{address_of(prefix, topic)}::{queue_name(prefix, 'warehouse', topic)}"
    client.subscribe(place, id="1", ack="client-individual")
    frame = listener.got.get(timeout=15)
    client.ack(frame.headers["ack"])
    client.disconnect()
    assert frame.body in (b"7", "7")
    assert frame.headers["ce_id"] == one.id
    assert frame.headers["ce_type"] == "conformance.sent"
    assert frame.headers["ce_source"] == "/duly/conformance"
    assert frame.headers["ce_partitionkey"] == frame.headers["_AMQ_GROUP_ID"] == "k:7"
    assert frame.headers["content-type"] == "application/json"


async def test_we_read_what_a_plain_client_sends(activemq_url: str) -> None:
    topic, prefix = event(), parse(activemq_url).prefix
    broker = ActiveMQBroker(activemq_url)
    await broker.start()
    receiver = await join(broker, "billing", topic)
    client, _ = foreign(activemq_url)
    headers = {
        "ce_specversion": "1.0",
        "ce_id": "their-1",
        "ce_type": "order.placed",
        "ce_source": "/warehouse",
        "ce_partitionkey": "a:b",
        "persistent": "true",
        "colour": "blue: \\ or\nnot",
    }
    address = address_of(prefix, topic)
    client.send(address, b'{"order_id":1}', content_type="application/json", headers=headers)
    client.send(address, "plain text", headers={"persistent": "true"})
    structured = '{"specversion":"1.0","id":"s-1","type":"t","source":"/x","data":[1]}'
    client.send(address, structured, content_type="application/cloudevents+json")
    first, second, third = await receiver.receive(3)
    client.disconnect()
    await receiver.close()
    await broker.close()
    assert (first.id, first.type, first.key) == ("their-1", "order.placed", "a:b")
    assert first.payload == b'{"order_id":1}'
    assert first.headers[HEADER_SOURCE] == "/warehouse"
    assert (second.payload, second.type) == (b"plain text", "")
    assert second.id == f"{queue_name(prefix, 'billing', topic)}/{receiver.deliveries[1].position}"
    assert (third.id, third.type, third.payload) == ("s-1", "t", b"[1]")
