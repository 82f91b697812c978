"""What the answers of a server mean, against a link that says what a test wants."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import pytest
from redis import exceptions

from duly.brokers.redis import publisher as module
from duly.brokers.redis.link import Link
from duly.brokers.redis.publisher import Call, Publisher
from duly.brokers.redis.settings import parse
from duly.errors import BrokerUnavailableError, OutcomeUnknownError
from duly.message import Message, new_id
from duly.ports import Outcome, OutcomeKind

K = OutcomeKind
QUEUED = b"QUEUED"


class Script(Link):
    """Gives the answers of a script, one list per exchange; an exception is raised."""

    def __init__(self, *answers: Any) -> None:
        super().__init__(parse("redis://host"), purpose="test")
        self.answers = list(answers)
        self.sent: list[bytes] = []
        self.dropped = False

    def open(self, timeout_seconds: float = 0.0) -> None:
        pass

    def drop(self) -> None:
        self.dropped = True

    def send(self, data: bytes, *, timeout_seconds: float) -> None:
        self.sent.append(data)
        if isinstance(self.answers[0], BrokerUnavailableError):
            raise self.answers.pop(0)

    def receive(self, replies: int, *, until: float) -> list[Any]:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        assert len(answer) == replies
        return list(answer)


def messages(count: int, *, topic: str = "orders", size: int = 2) -> list[Message]:
    return [Message(new_id(), "a.b", "event", topic, None, bytes(size), {}) for _ in range(count)]


def outcomes(link: Link, batch: Sequence[Message], *, known: bool = False) -> list[Outcome]:
    got: list[list[Outcome]] = []
    lost: list[set[str]] = []
    publisher = Publisher(parse("redis://host"), on_lost=lambda _, names: lost.append(names))
    publisher._link = link
    if known:
        publisher.expect({"duly:event:orders"})
    call = Call(batch, time.monotonic() + 5, got.append)
    call.finish(publisher._handle(call))
    assert lost == ([{"duly:event:orders"}] if known else [])
    return got[0]


def kinds(link: Link, batch: Sequence[Message], *, known: bool = False) -> list[OutcomeKind]:
    return [o.kind for o in outcomes(link, batch, known=known)]


def done(*results: Any) -> list[Any]:
    return [b"OK", *[QUEUED] * len(results), list(results)]


def aborted(*queued: Any) -> list[Any]:
    return [b"OK", *queued, exceptions.ExecAbortError("discarded because of previous errors")]


def test_every_answer_belongs_to_its_message() -> None:
    wrong = exceptions.ResponseError("WRONGTYPE of key")
    link = Script(done(b"1-0", None, wrong, b"2-0"))
    assert kinds(link, messages(4)) == [K.CONFIRMED, K.UNROUTED, K.REFUSED, K.CONFIRMED]
    assert link.sent[0].startswith(b"*1\r\n$5\r\nMULTI\r\n")
    assert link.sent[0].endswith(b"$4\r\nEXEC\r\n")


def test_a_single_message_needs_no_transaction() -> None:
    link = Script([b"1-0"])
    assert kinds(link, messages(1)) == [K.CONFIRMED]
    assert b"MULTI" not in link.sent[0]


def test_what_a_refused_command_took_down_is_sent_again_without_it() -> None:
    no = exceptions.NoPermissionError("this user has no permissions")
    link = Script(aborted(QUEUED, no, QUEUED), done(b"1-0", b"2-0"))
    assert kinds(link, messages(3)) == [K.CONFIRMED, K.REFUSED, K.CONFIRMED]


@pytest.mark.parametrize(
    "error",
    [
        exceptions.OutOfMemoryError("command not allowed when used memory > 'maxmemory'."),
        exceptions.ReadOnlyError("You can't write against a read only replica."),
        exceptions.MasterDownError("Link with MASTER is down"),
        exceptions.MovedError("1234 127.0.0.1:7001"),
        exceptions.ResponseError("MISCONF Errors writing to the AOF file"),
        exceptions.ResponseError("NOREPLICAS Not enough good replicas to write."),
    ],
)
def test_what_is_the_servers_matter_uses_up_no_attempt(error: Exception) -> None:
    for link in (Script(aborted(error, error)), Script([error])):
        batch = messages(2 if len(link.answers[0]) > 1 else 1)
        assert set(kinds(link, batch)) == {K.UNAVAILABLE}
        assert link.dropped is isinstance(error, exceptions.ReadOnlyError)


def test_without_an_answer_nothing_is_known() -> None:
    assert set(kinds(Script(OutcomeUnknownError("lost")), messages(2))) == {K.UNKNOWN}
    assert set(kinds(Script(BrokerUnavailableError("not sent")), messages(2))) == {K.UNAVAILABLE}


def test_a_stream_that_was_there_is_made_anew() -> None:
    link = Script(done(None, None), done(b"1-0", b"2-0"))
    assert kinds(link, messages(2), known=True) == [K.CONFIRMED] * 2
    assert b"NOMKSTREAM" in link.sent[0]
    assert b"NOMKSTREAM" not in link.sent[1]


def test_a_large_batch_goes_in_order_and_stops_at_the_first_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "TRANSACTION_BYTES", 3_000)
    link = Script(done(b"1-0", b"2-0"), OutcomeUnknownError("lost"))
    batch = messages(6, size=1_200)
    assert kinds(link, batch) == [K.CONFIRMED] * 2 + [K.UNKNOWN] * 2 + [K.UNAVAILABLE] * 2


def test_no_right_to_transactions_is_no_reason_to_lie() -> None:
    no = exceptions.NoPermissionError("no permissions to run 'multi'")
    without = exceptions.ResponseError("EXEC without MULTI")
    link = Script([no, b"1-0", None, without])
    assert kinds(link, messages(2)) == [K.CONFIRMED, K.UNROUTED]


def test_what_cannot_be_sent_is_found_before_anything_is() -> None:
    batch = messages(3)
    broken = Message(new_id(), "a.b", "event", "orders", "\ud800", b"", {})
    link = Script(done(b"1-0", b"2-0", b"3-0"))
    assert kinds(link, [*batch[:1], broken, *batch[1:]]) == [
        K.CONFIRMED,
        K.IMPOSSIBLE,
        *[K.CONFIRMED] * 2,
    ]


def test_a_call_that_was_given_up_is_not_begun() -> None:
    got: list[list[Outcome]] = []
    publisher = Publisher(parse("redis://host"), on_lost=lambda *_: None)
    call = Call(messages(1), time.monotonic() - 1, got.append)
    call.finish(publisher._handle(call))
    assert [o.kind for o in got[0]] == [K.UNAVAILABLE]
