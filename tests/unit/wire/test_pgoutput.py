"""Layouts of protocol versions 1 to 4, from the bytes that the manual documents."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duly.errors import UndecodableError
from duly.wire import pgoutput as wire

TIME = 700_000_000_000_000
U64 = struct.Struct(">Q").pack
U32 = struct.Struct(">I").pack
U16 = struct.Struct(">H").pack


def cut(text: str) -> bytes:
    return text.encode() + b"\0"


def column(name: str, oid: int, *, key: bool = False, modifier: int = -1) -> bytes:
    return bytes([key]) + cut(name) + U32(oid) + struct.pack(">i", modifier)


RELATION = (
    U32(9) + cut("sales") + cut("ord ers") + b"f" + U16(2) + column("id", 23, key=True)
    + column("näme", 1043, modifier=24)
)  # fmt: skip
PREPARED = U64(5) + U64(6) + U64(TIME) + U32(77) + cut("gid-1")
# (name, bytes, whether in a stream block, what it says)
MESSAGES: list[tuple[str, bytes, bool, Any]] = [
    ("begin", b"B" + U64(80) + U64(TIME) + U32(7), False, wire.Begin(80, TIME, 7)),
    ("commit", b"C\0" + U64(80) + U64(96) + U64(TIME), False, wire.Commit(80, 96, TIME)),
    ("origin", b"O" + U64(3) + cut("other"), False, wire.Origin(3, "other")),
    (
        "relation", b"R" + RELATION, False,
        wire.Relation(9, "sales", "ord ers", "f", (
            wire.Column("id", 23, -1, True), wire.Column("näme", 1043, 24, False),
        )),
    ),
    (
        "relation in a block", b"R" + U32(8) + U32(9) + cut("") + cut("t") + b"d" + U16(0), True,
        wire.Relation(9, "pg_catalog", "t", "d", ()),
    ),
    ("type", b"Y" + U32(90) + cut("") + cut("mood"), False, wire.Type(90, "pg_catalog", "mood")),
    ("type in a block", b"Y" + U32(8) + U32(9) + cut("a") + cut("b"), True, wire.Type(9, "a", "b")),
    (
        "truncate", b"T" + U32(2) + b"\3" + U32(9) + U32(10), False,
        wire.Truncate(0, True, True, (9, 10)),
    ),
    (
        "truncate in a block", b"T" + U32(8) + U32(1) + b"\0" + U32(9), True,
        wire.Truncate(8, False, False, (9,)),
    ),
    (
        "message", b"M\1" + U64(4) + cut("duly.intent:x") + U32(3) + b"a\0b", False,
        wire.LogicalMessage(0, True, 4, "duly.intent:x", b"a\0b"),
    ),
    (
        "message in a block", b"M" + U32(8) + b"\0" + U64(4) + cut("p") + U32(0), True,
        wire.LogicalMessage(8, False, 4, "p", b""),
    ),
    ("stream start", b"S" + U32(7) + b"\1", False, wire.StreamStart(7, True)),
    ("stream start again", b"S" + U32(7) + b"\0", False, wire.StreamStart(7, False)),
    ("stream stop", b"E", True, wire.StreamStop()),
    (
        "stream commit", b"c" + U32(7) + b"\0" + U64(80) + U64(96) + U64(TIME), False,
        wire.StreamCommit(7, 80, 96, TIME),
    ),
    ("stream abort", b"A" + U32(7) + U32(9), False, wire.StreamAbort(7, 9)),
    ("stream abort v4", b"A" + U32(7) + U32(9) + U64(1) + U64(2), False, wire.StreamAbort(7, 9)),
    ("begin prepare", b"b" + PREPARED, False, wire.BeginPrepare(5, 6, TIME, 77, "gid-1")),
    ("prepare", b"P\0" + PREPARED, False, wire.Prepare(5, 6, TIME, 77, "gid-1")),
    ("commit prepared", b"K\0" + PREPARED, False, wire.CommitPrepared(5, 6, TIME, 77, "gid-1")),
    (
        "rollback prepared", b"r\0" + U64(5) + U64(6) + U64(TIME) + U64(TIME) + U32(7) + cut("g"),
        False, wire.RollbackPrepared(5, 6, TIME, TIME, 7, "g"),
    ),
    ("stream prepare", b"p\0" + PREPARED, False, wire.StreamPrepare(5, 6, TIME, 77, "gid-1")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("data", "streaming", "said"), [m[1:] for m in MESSAGES], ids=[m[0] for m in MESSAGES]
)
def test_a_message_is_read_and_a_cut_or_longer_one_refused(
    data: bytes, streaming: bool, said: Any
) -> None:
    padded = b"?" * 25 + data
    assert wire.parse_message(padded, 25, streaming=streaming) == said
    allowed = {9} if said == wire.StreamAbort(7, 9) else set()
    for length in set(range(len(data))) - allowed:
        with pytest.raises(UndecodableError) as caught:
            wire.parse_message(data[:length], 0, streaming=streaming)
        assert caught.value.code == "PGOUTPUT_UNDECODABLE"
    with pytest.raises(UndecodableError):
        wire.parse_message(data + b"\0", 0, streaming=streaming)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"X", id="kind"),
        pytest.param(b"C\1" + U64(80) + U64(96) + U64(TIME), id="flags of a commit"),
        pytest.param(b"P\1" + PREPARED, id="flags of a preparation"),
        pytest.param(b"R" + U32(9) + cut("a") + cut("b") + b"z" + U16(0), id="identity"),
        pytest.param(
            b"R" + U32(9) + cut("a") + cut("b") + b"d" + U16(1) + b"\2" + cut("c") + U64(0),
            id="flags of a column",
        ),
        pytest.param(
            b"R" + U32(9) + cut("a") + cut("b") + b"d" + U16(2) + 2 * column("c", 1), id="twice"
        ),
        pytest.param(b"T" + U32(1) + b"\4" + U32(9), id="options of a truncate"),
        pytest.param(b"T" + U32(0xFFFFFFFF) + b"\0", id="truncate of everything"),
        pytest.param(b"M\2" + U64(4) + cut("p") + U32(0), id="flags of a message"),
        pytest.param(b"M\1" + U64(4) + cut("p") + U32(0xFFFFFFFF) + b"a", id="hostile length"),
        pytest.param(b"O" + U64(3) + b"\xff\0", id="not UTF-8"),
    ],
)
def test_what_is_not_known_is_refused(data: bytes) -> None:
    with pytest.raises(UndecodableError):
        wire.parse_message(data, 0)


@given(st.binary(max_size=60), st.booleans())
def test_no_bytes_raise_anything_else(data: bytes, streaming: bool) -> None:
    try:
        read = wire.parse_message(data, 0, streaming=streaming)
    except UndecodableError:
        return
    assert isinstance(read, tuple)


@given(st.sampled_from(MESSAGES), st.data())
def test_no_changed_message_raises_anything_else(message: Any, data: st.DataObject) -> None:
    changed = bytearray(message[1])
    changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    try:
        read = wire.parse_message(bytes(changed), 0, streaming=message[2])
    except UndecodableError:
        return
    assert isinstance(read, tuple)


def test_a_keepalive_is_read_whole_or_not_at_all() -> None:
    frame = b"k" + U64(96) + U64(TIME) + b"\1"
    assert wire.parse_keepalive(frame) == wire.Keepalive(96, True)
    assert wire.parse_keepalive(frame[:-1] + b"\0") == wire.Keepalive(96, False)
    for wrong in (*(frame[:n] for n in range(len(frame))), frame + b"\0", b"w" + frame[1:]):
        with pytest.raises(UndecodableError):
            wire.parse_keepalive(wrong)


def test_a_status_update_says_what_was_read_and_what_is_stored() -> None:
    frame = wire.status_update(received=96, confirmed=80, now_us=TIME, ask=True)
    assert frame == b"r" + U64(96) + U64(80) + U64(80) + U64(TIME) + b"\1"
    assert wire.status_update(received=1, confirmed=1, now_us=0)[-1] == 0
