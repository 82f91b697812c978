from __future__ import annotations

from collections import Counter
from hashlib import md5
from itertools import product

from duly.brokers.nats import topology
from duly.brokers.nats.settings import parse
from duly.ports import SubscriptionSpec, TopicSpec


def test_names() -> None:
    topic = TopicSpec("orders.v1", "event")
    assert topology.stream_name("shop", topic) == "shop-event-orders~v1"
    assert topology.subject_of("shop", topic, "*") == "shop.event.orders~v1.*"
    assert topology.consumer_name("a.b", topic) == "a~b"
    assert topology.consumer_name("a.b", topic, 3) == "a~b+3"
    assert topology.consumer_name("a.b", TopicSpec("x", "command")) == "queue"


def test_no_two_share_a_name() -> None:
    words = ["a", "a.b", "a-b", "b", "event-a", "a..b", "a.", "0"]
    topics = [TopicSpec(word, kind) for word, kind in product(words, ("event", "command"))]
    streams = Counter(topology.stream_name(p, t) for p, t in product(("x", "x_event"), topics))
    assert max(streams.values()) == 1
    event = TopicSpec("t", "event")
    places = [None, *range(topology.PARTITIONS)]
    consumers = Counter(topology.consumer_name(g, event, n) for g, n in product(words, places))
    assert max(consumers.values()) == 1
    for subject in (topology.subject_of("x", t, 3) for t in topics):
        words_of = subject.split(".")
        assert len(words_of) == 4
        assert all(words_of)


def test_the_place_of_a_key_is_part_of_the_wire_format() -> None:
    keys = [f"customer-{n}" for n in range(6)]
    found = [topology.partition_of("orders", key) for key in keys]
    assert found == [15, 14, 10, 4, 15, 3]
    digests = [md5(f"6:orders{len(key)}:{key}".encode()).digest() for key in keys]
    assert found == [int.from_bytes(digest[:4], "big") % 16 for digest in digests]


def test_a_group_in_order_has_one_message_of_a_key_under_way() -> None:
    settings = parse("nats://host/shop")
    one, two = TopicSpec("one", "event"), TopicSpec("two", "command")
    sources = topology.sources_of("shop", SubscriptionSpec("g", (one, two), ordered=True))
    assert len(sources) == 2 * topology.PARTITIONS
    made = [topology.consumer_settings(settings, source) for source in sources]
    assert {config["max_ack_pending"] for config in made} == {1}
    assert len({config["filter_subject"] for config in made}) == len(sources)
    (free,) = topology.sources_of("shop", SubscriptionSpec("g", (one,)))
    config = topology.consumer_settings(settings, free)
    assert config["filter_subject"] == "shop.event.one.*"
    assert config["max_ack_pending"] > 1


def test_a_stream_forgets_nothing_that_somebody_waits_for() -> None:
    settings = parse("nats://host/shop?replicas=3")
    event = topology.stream_settings(settings, TopicSpec("one", "event"))
    queue = topology.stream_settings(settings, TopicSpec("one", "command"))
    assert (event["retention"], queue["retention"]) == ("interest", "workqueue")
    for config in (event, queue):
        assert (config["storage"], config["num_replicas"]) == ("file", 3)
        assert (config["max_age"], config["max_msgs"], config["max_bytes"]) == (0, -1, -1)
