"""A verdict on copies is worth something if each thing that can go wrong turns it red."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.crash.cdc_copies import COPIES, Copy, Rows, Step
from tests.crash.cdc_sinks_checker import check_sinks, judge_rows, judge_trail
from tests.crash.cdc_sinks_stage import SinksStage
from tests.crash.cdc_stage import BULK_EVERY, CDC_SQLITE, make_cdc_stage
from tests.crash.checker import Verdict

FILLED, FRESH = Copy("texts", "item", "json"), Copy("fresh", "item", "invalidate")


class World:
    """A run that went well: a row was updated and moved, another one deleted, some came in bulk."""

    def __init__(self, folder: Path) -> None:
        kind = partial(SinksStage, what="files")
        stage = make_cdc_stage(CDC_SQLITE, folder, kind=kind)
        assert isinstance(stage, SinksStage)
        self.stage = stage
        self._copies = stage.targets["sqlite"].removeprefix("sqlite:///")
        for key, v, note in stage.rows("SELECT id, v, note FROM item"):
            self.put(key, v, "read", note=note)
        self.change("UPDATE item SET v = 1001 WHERE id = 7", ("update", "7", 7, 1001))
        self.put(7, 1001, "update")
        self.change(
            "UPDATE item SET id = 900, v = 1002 WHERE id = 7", ("move 7", "900", 1001, 1002)
        )
        self.copied("DELETE FROM copy_item WHERE id = 7")
        self.put(900, 1002, "update")
        self.change("DELETE FROM item WHERE id = 9", ("delete", "9", 9, None))
        self.copied("DELETE FROM copy_item WHERE id = 9")
        for key in (BULK_EVERY, BULK_EVERY + 1):
            stage.rows(f"INSERT INTO bulk VALUES ({key}, {key}, 'x')")
            self.copied(f"INSERT INTO copy_bulk VALUES ({key}, {key}, 'create', 'p', 1)")
        line = ("create", str(BULK_EVERY), None, BULK_EVERY)
        self.change("SELECT 1", line, table="bulk")
        facts = [{"what": "try", "txn": "t", "count": 4}, {"what": "ack", "txn": "t"}]
        text = "".join(json.dumps({"at": 1.0, "pid": 1, **fact}) + "\n" for fact in facts)
        self.stage.journal("acks-1").write_text(text)

    def change(self, sql: str, line: tuple[str, str, Any, Any], *, table: str = "item") -> None:
        """In the source, with its line in the history."""
        self.stage.rows(sql)
        insert = "INSERT INTO cdc_history (tbl, op, key, old, new, txn) VALUES (?, ?, ?, ?, ?, 't')"
        self.stage.rows(insert, (table, *line))

    def put(self, key: int, v: int, op: str, *, note: str = "as it was loaded") -> None:
        self.copied(
            f"INSERT INTO copy_item VALUES ({key}, {v}, '{note}', '{op}', 'p', 1) ON CONFLICT (id) "
            "DO UPDATE SET v = excluded.v, note = excluded.note, op = excluded.op"
        )

    def copied(self, sql: str) -> None:
        with closing(sqlite3.connect(self._copies)) as plain, plain:
            plain.execute(sql)

    def judged(self) -> Verdict:
        return check_sinks(self.stage, batch_max=1)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    copies = (Copy("item_file", "item", "sqlite"), Copy("bulk_file", "bulk", "sqlite"))
    monkeypatch.setitem(COPIES, "files", copies)
    return World(tmp_path)


def test_a_run_that_went_well_is_clean(world: World) -> None:
    verdict = world.judged()
    assert not verdict.problems
    assert (verdict.attempted, verdict.acknowledged, verdict.delivered) == (4, 4, 4)
    assert world.stage.behind() == {}


WRONGS: dict[str, tuple[str, Callable[[World], Any]]] = {
    "a row is missing": (
        "lost 1: not so in item_file: ['3: None for (3, 'as it was loaded')']",
        lambda w: w.copied("DELETE FROM copy_item WHERE id = 3"),
    ),
    "a row is away that nobody removed": (
        "unexpected 1: item_file: a row away that nobody removed: ['3 gone 3 after [3]']",
        lambda w: w.copied("DELETE FROM copy_item WHERE id = 3"),
    ),
    "another value of a column": (
        "lost 1: not so in item_file: ['3: (3, 'other') for",
        lambda w: w.put(3, 3, "read", note="other"),
    ),
    "a row that the source has not": (
        "unexpected 1: in item_file and not in its table: ['9: (9,",
        lambda w: w.put(9, 9, "read"),
    ),
    "a value that nobody committed": (
        "unexpected 1: item_file: a value that nobody committed: ['3 update 77",
        lambda w: w.put(3, 77, "update"),
    ),
    "a change twice": (
        "unexpected 1: item_file: a change applied twice: ['900 update 1002",
        lambda w: w.copied("UPDATE copy_item SET op = 'update' WHERE id = 900"),
    ),
    "back in time, though it came right": (
        "order_breaks 1: item_file: back in time: ['900 update 3 after [4]']",
        lambda w: (
            w.change("UPDATE item SET v = 4 WHERE id = 900", ("update", "900", 1002, 3)),
            w.change("SELECT 1", ("update", "900", 3, 4)),
            w.copied("UPDATE copy_item SET v = 4 WHERE id = 900"),
            w.copied("UPDATE copy_item SET v = 3 WHERE id = 900"),
            w.copied("UPDATE copy_item SET v = 4, op = 'read' WHERE id = 900"),
        ),
    ),
    "the trail is of something else": (
        'unexpected 1: item_file is not as its trail ends: ["5: (None, 5)"]',
        lambda w: w.copied("DELETE FROM trail WHERE key = '5'"),
    ),
    "a row of bulk": (
        "lost 1: not so in bulk_file: ['101: None for (101,)']",
        lambda w: w.copied("DELETE FROM copy_bulk WHERE id = 101"),
    ),
    "acknowledged, and not in the history": (
        "lost 1: acknowledged, but not in the database",
        lambda w: w.stage.rows("DELETE FROM cdc_history WHERE op = 'delete'"),
    ),
}


@pytest.mark.parametrize("name", WRONGS)
def test_every_kind_of_wrong_is_seen(world: World, name: str) -> None:
    expected, act = WRONGS[name]
    act(world)
    found = [problem.replace('"', "'") for problem in world.judged().problems]
    assert any(one.startswith(expected.replace('"', "'")) for one in found), found


def test_what_was_seen_of_a_cache_never_goes_back() -> None:
    states = {"1": [1, 2, None, 3]}
    assert _judged(states, 1, 1, 2, None, None, 3) == []
    assert _judged(states, 3) == []  # nobody looked before
    assert _judged(states, 2, 1) == ["order_breaks 1: texts: back in time: ['1 seen 1 after [2]']"]
    assert _judged(states, 3, None) == [
        "unexpected 1: texts: a row away that nobody removed: ['1 seen None after [3]']"
    ]


def _judged(states: dict[str, list[Any]], *seen: int | None) -> list[str]:
    verdict = Verdict()
    judge_trail(verdict, FILLED, states, [Step("1", "seen", v) for v in seen])
    return verdict.problems


def test_an_entry_of_the_past_is_lost_and_one_that_is_not_there_is_none() -> None:
    source: Rows = {"1": (10,), "2": (20,), "3": (30,)}
    for held, wrong in (
        ({"1": (10,)}, []),
        (
            {"1": (9,), "2": (20,)},
            ["lost 1: fresh keeps what is of the past: ['1: (9,) for (10,)']"],
        ),
        ({"4": (9,)}, ["lost 1: fresh keeps what is of the past: ['4: (9,) for None']"]),
        ({}, []),
    ):
        verdict = Verdict()
        judge_rows(verdict, FRESH, source, held)
        assert verdict.problems == wrong
