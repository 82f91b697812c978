from __future__ import annotations

import json
from datetime import UTC, datetime
from functools import partial

import pytest

from duly.message import HEADER_BYTES_MAX, HEADER_UNDECODABLE, HEADERS_MAX, Message
from duly.wire.cloudevents import HeaderWriter, _common, from_headers, from_structured, to_headers

AMQP, KAFKA = "cloudEvents:", "ce_"
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

FULL = Message(
    id="0192f0c1a2b37c4d8e5f60718293a4b5",
    type="billing.charge_card",
    kind="command",
    topic="billing",
    key="Kunde Müller 7",
    payload=b'{"order_id":7}',
    headers={
        "dulyversion": "3",
        "source": "shop",
        "time": "2026-02-03T04:05:06.789012Z",
        "dulyreplaces": "0192f0c1",
        "traceparent": TRACE,
        "tenant": "größe",
    },
)


def read(headers, payload=b"{}", *, prefix=KAFKA, topic="orders"):
    return from_headers(headers, payload, prefix=prefix, topic=topic, fallback_id="orders/0/17")


def assert_broken(message: Message, why: str) -> None:
    assert message.headers == {HEADER_UNDECODABLE: f"illegal {why}"}
    assert (message.id, message.type, message.kind) == ("orders/0/17", "", "event")


def test_headers_are_those_of_the_specification():
    assert to_headers(FULL, prefix=AMQP) == {
        "traceparent": TRACE,
        "tenant": "größe",
        "cloudEvents:specversion": "1.0",
        "cloudEvents:id": FULL.id,
        "cloudEvents:type": "billing.charge_card",
        "cloudEvents:source": "/duly/shop",
        "cloudEvents:time": "2026-02-03T04:05:06.789012Z",
        "cloudEvents:datacontenttype": "application/json",
        "cloudEvents:partitionkey": "Kunde Müller 7",
        "cloudEvents:dulykind": "command",
        "cloudEvents:dulyversion": "3",
        "cloudEvents:dulyreplaces": "0192f0c1",
    }


@pytest.mark.parametrize(
    "headers",
    [
        FULL.headers,
        {},
        {"source": "https://shop.example/x", "time": "", "dulyreplaces": ""},
        {"tenant": "t", "ce_type": "overridden", "ce_id": "overridden", "ce_dulyversion": "kept"},
    ],
)
@pytest.mark.parametrize("key", ["k", "", None])
def test_a_writer_writes_the_same_headers_in_two_parts(headers, key):
    written = []
    writer = HeaderWriter(KAFKA, lambda part: written.append(part) or dict(part))
    message = Message("id", FULL.type, "event", "orders", key, b"{}", headers)
    shared, own = writer.write(message)
    assert shared.keys().isdisjoint(own)
    assert shared | own == to_headers(message, prefix=KAFKA)
    again = Message("other", FULL.type, "event", "refunds", "k", b"{}", headers)
    assert writer.write(again)[0] is shared
    assert len(written) == 3  # what they have in common is encoded once


@pytest.mark.parametrize("prefix", [AMQP, "cloudEvents_", KAFKA, "ce-"])
def test_what_was_written_is_read_back(prefix):
    headers = to_headers(FULL, prefix=prefix)
    again = from_headers(headers, FULL.payload, prefix=prefix, topic="billing", fallback_id="x")
    assert again == FULL


def test_a_bare_message_comes_back_bare():
    bare = Message(
        id="1", type="a", kind="event", topic="orders", key=None, payload=b"", headers={}
    )
    headers = to_headers(bare, prefix=KAFKA)
    assert set(headers) == {
        "ce_specversion", "ce_id", "ce_type", "ce_source", "ce_datacontenttype", "ce_dulykind"
    }  # fmt: skip
    assert read(headers, b"") == bare


@pytest.mark.parametrize("source", ["shop", "https://other.example/x", "/duly/a/b", "urn:x:1"])
def test_sources_survive(source):
    message = Message("1", "a", "event", "orders", None, b"{}", {"source": source})
    assert read(to_headers(message, prefix=KAFKA)).source == source


def test_amqp_readers_accept_both_prefixes():
    headers = {"cloudEvents_id": "1", "cloudEvents:type": "a.b", "cloudEvents:id": "2"}
    message = read(headers, prefix=AMQP)
    assert (message.id, message.type) == ("1", "a.b")  # the first of two ids


def test_a_foreign_message_without_any_attribute():
    message = read({"content-type": "application/json"})
    assert message == Message(
        "orders/0/17", "", "event", "orders", None, b"{}", {"content-type": "application/json"}
    )


def test_empty_and_absent_are_the_same():
    message = read(
        {"ce_id": "", "ce_type": None, "ce_partitionkey": "", "ce_time": "", "ce_source": ""}
    )
    assert message == Message("orders/0/17", "", "event", "orders", None, b"{}", {})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("specversion", "0.3"),
        ("specversion", "2.0"),
        ("specversion", "1.0\n"),
        ("id", "a\nb"),
        ("id", "a\0"),
        ("id", "x" * 256),
        ("id", "x" * 1_000_000),
        ("id", "é" * 200),
        ("id", "\ud800"),
        ("id", b"\xff\xfe"),
        ("id", ["a"]),
        ("id", 1.5),
        ("id", 2**63),
        ("type", "a\u2028b"),
        ("type", {"a": 1}),
        ("partitionkey", "a\0b"),
        ("partitionkey", "\ud800"),
        ("partitionkey", "x" * 1_025),
        ("dulykind", "query"),
        ("dulykind", "Event"),
        ("dulyversion", "0"),
        ("dulyversion", "-1"),
        ("dulyversion", "1.0"),
        ("dulyversion", "٣"),
        ("dulyversion", "1000000"),
        ("dulyreplaces", "a\r"),
        ("source", "a\x85b"),
    ],
)
def test_what_decides_identity_meaning_or_order_is_never_guessed(name, value):
    assert_broken(read({"ce_id": "1", "ce_type": "a", f"ce_{name}": value, "h": "v"}), name)


def test_values_of_other_types_are_read_as_text_where_that_is_certain():
    headers = {
        "ce_id": 17,
        "ce_type": b"order.placed",
        "ce_time": datetime(2026, 1, 2, 3, 4, 5),  # noqa: DTZ001  # as AMQP clients give it
        "flag": True,
        "off": False,
        "n": -3,
    }
    message = read(headers)
    assert (message.id, message.type) == ("17", "order.placed")
    assert message.time == "2026-01-02T03:04:05Z"
    assert message.headers | {} == {
        "time": "2026-01-02T03:04:05Z", "flag": "true", "off": "false", "n": "-3"
    }  # fmt: skip
    aware = read({"ce_time": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)})
    assert aware.time == "2026-01-02T03:04:05+00:00"


def test_text_of_a_subclass_is_text():
    class Label(str):
        __slots__ = ()

    assert read({"ce_id": Label("1")}).id == "1"


@pytest.mark.parametrize(
    "text",
    ["2026-01-02T03:04:05Z", "1970-01-01T00:00:00+14:00", "9999-12-31T23:59:59.123456789Z"],
)
def test_times_are_kept_as_written(text):
    assert read({"ce_time": text}).time == text


def test_a_leap_second_becomes_the_second_before_it():
    assert read({"ce_time": "2016-12-31T23:59:60Z"}).time == "2016-12-31T23:59:59Z"


@pytest.mark.parametrize(
    "text",
    ["now", "2026-01-02", "2026-02-30T00:00:00Z", "2026-01-02T03:04:05", "0000-01-01T00:00:00Z"],
)
def test_what_is_no_time_is_dropped(text):
    assert read({"ce_id": "1", "ce_time": text}) == Message(
        "1", "", "event", "orders", None, b"{}", {}
    )


def test_unknown_attributes_become_headers_but_give_way():
    message = read(
        {"ce_subject": "s", "ce_sequence": "9", "sequence": "own", "ce_": "x", "ce_a b": "y"}
    )
    assert message.headers == {"subject": "s", "sequence": "own"}


@pytest.mark.parametrize(
    "name", ["source", "time", "dulyversion", "dulyreplaces", HEADER_UNDECODABLE, "id", "type"]
)
def test_a_header_cannot_pass_for_an_attribute(name):
    assert read({name: "2026-01-02T03:04:05Z", "ce_id": "1"}).headers == {}


def test_a_foreign_mark_of_undecodable_is_dropped():
    assert read({f"ce_{HEADER_UNDECODABLE}": "x", "ce_id": "1"}).headers == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("", "v"),
        ("a b", "v"),
        ("ä", "v"),
        ("n" * 101, "v"),
        ("ce-x", "v"),
        ("CloudEvents:id", "v"),
        ("a", "\x7f"),
        ("a", "\u2028"),
        ("a", b"\xff"),
        ("a", [1]),
        ("a", "x" * (HEADER_BYTES_MAX + 1)),
        (7, "v"),
        (b"a", "v"),
    ],
)
def test_headers_that_are_not_legal_are_dropped(name, value):
    assert read({name: value, "ce_id": "1", "ok": "v"}).headers == {"ok": "v"}


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("a\r\nb", "v", "'a\\r\\nb'"),
        ("a", "v\r\nInjected: yes", "'a'"),
        ("a", "v\n", "'a'"),
        ("a", "\0", "'a'"),
        ("a", b"v\0", "'a'"),
        ("ce_a", "v\r", "'a'"),
        ("\0" * 100, "v", ascii("\0" * 100)[:80]),
    ],
)
def test_a_header_that_would_split_another_marks_the_message_and_is_not_kept(name, value, shown):
    message = read({name: value, "ce_id": "1", "ce_type": "a", "ok": "v"})
    reason = f"header {shown} with CR, LF or NUL"
    assert (message.id, message.type) == ("1", "a")
    assert message.headers == {"ok": "v", HEADER_UNDECODABLE: reason}


def test_ten_thousand_headers_are_cut_to_the_first_that_fit():
    headers = {f"h{n}": "v" for n in range(10_000)} | {f"ce_x{n}": "v" for n in range(10_000)}
    message = read(headers | {"ce_id": "1"})
    assert message.id == "1"
    assert list(message.headers) == [f"h{n}" for n in range(HEADERS_MAX)]


def test_a_header_that_is_too_large_does_not_push_out_the_next():
    headers = {"a": "x" * 16_000, "b": "y" * 1_000, "traceparent": TRACE}
    assert set(read(headers).headers) == {"a", "traceparent"}


def test_every_key_that_publish_takes_is_read_back():
    for key in ("a\tb\r\n", "\u2028", "x" * 1_024, " "):
        message = Message("1", "a", "event", "orders", key, b"{}", {})
        assert read(to_headers(message, prefix=KAFKA)) == message


def test_without_any_id_and_any_place_there_is_none():
    read_without = partial(from_headers, prefix=KAFKA, topic="orders", fallback_id="")
    assert read_without({"ce_type": "a"}, b"").id == ""
    assert read_without({"ce_type": "a", "ce_id": "\0"}, b"").id == ""
    assert read_without({"ce_type": "a", "ce_id": "7"}, b"").id == "7"


@pytest.mark.parametrize("foreign", ["a\0b", "\ud800", "x" * 70_000])
def test_a_fallback_id_that_a_foreign_producer_had_a_hand_in(foreign):
    first, again = (
        from_headers({"ce_type": "a"}, b"", prefix=KAFKA, topic="orders", fallback_id=foreign).id
        for _ in range(2)
    )
    assert first == again
    assert first.isascii()
    assert first.isprintable()
    assert 0 < len(first) <= 255
    broken = from_headers({"ce_id": "\0"}, b"", prefix=KAFKA, topic="orders", fallback_id=foreign)
    assert broken.id == first


# --- structured mode ------------------------------------------------------------------------------
def structured(body, **more):
    payload = body if isinstance(body, bytes) else json.dumps(body).encode()
    return from_structured(payload, topic="orders", fallback_id="orders/0/17", **more)


def test_structured_mode():
    body = b"""{"specversion":"1.0", "id":"1", "type":"order.placed", "source":"/duly/shop",
        "time":"2026-01-02T03:04:05Z", "partitionkey":"k", "sequence":9, "deep":{"a":1},
        "subject":null, "data": {"n" : 1.50} }"""
    assert structured(body, headers={"tenant": "x"}) == Message(
        "1", "order.placed", "event", "orders", "k", b'{"n" : 1.50}',
        {"source": "shop", "time": "2026-01-02T03:04:05Z", "tenant": "x", "sequence": "9"},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("body", "payload"),
    [
        ({}, b""),
        ({"data": None}, b"null"),
        ({"data": "text"}, b'"text"'),
        ({"data_base64": "AAH/"}, b"\0\1\xff"),
    ],
)
def test_structured_data(body, payload):
    assert structured({"id": "1", **body}).payload == payload


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"null",
        b"{",
        b"\xff\xfe",
        b'{"id":"\\ud800"}',
        b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"data":' + b"[" * 100_000,
        b'{"data_base64":"!!!"}',
        b'{"data_base64":5}',
        b"\x80\x04\x95",
    ],
    ids=lambda b: ascii(b)[:25],
)
def test_a_broken_body_is_kept_whole_and_marked(body):
    message = structured(body)
    assert message.payload == body
    assert message.id == "orders/0/17"
    assert message.headers[HEADER_UNDECODABLE].startswith("structured mode")


def test_structured_attributes_obey_the_same_rules():
    assert_broken(structured({"id": ["a"], "data": 1}), "id")
    assert_broken(structured({"id": "1", "dulykind": "query"}), "dulykind")


MOMENT = "2026-02-03T04:05:06.789012Z"
PLAIN = {"ce_type": "order.placed", "ce_source": "/duly/shop", "ce_id": "1", "ce_time": MOMENT}


@pytest.mark.parametrize(
    "changed",
    [
        {"ce_id": "2", "ce_time": "2026-02-03T04:05:07Z", "ce_partitionkey": "k"},
        {"ce_id": ""},
        {"ce_id": "a\nb"},
        {"ce_id": None},
        {"ce_time": ""},
        {"ce_time": "yesterday"},
        {"ce_time": "2026-02-03T04:05:60Z"},
        {"ce_partitionkey": ""},
        {"ce_partitionkey": "k" * 2000},
        {"ce_partitionkey": 7},
        {"ce_id": b"7"},
        {"ce_id": b"\xff"},
        {"ce_time": b"2026-02-03T04:05:06Z"},
        {"ce_partitionkey": b"\xff"},
        {"tenant": b"\xff"},
        {"ce_type": "a\nb"},
        {"cloudEvents:id": "other"},
        {"traceparent": TRACE},
        {"tenant": "1"},
        {"tenant": True},
        {"tenant": 1},
        {f"h{n}": "x" for n in range(20)},
    ],
    ids=str,
)
def test_what_was_read_of_one_message_changes_nothing_for_the_next(changed):
    read(PLAIN)
    first = read({**PLAIN, **changed})
    _common.cache_clear()
    assert read({**PLAIN, **changed}) == first


def test_another_spelling_of_the_id_is_read_as_it_was():
    one = {"cloudEvents_id": "other", "cloudEvents:id": "1", "cloudEvents:time": MOMENT}
    assert read(one, prefix=AMQP).id == read(one, prefix=AMQP).id == "other"


def test_messages_that_differ_in_id_time_and_key_share_the_rest():
    _common.cache_clear()
    messages = [read({**PLAIN, "ce_id": f"{n}", "ce_partitionkey": f"k{n}"}) for n in range(3)]
    assert [(m.id, m.key) for m in messages] == [("0", "k0"), ("1", "k1"), ("2", "k2")]
    assert all(m.headers == {"source": "shop", "time": MOMENT} for m in messages)
    assert _common.cache_info().misses == 1


def test_headers_that_come_as_bytes_share_the_rest_likewise():
    _common.cache_clear()
    for number in range(3):
        given = {**PLAIN, "ce_id": f"{number}", "ce_partitionkey": f"k{number}"}
        assert read({name: text.encode() for name, text in given.items()}) == read(given)
    assert _common.cache_info().misses == 2, "one for bytes, one for text"
