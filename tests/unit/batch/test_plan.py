from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import pytest

from duly.batch.plan import Part, Plan, from_key, list_path, to_key
from duly.batch.spool import Chunk
from duly.errors import PermanentError


@pytest.mark.parametrize(
    "key",
    [
        None,
        (1, "a", 2.5),
        (Decimal("1.50"), b"\0\xff"),
        (date(2026, 1, 2), datetime(2026, 1, 2, 3, tzinfo=UTC), time(4, 5)),
        (timedelta(days=1, microseconds=3), UUID(int=7)),
        (-(2**63),),
    ],
)
def test_a_key_comes_back_as_it_was(key: Any):
    assert from_key(msgspec.json.decode(msgspec.json.encode(to_key(key)))) == key


@pytest.mark.parametrize(
    ("key", "code"), [((True,), "TYPE"), (([1],), "TYPE"), (("x" * 600,), "TOO_LARGE")]
)
def test_a_key_that_cannot_be_stored_is_refused(key: Any, code: str):
    with pytest.raises(PermanentError, match=f"BATCH_KEY_{code}"):
        to_key(key)


def chunk(n: int, **more: Any) -> Chunk:
    return Chunk(n, 1, f"{n:064}", [n], **more)


def test_the_checkpoint_stays_small_and_nothing_is_forgotten(tmp_path: Path):
    plan = Plan("live", [], [Part(), Part()])
    made = []
    for n in range(1, 200):
        made.append(chunk(n))
        plan.parts[n % 2].add(made[-1])
        plan.spill(tmp_path)
        assert len(msgspec.json.encode(plan)) < 8192
    again = msgspec.json.decode(msgspec.json.encode(plan), type=Plan)
    found = [part.chunks(list_path(tmp_path, n)) for n, part in enumerate(again.parts)]
    assert sorted([*found[0], *found[1]], key=lambda c: c.size_bytes) == made
    assert (again.rows, again.size_bytes) == (199, sum(range(200)))
    assert again.parts[1].last == [199]


def test_skipped_rows_go_to_the_file_at_once(tmp_path: Path):
    plan = Plan("live", [], [Part()])
    plan.parts[0].add(chunk(1, skipped=[("1", "E")]))
    plan.spill(tmp_path)
    assert plan.parts[0].tail == []
    assert plan.skipped == 1


def test_a_list_that_is_damaged_gives_what_can_be_read(tmp_path: Path):
    part, path = Part(), list_path(tmp_path, 0)
    for n in range(5):
        part.add(chunk(n))
    part.spill(path)
    part.add(chunk(9))
    assert len(part.chunks(path)) == 6
    path.write_bytes(path.read_bytes()[:-10])
    assert part.chunks(path) == []
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
    assert len(part.chunks(path)) == 2
    path.unlink()
    assert part.chunks(path) == []
