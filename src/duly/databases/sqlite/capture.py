"""What capturing adds to a SQLite file, and whether it is still whole.

Owns the tables ``duly_change*``, the view ``duly_intent`` and the triggers, all inside transactions
of the caller.  The invariant: triggers that were lost, or that may have missed something, are not
put back in silence - a *gap mark* goes into ``duly_change``, and every reader of that table stops
there until it reads the table anew.  A change's number is the next one of the file and the last one
always stays, so numbers are never given twice; since SQLite has one writer they are in the order of
the commits, without holes, and a hole means that somebody took history away.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from enum import Enum
from hashlib import sha256
from typing import NamedTuple
from uuid import uuid4

from duly.databases.sqlite.table import Table, quoted, read_table
from duly.databases.sqlite.triggers import Shape, make_triggers, trigger_names
from duly.errors import ConfigurationError
from duly.sources import TableSpec

__all__ = [
    "BEGIN",
    "COMMIT",
    "GAP",
    "INTENT",
    "MARK",
    "Captured",
    "State",
    "capture",
    "examine",
    "kept_before",
    "key_of",
    "make_tables",
    "mark_gap",
    "remove_tables",
    "shapes",
    "source_of",
]

MARK = 0  # the shape of rows that are no change
START, BEGIN, COMMIT, INTENT, GAP = 0, 1, 2, 3, 4
_VALUES_MAX = 1990  # SQLite allows a table 2,000 columns
_TABLES = (
    """CREATE TABLE IF NOT EXISTS duly_change (
    seq   INTEGER PRIMARY KEY,
    shape INTEGER NOT NULL,
    op    INTEGER NOT NULL,
    at    REAL NOT NULL DEFAULT (julianday('now')),
    c0,
    c1
)""",
    "CREATE INDEX IF NOT EXISTS duly_change_mark ON duly_change (op) WHERE shape = 0",
    """CREATE TABLE IF NOT EXISTS duly_change_shape (
    number     INTEGER PRIMARY KEY,
    table_name TEXT NOT NULL,
    columns    TEXT NOT NULL,
    before     TEXT NOT NULL,
    digest     TEXT NOT NULL,
    live       INTEGER NOT NULL DEFAULT 1
)""",
    "CREATE TABLE IF NOT EXISTS duly_change_victim (shape INTEGER NOT NULL, row INTEGER, c0, c1)",
    """CREATE TABLE IF NOT EXISTS duly_change_reader (
    name      TEXT NOT NULL PRIMARY KEY,
    token     INTEGER NOT NULL DEFAULT 0,
    confirmed INTEGER NOT NULL,
    tables    TEXT NOT NULL,
    reading   INTEGER NOT NULL DEFAULT 0,
    seen_at   REAL NOT NULL
)""",
    "CREATE TABLE IF NOT EXISTS duly_change_source (identity TEXT NOT NULL PRIMARY KEY)",
    "CREATE VIEW IF NOT EXISTS duly_intent (name, data) AS SELECT NULL, NULL WHERE 0",
    f"""CREATE TRIGGER IF NOT EXISTS duly_intent_insert INSTEAD OF INSERT ON duly_intent BEGIN
INSERT INTO duly_change (shape, op, c0, c1) VALUES ({MARK},
    CASE NEW.name WHEN 'BEGIN' THEN {BEGIN} WHEN 'COMMIT' THEN {COMMIT} ELSE {INTENT} END,
    NEW.name, NEW.data);
END""",
)
_NAMES = ("change", "change_shape", "change_victim", "change_reader", "change_source")


class State(Enum):
    """What became of the triggers on a table."""

    WHOLE = "whole"  # as they were made, for the table as it is
    GROWN = "grown"  # they saw everything, but for columns that came or were renamed since
    DOUBTFUL = "doubtful"  # a unique key or a trigger came that may have hidden something from them
    LOST = "lost"  # dropped or altered, with the table or by themselves
    NONE = "none"  # never made


class Captured(NamedTuple):
    """A table as it is, and as it is captured. table: None where there is none."""

    state: State
    table: Table | None
    shape: Shape | None


def make_tables(db: sqlite3.Connection) -> None:
    """Make the tables and the view where they are not there."""
    if db.execute("SELECT 1 FROM sqlite_master WHERE name = 'duly_change_source'").fetchone():
        return
    for text in _TABLES:
        db.execute(text)
    db.execute("INSERT INTO duly_change_source VALUES (?)", (str(uuid4()),))
    db.execute("INSERT INTO duly_change (shape, op) VALUES (?, ?)", (MARK, START))


def remove_tables(db: sqlite3.Connection) -> None:
    """Take away everything that capturing added; nothing where it added nothing."""
    names = db.execute(
        "SELECT name FROM sqlite_master WHERE type = 'trigger' AND name LIKE 'duly!_change %' "
        "ESCAPE '!'"
    ).fetchall()
    for (name,) in names:
        db.execute(f"DROP TRIGGER {quoted(name)}")
    db.execute("DROP VIEW IF EXISTS duly_intent")
    for name in _NAMES:
        db.execute(f"DROP TABLE IF EXISTS duly_{name}")


def source_of(db: sqlite3.Connection) -> str:
    """The identity of the database, "" where nothing is captured."""
    if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'duly_change_source'").fetchone():
        return ""
    return f"sqlite:{db.execute('SELECT identity FROM duly_change_source').fetchone()[0]}"


def shapes(db: sqlite3.Connection) -> dict[int, tuple[Shape, bool]]:
    """Every shape by its number, and whether it is in use."""
    rows = db.execute("SELECT number, table_name, columns, before, live FROM duly_change_shape")
    return {
        number: (Shape(number, table, tuple(json.loads(columns)), tuple(json.loads(before))), live)
        for number, table, columns, before, live in rows
    }


def examine(db: sqlite3.Connection, name: str) -> Captured:
    """Whether the triggers on a table are there and fit. Raises ConfigurationError."""
    table = read_table(db, name)
    row = db.execute(
        "SELECT number, digest FROM duly_change_shape WHERE live AND table_name = ? COLLATE NOCASE",
        (name,),
    ).fetchone()
    if row is None:
        return Captured(State.NONE, table, None)
    shape = shapes(db)[row[0]][0]
    if table is None or len(table.columns) < len(shape.columns):
        return Captured(State.LOST, table, shape)
    return Captured(_state(db, table, shape=shape, digest=row[1]), table, shape)


def _state(db: sqlite3.Connection, table: Table, *, shape: Shape, digest: str) -> State:
    rows = db.execute(
        "SELECT name, sql, rowid FROM sqlite_master WHERE type = 'trigger' "
        "AND tbl_name = ? COLLATE NOCASE",
        (table.name,),
    ).fetchall()
    names = set(trigger_names(shape.table))
    ours = {name: sql for name, sql, _ in rows if name in names}
    others = [number for name, _, number in rows if name not in names]
    if ours == make_triggers(table, shape):
        # The newest trigger fires first: one made after ours would change the row before we look.
        if others and max(others) > min(n for name, _, n in rows if name in names):
            return State.DOUBTFUL
        return State.WHOLE if table.columns == shape.columns else State.GROWN
    return State.DOUBTFUL if _digest(ours) == digest else State.LOST


def capture(db: sqlite3.Connection, table: Table, before: Iterable[str]) -> Shape:
    """Make the triggers on a table, anew where there are some. before: the columns whose old values
    are to be kept, besides the primary key.

    Raises ConfigurationError (CDC_TABLE) where SQLite does not take them.
    """
    used = (shape for shape, live in shapes(db).values() if live)
    old = next((shape for shape in used if shape.table.lower() == table.name.lower()), None)
    wanted = {*before, *(column.name for column in table.key)}
    kept = tuple(name for name in table.columns if name in wanted)
    if old:
        db.execute("UPDATE duly_change_shape SET live = 0 WHERE number = ?", (old.number,))
        db.execute("DELETE FROM duly_change_victim WHERE shape = ?", (old.number,))
    number = db.execute(
        "INSERT INTO duly_change_shape (table_name, columns, before, digest) VALUES (?, ?, ?, '')",
        (table.name, json.dumps(table.columns), json.dumps(kept)),
    ).lastrowid
    assert number is not None
    shape = Shape(number, table.name, table.columns, kept)
    _widen(db, shape)
    for name in {*trigger_names(table.name), *(trigger_names(old.table) if old else ())}:
        db.execute(f"DROP TRIGGER IF EXISTS {quoted(name)}")
    texts = make_triggers(table, shape)
    try:
        for text in texts.values():
            db.execute(text)
        _try_out(db, table)
    except sqlite3.OperationalError as error:
        raise ConfigurationError(
            f"table {table.name!r} cannot be captured: {error}", code="CDC_TABLE"
        ) from error
    digest = _digest(texts)
    db.execute("UPDATE duly_change_shape SET digest = ? WHERE number = ?", (digest, number))
    return shape


def kept_before(found: Captured) -> tuple[str, ...]:
    """The columns whose old values are kept, as they are called now."""
    if found.table is None or found.shape is None:
        return ()
    columns, shape = found.table.columns, found.shape
    if shape.before == shape.columns:
        return columns
    if found.state is State.GROWN:
        return tuple(columns[shape.columns.index(name)] for name in shape.before)
    return tuple(name for name in shape.before if name in columns)


def mark_gap(
    db: sqlite3.Connection, table: str | None, reason: str, *, place: int | None = None
) -> None:
    """Write down that changes of a table, or of all, may be missing before this place; the next
    one, if none is given.
    """
    db.execute(
        "INSERT INTO duly_change (seq, shape, op, c0, c1) VALUES (?, ?, ?, ?, ?)",
        (place, MARK, GAP, table, reason),
    )


def key_of(table: Table, spec: TableSpec) -> tuple[str, ...]:
    """The columns that name a row. Raises ConfigurationError for none, and for unknown columns."""
    key = spec.key or tuple(column.name for column in table.key)
    if not key:
        raise ConfigurationError(
            f"table {table.name!r} has no primary key; say with key= which columns name a row",
            code="CDC_NO_PRIMARY_KEY",
        )
    for name in (*key, *spec.include, *spec.exclude):
        if name not in table.columns:
            known = ", ".join(table.columns)
            raise ConfigurationError(
                f"table {table.name!r} has no column {name!r}; it has {known}",
                code="CDC_COLUMN",
            )
    return key


def _widen(db: sqlite3.Connection, shape: Shape) -> None:
    """Give the change table and the victims as many columns as the shape has values."""
    if shape.width > _VALUES_MAX:
        raise ConfigurationError(
            f"table {shape.table!r} has too many columns: {shape.width} values a change, at most "
            f"{_VALUES_MAX}",
            code="CDC_TABLE",
        )
    for table, first, width in (
        ("duly_change", 4, shape.width),
        ("duly_change_victim", 2, len(shape.before)),
    ):
        have = len(db.execute(f"PRAGMA table_info({table})").fetchall()) - first
        for number in range(have, width):
            db.execute(f"ALTER TABLE {table} ADD COLUMN c{number}")


def _try_out(db: sqlite3.Connection, table: Table) -> None:
    """Let SQLite compile what fires the triggers: an error there would be the writers' error."""
    name = quoted(table.name)
    described = db.execute(f"PRAGMA table_xinfo({name})").fetchall()
    same = ", ".join(f"{quoted(row[1])} = {quoted(row[1])}" for row in described if not row[6])
    for what in (f"INSERT INTO {name} DEFAULT VALUES", f"UPDATE {name} SET {same}"):
        db.execute(f"EXPLAIN {what}").fetchone()
    db.execute(f"EXPLAIN DELETE FROM {name}").fetchone()


def _digest(texts: dict[str, str]) -> str:
    return sha256(json.dumps(sorted(texts.items())).encode()).hexdigest()
