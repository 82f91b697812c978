from __future__ import annotations

import json

import pytest

from duly.brokers.nats import frames
from duly.brokers.nats.frames import Frame, Place


def test_a_publish() -> None:
    block = b"NATS/1.0\r\n\r\n"
    whole = b"".join(frames.publish("a.b", "inbox.1", block=block, payload=b"\r\nbody"))
    assert whole == b"HPUB a.b inbox.1 12 18\r\nNATS/1.0\r\n\r\n\r\nbody\r\n"


def test_answers_are_one_publish_each() -> None:
    assert frames.answers([b"a.1", b"a.2"], frames.ACK) == (
        b"PUB a.1 4\r\n+ACK\r\nPUB a.2 4\r\n+ACK\r\n"
    )
    assert frames.answers([], frames.NAK) == b""


def test_a_request() -> None:
    head, body, end = frames.next_request("S", "c+1", "in.x", batch=7, expires=2.5).split(b"\r\n")
    assert head == b"PUB $JS.API.CONSUMER.MSG.NEXT.S.c+1 in.x %d" % len(body)
    assert json.loads(body) == {"batch": 7, "expires": 2_500_000_000}
    assert end == b""


@pytest.mark.parametrize(
    "reply",
    [
        "$JS.ACK.S.c+1.2.41.7.1700000000.0",
        "$JS.ACK._.hash.S.c+1.2.41.7.1700000000.0",
        "$JS.ACK.domain.hash.S.c+1.2.41.7.1700000000.0.random",
    ],
)
def test_where_a_delivery_is_from(reply: str) -> None:
    assert frames.place_of(reply.encode()) == Place("S", "41", 2)


@pytest.mark.parametrize("reply", ["", "a.b", "$JS.ACK.S.c.x.41.7.0.0", "$JS.ACK.S.c.1.2", "\xff"])
def test_what_is_no_answer_subject(reply: str) -> None:
    assert frames.place_of(reply.encode("latin-1")) is None


@pytest.mark.parametrize(
    ("line", "body", "sid", "frame"),
    [
        (b"MSG a.b 7 3", b"xyz", 7, Frame(b"a.b", b"", None, b"xyz")),
        (b"MSG a.b 7 r.1 0", b"", 7, Frame(b"a.b", b"r.1", None, b"")),
        (b"HMSG a 12 4 6", b"headxy", 12, Frame(b"a", b"", b"head", b"xy")),
        (b"HMSG a 12 r 4 4", b"head", 12, Frame(b"a", b"r", b"head", b"")),
    ],
)
def test_a_message_of_the_server(line: bytes, body: bytes, sid: int, frame: Frame) -> None:
    words, size = frames.frame_sizes(line)
    assert size == len(body) + 2
    assert frames.read_frame(words, body) == (sid, frame)


@pytest.mark.parametrize("line", [b"MSG a", b"MSG a 1 x", b"MSG a 1 -3", b"HMSG a b c d e f 3"])
def test_a_line_that_is_no_message(line: bytes) -> None:
    with pytest.raises(ValueError, match="malformed"):
        frames.frame_sizes(line)
