"""What is tried again, and with whom: decided without a database."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from duly.errors import BatchError
from duly.inbox import runner
from duly.inbox.context import Job
from duly.inbox.ending import End, Ending
from duly.inbox.handlers import Handler, HandlerRegistry
from duly.inbox.identity import Identity
from duly.inbox.runner import AGAIN_MAX
from duly.message import Event, Message, Registry

DONE, AGAIN = Ending(End.DONE), Ending(End.AGAIN, "TRANSACTION_CONFLICT: x")
Script = Callable[[list[int]], list[Ending]]


class Placed(Event, name="order.placed", topic="orders"):
    order_id: int


def handler() -> Handler:
    handlers = HandlerRegistry(Registry())

    @handlers.on(Placed, group="sales")
    def handle(events: list[Placed]) -> None: ...

    return handlers.of_group("sales")[0]


def job(count: int) -> Job:
    messages = [
        Message(str(n), "order.placed", "event", "orders", None, b'{"order_id":%d}' % n, {})
        for n in range(count)
    ]
    return Job(handler(), messages, [Identity("sales", "h", m.id) for m in messages])


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    pauses: list[float] = []
    monkeypatch.setattr(runner.time, "sleep", pauses.append)
    return pauses


def scripted(monkeypatch: pytest.MonkeyPatch, script: Script) -> list[list[int]]:
    """Attempts end as the script says of the ids they were made with; returns those."""
    attempts: list[list[int]] = []

    def attempt(context: Any, desk: Any, part: Job) -> list[Ending]:
        attempts.append([int(message.id) for message in part.messages])
        return script(attempts[-1])

    monkeypatch.setattr(runner, "_attempt", attempt)
    return attempts


def run(work: Job) -> Sequence[Ending]:
    return runner.run(None, None, work)  # type: ignore[arg-type]  # the script needs neither


# --- nobody's fault -------------------------------------------------------------------------------
def test_what_is_nobodys_fault_is_tried_again_at_once_and_only_that(
    monkeypatch: pytest.MonkeyPatch, no_pauses: list[float]
) -> None:
    left = {1: 2, 3: 1}

    def script(ids: list[int]) -> list[Ending]:
        return [
            AGAIN if left.get(n, 0) and not left.update({n: left[n] - 1}) else DONE for n in ids
        ]

    attempts = scripted(monkeypatch, script)
    assert run(job(4)) == [DONE] * 4
    assert attempts == [[0, 1, 2, 3], [1, 3], [1]]
    assert len(no_pauses) == 2


def test_it_is_not_tried_for_ever(monkeypatch: pytest.MonkeyPatch, no_pauses: list[float]) -> None:
    attempts = scripted(monkeypatch, lambda ids: [AGAIN for _ in ids])
    assert run(job(1)) == [AGAIN]
    assert len(attempts) == AGAIN_MAX
    assert all(0 < pause <= 0.75 for pause in no_pauses)


# --- batches --------------------------------------------------------------------------------------
def test_a_failed_batch_is_tried_one_by_one_once(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = Ending(End.RETRY, "ValueError: raised at x.py:1")

    def script(ids: list[int]) -> list[Ending]:
        return [failed if 2 in ids else DONE for _ in ids]

    attempts = scripted(monkeypatch, script)
    assert run(job(4)) == [DONE, DONE, failed, DONE]
    assert attempts == [[0, 1, 2, 3], [0], [1], [2], [3]]


def test_named_culprits_are_not_tried_again_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    named = Ending(End.RETRY, f"{BatchError.code}: raised at x.py:1")
    attempts = scripted(monkeypatch, lambda ids: [named if n == 1 else DONE for n in ids])
    assert run(job(3)) == [DONE, named, DONE]
    assert attempts == [[0, 1, 2]]


class Claimed:
    """An attempt of which everything was decoded and claimed."""

    def __new__(cls, work: Job) -> Any:
        made = object.__new__(runner._Attempt)
        made.job, made.endings = work, {}
        made.values = {n: object() for n in range(len(work.messages))}
        made.readable = list(made.values)
        return made


@pytest.mark.parametrize(
    ("failed", "culprits"),
    [
        ([1], {1}),
        ([0, 2], {0, 2}),
        ([True], set()),  # not the message at place 1
        ([9, -1], set()),
        (["nobody"], set()),
    ],
)
def test_culprits_by_place_and_the_rest_goes_again(failed: list[Any], culprits: set[int]) -> None:
    attempt = Claimed(job(3))
    attempt.failed(BatchError(failed), Ending(End.FAILED, "x"))
    ends = [ending.end for ending in attempt.result()]
    if culprits:
        assert ends == [End.RETRY if n in culprits else End.AGAIN for n in range(3)]
    else:
        assert ends == [End.RETRY] * 3, "nobody is spared because the names were wrong"


def test_culprits_by_value_and_by_message() -> None:
    attempt = Claimed(job(3))
    error = BatchError([attempt.values[0], attempt.job.messages[2]])
    attempt.failed(error, Ending(End.FAILED, "x"))
    assert [ending.end for ending in attempt.result()] == [End.RETRY, End.AGAIN, End.RETRY]


def test_what_had_an_ending_before_keeps_it() -> None:
    attempt = Claimed(job(3))
    attempt.endings[1] = Ending(End.DUPLICATE)
    attempt.failed(ValueError(), Ending(End.RETRY, "ValueError: x"))
    assert [ending.end for ending in attempt.result()] == [End.RETRY, End.DUPLICATE, End.RETRY]
    other = Claimed(job(2))
    other.endings[0] = Ending(End.FAILED, "UNDECODABLE: x")
    other.done()
    assert [ending.end for ending in other.result()] == [End.FAILED, End.DONE]
