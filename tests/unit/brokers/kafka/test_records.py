from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from duly.brokers.kafka import records
from duly.brokers.kafka.records import from_record, headers_of
from duly.message import HEADER_SOURCE, HEADER_TIME, HEADER_UNDECODABLE, Message

SENT = Message(
    "id-1", "order.placed", "event", "orders", "k", b'{"n":1}', {HEADER_SOURCE: "shop", "x": "y"}
)


class Record:
    def __init__(
        self,
        headers: list[tuple[str, bytes | None]] | None,
        *,
        key: bytes | None = None,
        value: bytes | None = b"{}",
    ) -> None:
        self._headers, self._key, self._value = headers, key, value

    def headers(self) -> list[tuple[str, bytes | None]] | None:
        return self._headers

    def key(self) -> bytes | None:
        return self._key

    def value(self) -> bytes | None:
        return self._value

    def topic(self) -> str:
        return "shop.orders"

    def partition(self) -> int:
        return 3

    def offset(self) -> int:
        return 42


def test_the_binding_of_cloudevents() -> None:
    assert dict(headers_of(SENT)) == {
        "ce_specversion": b"1.0",
        "ce_id": b"id-1",
        "ce_type": b"order.placed",
        "ce_source": b"/duly/shop",
        "ce_partitionkey": b"k",
        "ce_dulykind": b"event",
        "content-type": b"application/json",
        "x": b"y",
    }


def test_there_and_back() -> None:
    record = Record([*headers_of(SENT)], key=b"k", value=SENT.payload)
    assert from_record(record, topic="orders") == SENT


def test_a_foreign_record_has_an_id_that_stays_and_its_key() -> None:
    record = Record(None, key=b"customer-7", value=b"[1]")
    for _ in range(2):
        got = from_record(record, topic="orders")
        assert (got.id, got.key, got.payload) == ("shop.orders/3/42", "customer-7", b"[1]")
        assert (got.topic, got.kind, got.type) == ("orders", "event", "")


@pytest.mark.parametrize("key", [None, b"", b"\xff\xfe", b"a\x00b"])
def test_a_key_that_is_no_text_is_no_key(key: bytes | None) -> None:
    got = from_record(Record([("ce_type", b"t")], key=key), topic="orders")
    assert got.key is None
    assert HEADER_UNDECODABLE not in got.headers


def test_the_header_wins_over_the_record_s_key() -> None:
    got = from_record(Record([("ce_partitionkey", b"one")], key=b"two"), topic="orders")
    assert got.key == "one"


def test_structured_mode() -> None:
    body = b'{"specversion":"1.0","id":"7","source":"/x","type":"t","data":{"n":1}}'
    headers: list[tuple[str, bytes | None]] = [
        ("content-type", b"application/cloudevents+json; charset=utf-8"),
        ("trace", b"on"),
    ]
    got = from_record(Record(headers, value=body), topic="orders")
    assert (got.id, got.type, got.payload) == ("7", "t", b'{"n":1}')
    assert got.headers["trace"] == "on"


def test_a_tombstone_and_an_empty_header_do_no_harm() -> None:
    got = from_record(Record([("ce_id", b"1"), ("x", None)], value=None), topic="orders")
    assert (got.id, got.payload, got.headers) == ("1", b"", {})


def test_what_is_no_text_cannot_be_sent() -> None:
    with pytest.raises(UnicodeEncodeError):
        headers_of(Message("i", "t", "event", "orders", "\ud800", b"", {}))


OURS = Message(
    "id-2",
    "order.placed",
    "event",
    "orders",
    None,
    b"{}",
    {HEADER_SOURCE: "shop", HEADER_TIME: "2026-11-23T12:41:08.758338+00:00"},
)
FORM = headers_of(OURS)
VALUES = st.sampled_from(
    [
        *(None, b"", b"x", b"\xff", b"a\0b", b"1.0", b"2", b"id-3", "\u00e9".encode(), b"k" * 2000),
        *(b"2026-11-23T12:41:08Z", b"2026-13-23T12:41:08Z", b"application/cloudevents+json"),
    ]
)
NAMES = st.sampled_from(
    [name for name, _ in FORM]
    + ["ce_partitionkey", "ce_dulyversion", "ce_replaces", "traceparent", "x", "cloudEvents:id"]
)


def read_whole(one: Record) -> Message:
    """By its headers, as if no record had ever been like another."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "_shape", lambda _: None)
        patch.setattr("duly.wire.cloudevents._like_another", lambda *_, **__: None)
        return from_record(one, topic="orders")


@given(
    taken=st.lists(st.tuples(NAMES, VALUES), max_size=4),
    kept=st.sets(st.integers(0, len(FORM) - 1)),
    key=VALUES,
    value=st.sampled_from([None, b"", b"{}", b'{"id":"x"}']),
)
@example(taken=[], kept=set(range(len(FORM))), key=b"k", value=b"{}")
@example(taken=[("ce_partitionkey", b"a")], kept=set(range(len(FORM))), key=b"k", value=b"{}")
@example(taken=[("ce_id", b"a")], kept=set(range(len(FORM))), key=None, value=b"{}")
@settings(max_examples=1000)
def test_a_record_like_others_is_read_as_if_there_were_none(
    taken: list[tuple[str, Any]], kept: set[int], key: Any, value: Any
) -> None:
    headers = [FORM[place] for place in sorted(kept)] + taken
    one = Record(headers, key=key, value=value)
    assert from_record(one, topic="orders") == read_whole(one)
    assert from_record(one, topic="orders") == read_whole(one), "when it was seen before"


def test_our_own_records_are_known_by_their_form() -> None:
    seen: list[Sequence[Any]] = []

    def like(*given: Any, **options: Any) -> Any:
        seen.append(given)
        return known(*given, **options)

    known = records.like
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "like", like)
        for key in (None, b"k"):
            assert from_record(Record([*FORM], key=key), topic="orders").id == "id-2"
    assert [one[0] for one in seen] == [seen[0][0]] * 2
