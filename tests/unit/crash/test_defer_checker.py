"""The verdict on deferred calls: right for what is right, and each mistake seen for what it is."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.crash.checker import Verdict
from tests.crash.defer import TABLES
from tests.crash.defer_checker import check_defer
from tests.crash.stage import Stage

World = dict[str, list[Any]]


def world() -> World:
    """1 was made at once, 2 and 4 were deferred (4 without key, held), 3 was rolled back."""
    return {
        "ops": [
            *({"what": "begin", "op": n, "keyed": n != 4, "back": n == 3} for n in (1, 2, 3, 4)),
            *({"what": "ack", "op": op} for op in (1, 2, 4)),
        ],
        "asks": [(1, "op-1", "caller"), (2, "op-2", "caller"), (2, "op-2", "worker"),
                 (3, "op-3", "caller"), (4, "", "caller"), (4, "", "worker")],
        "acts": [1, 2, 3, 4],
        "crash_op": [(1, 0, ""), (2, 1, "m2"), (4, 1, "m4")],
        "crash_paid": [2],
        "held": ["m4"],
    }  # fmt: skip


def judge(folder: Path, found: World) -> Verdict:
    asks = [{"what": "ask", "op": o, "key": k, "who": w, "by": 1} for o, k, w in found["asks"]]
    acts = [{"what": "act", "op": op} for op in found["acts"]]
    for name, lines in (("ops", found["ops"]), ("peer", asks + acts)):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text)
    with closing(sqlite3.connect(folder / "shop.db")) as plain, plain:
        plain.executescript(TABLES)
        plain.execute("CREATE TABLE duly_inbox (message_id text, status text)")
        plain.executemany("INSERT INTO crash_op VALUES (?, ?, ?)", found["crash_op"])
        paid = [(op,) for op in found["crash_paid"]]
        plain.executemany("INSERT INTO crash_paid (op, pid) VALUES (?, 1)", paid)
        held = [(one,) for one in found["held"]]
        plain.executemany("INSERT INTO duly_inbox VALUES (?, 'held')", held)
    return check_defer(Stage(folder, "sqlite", f"sqlite:///{folder}/shop.db", ""))


def test_what_is_right_is_clean(tmp_path: Path) -> None:
    verdict = judge(tmp_path, world())
    assert verdict.problems == []
    assert (verdict.attempted, verdict.acknowledged, verdict.delivered) == (4, 3, 3)


@pytest.mark.parametrize(
    ("mistake", "wanted"),
    [
        (lambda w: w["crash_op"].pop(0), "lost 1: acknowledged and not committed"),
        (lambda w: w["acts"].remove(1), "lost 1: committed and never called"),
        (lambda w: w["crash_paid"].clear(), "lost 1: deferred and not answered"),
        (lambda w: w["asks"].append((2, "op-2b", "worker")), "unexpected 1: called under two keys"),
        (lambda w: w["acts"].append(4), "unexpected 1: made twice"),
        (lambda w: w["asks"].append((3, "op-3", "worker")), "called later, and not committed"),
        (lambda w: w["crash_paid"].append(2), "unexpected 1: answered twice"),
        (lambda w: w["crash_paid"].append(1), "unexpected 1: answered and not deferred"),
        (lambda w: w["held"].append("m2"), "unexpected 1: held although it has a key"),
    ],
)
def test_every_kind_of_wrong_is_seen(
    mistake: Callable[[World], None], wanted: str, tmp_path: Path
) -> None:
    found = world()
    mistake(found)
    assert any(wanted in problem for problem in judge(tmp_path, found).problems)
