from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from duly import ABSENT, UNKEYED, App, Change, Emit, Event
from duly.cdc.intake import Intake
from duly.cdc.outgoing import Evaluator
from duly.kernel.changes import SnapshotChunk, Transaction
from duly.outbox.publish import PendingMessage
from duly.testing.changes import created, snapshot_row, transaction_of


class Seen(Event, name="seen", topic="seen"):
    note: str = ""


def evaluator(function: Any, **options: Any) -> Evaluator:
    app = App("shop", database="sqlite:///nowhere.db")
    app.cdc(table="t", name="seen", **options)(function)
    return Evaluator(app.captures.stream(), app.outlet)


def only(function: Any, change: Change) -> PendingMessage:
    (message,) = evaluator(function).messages(transaction_of([change]))
    return message


def seen(change: Change) -> Seen:
    return Seen()


@pytest.mark.parametrize(
    ("row", "key"),
    [
        ({"id": 7}, "7"),
        ({"id": "a"}, "a"),
        ({"id": Decimal("1.50")}, "1.50"),
        ({"id": b"\x01\xff"}, "01ff"),
        ({"id": None}, "None"),
    ],
)
def test_messages_of_one_row_have_one_key(row: dict[str, Any], key: str) -> None:
    assert only(seen, created("t", row)).message.key == key


def test_keys_of_several_columns_do_not_run_into_each_other() -> None:
    first = created("t", {"a": "x", "b": "yz"}, key=["a", "b"])
    second = created("t", {"a": "xy", "b": "z"}, key=["b", "a"])
    assert only(seen, first).message.key == "1:x2:yz"
    assert only(seen, second).message.key == "2:xy1:z"


@pytest.mark.parametrize("value", ["", "x" * 1025, "a\0b", "\ud800"])
def test_what_cannot_be_a_key_keeps_its_order_by_its_digest(value: str) -> None:
    key = only(seen, created("t", {"id": value})).message.key
    assert key is not None
    assert len(key) == 64
    assert key == only(seen, created("t", {"id": value})).message.key


def test_a_row_without_a_known_key_has_no_order() -> None:
    for change in (created("t", {}, key=()), created("t", {"id": ABSENT})):
        assert only(seen, change).message.key is None
    unkeyed = only(lambda _: Emit(Seen(), key=UNKEYED), created("t", {"id": 1}))
    assert unkeyed.message.key is None


def test_headers_tell_where_it_comes_from() -> None:
    headers = only(lambda _: Emit(Seen(), headers={"a": "b"}), created("t", {"id": 1})).message
    told = {n: v for n, v in headers.headers.items() if n.startswith("cdc") or n == "a"}
    assert told == {
        "a": "b",
        "cdcsource": "test",
        "cdctable": "t",
        "cdcposition": "1",
        "cdcordinal": "0",
        "cdctime": "2026-01-01T00:00:00+00:00",
    }
    (whole,) = evaluator(seen, transaction=True).messages(transaction_of([created("t", {"id": 1})]))
    assert "cdcordinal" not in whole.message.headers
    assert whole.message.headers["cdcposition"] == "1"


def test_items_are_evaluated_up_to_the_one_that_fails() -> None:
    def fails_at_three(change: Change) -> Iterator[Seen]:
        yield Seen()
        if change.key["id"] == 3:
            yield Seen(note="\ud800")  # no JSON has this

    items = [transaction_of([created("t", {"id": n})], position=str(n)) for n in range(1, 5)]
    done = evaluator(fails_at_three).evaluate(["0", *items])
    assert (len(done.items), len(done.messages)) == (3, 2)
    assert done.failed is not None
    assert (done.failed.position, done.failed.cause) == ("3", "NOT_SERIALIZABLE")
    whole = evaluator(fails_at_three).evaluate(items[:2])
    assert (len(whole.items), len(whole.messages), whole.failed) == (2, 2, None)


def test_chunks_and_bare_positions() -> None:
    rows = [snapshot_row("t", {"id": n}) for n in range(2)]
    chunk = SnapshotChunk("t", "9", rows, cursor="2", done=True)
    assert len(list(evaluator(seen, on_snapshot=True).messages(chunk))) == 2
    assert list(evaluator(seen).messages(chunk)) == []
    assert list(evaluator(seen).messages("9")) == []
    empty = SnapshotChunk("t", "9", [], cursor="", done=True)
    assert list(evaluator(seen, on_snapshot=True).messages(empty)) == []


def test_a_large_transaction_comes_in_pieces() -> None:
    many = transaction_of([created("t", {"id": n}) for n in range(2001)])
    assert [len(piece) for piece in evaluator(seen).pieces(many)] == [1000, 1000, 1]


# --- the buffer before it -------------------------------------------------------------------------
def sized(count: int) -> Transaction:
    changes = [created("t", {"id": n}) for n in range(count)]
    at = datetime.now(UTC)
    return Transaction("db", "1", "1", "", at, changes)


async def test_the_reader_waits_for_the_writer_and_the_writer_for_the_reader() -> None:
    intake = Intake(changes_max=10)
    assert await intake.take(changes_max=5, timeout_seconds=0.01) == []
    first, large, second = sized(6), sized(50), sized(4)
    await intake.put(first)
    await intake.put("p")
    waiting = asyncio.create_task(intake.put(large))
    await asyncio.sleep(0)
    assert not waiting.done()
    assert await intake.take(changes_max=5, timeout_seconds=1) == [first]  # larger than asked for
    assert await intake.take(changes_max=5, timeout_seconds=1) == ["p"]
    await waiting  # one item may be larger than the buffer
    last = asyncio.create_task(intake.put(second))
    assert await intake.take(changes_max=5, timeout_seconds=1) == [large]
    await last
    await intake.put("q")
    assert await intake.take(changes_max=5, timeout_seconds=1) == [second, "q"]
