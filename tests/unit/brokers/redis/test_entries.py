from __future__ import annotations

import hiredis
import pytest

from duly.brokers.redis.entries import add_command, command, message_of
from duly.message import HEADER_SOURCE, HEADER_TIME, HEADER_UNDECODABLE, Message, new_id


def made(**changes: object) -> Message:
    fields = {
        "id": new_id(),
        "type": "order.placed",
        "kind": "event",
        "topic": "orders",
        "key": "anna",
        "payload": b'{"order_id":1}',
        "headers": {
            HEADER_SOURCE: "shop",
            HEADER_TIME: "2026-01-02T03:04:05Z",
            "traceparent": "00",
        },
    }
    return Message(**{**fields, **changes})  # type: ignore[arg-type]


def read(data: bytes) -> list[bytes]:
    """What a server would see."""
    reader = hiredis.Reader()
    reader.feed(data)
    parts: list[bytes] = reader.gets()
    assert reader.gets() is False, "more than one command"
    return parts


def test_a_command_is_as_the_protocol_writes_it() -> None:
    assert command("XACK", b"a", 7) == b"*3\r\n$4\r\nXACK\r\n$1\r\na\r\n$1\r\n7\r\n"
    assert read(command("GET", "prêt")) == [b"GET", "prêt".encode()]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"key": None, "payload": b""},
        {"key": "ключ \U0001f511", "payload": bytes(range(256))},
        {"kind": "command", "headers": {"greeting": "prêt\u00a0", "n": "1"}},
        {"payload": b"x" * 100_000 + b"\r\n$1\r\n"},
    ],
)
def test_what_is_written_is_read_back(changes: dict[str, object]) -> None:
    message = made(**changes)
    for only_existing, head in ((True, 4), (False, 3)):
        data = add_command(message, "duly:event:orders", only_existing=only_existing)
        parts = read(data)
        assert parts[:2] == [b"XADD", b"duly:event:orders"]
        assert (b"NOMKSTREAM" in parts[:4]) is only_existing
        assert parts[head - 1] == b"*"
        assert message_of(parts[head:], topic="orders", fallback_id="x") == message


def test_the_names_that_are_documented() -> None:
    parts = read(add_command(made(id="i-1"), "s"))[4:]
    fields = dict(zip(parts[::2], parts[1::2], strict=True))
    assert fields[b"ce_id"] == b"i-1"
    assert fields[b"ce_type"] == b"order.placed"
    assert fields[b"ce_source"] == b"/duly/shop"
    assert fields[b"ce_partitionkey"] == b"anna"
    assert fields[b"ce_data"] == b'{"order_id":1}'
    assert fields[b"traceparent"] == b"00"


def test_text_that_is_none_is_not_written() -> None:
    with pytest.raises(UnicodeEncodeError):
        add_command(made(key="\ud800"), "s")


@pytest.mark.parametrize(
    "fields",
    [[], [b"odd"], [b"a", b"b", b"c"], [b"\xff" * 300, b"x"], [b"ce_id", b"\xff"], [b"", b""]],
)
def test_reading_never_raises(fields: list[bytes]) -> None:
    message = message_of(fields, topic="orders", fallback_id="orders/1-0")
    assert (message.id, message.topic) == ("orders/1-0", "orders")


def test_an_entry_without_an_id_is_named_by_its_place() -> None:
    message = message_of([b"ce_type", b"a.b", b"ce_data", b"{}"], topic="t", fallback_id="t/1-0")
    assert (message.id, message.type, message.payload) == ("t/1-0", "a.b", b"{}")


def test_structured_mode_and_what_is_broken() -> None:
    kind = [b"ce_datacontenttype", b"application/cloudevents+json; charset=utf-8"]
    body = b'{"specversion":"1.0","id":"7","type":"a.b","source":"/w","data":{"n":1}}'
    message = message_of([*kind, b"ce_data", body, b"x", b"y"], topic="t", fallback_id="f")
    assert (message.id, message.payload, message.headers["x"]) == ("7", b'{"n":1}', "y")
    broken = message_of([*kind, b"ce_data", b"{"], topic="t", fallback_id="f")
    assert HEADER_UNDECODABLE in broken.headers


def test_of_a_name_that_comes_twice_the_first_counts() -> None:
    fields = [b"ce_id", b"first", b"ce_id", b"second", b"ce_type", b"a.b"]
    assert message_of(fields, topic="t", fallback_id="f").id == "first"
