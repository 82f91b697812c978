"""The suite that a broker adapter must pass; public, so that anybody can certify an adapter.

Derive a class, give it a fixture named ``target``, and run it with pytest and pytest-asyncio in
auto mode::

    class TestMyBroker(BrokerConformance):
        @pytest.fixture
        def target(self, my_server):
            return Target(make=lambda: MyBroker(my_server.url), features=..., ...)

The invariant: every promise of ``duly.ports.Broker`` is tried on the real server, what is declared
in ``BrokerFeatures`` is shown to hold and what is not declared is shown to be absent. A durable
adapter must say how its server is restarted, a networked one how it is silenced; there is nothing
to skip. Speed and what needs a killed process are measured elsewhere.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from uuid import uuid4

import pytest

from duly.message import (
    HEADER_REPLACES,
    HEADER_SOURCE,
    HEADER_TIME,
    HEADER_VERSION,
    Message,
    new_id,
)
from duly.ports import Broker, Outcome, OutcomeKind, SubscriptionSpec, TopicSpec
from duly.testing.broker_target import (
    CLOSE_SECONDS,
    PUBLISH_SECONDS,
    QUIET_SECONDS,
    RECEIVE_SECONDS,
    Receiver,
    Target,
    command,
    event,
    join,
    message,
    out_of_order,
    pair,
    publish,
    quiet,
    send,
    started,
    twice,
    unrouted,
)

__all__ = ["BrokerConformance", "Target"]

OVERSIZE_BYTES_MAX = 300_000_000  # larger caps are not tried

NAMES = (
    "a",
    "7",
    "Orders",
    "orders.v1_x-y",
    "amq.orders",
    "x" * 120,
)


class BrokerConformance:
    """Derive, and give it a fixture ``target``. Every test uses topics and groups of its own."""

    # --- what is declared ---------------------------------------------------------------------
    async def test_features_are_those_required(self, target: Target) -> None:
        assert target.make().features == target.features

    async def test_it_is_a_broker_and_says_what_it_thinks_of_its_server(
        self, target: Target
    ) -> None:
        async with started(target) as broker:
            assert isinstance(broker, Broker)
            findings = await broker.inspect()
        assert findings
        assert all(f.code and f.message for f in findings)
        assert all(f.fix for f in findings if f.severity.value != "green")

    # --- one message --------------------------------------------------------------------------
    async def test_every_field_survives(self, target: Target) -> None:
        topic = event()
        headers = {
            HEADER_VERSION: "3",
            HEADER_SOURCE: "shop",
            HEADER_TIME: "2026-01-02T03:04:05Z",
            HEADER_REPLACES: new_id(),
            "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "greeting": "prêt à tester \N{SNOWMAN} 東京 \U0001f600",
        }
        sent = [
            message(topic, 1),
            Message(new_id(), "a.b", "event", topic.name, "ключ \U0001f511", b"{}", headers),
            message(topic, key="k", payload=b""),
            message(topic, key=" a/b#*:>?%00'\" ", payload=bytes(range(256))),
            message(topic, key="x" * 250, payload=b"\xff\xfe\x00"),
        ]
        await self._round_trip(target, topic, sent)

    async def test_a_command_survives(self, target: Target) -> None:
        queue = command()
        await self._round_trip(target, queue, [message(queue, n, key="k") for n in range(3)])

    async def test_a_large_message_survives(self, target: Target) -> None:
        topic = event()
        payload = bytes(range(251)) * (target.payload_bytes // 251 + 1)
        sent = [message(topic, payload=payload[: target.payload_bytes]), message(topic, 2)]
        await self._round_trip(target, topic, sent)

    async def _round_trip(self, target: Target, topic: TopicSpec, sent: Sequence[Message]) -> None:
        async with started(target) as broker:
            receiver = await join(broker, "readers", topic)
            await send(broker, sent)
            got = await receiver.receive(len(sent))
            await quiet(receiver, len(sent))
        by_id = {m.id: m for m in got}
        for one in sent:
            assert by_id[one.id] == one
        assert all(d.source for d in receiver.deliveries)
        places = [(d.source, d.position) for d in receiver.deliveries if d.position]
        assert len(set(places)) == len(places)

    # --- outcomes -----------------------------------------------------------------------------
    async def test_nothing_published_is_nothing_answered(self, target: Target) -> None:
        async with started(target) as broker:
            assert list(await broker.publish([], deadline_seconds=1.0)) == []

    async def test_an_event_nobody_reads_is_unrouted(self, target: Target) -> None:
        topic = event()
        async with started(target) as broker:
            await broker.declare([topic], [])
            outcomes = await broker.publish([message(topic)], deadline_seconds=PUBLISH_SECONDS)
        assert [o.kind for o in outcomes] == [unrouted(target)]

    async def test_a_command_nobody_handles_is_unrouted(self, target: Target) -> None:
        queue = command()
        async with started(target) as broker:
            await broker.declare([queue], [])
            outcomes = await broker.publish([message(queue)], deadline_seconds=PUBLISH_SECONDS)
        assert [o.kind for o in outcomes] == [unrouted(target)]

    async def test_a_topic_never_declared_harms_no_other(self, target: Target) -> None:
        known, unknown = event(), event("nowhere")
        async with started(target) as broker:
            receiver = await join(broker, "readers", known)
            stray = message(unknown)
            first = await broker.publish(
                [message(known, 1), stray, message(known, 2)], deadline_seconds=PUBLISH_SECONDS
            )
            assert first[1].kind in (OutcomeKind.UNROUTED, OutcomeKind.CONFIRMED)
            if target.features.reports_unrouted:
                assert first[1].kind is OutcomeKind.UNROUTED
            again = [message(known, n) for n in range(3, 6)]
            await send(broker, again)
            await receiver.until(lambda: {m.id for m in again} <= set(receiver.ids))
        assert stray.id not in receiver.ids

    async def test_outcomes_are_in_the_order_of_the_batch(self, target: Target) -> None:
        known, unread = event(), event("unread")
        cap = target.features.payload_bytes_max
        batch = [message(unread if n % 3 == 1 else known, n) for n in range(300)]
        wanted = [unrouted(target) if n % 3 == 1 else OutcomeKind.CONFIRMED for n in range(300)]
        if cap is not None and cap <= OVERSIZE_BYTES_MAX:
            batch[150] = message(known, payload=bytes(cap + 1))
            wanted[150] = OutcomeKind.IMPOSSIBLE
        async with started(target) as broker:
            await broker.declare([known, unread], [])
            receiver = await join(broker, "readers", known)
            outcomes = await broker.publish(batch, deadline_seconds=PUBLISH_SECONDS)
            assert [o.kind for o in outcomes] == wanted
            assert all(o.error for o in outcomes if o.kind is not OutcomeKind.CONFIRMED)
            due = [
                m.id
                for m, kind in zip(batch, wanted, strict=True)
                if kind is OutcomeKind.CONFIRMED and m.topic == known.name
            ]
            await receiver.receive(len(due))
            await quiet(receiver, len(due))
            assert sorted(receiver.ids) == sorted(due)

    async def test_a_message_that_is_not_text_is_impossible(self, target: Target) -> None:
        topic = event()
        async with started(target) as broker:
            receiver = await join(broker, "readers", topic)
            batch = [message(topic, 1), message(topic, 2, key="\ud800"), message(topic, 3)]
            outcomes = await broker.publish(batch, deadline_seconds=PUBLISH_SECONDS)
            kinds = [o.kind for o in outcomes]
            assert kinds == [
                OutcomeKind.CONFIRMED,
                OutcomeKind.IMPOSSIBLE,
                OutcomeKind.CONFIRMED,
            ]
            await receiver.receive(2)

    async def test_publishes_may_overlap(self, target: Target) -> None:
        topic = event()
        batches = [[message(topic, n) for n in range(200)] for _ in range(8)]
        async with started(target) as broker:
            receiver = await join(broker, "readers", topic)
            answers = await asyncio.gather(
                *[broker.publish(b, deadline_seconds=PUBLISH_SECONDS) for b in batches]
            )
            assert all(_confirmed(outcomes) for outcomes in answers)
            await receiver.receive(1600)
            await quiet(receiver, 1600)
        assert sorted(receiver.ids) == sorted(m.id for b in batches for m in b)

    async def test_a_cancelled_publish_harms_no_other(self, target: Target) -> None:
        topic = event()
        async with started(target) as broker:
            receiver = await join(broker, "readers", topic)
            given_up = [message(topic, n) for n in range(2000)]
            task = asyncio.create_task(publish(broker, given_up, deadline_seconds=PUBLISH_SECONDS))
            await asyncio.sleep(0.001)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            sent = [message(topic, n) for n in range(100)]
            await send(broker, sent)
            wanted = {m.id for m in sent}
            await receiver.until(lambda: wanted <= set(receiver.ids))
        assert set(receiver.ids) <= wanted | {m.id for m in given_up}
        assert not twice(receiver.ids)

    async def test_the_deadline_holds_when_the_server_is_silent(self, target: Target) -> None:
        if target.stalled is None:
            assert not target.shared, "a broker that others can stall needs stalled"
            return
        topic = event()
        async with started(target) as broker:
            receiver = await join(broker, "readers", topic)
            batch = [message(topic, n) for n in range(500)]
            async with target.stalled() as stalled:
                began = time.monotonic()
                outcomes = await stalled.publish(batch, deadline_seconds=1.0)
                took = time.monotonic() - began
            assert took < 4.0
            kinds = {o.kind for o in outcomes}
            assert kinds <= {OutcomeKind.UNKNOWN, OutcomeKind.UNAVAILABLE}
            await asyncio.sleep(2 * QUIET_SECONDS)
            pairs = zip(batch, outcomes, strict=True)
            unsent = {m.id for m, o in pairs if o.kind is OutcomeKind.UNAVAILABLE}
            assert not unsent & set(receiver.ids), "sent after the deadline"

    # --- groups -------------------------------------------------------------------------------
    async def test_every_group_gets_everything(self, target: Target) -> None:
        topic = event()
        sent = [message(topic, n, key=f"k{n % 7}") for n in range(300)]
        async with started(target) as broker:
            receivers = [await join(broker, group, topic) for group in ("one", "two", "three")]
            await send(broker, sent)
            for receiver in receivers:
                await receiver.receive(300)
            await quiet(receivers[0], 300)
        for receiver in receivers:
            assert sorted(receiver.ids) == sorted(m.id for m in sent)

    async def test_a_group_shares_the_work(self, target: Target) -> None:
        topic = event()
        async with pair(target) as (one, two):
            left = await join(one, "workers", topic, prefetch=20)
            right = await join(two, "workers", topic, prefetch=20)
            sent: list[Message] = []

            async def until_both_work() -> None:
                while not (left.deliveries and right.deliveries):
                    more = [message(topic, n, key=f"k{n}") for n in range(100)]
                    await send(one, more)
                    sent.extend(more)
                    await asyncio.sleep(0.1)

            await asyncio.wait_for(until_both_work(), RECEIVE_SECONDS)
            await left.until(lambda: len(left.ids) + len(right.ids) >= len(sent))
            await quiet(left, len(left.ids))
            assert sorted(left.ids + right.ids) == sorted(m.id for m in sent)

    async def test_a_command_goes_to_one_receiver_whatever_its_group(self, target: Target) -> None:
        queue = command()
        async with pair(target) as (one, two):
            left = await join(one, "here", queue)
            right = await join(two, "there", queue)
            sent = [message(queue, n, key=f"k{n}") for n in range(200)]
            await send(one, sent)
            await left.until(lambda: len(left.ids) + len(right.ids) >= 200)
            await quiet(left, len(left.ids))
            assert sorted(left.ids + right.ids) == sorted(m.id for m in sent)

    async def test_a_late_group_sees_what_is_declared(self, target: Target) -> None:
        topic = event()
        async with started(target) as broker:
            early = await join(broker, "early", topic)
            old = [message(topic, n) for n in range(20)]
            await send(broker, old)
            await early.receive(20)
            late = await join(broker, "late", topic)
            newest = await join(broker, "newest", topic, from_start=False)
            new = [message(topic, n) for n in range(20, 30)]
            await send(broker, new)
            history = old if target.features.late_subscriber_sees_history else []
            await late.receive(len(history) + 10)
            await newest.receive(10)
            await quiet(late, len(history) + 10)
        assert sorted(late.ids) == sorted(m.id for m in [*history, *new])
        assert sorted(newest.ids) == sorted(m.id for m in new)

    async def test_one_subscription_reads_several_topics(self, target: Target) -> None:
        topics = [event("one"), event("two"), command("three")]
        async with started(target) as broker:
            spec = SubscriptionSpec("readers", tuple(topics), prefetch=50)
            await broker.declare(topics, [spec])
            receiver = Receiver(await broker.subscribe(spec))
            sent = [message(topics[n % 3], n) for n in range(120)]
            await send(broker, sent)
            await receiver.receive(120)
            await receiver.close()
        assert {m.id: m for m in receiver.messages} == {m.id: m for m in sent}

    async def test_names_of_the_whole_alphabet_work_and_stay_apart(self, target: Target) -> None:
        mark = uuid4().hex[:8]
        topics = [TopicSpec(f"{name}-{mark}"[-120:], "event") for name in NAMES]
        topics[-1] = TopicSpec("x" * 112 + mark, "event")
        groups = ["a", "amq", "a.b", "G" * 120]
        apart = [
            (TopicSpec(f"b.c-{mark}", "event"), "a"),
            (TopicSpec(f"c-{mark}", "event"), "a.b"),
            (TopicSpec(f"a.b.c-{mark}", "command"), "a"),
        ]
        async with started(target) as broker:
            pairs = [(t, g) for t, g in zip(topics, groups * 2, strict=False)] + apart
            receivers = [await join(broker, group, topic) for topic, group in pairs]
            sent = [message(topic, n) for n, (topic, _) in enumerate(pairs)]
            await send(broker, sent)
            for receiver, one in zip(receivers, sent, strict=True):
                assert await receiver.receive(1) == [one]
            await quiet(receivers[-1], 1)
            assert all(len(r.ids) == 1 for r in receivers)

    async def test_declaring_again_changes_nothing(self, target: Target) -> None:
        topic = event()
        spec = SubscriptionSpec("readers", (topic,))
        async with pair(target) as (one, two):
            await one.declare([topic], [spec])
            sent = [message(topic, n) for n in range(5)]
            await send(one, sent)
            for broker in (one, two, one):
                await broker.declare([topic], [spec])
            receiver = await join(two, "readers", topic)
            await receiver.receive(5)
            await quiet(receiver, 5)

    # --- acks ---------------------------------------------------------------------------------
    async def test_what_is_acked_does_not_come_back(self, target: Target) -> None:
        topic = event()
        async with pair(target) as (one, two):
            first = await join(one, "readers", topic)
            await send(one, [message(topic, n, key=f"k{n}") for n in range(100)])
            await first.receive(100)
            await first.close()
            second = await join(two, "readers", topic)
            await quiet(second, 0)
            last = message(topic, 100)
            await send(one, [last])
            assert await second.receive(1) == [last]

    async def test_what_is_not_acked_comes_back(self, target: Target) -> None:
        topic = event()
        async with pair(target) as (one, two):
            first = await join(one, "readers", topic, acking=False)
            sent = [message(topic, n, key=f"k{n % 5}") for n in range(50)]
            await send(one, sent)
            await first.receive(50)
            done = {d.message.id for d in first.deliveries if d.message.key == "k0"}
            tokens = [d.token for d in first.deliveries if d.message.id in done]
            await first.subscription.ack(tokens)
            await first.close()
            await first.subscription.ack([d.token for d in first.deliveries])  # late: dropped
            second = await join(two, "readers", topic)
            wanted = {m.id for m in sent} - done
            if target.features.redelivers:
                await second.until(lambda: wanted <= set(second.ids))
            else:
                await quiet(second, 0)
            assert set(second.ids) <= {m.id for m in sent}
            assert not twice(second.ids)

    async def test_acks_may_come_in_any_order(self, target: Target) -> None:
        topic = event()
        async with pair(target) as (one, two):
            first = await join(one, "readers", topic, acking=False)
            await send(one, [message(topic, n) for n in range(60)])
            await first.receive(60)
            tokens = [d.token for d in first.deliveries]
            for part in (tokens[1::2], tokens[::-2][:10], tokens[::2], tokens[5:9]):
                await first.subscription.ack(part)
            await first.subscription.ack([])
            await first.close()
            second = await join(two, "readers", topic)
            await quiet(second, 0)

    async def test_no_more_than_prefetch_is_under_way(self, target: Target) -> None:
        topic = event()
        async with started(target) as broker:
            receiver = await join(broker, "readers", topic, acking=False, prefetch=10)
            await send(broker, [message(topic, n, key=f"k{n}") for n in range(100)])
            await receiver.receive(10)
            await quiet(receiver, 10)
            while len(receiver.deliveries) < 100:
                had = len(receiver.deliveries)
                await receiver.ack_all()
                await receiver.until(lambda had=had: len(receiver.deliveries) > had)  # type: ignore[misc]
            assert receiver.largest_batch <= 10
            assert not twice(receiver.ids)

    async def test_what_is_released_goes_to_others(self, target: Target) -> None:
        topic = event()
        async with pair(target) as (one, two):
            first = await join(one, "readers", topic, acking=False)
            sent = [message(topic, n, key=f"k{n}") for n in range(40)]
            await send(one, sent)
            await first.receive(40)
            second = await join(two, "readers", topic)
            await first.subscription.release([d.token for d in first.deliveries])
            seen = {m.id for m in sent}
            if target.features.redelivers:
                await second.until(lambda: bool(second.ids), what="released messages")
                await first.close()
                await second.until(lambda: seen <= set(second.ids), what="all released messages")
            else:
                await quiet(second, 0)
            assert set(second.ids) <= seen

    # --- order --------------------------------------------------------------------------------
    async def test_an_ordered_group_sees_each_key_in_order(self, target: Target) -> None:
        topic = event()
        async with started(target) as broker:
            receiver = await join(broker, "readers", topic, ordered=True, prefetch=64)
            sent = [message(topic, n, key=f"k{n % 11}") for n in range(1000)]
            for start in range(0, 1000, 100):
                await send(broker, sent[start : start + 100])
            await receiver.receive(1000)
        if target.features.ordered_source:
            assert out_of_order(receiver.messages) == []
        assert sorted(receiver.ids) == sorted(m.id for m in sent)

    async def test_an_ordered_source_has_one_receiver_and_a_heir(self, target: Target) -> None:
        topic = event()
        if not target.features.ordered_source:
            return  # nothing is promised, and a lone key may go anywhere
        async with pair(target) as (one, two):
            left = await join(one, "readers", topic, ordered=True)
            right = await join(two, "readers", topic, ordered=True)
            sent = [message(topic, n, key="one key") for n in range(200)]
            for start in range(0, 100, 10):
                await send(one, sent[start : start + 10])
            await left.until(lambda: len(left.ids) + len(right.ids) >= 100)
            active, heir = (left, right) if len(left.ids) > len(right.ids) else (right, left)
            await active.close()
            for start in range(100, 200, 10):
                await send(one, sent[start : start + 10])
            await heir.until(lambda: set(left.ids) | set(right.ids) >= {m.id for m in sent})
            assert out_of_order(left.messages) == out_of_order(right.messages) == []
            moved = {m.source for m in heir.deliveries} & {m.source for m in active.deliveries}
            assert moved, "the heir read other sources"

    # --- life ---------------------------------------------------------------------------------
    async def test_close_is_quick_and_may_be_repeated(self, target: Target) -> None:
        topic = event()
        broker = target.make()
        await broker.start()
        receiver = await join(broker, "readers", topic, acking=False)
        await send(broker, [message(topic, n) for n in range(20)])
        await receiver.receive(20)
        began = time.monotonic()
        await broker.close()
        await broker.close()
        assert time.monotonic() - began < CLOSE_SECONDS
        await receiver.close()
        await receiver.subscription.release([d.token for d in receiver.deliveries])
        outcomes = await broker.publish([message(topic)], deadline_seconds=1.0)
        assert [o.kind for o in outcomes] == [OutcomeKind.UNAVAILABLE]

    async def test_closing_what_was_never_started_is_fine(self, target: Target) -> None:
        await target.make().close()

    @pytest.fixture
    def restartable(self, target: Target) -> Target:
        """The target whose server may be restarted; override it where the other is shared."""
        return target

    async def test_confirmed_messages_survive_a_restart(self, restartable: Target) -> None:
        target = restartable
        if target.restart is None:
            assert not target.features.durable
            return
        topic, unread = event(), event("later")
        specs = [SubscriptionSpec("readers", (topic,)), SubscriptionSpec("readers", (unread,))]
        async with started(target) as broker:
            await broker.declare([topic, unread], specs)
            await asyncio.sleep(target.settle_seconds)
            receiver = await join(broker, "readers", topic)
            before = [message(topic, n) for n in range(50)]
            kept = [message(unread, n) for n in range(50)]
            await send(broker, [*before, *kept])
            await receiver.receive(50)
            await target.restart()
            after = [message(topic, n) for n in range(50, 60)]
            await send(broker, after)
            wanted = {m.id for m in [*before, *after]}
            await receiver.until(lambda: wanted <= set(receiver.ids), 30.0)
            assert set(receiver.ids) == wanted
            later = await join(broker, "readers", unread)
            await later.receive(50)
            assert sorted(set(later.ids)) == sorted(m.id for m in kept)


def _confirmed(outcomes: Sequence[Outcome]) -> bool:
    return all(o.kind is OutcomeKind.CONFIRMED for o in outcomes)
