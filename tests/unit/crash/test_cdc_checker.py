"""A verdict on changes is worth something if each thing that can go wrong turns it red."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from tests.crash.cdc_checker import check_cdc
from tests.crash.cdc_stage import CDC_SQLITE, ITEMS, CdcStage, make_cdc_stage
from tests.crash.checker import Verdict

SOURCE = "sqlite:1"
DULY = """
CREATE TABLE duly_outbox (message_id TEXT, status TEXT, last_error TEXT);
CREATE TABLE duly_inbox (message_id TEXT, group_name TEXT, status TEXT, last_error TEXT);
CREATE TABLE duly_key_hold (scope TEXT, key TEXT);
CREATE TABLE duly_offset (stream TEXT, position TEXT, state TEXT);
INSERT INTO duly_offset VALUES ('crash', '00000000000000000009', '{}');
DELETE FROM small;
DELETE FROM cdc_history WHERE tbl = 'small';
"""


def place(number: int) -> str:
    return f"{number:020}"


class World:
    """A run that went well: a row is updated and moved, another one is read by a snapshot."""

    def __init__(self, folder: Path) -> None:
        self.stage: CdcStage = make_cdc_stage(CDC_SQLITE, folder)
        with closing(self.stage.connect()) as plain:
            plain.executescript(DULY)
        self.change("update", "7", 7, 1001, "t1", at=2)
        self.change("move 7", "900", 1001, 1002, "t1", at=3)
        self.run("UPDATE item SET id = 900, v = 1002 WHERE id = 7")
        for n in range(ITEMS):
            if n != 7:
                self.event("read", str(n), None, n, at=4, chunk=".c1", ordinal=n)
        self.event("read", "900", None, 1002, at=4, chunk=".c1", ordinal=ITEMS)
        self.journal("acks-1", [("try", {"txn": "t1", "count": 2}), ("ack", {"txn": "t1"})])
        self.journal("meddler", [("done", {"position": place(5)})])

    def run(self, sql: str, *values: Any) -> None:
        self.stage.rows(sql, values)

    def change(self, op: str, key: str, old: int, new: int, txn: str, *, at: int) -> None:
        line = (
            "INSERT INTO cdc_history (tbl, op, key, old, new, txn) VALUES ('item', ?, ?, ?, ?, ?)"
        )
        self.run(line, op, key, old, new, txn)
        self.event(op, key, old, new, at=at)

    def event(
        self, op: str, key: str, old: int | None, new: int, *, at: int, chunk: str = "",
        ordinal: int = 0,
    ) -> None:  # fmt: skip
        what, _, was = op.partition(" ")
        body = {"table": "item", "op": "update" if was else what, "key": key, "old": old,
                "new": new, "was": was, "rule": "rows"}  # fmt: skip
        position = place(at) + chunk
        headers = {"cdcsource": SOURCE, "cdcposition": position, "cdcordinal": str(ordinal)}
        message_id = an_id(SOURCE, position, str(ordinal), "rows", "0")
        insert = "INSERT INTO cdc_effect (message_id, body, headers, pid) VALUES (?, ?, ?, 1)"
        self.run(insert, message_id, json.dumps(body), json.dumps(headers))
        self.run("INSERT INTO duly_outbox VALUES (?, 'sent', NULL)", message_id)

    def journal(self, name: str, facts: list[tuple[str, dict[str, Any]]]) -> None:
        lines = [json.dumps({"what": what, "at": 1.0, "pid": 1, **more}) for what, more in facts]
        self.stage.journal(name).write_text("".join(f"{line}\n" for line in lines))

    def judged(self) -> Verdict:
        return check_cdc(self.stage, batch_max=1)


def an_id(*parts: str) -> str:
    digest = sha256("".join(f"{len(part)}:{part}" for part in parts).encode()).hexdigest()
    variant = "89ab"[int(digest[16], 16) % 4]
    return f"{digest[:8]}-{digest[8:12]}-8{digest[13:16]}-{variant}{digest[17:20]}-{digest[20:32]}"


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_run_that_went_well_is_clean(world: World) -> None:
    verdict = world.judged()
    assert not verdict.problems
    assert (verdict.attempted, verdict.acknowledged, verdict.delivered) == (2, 2, 2)


WRONGS: dict[str, tuple[str, Callable[[World], Any]]] = {
    "an event is missing": (
        "lost 1: committed, but not told",
        lambda w: w.run("DELETE FROM cdc_effect WHERE id = 1"),
    ),
    "an acknowledged change is not in the history": (
        "lost 1: acknowledged, but not in the database",
        lambda w: w.run("DELETE FROM cdc_history WHERE op = 'update'"),
    ),
    "rolled back work is told": (
        "unexpected 1: an event of what nobody committed",
        lambda w: w.event("create", "950", None, 5000, at=5),
    ),
    "a change is told twice": (
        "unexpected 1: a change told more than once",
        lambda w: w.event("update", "7", 7, 1001, at=2),
    ),
    "an id has another origin": (
        "unexpected 1: an id that is not given",
        lambda w: w.run("UPDATE cdc_effect SET message_id = 'x' WHERE id = 1"),
    ),
    "a change is stored twice": (
        "unexpected 1: stored twice",
        lambda w: w.run("INSERT INTO duly_outbox SELECT * FROM duly_outbox LIMIT 1"),
    ),
    "a snapshot leaves a row out": (
        "lost 1: left out of the snapshot",
        lambda w: w.run("DELETE FROM cdc_effect WHERE body LIKE '%read%' AND body LIKE '%\"50\"%'"),
    ),
    "a snapshot tells a row twice": (
        "unexpected 1: told twice by the snapshot",
        lambda w: w.event("read", "50", None, 50, at=5, chunk=".c2"),
    ),
    "a snapshot tells an old value": (
        "unexpected 1: a snapshot's row that was not so",
        lambda w: w.run("UPDATE cdc_effect SET body = replace(body, '1002', '1001') WHERE id > 2"),
    ),
    "a change comes late": (
        "order_breaks 1: arrived behind a later place",
        lambda w: w.run("UPDATE cdc_effect SET id = id + 5000 WHERE id = 2"),
    ),
    "places go back": (
        "order_breaks 1: its place is not behind",
        lambda w: (
            w.change("update", "900", 1002, 1003, "t2", at=1),
            w.run("UPDATE item SET v = 1003 WHERE id = 900"),
        ),
    ),
    "a message is left behind": (
        "lost 1: still in the outbox",
        lambda w: w.run("INSERT INTO duly_outbox VALUES ('m', 'held', NULL)"),
    ),
    "the target misses a row": (
        "lost 1: not so in the target",
        lambda w: w.run("INSERT INTO item VALUES (990, 1, 'unseen')"),
    ),
}


@pytest.mark.parametrize("wrong", WRONGS)
def test_each_thing_that_goes_wrong_is_seen(world: World, wrong: str) -> None:
    said, spoil = WRONGS[wrong]
    spoil(world)
    problems = world.judged().problems
    assert any(problem.startswith(said) for problem in problems), problems
