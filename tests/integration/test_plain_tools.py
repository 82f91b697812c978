"""Tools that know nothing of duly - kcat, redis-cli - write to and read from our topics by
docs/reference/wire.md.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from typing import Any
from urllib.parse import parse_qs, urlsplit

from duly.brokers.kafka import KafkaBroker
from duly.brokers.redis import RedisBroker
from duly.message import Message
from duly.ports import Broker, TopicSpec
from duly.testing.broker_target import event, join, message, send
from tests.conftest import unavailable

TOOL_SECONDS = 60
WRITTEN = {
    "ce_specversion": "1.0",
    "ce_id": "their-1",
    "ce_type": "order.placed",
    "ce_source": "/warehouse",
    "ce_partitionkey": "customer-7",
    "colour": "blau, grün",
}
BODY = '{"order_id":7}'


async def run(program: str, *arguments: str, given: str = "") -> str:
    """What a tool of this machine writes."""
    if shutil.which(program) is None:
        unavailable(f"{program} is not on this machine; run: make services")
    done = await asyncio.to_thread(
        subprocess.run,
        [program, *arguments],
        input=given,
        capture_output=True,
        text=True,
        timeout=TOOL_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


async def published(broker: Broker, topic: TopicSpec) -> Message:
    one = message(topic, 7, key="customer 7")
    await send(broker, [one])
    return one


def assert_ours(found: dict[str, str], sent: Message) -> None:
    assert found["ce_id"] == sent.id
    assert found["ce_type"] == sent.type
    assert found["ce_source"] == "/duly/conformance"
    assert found["ce_partitionkey"] == "customer 7"
    assert found["ce_dulykind"] == "event"


def assert_theirs(received: Message) -> None:
    assert (received.id, received.type, received.key) == ("their-1", "order.placed", "customer-7")
    assert (received.payload, received.source) == (BODY.encode(), "/warehouse")
    assert received.headers["colour"] == "blau, grün"


async def test_kcat_reads_what_we_publish_and_we_read_what_it_writes(kafka_url: str) -> None:
    topic, parts = event(), urlsplit(kafka_url)
    where = ["-b", parts.netloc, "-t", f"{parts.path[1:]}.{topic.name}"]
    broker = KafkaBroker(f"{kafka_url}?partitions=1")
    await broker.start()
    receiver = await join(broker, "readers", topic)
    sent = await published(broker, topic)
    record = json.loads(await run("kcat", *where, "-C", "-q", "-J", "-o", "beginning", "-e"))
    assert (record["key"], record["payload"]) == ("customer 7", sent.payload.decode())
    names, values = record["headers"][::2], record["headers"][1::2]
    headers = dict(zip(names, values, strict=True))
    assert_ours(headers, sent)
    assert headers["content-type"] == "application/json"
    given = [word for name, value in WRITTEN.items() for word in ("-H", f"{name}={value}")]
    await run("kcat", *where, "-P", "-k", "customer-7", *given, given=BODY)
    assert_theirs((await receiver.receive(2))[1])
    await broker.close()


async def test_redis_cli_reads_what_we_publish_and_we_read_what_it_writes(redis_url: str) -> None:
    topic, server = event(), redis_url.partition("?")[0]
    stream = f"{parse_qs(urlsplit(redis_url).query)['prefix'][0]}event:{topic.name}"
    broker = RedisBroker(redis_url)
    await broker.start()
    receiver = await join(broker, "readers", topic)
    sent = await published(broker, topic)
    [[_, fields]] = json.loads(
        await run("redis-cli", "-u", server, "--json", "XRANGE", stream, "-", "+")
    )
    entry = _pairs(fields)
    assert_ours(entry, sent)
    assert entry["ce_data"] == sent.payload.decode()
    given = [word for pair in (WRITTEN | {"ce_data": BODY}).items() for word in pair]
    await run("redis-cli", "-u", server, "XADD", stream, "*", *given)
    assert_theirs((await receiver.receive(2))[1])
    await broker.close()


def _pairs(fields: Any) -> dict[str, str]:
    """A map, or names and values in turn, as the protocol's version has it."""
    return fields if isinstance(fields, dict) else dict(zip(fields[::2], fields[1::2], strict=True))
