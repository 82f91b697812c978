from __future__ import annotations

import pytest

from duly.inbox.ending import End, Ending
from duly.inbox.failures import LATER_SECONDS, Unhandled, lane_of, plan, store
from duly.inbox.identity import Identity, busy_key
from duly.kernel.backoff import Retry
from duly.kernel.names import LANES, place
from duly.message import Message
from duly.ports import Result, Statement

MESSAGE = Message("1", "t", "event", "orders", "k", b"{}", {"a": "b"})
IDENTITY = Identity("g", "h", "1")
RETRY = Retry(attempts=2, base="10s", max="10s", jitter=False)


@pytest.mark.parametrize(
    ("end", "retry", "expected"),
    [
        (End.RETRY, RETRY, ("retry", 1, 10.0)),
        (End.RETRY, Retry(attempts=1), ("failed", 1, None)),
        (End.FAILED, RETRY, ("failed", 1, None)),
        (End.LATER, RETRY, ("retry", 0, LATER_SECONDS)),
        (End.HELD, RETRY, ("held", 0, None)),
        (End.BUSY, RETRY, ("held", 0, None)),
    ],
)
def test_the_row_of_an_ending(
    end: End, retry: Retry, expected: tuple[str, int, float | None]
) -> None:
    assert plan(Ending(end), retry) == expected


def run(one: Unhandled, *, reopened: int = 0) -> list[Statement]:
    steps, asked = store([one]), []
    try:
        statement = next(steps)
        while True:
            asked.append(statement)
            statement = steps.send(Result([], reopened if statement.name == "inbox.reopen" else 1))
    except StopIteration:
        return asked


def test_everything_that_is_needed_to_try_again_is_stored() -> None:
    (statement,) = run(Unhandled(IDENTITY, MESSAGE, Ending(End.RETRY, "E: x"), RETRY))
    values = dict(statement.params)
    assert statement.name == "inbox.store"
    assert (values["payload"], values["headers"], values["key"], values["error"]) == (
        b"{}",
        '{"a":"b"}',
        "k",
        "E: x",
    )


def test_a_busy_message_waits_under_a_key_of_its_own() -> None:
    (statement,) = run(Unhandled(IDENTITY, MESSAGE, Ending(End.BUSY, "B"), RETRY))
    assert statement.params["dedupe_key"] == busy_key(MESSAGE)


def test_half_done_work_opens_its_record_again_or_is_stored() -> None:
    half = Unhandled(IDENTITY, MESSAGE, Ending(End.FAILED, "M", half=True), RETRY)
    assert [s.name for s in run(half, reopened=1)] == ["inbox.reopen"]
    assert [s.name for s in run(half, reopened=0)] == ["inbox.reopen", "inbox.store"]


def test_the_lane_follows_the_key_only_where_order_is_kept() -> None:
    assert lane_of(MESSAGE, ordered=True) == place("orders", "k").lane
    assert {lane_of(MESSAGE, ordered=False) for _ in range(2000)} == set(range(LANES))
    keyless = Message("1", "t", "event", "orders", None, b"{}", {})
    assert len({lane_of(keyless, ordered=True) for _ in range(500)}) > 10
