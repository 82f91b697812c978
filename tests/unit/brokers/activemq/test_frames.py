from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from duly.brokers.activemq import frames
from duly.brokers.activemq.frames import Frame, Parser, ack, encode

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)


def parsed(data: bytes, *, size: int = 1_000_000) -> list[Frame]:
    parser = Parser()
    found: list[Frame] = []
    for start in range(0, len(data), size):
        found += parser.feed(data[start : start + size])
    return found


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(TEXT.filter(bool), TEXT, max_size=5), st.binary(max_size=60))
def test_what_is_written_is_read_back_in_any_pieces(headers: dict[str, str], body: bytes) -> None:
    headers = {name: v for name, v in headers.items() if name != "content-length"}
    framed = {"content-length": str(len(body)), **headers}
    one = encode("MESSAGE", framed, body)
    for size in (3, len(one)):
        found = parsed(one + b"\n\n" + one, size=size)
        assert [(f.command, f.headers(), f.body) for f in found] == [
            (b"MESSAGE", framed, body),
            (b"MESSAGE", framed, body),
        ]
        assert all(found[0].header(name) == value for name, value in framed.items())


def test_nothing_can_end_its_line_or_open_another_header() -> None:
    data = encode("SEND", {"a\nb": "c\r\ndestination:other", "destination": "mine"})
    assert data.count(b"\n") == 4
    assert data.count(b"\ndestination:") == 1
    assert parsed(data)[0].header("destination") == "mine"


def test_of_a_repeated_header_the_first_counts() -> None:
    frame = parsed(b"MESSAGE\na:1\na:2\n\nbody\0")[0]
    assert (frame.header("a"), frame.headers(), frame.body) == ("1", {"a": "1"}, b"body")
    assert frame.header("b") == ""


def test_lines_may_end_as_in_mails_and_between_frames_there_may_be_beats() -> None:
    data = b"\n\r\n\nRECEIPT\r\nreceipt-id:7\r\n\r\n\0\n\n"
    assert [f.header("receipt-id") for f in parsed(data)] == ["7"]
    assert parsed(data)[0].headers() == {"receipt-id": "7"}


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\x15\x03\x03\x00\x02\x02\x50",
        b"MESSAGE\ncontent-length:3\n\nabcd\0",
        b"lower\n\n\0",
    ],
)
def test_what_is_no_stomp_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"STOMP|does not end"):
        parsed(data)


def test_what_does_not_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "FRAME_BYTES_MAX", 1000)
    monkeypatch.setattr(frames, "HEAD_BYTES_MAX", 1000)
    for data in (b"MESSAGE\ncontent-length:5000\n\n", b"MESSAGE\n\n" + b"x" * 2000, b"A" * 2000):
        with pytest.raises(ValueError, match=r"bytes, at most|do(es)? not end"):
            parsed(data)


def test_acks_of_a_batch_are_one_write() -> None:
    assert [f.header("id") for f in parsed(ack(["1,2", "a:b"]))] == ["1,2", "a:b"]
