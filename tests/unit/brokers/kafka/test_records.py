from __future__ import annotations

import pytest

from duly.brokers.kafka.records import from_record, headers_of
from duly.message import HEADER_SOURCE, HEADER_UNDECODABLE, Message

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
