"""A reader that has learned a header's layout gives what one that has not would give."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from duly.brokers.rabbitmq import envelopes, frames
from duly.brokers.rabbitmq.envelopes import Envelopes
from duly.message import HEADER_UNDECODABLE, Message, new_id
from duly.wire.cloudevents import to_headers

TIME = "2026-11-22T20:00:00.{:06d}+00:00"
TRACE = "00-{:032x}-00f067aa0ba902b7-01"


def message(number: int, *, key: str | None = "k", **headers: str) -> Message:
    kept = {"source": "shop", "time": TIME.format(number), **headers}
    return Message(new_id(), "order.placed", "event", "orders", key, b"{}" * number, kept)


def header(given: Message, extra: bytes = b"") -> bytes:
    table = to_headers(given, prefix="cloudEvents:")
    pieces = frames.content(1, given.id, table, payload=given.payload, frame_max=131_072)
    found = pieces[1]
    if extra:  # a field of the server's own, at the end of the table
        size_at = 15 + found[14]
        end = size_at + 4 + int.from_bytes(found[size_at : size_at + 4], "big")
        size = (end - size_at - 4 + len(extra)).to_bytes(4, "big")
        found = found[:size_at] + size + found[size_at + 4 : end] + extra + found[end:]
    return found


@dataclass
class Counted:
    """How many headers were read as a whole."""

    whole: int = 0


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    counts, decode = Counted(), frames.decode_properties

    def count(given: bytes) -> frames.Properties:
        counts.whole += 1
        return decode(given)

    monkeypatch.setattr(frames, "decode_properties", count)
    return counts


@pytest.mark.parametrize("key", ["k", "Zürich", None])
def test_of_messages_that_are_alike_one_header_is_read(counted: Counted, key: str | None) -> None:
    reader = Envelopes("orders")
    for number in range(20):
        sent = message(number, key=key, region="eu")
        assert reader.read(header(sent), sent.payload) == sent
    assert counted.whole == 1


@pytest.mark.parametrize(
    "other",
    [
        message(7, region="us"),
        message(7, regiom="eu"),
        message(7, key="x", region="eu", dulyversion="2"),
        message(7, key="long key of a customer", region="eu"),
        message(7, key=None, region="eu"),
        message(7, region="eu", traceparent=TRACE.format(7)),
    ],
)
def test_another_message_in_between_is_itself(other: Message) -> None:
    reader, usual = Envelopes("orders"), message(1, region="eu")
    for sent in (usual, other, usual, other):
        assert reader.read(header(sent), sent.payload) == sent


def test_every_byte_that_changes_is_seen() -> None:
    reader, sent = Envelopes("orders"), message(1, region="eu")
    whole = header(sent)
    for place in range(len(whole)):
        for value in (0, 0x0A, whole[place] ^ 1, 0xFF):
            changed = whole[:place] + bytes((value,)) + whole[place + 1 :]
            reader.read(whole, b"")
            assert reader.read(changed, b"") == Envelopes("orders").read(changed, b""), place


def test_what_is_not_legal_is_held_as_ever(counted: Counted) -> None:
    reader, sent = Envelopes("orders"), message(1)
    reader.read(header(sent), b"")
    broken = header(sent).replace(sent.id.encode(), b"\n" * len(sent.id))
    assert HEADER_UNDECODABLE in reader.read(broken, b"").headers
    assert counted.whole == 2


def test_a_count_of_the_servers_own_is_not_the_messages(counted: Counted) -> None:
    reader = Envelopes("orders")
    for number in range(5):
        sent = message(number)
        came = header(sent, b"\x10x-delivery-count" + b"l" + (1).to_bytes(8, "big"))
        assert reader.read(came, sent.payload) == sent
    assert counted.whole == 1


def test_a_header_that_no_library_writes_gives_a_message_without_id() -> None:
    reader = Envelopes("orders")
    assert reader.read(b"\x00\x3c\x00\x00" + b"\xff" * 20, b"x").id == ""
    assert reader.read(b"", b"x").payload == b"x"


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envelopes, "_LAYOUTS_MAX", 3)
    reader = Envelopes("orders")
    for number in range(1, 30):
        sent = message(1, key="k" * number)
        assert reader.read(header(sent), sent.payload) == sent
        assert len(reader._layouts) <= 3
