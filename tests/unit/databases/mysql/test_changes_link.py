"""Packets of a dump: whole events, however they arrive, and every way in which it ends."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pymysql
import pytest

from duly.databases.mysql.changes_link import Link, arriving
from duly.errors import DatabaseUnavailableError

LIMIT_SECONDS = 30.0
LARGE = 0xFFFFFF


@pytest.fixture
def wires() -> Iterator[tuple[socket.socket, Any]]:
    """The server's end, and what the link has of PyMySQL's connection."""
    theirs, ours = socket.socketpair()
    ours.settimeout(LIMIT_SECONDS)
    yield theirs, SimpleNamespace(_sock=ours, _force_close=ours.close)
    theirs.close()
    ours.close()


def packet(payload: bytes, number: int = 0) -> bytes:
    return len(payload).to_bytes(3, "little") + bytes([number]) + payload


def error(number: int, text: str) -> bytes:
    return packet(b"\xff" + number.to_bytes(2, "little") + b"#HY000" + text.encode())


def sent(theirs: socket.socket, *pieces: bytes) -> threading.Thread:
    """Send piece by piece, and close."""

    def send() -> None:
        for piece in pieces:
            theirs.sendall(piece)
        theirs.shutdown(socket.SHUT_WR)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


def read(raw: Any) -> tuple[list[bytes], Exception | None]:
    events: list[bytes] = []
    try:
        for some in arriving(raw):
            events += some
    except Exception as problem:  # it is what is looked at
        return events, problem
    return events, None


def test_events_are_whole_wherever_the_stream_is_cut(wires: Any) -> None:
    theirs, raw = wires
    data = packet(b"\0one") + packet(b"\0") + packet(b"\0three", 7) + packet(b"\xfe\0\0\0\0")
    thread = sent(theirs, *(data[n : n + 1] for n in range(len(data))))
    assert read(raw) == ([b"one", b"", b"three"], None)
    thread.join()


def test_an_event_of_several_packets_is_one(wires: Any) -> None:
    theirs, raw = wires
    first = b"\0" + b"x" * (LARGE - 1)
    thread = sent(theirs, packet(first), packet(b"yz", 1) + packet(b"\0next", 2))
    events, problem = read(raw)
    thread.join()
    assert [len(event) for event in events] == [LARGE + 1, 4]
    assert events[0][-3:] == b"xyz"
    assert isinstance(problem, DatabaseUnavailableError)


def test_what_the_server_says_comes_behind_what_it_sent(wires: Any) -> None:
    theirs, raw = wires
    thread = sent(theirs, packet(b"\0one") + error(1236, "gone"))
    events, problem = read(raw)
    thread.join()
    assert events == [b"one"]
    assert isinstance(problem, pymysql.Error)
    assert problem.args[0] == 1236


@pytest.mark.parametrize("data", [b"", packet(b""), packet(b"\xff")])
def test_a_stream_that_breaks_off_is_a_server_that_is_away(wires: Any, data: bytes) -> None:
    theirs, raw = wires
    thread = sent(theirs, data)
    events, problem = read(raw)
    thread.join()
    assert (events, type(problem)) == ([], DatabaseUnavailableError)


def test_silence_is_one_too(wires: Any) -> None:
    _, raw = wires
    raw._sock.settimeout(0.01)
    assert isinstance(read(raw)[1], DatabaseUnavailableError)


def followed(raw: Any) -> tuple[Link, list[bytes], list[Exception]]:
    events: list[bytes] = []
    failures: list[Exception] = []

    def take(some: Sequence[bytes]) -> None:
        events.extend(some)
        if b"bad" in some:
            raise ValueError("bad")

    link = Link(raw, take=take, failed=failures.append)
    link._thread = threading.Thread(target=link._run)
    link._thread.start()
    return link, events, failures


def test_one_failure_is_told_and_nothing_is_taken_behind_it(wires: Any) -> None:
    theirs, raw = wires
    link, events, failures = followed(raw)
    theirs.sendall(packet(b"\0good") + packet(b"\0bad"))
    link.join(LIMIT_SECONDS)
    assert (events, [type(one) for one in failures]) == ([b"good", b"bad"], [ValueError])
    assert raw._sock.fileno() == -1


def test_an_end_that_was_asked_for_is_no_failure(wires: Any) -> None:
    _, raw = wires
    link, _, failures = followed(raw)
    link.cut()
    link.cut()
    link.join(LIMIT_SECONDS)
    assert (failures, raw._sock.fileno()) == ([], -1)


def test_an_end_of_the_dump_is_one(wires: Any) -> None:
    theirs, raw = wires
    link, _, failures = followed(raw)
    theirs.sendall(packet(b"\xfe\0\0\0\0"))
    link.join(LIMIT_SECONDS)
    assert [type(one) for one in failures] == [DatabaseUnavailableError]
