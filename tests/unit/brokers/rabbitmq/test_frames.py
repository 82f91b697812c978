"""The fast lane against pika's own codec, in both directions."""

from __future__ import annotations

import struct
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika import frame, spec

from duly.brokers.rabbitmq import frames

TEXT = st.text(max_size=300)
NAME = st.text(min_size=1, max_size=60)


def pika_frames(data: bytes) -> list[Any]:
    found = []
    while data:
        size, value = frame.decode_frame(data)
        assert size, data
        found.append(value)
        data = data[size:]
    return found


@given(NAME, TEXT)
def test_publish_reads_as_pika_reads_it(exchange: str, key: str) -> None:
    if max(len(exchange.encode()), len(key.encode())) > 255:
        with pytest.raises(ValueError, match="at most 255"):
            frames.publish_method(3, exchange, key)
        return
    (value,) = pika_frames(frames.publish_method(3, exchange, key))
    assert isinstance(value.method, spec.Basic.Publish)
    assert (value.channel_number, value.method.exchange) == (3, exchange)
    assert (value.method.routing_key, value.method.mandatory) == (key, True)


@given(st.dictionaries(NAME, TEXT, max_size=12), st.binary(max_size=3000), st.text(max_size=60))
def test_content_reads_as_pika_and_we_read_it(
    headers: dict[str, str], payload: bytes, message_id: str
) -> None:
    data = b"".join(frames.content(7, message_id, headers, payload=payload, frame_max=4096))
    head, *bodies = pika_frames(data)
    assert head.body_size == len(payload)
    assert b"".join(b.fragment for b in bodies) == payload
    assert head.properties.headers == headers
    assert head.properties.delivery_mode == 2
    assert head.properties.message_id == message_id
    mine = frames.decode_properties(data[7 : 7 + struct.unpack_from(">I", data, 3)[0]])
    assert mine == frames.Properties("application/json", headers, message_id)


@given(st.dictionaries(NAME, TEXT, max_size=12), st.text(max_size=60))
def test_the_values_lie_where_it_is_said(headers: dict[str, str], message_id: str) -> None:
    whole = frames.content(7, message_id, headers, payload=b"{}", frame_max=131_072)[1]
    spans = frames.text_spans(whole)
    found = {name: whole[start:end].decode() for name, (start, end) in spans.items()}
    assert found == {**headers, "": message_id}


def test_of_other_properties_nothing_is_said() -> None:
    given = spec.BasicProperties(headers={"a": "b"}, message_id="1", app_id="other")
    assert frames.text_spans(header(given)) == {}


@pytest.mark.parametrize("size", [0, 1, 4088, 4089, 3 * 4088, 3 * 4088 + 1])
def test_no_frame_is_larger_than_agreed(size: int) -> None:
    head, *bodies = pika_frames(
        b"".join(frames.content(1, "id", {}, payload=bytes(size), frame_max=4096))
    )
    assert [len(b.marshal()) <= 4096 for b in bodies] == [True] * -(-size // 4088)
    assert head.body_size == size


def test_headers_that_fit_no_frame_are_refused() -> None:
    with pytest.raises(ValueError, match="bytes of headers"):
        frames.content(1, "id", {"a": "x" * 4096}, payload=b"", frame_max=4096)
    with pytest.raises(UnicodeEncodeError):
        frames.content(1, "id", {"a": "\ud800"}, payload=b"", frame_max=4096)
    with pytest.raises(ValueError, match="short string"):
        frames.content(1, "i" * 256, {}, payload=b"", frame_max=4096)


@given(st.integers(1, 2**64 - 1), st.booleans())
def test_acks_read_as_pika_reads_them(tag: int, multiple: bool) -> None:
    (value,) = pika_frames(frames.ack(2, tag, multiple=multiple))
    assert isinstance(value.method, spec.Basic.Ack)
    assert (value.method.delivery_tag, value.method.multiple) == (tag, multiple)
    (value,) = pika_frames(frames.requeue(2, tag))
    assert isinstance(value.method, spec.Basic.Nack)
    assert (value.method.delivery_tag, value.method.multiple, value.method.requeue) == (
        tag,
        False,
        True,
    )


@given(st.integers(0, 2**64 - 1), st.booleans())
def test_what_the_server_sends_is_read_as_pika_writes_it(tag: int, flag: bool) -> None:
    data = frame.Method(1, spec.Basic.Ack(tag, flag)).marshal()
    assert data[7:11] == frames.ACK
    assert frames.decode_confirm(data, 11) == (tag, flag)
    data = frame.Method(1, spec.Basic.Nack(tag, flag)).marshal()
    assert data[7:11] == frames.NACK
    assert frames.decode_confirm(data, 11) == (tag, flag)
    deliver = spec.Basic.Deliver("12", tag, flag, "some.exchange", "a.key")
    data = frame.Method(1, deliver).marshal()
    assert data[7:11] == frames.DELIVER
    assert frames.decode_deliver(data, 11) == (b"12", tag, flag)


def header(properties: spec.BasicProperties) -> bytes:
    data: bytes = frame.Header(1, 0, properties).marshal()
    return data[7:-1]


def test_every_property_is_stepped_over() -> None:
    when = datetime(2026, 1, 2, tzinfo=UTC)
    values: dict[str, Any] = {"t": True, "n": -5, "none": None, "list": [1, "a"], "when": when}
    properties = spec.BasicProperties(
        content_type="text/plain",
        content_encoding="gzip",
        headers=values | {"deep": {"a": "b"}, "text": "é"},
        delivery_mode=1,
        priority=3,
        correlation_id="corr",
        reply_to="back",
        expiration="60000",
        message_id="theirs",
        timestamp=7,
        type="type",
        user_id="guest",
        app_id="app",
    )
    found = frames.decode_properties(header(properties))
    assert (found.content_type, found.message_id) == ("text/plain", "theirs")
    assert found.headers == values | {"deep": {"a": "b"}, "text": "é"}
    assert frames.decode_properties(header(spec.BasicProperties())) == ("", {}, "")


@given(st.binary(max_size=80))
def test_damaged_headers_are_a_value_error_and_nothing_else(noise: bytes) -> None:
    good = header(spec.BasicProperties(headers={"a": "b", "n": 1}, message_id="x"))
    for damaged in (noise, good[: len(noise)], good[:14] + noise, good[:12] + noise):
        with suppress(ValueError):
            assert isinstance(frames.decode_properties(damaged), frames.Properties)
