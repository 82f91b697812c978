"""Redis Streams on a real server: claims, leases, order, trimming, and other clients."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import redis

from duly.brokers.redis import RedisBroker
from duly.brokers.redis.link import Link
from duly.brokers.redis.scripts import REAP, TRIM, run
from duly.brokers.redis.settings import parse
from duly.ports import Loss, OutcomeKind, SubscriptionSpec, TopicSpec
from duly.testing.broker_target import (
    Receiver,
    event,
    join,
    message,
    out_of_order,
    quiet,
    send,
    twice,
)

LEASE_SECONDS = 1.0


def prefix_of(url: str) -> str:
    return parse_qs(urlsplit(url).query)["prefix"][0]


def key_of(url: str, topic: TopicSpec) -> str:
    return f"{prefix_of(url)}{topic.kind}:{topic.name}"


@pytest.fixture
def short_url(redis_url: str) -> str:
    """With a lease that a test can wait for."""
    return f"{redis_url}&lease=1s&retention=0s"


@pytest.fixture
def plain(redis_url: str) -> Iterator[Any]:
    """A client that is not ours."""
    with redis.Redis.from_url(redis_url.partition("?")[0], socket_timeout=10) as client:
        yield client


@asynccontextmanager
async def direct(url: str) -> AsyncIterator[RedisBroker]:
    broker = RedisBroker(url)
    await broker.start()
    try:
        yield broker
    finally:
        await broker.close()


# --- claims ---------------------------------------------------------------------------------------
async def test_a_slow_handler_is_not_robbed(short_url: str) -> None:
    topic = event()
    async with direct(short_url) as one, direct(short_url) as two:
        slow = await join(one, "readers", topic, acking=False)
        await send(one, [message(topic, n) for n in range(1500)])
        await slow.receive(1000)
        other = await join(two, "readers", topic)
        await other.receive(500)
        await asyncio.sleep(3.5 * LEASE_SECONDS)
        assert not set(other.ids) & set(slow.ids)
        await slow.ack_all()
        await slow.close()
        await quiet(other, 500)


async def test_what_a_dead_consumer_held_is_claimed_after_the_lease(
    short_url: str, plain: Any
) -> None:
    topic = event()
    async with direct(short_url) as broker:
        await broker.declare([topic], [SubscriptionSpec("readers", (topic,))])
        sent = [message(topic, n) for n in range(20)]
        await send(broker, sent)
        key = key_of(short_url, topic)
        plain.xreadgroup("readers", "a-process-that-died", {key: ">"}, count=20)
        began = time.monotonic()
        heir = await join(broker, "readers", topic)
        await heir.receive(20)
        assert 0.7 * LEASE_SECONDS < time.monotonic() - began < 8 * LEASE_SECONDS
        assert [d.redelivered for d in heir.deliveries] == [True] * 20
        assert sorted(heir.ids) == sorted(m.id for m in sent)


async def test_a_lost_answer_of_a_read_is_not_kept_from_everybody(short_url: str) -> None:
    """Entries that the server gave us and we never saw are claimed again, by us as well."""
    topic = event()
    async with direct(short_url) as broker:
        receiver = await join(broker, "readers", topic)
        await asyncio.sleep(0.3)
        subscription: Any = receiver.subscription
        reader = subscription._readers[0]
        taken = reader._take
        reader._take = lambda *_, **__: 0  # as if the answer had been lost on its way
        await send(broker, [message(topic, n) for n in range(5)])
        await asyncio.sleep(0.3)
        reader._take = taken
        await receiver.receive(5)
        assert not twice(receiver.ids)


async def test_a_stalled_process_does_not_hand_out_what_others_have_claimed(short_url: str) -> None:
    topic = event()
    async with direct(short_url) as one, direct(short_url) as two:
        spec = SubscriptionSpec("readers", (topic,))
        stalled: Any = await one.subscribe(spec)
        stalled._keeper._beat = lambda now: None
        await send(one, [message(topic, n) for n in range(10)])
        await asyncio.sleep(0.3)  # read, and not handed out: nobody asks for a batch yet
        stalled._readers[0].pause()
        stalled._readers[0]._paused_until += 60
        heir = await join(two, "readers", topic)
        await heir.receive(10)
        late = Receiver(stalled)
        await quiet(late, 0)
        assert not late.ids


# --- order ----------------------------------------------------------------------------------------
async def test_what_is_given_back_in_an_ordered_group_is_not_overtaken(short_url: str) -> None:
    topic = event()
    async with direct(short_url) as broker:
        spec = SubscriptionSpec("readers", (topic,), ordered=True, prefetch=10)
        subscription = await broker.subscribe(spec)
        sent = [message(topic, n, key="k") for n in range(60)]
        await send(broker, sent)
        done: list[int] = []
        released = 0
        async with asyncio.timeout(30):
            async for batch in subscription.batches():
                numbers = [int(d.message.payload) for d in batch]
                if released < 2 and numbers[0] >= 20 * released:
                    released += 1  # as a consumer does whose database is away
                    await subscription.release([d.token for d in batch])
                    continue
                done += numbers
                await subscription.ack([d.token for d in batch])
                if len(done) == 60:
                    break
        assert done == list(range(60))
        await subscription.close()


async def test_a_reader_without_its_lease_reads_nothing(short_url: str, plain: Any) -> None:
    topic = event()
    async with direct(short_url) as broker:
        receiver = await join(broker, "readers", topic, ordered=True)
        await send(broker, [message(topic, n, key="k") for n in range(10)])
        await receiver.receive(10)
        lease = f"{prefix_of(short_url)}lease:readers:event:{topic.name}"
        assert plain.get(lease).startswith(b"duly-")
        plain.set(lease, "another-process", px=2_500)
        await send(broker, [message(topic, n, key="k") for n in range(10, 20)])
        await asyncio.sleep(1.0)
        assert len(receiver.ids) == 10
        await receiver.receive(20)  # the other one is gone
        assert out_of_order(receiver.messages) == []


# --- trimming -------------------------------------------------------------------------------------
async def test_trimming_stops_at_what_a_group_has_not_done(short_url: str, plain: Any) -> None:
    topic = event()
    key = key_of(short_url, topic)
    link = Link(parse(short_url), purpose="test")
    link.open()
    async with direct(short_url) as broker:
        quick = await join(broker, "quick", topic)
        specs = [SubscriptionSpec(group, (topic,)) for group in ("pending", "unread")]
        await broker.declare([topic], specs)
        sent = [message(topic, n) for n in range(1000)]
        await send(broker, sent)
        await quick.receive(1000)
        assert run(link, TRIM, (key,), f"{2**50}-0") == 0  # the groups have read nothing
        plain.xreadgroup("unread", "c", {key: ">"}, count=600)
        plain.xack(key, "unread", *[entry[0] for entry in plain.xrange(key, count=600)])
        got = plain.xreadgroup("pending", "c", {key: ">"}, count=1000)[0][1]
        plain.xack(key, "pending", *[one for one, _ in got if one != got[350][0]])
        assert 250 <= run(link, TRIM, (key,), f"{2**50}-0") <= 350
        left = [fields[b"ce_id"].decode() for _, fields in plain.xrange(key)]
        assert set(left) >= {m.id for m in sent[350:]}
        assert run(link, TRIM, (key,), "0-1") == 0  # younger than the retention
        plain.xack(key, "pending", got[350][0])
        rest = await join(broker, "unread", topic)
        await rest.receive(400)
        assert sorted(rest.ids) == sorted(m.id for m in sent[600:])
        await asyncio.sleep(0.5)
        run(link, TRIM, (key,), f"{2**50}-0")
        assert plain.xlen(key) <= 100  # whole nodes only
    link.drop()


async def test_names_of_dead_consumers_go_when_nothing_is_pending(
    short_url: str, plain: Any
) -> None:
    topic = event()
    key = key_of(short_url, topic)
    link = Link(parse(short_url), purpose="test")
    link.open()
    async with direct(short_url) as broker:
        await broker.declare([topic], [SubscriptionSpec("readers", (topic,))])
        await send(broker, [message(topic, 1)])
        plain.xreadgroup("readers", "duly-holds-one", {key: ">"})
        plain.xgroup_createconsumer(key, "readers", "duly-idle")
        plain.xgroup_createconsumer(key, "readers", "foreign")
        await asyncio.sleep(0.05)
        assert run(link, REAP, (key,), "readers", "duly-", 60_000) == 0
        assert run(link, REAP, (key,), "readers", "duly-", 10) == 1
        names = {one["name"] for one in plain.xinfo_consumers(key, "readers")}
        assert names == {b"duly-holds-one", b"foreign"}
        receiver = await join(broker, "readers", topic)
        await receiver.receive(1)
        await receiver.close()
        names = {one["name"] for one in plain.xinfo_consumers(key, "readers")}
        assert names == {b"duly-holds-one", b"foreign"}  # ours took its name along
    link.drop()


# --- losses ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("ordered", [False, True])
async def test_a_lost_group_is_made_anew_and_told(
    short_url: str, plain: Any, caplog: pytest.LogCaptureFixture, *, ordered: bool
) -> None:
    topic = event()
    key = key_of(short_url, topic)
    losses: list[Loss] = []
    async with direct(short_url) as broker:
        broker.report_losses(losses.append)
        receiver = await join(broker, "readers", topic, ordered=ordered)
        await send(broker, [message(topic, 1, key="k")])
        await receiver.receive(1)
        plain.delete(key)
        last = message(topic, 2, key="k")
        outcomes = await broker.publish([last], deadline_seconds=5.0)
        assert outcomes[0].kind is OutcomeKind.CONFIRMED, "not taken for unread"
        await receiver.receive(2)
        assert receiver.ids[-1] == last.id
        found = {f.code: f.message for f in await broker.inspect()}
    assert topic.name in found["REDIS_HISTORY_LOST"]
    assert "REDIS_HISTORY_LOST" in caplog.text
    assert losses[0].place == key
    assert losses[0].messages is None


async def test_entries_deleted_while_pending_are_told(
    short_url: str, plain: Any, caplog: pytest.LogCaptureFixture
) -> None:
    topic = event()
    key = key_of(short_url, topic)
    async with direct(short_url) as broker:
        await broker.declare([topic], [SubscriptionSpec("readers", (topic,))])
        await send(broker, [message(topic, n) for n in range(5)])
        got = plain.xreadgroup("readers", "dead", {key: ">"})[0][1]
        plain.xdel(key, got[0][0], got[1][0])
        receiver = await join(broker, "readers", topic)
        await receiver.receive(3)
    assert "2 entries" in caplog.text


# --- others ---------------------------------------------------------------------------------------
async def test_a_plain_client_produces_and_consumes(redis_url: str, plain: Any) -> None:
    topic = event()
    key = key_of(redis_url, topic)
    async with direct(redis_url) as broker:
        receiver = await join(broker, "readers", topic)
        plain.xgroup_create(key, "warehouse", "0")
        foreign = {
            "ce_id": "f-1",
            "ce_type": "order.placed",
            "ce_source": "/warehouse",
            "ce_partitionkey": "anna",
            "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "ce_data": '{"order_id":2}',
        }
        plain.xadd(key, foreign)
        place = plain.xadd(key, {"ce_type": "order.placed", "ce_data": "{}"})
        structured = '{"specversion":"1.0","id":"s-1","type":"a.b","source":"/w","data":[1]}'
        plain.xadd(
            key,
            {"ce_datacontenttype": "application/cloudevents+json", "ce_data": structured},
        )
        plain.xadd(key, {"anything": b"\xff\xfe", "else": ""})
        first, second, third, fourth = await receiver.receive(4)
        assert (first.id, first.type, first.source, first.key) == (
            *("f-1", "order.placed", "/warehouse"),
            "anna",
        )
        assert first.payload == b'{"order_id":2}'
        assert "traceparent" in first.headers
        assert second.id == f"{key}/{place.decode()}"  # the same at every redelivery
        assert (third.id, third.payload) == ("s-1", b"[1]")
        assert fourth.type == ""
        ours = message(topic, 7, key="k")
        await send(broker, [ours])
        *_, (_, fields) = plain.xreadgroup("warehouse", "me", {key: ">"})[0][1]
        assert fields[b"ce_id"].decode() == ours.id
        assert fields[b"ce_source"] == b"/duly/conformance"
        assert fields[b"ce_data"] == b"7"
        peeked = await broker.peek(topic.name, limit=2)
        assert [p.message.id for p in peeked][-1] == ours.id
        again = await broker.peek(topic.name, after=peeked[0].cursor)
        assert [p.message.id for p in again] == [ours.id]
        status = {t.name: t for t in await broker.topics()}[topic.name]
        groups = {g.group: g for g in status.groups}
        assert (status.depth, groups["warehouse"].lag, groups["readers"].members) == (5, 5, 1)
