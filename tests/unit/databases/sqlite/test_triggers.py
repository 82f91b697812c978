"""What the triggers write down, replayed, is the table, whichever way SQLite removes rows."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from duly.databases.sqlite.capture import capture, examine, make_tables, shapes
from duly.databases.sqlite.changelog import Log, Wanted
from duly.databases.sqlite.table import Table, read_table
from duly.databases.sqlite.triggers import trigger_names
from duly.errors import ConfigurationError
from duly.kernel.changes import Change
from duly.sources import TableSpec
from duly.testing.change_target import apply, state_of

TABLES = {
    "an integer key": "id INTEGER PRIMARY KEY, u TEXT UNIQUE, v, w",
    "a text key": "id TEXT COLLATE NOCASE PRIMARY KEY, u INT UNIQUE, v, w",
    "two columns": "id, u, v, w, PRIMARY KEY (id, u), UNIQUE (v)",
    "without rowid": "id TEXT NOT NULL, u COLLATE NOCASE, v UNIQUE, w, PRIMARY KEY (u, id)",
    "an expression": "id INTEGER PRIMARY KEY, u TEXT, v, w",
    "a part of the rows": "id INTEGER PRIMARY KEY, u, v, w",
    "a generated column": "id INTEGER PRIMARY KEY, u, v AS (lower(u) || w) UNIQUE, w",
}
INDEXES = {
    "an expression": (
        "CREATE UNIQUE INDEX i ON t (lower(u || ',)') DESC, /* ( */ (v + 0) COLLATE NOCASE)"
    ),
    "a part of the rows": "CREATE UNIQUE INDEX i ON t(u) -- where\n WHERE v > 2 AND w IS NOT NULL",
}


@pytest.fixture
def db() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as made:
        make_tables(made)
        yield made


def captured(db: sqlite3.Connection, name: str = "t", *, key: tuple[str, ...] = ()) -> Log:
    table = read_table(db, name)
    assert table is not None
    capture(db, table, (*table.columns, *key))
    key = key or tuple(column.name for column in table.key)
    log = Log("unused", "sqlite:x", {name: Wanted(TableSpec(name), key)})
    log.position = db.execute("SELECT max(seq) FROM duly_change").fetchone()[0]
    return log


def changes(db: sqlite3.Connection, log: Log) -> list[Change]:
    found: list[Change] = []
    while made := log.read(db, 1 << 60):
        found += [change for one in made for change in one]
    return found


def rows(db: sqlite3.Connection, name: str = "t") -> list[dict[str, Any]]:
    cursor = db.execute(f"SELECT * FROM {name}")
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor]


def _folded(key: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value.lower() if isinstance(value, str) else value for value in key)


@pytest.mark.parametrize("recursive", [False, True])
@pytest.mark.parametrize("kind", TABLES)
def test_random_histories_add_up(db: sqlite3.Connection, kind: str, *, recursive: bool) -> None:
    """Each statement in each of its forms, failed and ignored ones too; a changed row is told with
    the values that it had.
    """
    chance = random.Random(f"{kind} {recursive}")
    without = " WITHOUT ROWID" if kind == "without rowid" else ""
    db.execute(f"CREATE TABLE t ({TABLES[kind]}){without}")
    if kind in INDEXES:
        db.execute(INDEXES[kind])
    db.execute(f"PRAGMA recursive_triggers={int(recursive)}")
    log = captured(db)
    names = [n for n in ("id", "u", "v", "w") if n != "v" or kind != "a generated column"]
    key = [column.name for column in captured_table(db).key]
    state: dict[tuple[Any, ...], dict[str, Any]] = {}
    refused = replaced = 0
    for number in range(500):
        try:
            db.execute(*_statement(chance, kind, names))
        except sqlite3.IntegrityError:
            refused += 1
        for change in changes(db, log):
            _check_before(state, change)
            replaced += change.op != "create"
            apply(state, change)
        if number % 20 == 0:
            assert state == state_of(rows(db), key)
    assert refused > 10
    assert replaced > 50


def captured_table(db: sqlite3.Connection) -> Table:
    table = examine(db, "t").table
    assert table is not None
    return table


def _check_before(state: dict[tuple[Any, ...], dict[str, Any]], change: Change) -> None:
    if change.before is None:
        assert tuple(change.key.values()) not in state
        return
    assert state[tuple(change.before[name] for name in change.key)] == change.before


def _statement(chance: random.Random, kind: str, names: list[str]) -> tuple[str, list[Any]]:
    small = [1, 2, 3, 4, 5, 6, 7, 8, 9]
    text = ["a", "A", "b", "B", "c", "d", "E", "e", "f"]
    values = [chance.choice(text if n == "u" else small) for n in names]
    if kind in ("a text key", "without rowid"):
        values[0] = chance.choice(text)
    if kind != "without rowid" and chance.random() < 0.1:
        values[names.index("w")] = None
    how = chance.choice(["", "", "OR REPLACE", "OR REPLACE", "OR IGNORE", "OR FAIL"])
    marks = ", ".join("?" for _ in names)
    place, upsert = chance.choice(names), "ON CONFLICT DO UPDATE SET w = 0"
    return chance.choice(
        [
            (f"INSERT {how} INTO t ({', '.join(names)}) VALUES ({marks})", values),
            (f"INSERT {how} INTO t ({', '.join(names)}) VALUES ({marks})", values),
            (f"INSERT INTO t ({', '.join(names)}) VALUES ({marks}) {upsert}", values),
            (
                f"UPDATE {how} t SET {place} = ? WHERE {names[-1]} = ?",
                [values[names.index(place)], chance.choice(small)],
            ),
            (f"UPDATE {how} t SET {names[0]} = ? WHERE {names[1]} = ?", [values[0], values[1]]),
            (f"DELETE FROM t WHERE {names[-1]} = ?", [chance.choice(small)]),
        ]
    )


def test_values_are_those_that_sqlite_stores(db: sqlite3.Connection) -> None:
    db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, v)")
    log = captured(db)
    values = [
        None,
        2**63 - 1,
        -(2**63),
        0.1 + 0.2,
        float("inf"),
        float("-inf"),
        5e-324,
        "",
        "nul\0 in it",
        "\U0001f600",
        b"",
        bytes(range(256)),
        "1",
        1,
        1.0,
    ]
    db.executemany("INSERT INTO t (v) VALUES (?)", [(value,) for value in values])
    db.execute("INSERT INTO t (v) VALUES (0.0 / 0.0)")
    got = [(change.after or {})["v"] for change in changes(db, log)]
    assert got == [*values, None]
    assert [type(value) for value in got] == [type(value) for value in [*values, None]]


def test_cascades_and_the_triggers_of_others_are_told(db: sqlite3.Connection) -> None:
    """One of the user's changes the row that was just inserted: what is told last is what is."""
    db.execute("PRAGMA foreign_keys=ON")
    db.execute("CREATE TABLE p (id INTEGER PRIMARY KEY)")
    db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, p REFERENCES p ON DELETE CASCADE, at)")
    db.execute(
        "CREATE TRIGGER stamp AFTER INSERT ON t BEGIN "
        "UPDATE t SET at = 'now' WHERE id = NEW.id; END"
    )
    log = captured(db)
    db.execute("INSERT INTO p VALUES (1)")
    db.execute("INSERT INTO t (id, p) VALUES (1, 1), (2, 1)")
    db.execute("REPLACE INTO t (id, p) VALUES (2, 1)")
    state: dict[tuple[Any, ...], dict[str, Any]] = {}
    for change in changes(db, log):
        apply(state, change)
    assert state == state_of(rows(db), ["id"])
    assert state[(2,)]["at"] == "now"
    db.execute("DELETE FROM p")
    assert [(c.op, c.key["id"]) for c in changes(db, log)] == [("delete", 1), ("delete", 2)]


def test_a_table_that_triggers_cannot_watch_is_refused(db: sqlite3.Connection) -> None:
    db.execute("CREATE VIEW seen AS SELECT 1 AS one")
    db.execute("CREATE TABLE taken (rowid, oid, _rowid_)")
    for name in ("seen", "taken", "duly_change", "sqlite_master"):
        with pytest.raises(ConfigurationError) as error:
            if read_table(db, name) is None:
                raise ConfigurationError(code="CDC_TABLE")  # SQLite does not list its own
        assert error.value.code == "CDC_TABLE"
    assert read_table(db, "nowhere") is None


def test_renewed_triggers_read_their_own_rows_and_those_before(db: sqlite3.Connection) -> None:
    db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, v)")
    log = captured(db)
    db.execute("INSERT INTO t VALUES (1, 'a')")
    db.execute("ALTER TABLE t ADD COLUMN w DEFAULT 7")
    captured(db)
    db.execute("UPDATE t SET w = 8")
    old, new = changes(db, log)
    assert old.after is not None
    assert (old.after["v"], repr(old.after["w"])) == ("a", "ABSENT")
    assert new.after == {"id": 1, "v": "a", "w": 8}
    assert [live for _, live in shapes(db).values()] == [0, 1]
    found = {row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type='trigger'")}
    assert found == {*trigger_names("t"), "duly_intent_insert"}
