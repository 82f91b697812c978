"""What the public suite cannot know of SQLite: its schema, its file, its marks."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

from duly.databases.sqlite.changes import SqliteChanges
from duly.databases.sqlite.marks import marked
from duly.databases.sqlite.reader import Access, Reader, Who
from duly.errors import (
    ConfigurationError,
    DatabaseUnavailableError,
    DulyError,
    GapError,
    InvalidNameError,
    NotInTransactionError,
    UndecodableError,
)
from duly.kernel.changes import ABSENT, SnapshotChunk, Transaction
from duly.ports import Severity
from duly.runtime.clock import SystemClock
from duly.sources import TableSpec
from duly.testing.change_target import following

SPEC = TableSpec("t", before_image=True)


@pytest.fixture
def db(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(tmp_path / "duly.db", isolation_level=None)) as made:
        made.execute("PRAGMA journal_mode=WAL")
        made.execute("PRAGMA synchronous=OFF")
        made.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT, w)")
        yield made


def source(url: str, reader: str = "r", keep: int = 0) -> SqliteChanges:
    return SqliteChanges(url, reader=reader, clock=SystemClock(), keep=keep)


def seen(transactions: list[Transaction]) -> list[list[tuple[str, Any]]]:
    return [[(c.op, c.key["id"]) for c in one] for one in transactions]


# --- a schema that changes ------------------------------------------------------------------------
async def test_columns_that_come_or_are_renamed_go_on_being_captured(
    sqlite_url: str, db: sqlite3.Connection
) -> None:
    """What was not carried is absent; nothing has to be read anew."""
    async with following(source(sqlite_url), [SPEC]) as follower:
        db.execute("INSERT INTO t VALUES (1, 'a', 'x')")
        await follower.get(1)
    db.execute("ALTER TABLE t ADD COLUMN more DEFAULT 5")
    db.execute("ALTER TABLE t RENAME COLUMN w TO other")
    db.execute("UPDATE t SET more = 6")
    async with following(source(sqlite_url), [SPEC], position=follower.position, token=2) as again:
        (late,) = await again.get(1)
        db.execute("UPDATE t SET more = 7")
        _, known = await again.get(2)
    assert late.after == {"id": 1, "v": "a", "w": "x", "other": ABSENT, "more": ABSENT}
    assert known.before == {"id": 1, "v": "a", "other": "x", "more": 6}
    assert known.after == {"id": 1, "v": "a", "other": "x", "more": 7}


MINE = "AFTER INSERT ON t BEGIN UPDATE t SET w = NEW.id WHERE id = NEW.id; END"


@pytest.mark.parametrize(
    ("ddl", "later"),
    [
        ("CREATE UNIQUE INDEX u ON t (v)", "CREATE UNIQUE INDEX u2 ON t (w)"),
        (f"CREATE TRIGGER mine {MINE}", f"CREATE TRIGGER mine2 {MINE}"),
    ],
)
async def test_what_may_hide_changes_is_a_gap_only_if_there_were_some(
    sqlite_url: str, db: sqlite3.Connection, ddl: str, later: str
) -> None:
    async with following(source(sqlite_url), [SPEC]) as follower:
        db.execute("INSERT INTO t VALUES (1, 'a', 'x')")
        await follower.get(1)
        db.execute(ddl)
        await follower.until(lambda: _fits(db), "new triggers")
        db.execute("INSERT OR REPLACE INTO t (v) VALUES ('a')")
        await follower.until(lambda: len(follower.changes) >= 3)
    rows = {(row[0],): {"id": row[0], "v": row[1], "w": row[2]} for row in _rows(db)}
    assert follower.states["t"] == rows
    db.execute(later)
    db.execute("INSERT INTO t (v) VALUES ('b')")
    async with following(source(sqlite_url), [SPEC], position=follower.position, token=2) as again:
        assert isinstance(await again.failed(), GapError)


def _fits(db: sqlite3.Connection) -> bool:
    return bool(db.execute("SELECT count(*) > 1 FROM duly_change_shape").fetchone()[0])


def _rows(db: sqlite3.Connection) -> list[tuple[Any, ...]]:
    return db.execute("SELECT id, v, w FROM t").fetchall()


async def test_a_gap_is_passed_by_who_reads_the_table_anew_and_by_nobody_else(
    sqlite_url: str, db: sqlite3.Connection
) -> None:
    """Preparing again hides nothing."""
    one, two = source(sqlite_url, "one"), source(sqlite_url, "two")
    start = await one.prepare([SPEC])
    await two.prepare([SPEC])
    db.execute("INSERT INTO t VALUES (1, 'a', 'x')")
    db.execute('DROP TRIGGER "duly_change delete t"')
    db.execute("DELETE FROM t")
    db.execute("INSERT INTO t VALUES (2, 'b', 'y')")
    for _ in range(2):
        async with following(one, [SPEC], position=start) as follower:
            assert isinstance(await follower.failed(), GapError)
    async with following(one, [SPEC], position=start, snapshots={"t": ""}) as follower:
        await follower.until(lambda: bool(follower.chunks), "rows")
        db.execute("DELETE FROM t")
        await follower.until(lambda: seen(follower.transactions)[-1] == [("delete", 2)])
    async with following(one, [SPEC], position=follower.position, token=2):
        db.execute("INSERT INTO t VALUES (3, 'c', 'z')")
    async with following(two, [SPEC], position=start) as follower:
        assert "CDC_GAP" in str(await follower.failed())
        assert seen(follower.transactions) == [[("create", 1)], [("create", 2)]]


async def test_a_new_reader_takes_up_a_table_whose_triggers_were_lost(
    sqlite_url: str, db: sqlite3.Connection
) -> None:
    """It has nothing to lose; the reader before it is told."""
    start = await source(sqlite_url, "one").prepare([SPEC])
    db.execute('DROP TRIGGER "duly_change insert t"')
    async with following(source(sqlite_url, "two"), [SPEC]) as follower:
        db.execute("INSERT INTO t VALUES (1, 'a', 'x')")
        await follower.get(1)
    async with following(source(sqlite_url, "one"), [SPEC], position=start) as follower:
        assert isinstance(await follower.failed(), GapError)


async def test_inspect_tells_of_lost_triggers_journal_and_missing_keys(
    sqlite_url: str, db: sqlite3.Connection
) -> None:
    db.execute("CREATE TABLE bare (x)")
    tables = [SPEC, TableSpec("bare"), TableSpec("nowhere")]
    found = {(f.code, f.severity) for f in await source(sqlite_url).inspect(tables)}
    assert {
        ("CDC_TABLE", Severity.GREEN),
        ("CDC_NO_PRIMARY_KEY", Severity.RED),
        ("CDC_TABLE_MISSING", Severity.RED),
    } <= found
    await source(sqlite_url).prepare([SPEC])
    db.execute('DROP TRIGGER "duly_change insert t"')
    db.execute("INSERT INTO duly_intent (name) VALUES ('x')")
    db.execute("UPDATE duly_change_reader SET seen_at = 0")
    db.execute("PRAGMA journal_mode=DELETE")
    found = {(f.code, f.severity) for f in await source(sqlite_url).inspect([SPEC])}
    assert {
        ("CDC_TRIGGERS", Severity.RED),
        ("CDC_JOURNAL", Severity.WEAK),
        ("CDC_IDLE_READER", Severity.WEAK),
    } <= found


# --- the file -------------------------------------------------------------------------------------
async def test_an_older_copy_put_in_place_is_noticed_while_reading_and_later(
    sqlite_url: str, db: sqlite3.Connection, tmp_path: Path
) -> None:
    """Numbers that were given are not given again."""
    path, copy = tmp_path / "duly.db", tmp_path / "copy.db"
    async with following(source(sqlite_url), [SPEC]) as follower:
        with closing(sqlite3.connect(copy)) as backup:
            db.backup(backup)
        db.execute("INSERT INTO t VALUES (1, 'a', 'x'), (2, 'b', 'y')")
        await follower.get(2)
        os.replace(copy, path)  # noqa: PTH105  # what a careless person's tool does
        error = await follower.failed()
        assert isinstance(error, DatabaseUnavailableError), error
    db.close()
    for suffix in ("-wal", "-shm"):
        (tmp_path / f"duly.db{suffix}").unlink(missing_ok=True)
    async with following(source(sqlite_url), [SPEC], position=follower.position, token=2) as again:
        assert "an older copy" in str(await again.failed())
    with closing(sqlite3.connect(path)) as new:
        new.execute("INSERT INTO t VALUES (7, 'a', 'x')")
        new.commit()
    async with following(source(sqlite_url), [SPEC], position=follower.position, token=3) as again:
        assert isinstance(await again.failed(), GapError)
        assert again.changes == []
    position, snapshot = follower.position, {"t": ""}
    async with following(
        source(sqlite_url), [SPEC], position=position, token=4, snapshots=snapshot
    ) as healed:
        await healed.until(lambda: bool(healed.chunks), "rows")
        assert [dict(row.key) for row in healed.chunks[0].rows] == [{"id": 7}]
        assert min(c.position for c in healed.changes) > position


async def test_a_file_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnavailableError):
        await source(f"sqlite:///{tmp_path / 'none.db'}").prepare([SPEC])
    assert not (tmp_path / "none.db").exists()
    shutil.copy(__file__, tmp_path / "text.db")
    with pytest.raises(ConfigurationError):
        await source(f"sqlite:///{tmp_path / 'text.db'}").identity()


async def test_what_is_confirmed_is_trimmed_but_for_the_slowest_reader_and_the_last(
    sqlite_url: str, db: sqlite3.Connection
) -> None:
    slow = await source(sqlite_url, "slow").prepare([SPEC])
    async with following(source(sqlite_url, "fast"), [SPEC]) as follower:
        db.execute("BEGIN")
        db.executemany("INSERT INTO t VALUES (?, 'a', 'x')", [(n,) for n in range(50)])
        db.execute("COMMIT")
        await follower.get(50)
        await follower.stream.confirm(follower.position)
    assert db.execute("SELECT count(*) FROM duly_change").fetchone() == (50,)
    async with following(source(sqlite_url, "slow"), [SPEC], position=slow) as follower:
        await follower.get(50)
        await follower.stream.confirm(follower.transactions[40].commit)
    assert db.execute("SELECT count(*) FROM duly_change").fetchone() == (9,)
    await source(sqlite_url, "slow").drop()
    async with following(source(sqlite_url, "fast"), [SPEC], position=follower.position, token=2):
        pass
    assert db.execute("SELECT count(*), max(seq) FROM duly_change").fetchone() == (1, 51)
    status = await source(sqlite_url, "fast").status(follower.position)
    assert (status.active, status.lag_transactions) == (False, 0)


async def test_a_hole_in_the_middle_stops_the_stream_there(
    sqlite_url: str, db: sqlite3.Connection
) -> None:
    start = await source(sqlite_url).prepare([SPEC])
    db.execute("INSERT INTO t VALUES (1, 'a', 1), (2, 'b', 2), (3, 'c', 3)")
    db.execute("DELETE FROM duly_change WHERE seq = 3")
    async with following(source(sqlite_url), [SPEC], position=start) as follower:
        assert "CDC_PURGED" in str(await follower.failed())
        assert seen(follower.transactions) == [[("create", 1)]]


async def test_a_chunk_comes_in_its_place_however_much_lies_before_it(
    sqlite_url: str, db: sqlite3.Connection
) -> None:
    """It is read at once, and waits for the stream, which goes on past it."""
    reader = Reader(Access(sqlite_url), SystemClock(), Who("r", 1, 0))
    position = await source(sqlite_url).prepare([SPEC])
    db.execute("BEGIN")
    db.executemany("INSERT INTO t VALUES (?, 'a', 'x')", [(n,) for n in range(1200)])
    db.execute("COMMIT")
    reader.open({"t": SPEC}, int(position))
    reader.snapshot(SPEC, "")
    found: list[str] = []
    for _ in range(4):
        db.execute("UPDATE t SET v = 'b' WHERE id = 0")
        for item in reader.poll():
            assert not isinstance(item, str)
            rows = item.rows if isinstance(item, SnapshotChunk) else item.changes
            found += [f"{row.op} {(row.after or {})['v']}" for row in rows if row.key["id"] == 0]
    reader.close()
    assert found[:4] == ["create a", "update b", "read b", "update b"]


async def test_a_text_that_is_none_stops_the_stream_behind_what_is_good(
    sqlite_url: str, db: sqlite3.Connection
) -> None:
    async with following(source(sqlite_url), [SPEC]) as follower:
        db.execute("INSERT INTO t VALUES (1, 'a', 1), (2, CAST(x'ff41' AS TEXT), 2)")
        assert isinstance(await follower.failed(), UndecodableError)
        assert seen(follower.transactions) == [[("create", 1)]]


@pytest.mark.parametrize("position", ["", "-1", "0/1", "x", "9" * 30, "\u0661"])
async def test_a_position_of_another_kind_is_refused(
    sqlite_url: str, db: sqlite3.Connection, position: str
) -> None:
    await source(sqlite_url).prepare([SPEC])
    with pytest.raises(ConfigurationError):
        await source(sqlite_url).open([SPEC], position=position, token=1)
    assert db.execute("SELECT count(*) FROM duly_change").fetchone() == (1,)


async def test_what_is_written_wrongly_is_refused(sqlite_url: str, db: sqlite3.Connection) -> None:
    with pytest.raises(InvalidNameError):
        source(sqlite_url, "no good")
    with pytest.raises(ConfigurationError, match="no column 'nope'"):
        await source(sqlite_url).prepare([TableSpec("t", exclude=("nope",))])
    start = await source(sqlite_url).prepare([SPEC])
    stream = await source(sqlite_url).open([SPEC], position=start, token=1)
    for cursor in ("x", "[1]", '[0, [["q", "1"]]]'):
        with pytest.raises(ConfigurationError):
            await stream.snapshot(SPEC, cursor=cursor)
    with pytest.raises(ConfigurationError):
        await stream.snapshot(TableSpec("other"))
    await stream.close()
    await stream.close()
    with pytest.raises(DulyError):
        await stream.confirm(start)


async def test_a_snapshot_by_rowid_begins_again_when_vacuum_may_have_moved_rows(
    sqlite_url: str, db: sqlite3.Connection
) -> None:
    db.execute("CREATE TABLE text_key (id TEXT PRIMARY KEY)")
    db.executemany("INSERT INTO text_key VALUES (?)", [(f"k{n}",) for n in range(1500)])
    spec = TableSpec("text_key")
    async with following(source(sqlite_url), [spec], snapshots={"text_key": ""}) as follower:
        await follower.until(lambda: bool(follower.chunks), "a chunk")
        cursor = follower.chunks[0].cursor
    db.execute("DELETE FROM text_key WHERE id < 'k3'")
    db.execute("VACUUM")
    position = follower.position
    async with following(
        source(sqlite_url), [spec], position=position, token=2, snapshots={"text_key": cursor}
    ) as again:
        await again.until(lambda: again.cursors.get("text_key", ("", False))[1], "rows")
        rows = {row.key["id"] for chunk in again.chunks for row in chunk.rows}
    assert rows == {row[0] for row in db.execute("SELECT id FROM text_key")}


# --- marks ----------------------------------------------------------------------------------------
async def test_marks_and_intents_from_python(sqlite_url: str, db: sqlite3.Connection) -> None:
    """Through sqlite3 and through SQLAlchemy; a block that raises claims nothing."""
    engine = create_engine(sqlite_url)
    async with following(source(sqlite_url), [SPEC]) as follower:
        db.execute("BEGIN IMMEDIATE")
        with marked(db) as say:
            db.execute("INSERT INTO t VALUES (1, 'a', 'x')")
            say("placed", b"\x00")
            db.execute("INSERT INTO t VALUES (2, 'b', 'y')")
        db.execute("COMMIT")
        with Session(engine) as session, session.begin(), marked(session):
            session.execute(text("DELETE FROM t"))
        await follower.get(4)
        with pytest.raises(NotInTransactionError), marked(db):
            pass
        db.execute("INSERT INTO duly_intent (name, data) VALUES ('alone', 'é')")
        db.execute("BEGIN IMMEDIATE")
        with pytest.raises(ZeroDivisionError), marked(db):
            db.execute("INSERT INTO t VALUES (3, 'c', 'z')")
            raise ZeroDivisionError
        db.execute("INSERT INTO t VALUES (4, 'd', 'z')")
        db.execute("COMMIT")
        await follower.get(6)
    engine.dispose()
    assert seen(follower.transactions) == [
        [("create", 1), ("create", 2)],
        [("delete", 1), ("delete", 2)],
        [],
        [("create", 3)],
        [("create", 4)],
    ]
    intents = [[(i.name, i.data) for i in one.intents] for one in follower.transactions]
    assert intents == [[("placed", b"\x00")], [], [("alone", "é".encode())], [], []]
    assert all(c.intents == one.intents for one in follower.transactions for c in one)


async def test_a_large_marked_transaction_stays_in_the_file_and_is_walked_from_there(
    sqlite_url: str, db: sqlite3.Connection
) -> None:
    """Other tables' changes and intents in between keep the ordinals as they are."""
    db.execute("CREATE TABLE other (id INTEGER PRIMARY KEY)")
    specs = [SPEC, TableSpec("other")]
    start = await source(sqlite_url).prepare(specs)
    db.execute("BEGIN IMMEDIATE")
    with marked(db) as say:
        for n in range(3000):
            db.execute("INSERT INTO t VALUES (?, 'a', 'x')", (n,))
            if n % 1000 == 500:
                say(f"at {n}")
                db.execute("INSERT INTO other VALUES (?)", (n,))
    db.execute("COMMIT")
    both = await source(sqlite_url).peek(specs, position=start, limit=9)
    one = await source(sqlite_url).peek([SPEC], position="", limit=9)
    assert [len(whole.changes) for whole in (*both, *one)] == [3003, 3000]
    assert [change.ordinal for change in both[0]] == list(range(3003))
    ids = {change.id for change in both[0]}
    assert {change.id for change in one[0]} < ids
    assert both[0].changes[-1].id == list(both[0])[-1].id
    assert [change.ordinal for change in one[0].changes[499:503]] == [499, 500, 502, 503]
    with pytest.raises(IndexError):
        one[0].changes[3000]
    db.execute("DELETE FROM duly_change WHERE seq < 2000")
    with pytest.raises(GapError):
        list(both[0])
