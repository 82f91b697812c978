from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duly.brokers.nats import headers as nats_headers
from duly.brokers.nats.headers import block, decode, lines, status
from duly.message import Message

# Lone surrogates are no text; CR, LF and NUL are refused, and tried below.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\0"), max_size=40)
NAME = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters=":")).filter(
    lambda name: name and not name.lower().startswith(("ce-", "nats-"))
)


def encode(headers: dict[str, str], message_id: str) -> bytes:
    return block(message_id, lines(headers))


def test_a_block_as_nats_writes_it() -> None:
    written = encode({"ce-id": "a 1", "ce-type": "x.y", "trace": "p q"}, "a 1")
    assert written == (
        b"NATS/1.0\r\nNats-Msg-Id: a 1\r\nce-id: a%201\r\nce-type: x.y\r\ntrace: p q\r\n\r\n"
    )


def test_the_block_of_a_message() -> None:
    sent = Message("a 1", "x.y", "event", "orders", "ü", b"{}", {"trace": "p q", "source": "shop"})
    assert decode(nats_headers.encode(sent)) == {
        "Nats-Msg-Id": "a 1",
        "ce-specversion": "1.0",
        "ce-id": "a 1",
        "ce-type": "x.y",
        "ce-source": "/duly/shop",
        "ce-datacontenttype": "application/json",
        "ce-partitionkey": "ü",
        "ce-dulykind": "event",
        "trace": "p q",
    }


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("plain-~!#", "plain-~!#"),
        ('say "hi"', "say%20%22hi%22"),
        ("50%", "50%25"),
        ("ü\U0001f511", "%C3%BC%F0%9F%94%91"),
        ("\x7f\t", "%7F%09"),
    ],
)
def test_attributes_are_encoded_as_in_http(value: str, written: str) -> None:
    made = encode({"ce-k": value}, "id")
    assert f"ce-k: {written}\r\n".encode() in made
    assert decode(made)["ce-k"] == value


@given(st.dictionaries(NAME, TEXT, max_size=6), st.dictionaries(st.just("ce-a"), TEXT))
def test_what_is_written_is_read_back(user: dict[str, str], attributes: dict[str, str]) -> None:
    found = decode(encode({**attributes, **user}, "id"))
    assert found == {"Nats-Msg-Id": "id", **attributes, **user}


@pytest.mark.parametrize(
    "headers",
    [
        {"x": "a\r\nNats-Expected-Stream: b"},
        {"x": "a\nb"},
        {"x": "a\0"},
        {"x\r\ny": "a"},
        {"x:y": "a"},
        {"Nats-Rollup": "all"},
        {"nats-msg-id": "other"},
    ],
)
def test_what_would_end_its_line_or_order_the_server_is_refused(headers: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"header|CR, LF"):
        encode(headers, "id")
    with pytest.raises(ValueError, match="message id"):
        encode({}, "i\r\nd")
    with pytest.raises(UnicodeEncodeError):
        encode({"x": "\ud800"}, "id")


@pytest.mark.parametrize("block", [b"", b"junk", b"NATS/1.0", b"NATS/1.0\r\n\r\n", b"\r\n:\r\n"])
def test_nothing_that_comes_raises(block: bytes) -> None:
    assert all(not name for name in decode(block))


def test_the_first_of_a_repeated_name_and_names_of_others() -> None:
    came = b"NATS/1.0\r\nCE-Id:one\r\nce-id: two\r\nx: \xff\r\nce-k: %FF%zz\r\n\r\n"
    found = decode(came)
    assert found["ce-id"] == "one"
    assert found["x"] == "\udcff"
    assert found["ce-k"] == "\udcff%zz"


@pytest.mark.parametrize(
    ("block", "code", "reason"),
    [
        (None, 0, ""),
        (b"", 0, ""),
        (b"NATS/1.0\r\nce-id: 1\r\n\r\n", 0, ""),
        (b"NATS/1.0 503\r\n\r\n", 503, ""),
        (
            b"NATS/1.0 408 Request Timeout\r\nNats-Pending-Messages: 1\r\n\r\n",
            408,
            "Request Timeout",
        ),
        (b"NATS/1.0 \xb2 x\r\n\r\n", 0, ""),
    ],
)
def test_status(block: bytes | None, code: int, reason: str) -> None:
    assert status(block) == (code, reason)
