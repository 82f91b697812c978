from __future__ import annotations

import pytest

from duly.brokers.activemq.entries import decode, send
from duly.brokers.activemq.frames import Frame, Parser
from duly.message import HEADER_SOURCE, HEADER_TIME, Message

HEAD = "SEND\ndestination:duly.event.orders\npersistent:true\n"


def message(key: str | None = "k", payload: bytes = b"{}", **headers: str) -> Message:
    fixed = {HEADER_SOURCE: "shop", HEADER_TIME: "2026-01-02T03:04:05Z"}
    return Message("id-1", "order.placed", "event", "orders", key, payload, fixed | headers)


def sent(one: Message) -> Frame:
    return next(Parser().feed(send(one, HEAD)))


def test_a_message_is_read_back_whole() -> None:
    headers = {"traceparent": "00-ab:cd", "greeting": "prêt \N{SNOWMAN} \\n"}
    one = message(" a/b#*:>?%00'\" ", bytes(range(256)), **headers)
    assert decode(sent(one), topic="orders", fallback_id="x") == one


@pytest.mark.parametrize(
    "name",
    [
        "destination",
        "Expires",
        "persistent",
        "receipt",
        "transaction",
        "JMSXGroupID",
        "AMQ_SCHEDULED_DELAY",
        "_AMQ_DUPL_ID",
        "content-length",
        "duly-header-x",
    ],
)
def test_no_header_of_a_user_means_anything_to_the_server(name: str) -> None:
    one = message("k", b"{}", **{name: "7"})
    frame = sent(one)
    assert frame.headers()[f"duly-header-{name}"] == "7"
    assert (frame.header("destination"), frame.header("persistent")) == (
        "duly.event.orders",
        "true",
    )
    assert decode(frame, topic="orders", fallback_id="x") == one


def test_attributes_are_headers_and_the_key_is_the_group() -> None:
    headers = sent(message("k7")).headers()
    assert headers["ce_id"] == "id-1"
    assert headers["ce_type"] == "order.placed"
    assert headers["ce_partitionkey"] == headers["JMSXGroupID"] == "k7"
    assert headers["content-type"] == "application/json"
    assert "JMSXGroupID" not in sent(message(None)).headers()


@pytest.mark.parametrize("one", [message("\ud800"), message(word="a\0b")])
def test_what_cannot_travel_is_refused(one: Message) -> None:
    with pytest.raises(ValueError, match=r"NUL|surrogates"):
        send(one, HEAD)


def test_a_foreign_message_without_an_id_is_named_by_its_place() -> None:
    frame = Frame(b"MESSAGE", b"\nmessage-id:1,77\npriority:4\nce_type:order.placed", b"x")
    found = decode(frame, topic="orders", fallback_id="queue/77")
    assert (found.id, found.type, found.headers) == ("queue/77", "order.placed", {})


def test_structured_mode_is_read() -> None:
    body = b'{"specversion":"1.0","id":"7","type":"t","source":"/x","data":{"a":1}}'
    frame = Frame(b"MESSAGE", b"\ncontent-type:application/cloudevents+json; charset=utf-8", body)
    found = decode(frame, topic="orders", fallback_id="f")
    assert (found.id, found.type, found.payload) == ("7", "t", b'{"a":1}')
