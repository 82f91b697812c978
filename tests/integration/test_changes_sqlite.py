"""Writers in processes of their own, killed in the middle; a reader that stops again and again."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from duly.databases.sqlite.changes import SqliteChanges
from duly.runtime.clock import SystemClock
from duly.sources import TableSpec
from duly.testing.change_target import State, following, state_of

SPEC = TableSpec("stock", before_image=True)
WRITER = """
import random, sqlite3, sys
path, seed = sys.argv[1:]
chance = random.Random(seed)
db = sqlite3.connect(path, isolation_level=None, timeout=30)
db.execute("PRAGMA synchronous=OFF")
while True:
    db.execute("BEGIN IMMEDIATE")
    marked = chance.random() < 0.5
    if marked:
        db.execute("INSERT INTO duly_intent (name) VALUES ('BEGIN')")
    for _ in range(chance.randrange(1, 6)):
        a, b = chance.randrange(300), chance.randrange(300)
        db.execute(*chance.choice([
            ("INSERT OR REPLACE INTO stock (id, code, n) VALUES (?, ?, random())", (a, b)),
            ("UPDATE OR REPLACE stock SET code = ?, n = n + 1 WHERE id = ?", (a, b)),
            ("UPDATE OR IGNORE stock SET id = ? WHERE id = ?", (a, b)),
            ("DELETE FROM stock WHERE id = ?", (a,)),
        ]))
    if marked:
        db.execute("INSERT INTO duly_intent (name) VALUES ('COMMIT')")
    db.execute(chance.choice(["COMMIT"] * 4 + ["ROLLBACK"]))
"""


async def test_killed_writers_and_a_stopping_reader_add_up(sqlite_url: str, tmp_path: Path) -> None:
    """The rows that come of the changes, whole prefixes confirmed on the way, are the table's."""
    path = str(tmp_path / "duly.db")
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("CREATE TABLE stock (id INTEGER PRIMARY KEY, code INTEGER UNIQUE, n REAL)")
    source = SqliteChanges(sqlite_url, reader="r", clock=SystemClock(), keep=0)
    position = await source.prepare([SPEC])
    states: dict[str, State] = {}
    ids: list[str] = []
    for token in range(1, 5):
        command = [sys.executable, "-c", WRITER, path]
        writers = [subprocess.Popen([*command, f"{token}.{n}"]) for n in range(2)]
        try:
            async with following(source, [SPEC], position=position, token=token) as follower:
                follower.states = states
                await follower.until(lambda: len(follower.changes) > 300)
                await follower.stream.confirm(follower.position)
        finally:
            for writer in writers:
                writer.kill()
                writer.wait(10)
        position = follower.position
        ids += [change.id for change in follower.changes]
    end = (await source.status(position)).end
    async with following(source, [SPEC], position=position, token=9) as follower:
        follower.states = states
        await follower.reach(end)
    ids += [change.id for change in follower.changes]
    with closing(sqlite3.connect(path)) as db:
        db.row_factory = sqlite3.Row
        rows = [dict(row) for row in db.execute("SELECT * FROM stock")]
        kept, least = db.execute("SELECT count(*), min(seq) FROM duly_change").fetchone()
    assert states["stock"] == state_of(rows, ["id"])
    assert len(set(ids)) == len(ids) > 1200
    assert least > 1200, "what was confirmed is still kept"
    assert kept == int(end) - least + 1
