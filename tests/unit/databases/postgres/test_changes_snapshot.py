"""Which transactions a chunk saw, and its rows as those it did not see left them."""

from __future__ import annotations

from typing import Any

import pytest

from duly.databases.postgres.changes_catalog import Table
from duly.databases.postgres.changes_snapshot import Snapshot, visible
from duly.kernel.changes import ABSENT, Change, Op, Transaction
from duly.sources import TableSpec

TABLE = Table(TableSpec("t"), 9, "public", "t", "r", "p", "public.t", ("id",), ("id",), (), ())


@pytest.mark.parametrize(
    ("snapshot", "xid", "seen"),
    [
        ("10:20:12,15", 9, True),
        ("10:20:12,15", 12, False),
        ("10:20:12,15", 13, True),
        ("10:20:12,15", 20, False),
        ("10:10:", 9, True),
        (f"{2**32 + 5}:{2**32 + 9}:{2**32 + 6}", 2**32 - 1, True),
        (f"{2**32 + 5}:{2**32 + 9}:{2**32 + 6}", 6, False),
        (f"{2**32 + 5}:{2**32 + 9}:{2**32 + 6}", 7, True),
        (f"{2**32 - 2}:{2**32 - 1}:", 3, False),
    ],
)
def test_a_number_of_32_bits_is_seen_in_its_epoch(snapshot: str, xid: int, seen: bool) -> None:
    assert visible(snapshot)(xid) is seen


def change(op: Op, key: int, after: Any, *, before: Any = None, table: str = "t") -> Change:
    return Change("db", table, op, {"id": key}, before, after, "P", 0)


def folded(*changes: Change) -> list[dict[str, Any]]:
    """Rows 1 and 2 as these changes leave them."""
    job = Snapshot(None, TABLE, url="", publication="", cursor="")  # type: ignore[arg-type]
    job.saw(Transaction("db", "P", "Q", "5", None, changes))
    rows = [({"id": n}, {"id": n, "big": "old", "n": 0}) for n in (1, 2)]
    return [row for _, row in job.fold(rows)]


def test_what_the_chunk_did_not_see_is_laid_over_its_rows() -> None:
    second = {"id": 2, "big": "old", "n": 0}
    assert folded() == [{"id": 1, "big": "old", "n": 0}, second]
    assert folded(change("delete", 1, None)) == [second]
    assert folded(change("truncate", 0, None)) == []
    assert folded(change("create", 3, {"id": 3})) == [{"id": 1, "big": "old", "n": 0}, second]
    assert folded(change("delete", 1, None, table="other"))[0]["id"] == 1
    assert folded(change("update", 9, {"id": 9}))[1] == second


def test_a_large_value_that_no_change_repeats_is_kept() -> None:
    updated = change("update", 1, {"id": 1, "big": ABSENT, "n": 5})
    assert folded(updated)[-1] == {"id": 1, "big": "old", "n": 5}
    moved = change("update", 7, {"id": 7, "big": ABSENT, "n": 6}, before={"id": 1, "big": ABSENT})
    assert folded(updated, moved)[-1] == {"id": 7, "big": "old", "n": 6}
    assert folded(moved, change("delete", 7, None)) == [{"id": 2, "big": "old", "n": 0}]
