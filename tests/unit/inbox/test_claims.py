from __future__ import annotations

import json

import msgspec
import pytest

from duly.errors import TransactionConflictError
from duly.inbox.claims import BatchClaim, Claim, FreshClaim, RowClaim, judged
from duly.inbox.ending import End, Ending
from duly.inbox.identity import Identity
from duly.kernel.lease import LeaseTerm
from duly.message import Message
from duly.ports import Result
from duly.runtime.work import Row


def message(id: str) -> Message:
    return Message(id, "t", "event", "orders", None, b"", {})


def run(claim: Claim, *answers: Result) -> tuple[Ending | None, list[str]]:
    steps, left, asked = claim.steps(), list(answers), []
    try:
        statement = next(steps)
        while True:
            asked.append(statement.name)
            statement = steps.send(left.pop(0))
    except StopIteration as end:
        return end.value, asked


FRESH = FreshClaim(Identity("g", "h", "1"), message("1"))
NOTHING = Result([], 0)


@pytest.mark.parametrize(
    ("found", "end"),
    [
        (("1", "done"), End.DUPLICATE),
        (("2", "done"), End.DUPLICATE),
        (("2", "skipped"), End.DUPLICATE),
        (("2", "dropped"), End.DUPLICATE),
        (("1", "retry"), End.OWNED),
        (("1", "failed"), End.OWNED),
        (("2", "retry"), End.BUSY),
        (("2", "ready"), End.BUSY),
        (("2", "held"), End.BUSY),
        (("2", "failed"), End.BUSY),
    ],
)
def test_what_the_row_in_the_way_says(found: tuple[str, str], end: End) -> None:
    ending, asked = run(FRESH, NOTHING, Result([found], 1))
    assert ending is not None
    assert (ending.end, asked) == (end, ["inbox.claim", "inbox.look"])
    assert judged(*found, "1").end is end


def test_the_insert_is_the_first_statement_and_enough() -> None:
    assert run(FRESH, Result([], 1)) == (None, ["inbox.claim"])


def test_a_row_that_vanished_is_a_conflict() -> None:
    with pytest.raises(TransactionConflictError):
        run(FRESH, NOTHING, NOTHING)


def test_a_row_of_somebody_else_is_stale() -> None:
    row = Row(1, "1", "t", "event", "orders", None, 0, b"", "{}", "ready", 0)
    claim = RowClaim(row, LeaseTerm("lane/inbox:g/0", 7, 1.0))
    assert run(claim, Result([], 1)) == (None, ["inbox.finish"])
    assert run(claim, NOTHING)[0] == Ending(End.STALE)
    assert dict(next(claim.steps()).params) == {
        "id": 1,
        "message_id": "1",
        "lease": "lane/inbox:g/0",
        "token": 7,
    }


def test_a_batch_of_new_ones_is_one_statement() -> None:
    claim = BatchClaim([Identity("g", "h", k) for k in "bca"], [message(k) for k in "bca"])
    first = next(claim.steps())
    keys = [key for key, _, _ in json.loads(first.params["rows"])]
    assert keys == ["a", "b", "c"], "one order for all, against deadlocks"
    assert run(claim, Result([], 3)) == (None, ["inbox.claim_all"])
    assert claim.endings == {}


def test_a_batch_from_two_topics_is_one_statement_for_each() -> None:
    here, there = message("1"), msgspec.structs.replace(message("2"), topic="there")
    claim = BatchClaim([Identity("g", "h", k) for k in "ab"], [here, there])
    assert run(claim, Result([], 1), Result([], 1)) == (None, ["inbox.claim_all"] * 2)
    steps = claim.steps()
    asked = [next(steps), steps.send(Result([], 1))]
    assert [s.params["topic"] for s in asked] == [here.topic, "there"]
    assert [json.loads(s.params["rows"]) for s in asked] == [
        [["a", "1", here.key]], [["b", "2", there.key]]
    ]  # fmt: skip


def test_a_batch_with_known_ones_is_undone_and_sorted_out() -> None:
    claim = BatchClaim(
        [Identity("g", "h", k) for k in "abca"], [message(k) for k in ("1", "2", "3", "1")]
    )
    answers = [
        Result([], 1),
        NOTHING,
        Result([("b",)], 1),
        Result([("a", "9", "done"), ("c", "9", "retry")], 2),
    ]
    ending, asked = run(claim, *answers)
    assert ending is None
    assert asked == ["inbox.claim_all", "inbox.unwind", "inbox.claim_many", "inbox.seen"]
    assert {place: one.end for place, one in claim.endings.items()} == {
        0: End.DUPLICATE, 2: End.BUSY, 3: End.DUPLICATE
    }  # fmt: skip


def test_a_batch_of_known_ones_only_is_a_duplicate() -> None:
    claim = BatchClaim([Identity("g", "h", "a")], [message("1")])
    ending, _ = run(claim, NOTHING, NOTHING, NOTHING, Result([("a", "1", "done")], 1))
    assert ending == Ending(End.DUPLICATE)


def test_a_batch_whose_row_vanished_is_a_conflict() -> None:
    claim = BatchClaim([Identity("g", "h", "a")], [message("1")])
    with pytest.raises(TransactionConflictError):
        run(claim, NOTHING, NOTHING, NOTHING, NOTHING)
