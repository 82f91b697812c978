"""What a SQLite table looks like: its columns, what names a row, what makes a row unique.

Owns reading that from the schema.  The invariant: a unique key is never overlooked - an index on
expressions or on a part of the rows is read from its own text - because what ``OR REPLACE`` removes
through a key that nobody watches is removed unseen.  What is done with it is ``triggers``.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from typing import NamedTuple

from duly.errors import ConfigurationError

__all__ = ["KeyColumn", "Table", "Unique", "index_terms", "quoted", "read_table"]

_TOKEN = re.compile(
    r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|`(?:[^`]|``)*`|\[[^\]]*\]|--[^\n]*|/\*.*?\*/"""
    r"""|[^\W\d][\w$]*|[(),]|\s+|.""",
    re.DOTALL,
)
_DIRECTION = re.compile(r"\s+(?:asc|desc)\s*$", re.IGNORECASE)
_ROWID_NAMES = ("rowid", "_rowid_", "oid")


class KeyColumn(NamedTuple):
    """A column of the primary key, and how its values are compared."""

    name: str
    collation: str


class Unique(NamedTuple):
    """A unique key. pairs: what must be equal, as SQL over the table and as SQL over NEW. where: of
    the rows it holds for. columns: those it depends on; None where an update of any may matter.
    """

    pairs: tuple[tuple[str, str], ...]
    where: str
    columns: frozenset[str] | None


class Table(NamedTuple):
    """A table. columns: all, generated ones too. key: its primary key, empty where it has none.

    rowid: how its rowid is called, empty where it has none. lasting: whether what names a row stays
    the same when the file is rebuilt by VACUUM.
    """

    name: str
    columns: tuple[str, ...]
    key: tuple[KeyColumn, ...]
    rowid: str
    lasting: bool
    uniques: tuple[Unique, ...]


def quoted(name: str) -> str:
    """A name as SQL, whatever it is made of."""
    return '"' + name.replace('"', '""') + '"'


def read_table(db: sqlite3.Connection, name: str) -> Table | None:
    """The table of this name; None where there is none.

    Raises ConfigurationError (CDC_TABLE) for what triggers cannot watch: a view, a virtual
    table, a table of SQLite's or of duly's own, one whose rowid cannot be named.
    """
    found = db.execute(
        "SELECT name, sql FROM sqlite_master WHERE type IN ('table', 'view') "
        "AND name = ? COLLATE NOCASE",
        (name,),
    ).fetchone()
    if found is None:
        return None
    name, sql = found
    words = str(sql).split(None, 2)
    if [w.upper() for w in words[:2]] != ["CREATE", "TABLE"]:
        raise _refused(name, "triggers see no changes of views and virtual tables")
    if name.lower().startswith(("sqlite_", "duly_")):
        raise _refused(name, "this table is not captured")
    described = db.execute(f"PRAGMA table_xinfo({quoted(name)})").fetchall()
    columns = tuple(row[1] for row in described)
    generated = frozenset(row[1] for row in described if row[6])
    key = [row[1] for row in sorted(described, key=lambda row: row[5]) if row[5]]
    indexes = [row for row in db.execute(f"PRAGMA index_list({quoted(name)})") if row[2]]
    named = {row[3]: row[1] for row in indexes}
    # Only a table WITHOUT ROWID is an index itself.
    has_rowid = not db.execute(f"PRAGMA index_info({quoted(name)})").fetchall()
    alias = key[0] if has_rowid and len(key) == 1 and "pk" not in named else ""
    rowid = (_rowid(columns) or alias) if has_rowid else ""
    if has_rowid and not rowid:
        raise _refused(name, "its columns take all names of the rowid; name one differently")
    collations = {row[2]: row[4] for row in _terms(db, named["pk"])} if "pk" in named else {}
    table = Table(
        name=name,
        columns=columns,
        key=tuple(KeyColumn(one, collations.get(one, "BINARY")) for one in key),
        rowid=rowid,
        lasting=bool(alias) or not has_rowid,
        uniques=(),
    )
    uniques = [_unique(db, table, (row[1], generated)) for row in indexes]
    if rowid:
        uniques.append(_of_rowid(table, alias))
    return table._replace(uniques=tuple(uniques))


def _rowid(columns: tuple[str, ...]) -> str:
    taken = {column.lower() for column in columns}
    return next((name for name in _ROWID_NAMES if name not in taken), "")


def _terms(db: sqlite3.Connection, index: str) -> list[tuple[int, int, str | None, int, str]]:
    """(place, column number, column, descending, collation) of the terms of an index."""
    rows = db.execute(f"PRAGMA index_xinfo({quoted(index)})").fetchall()
    return [row[:5] for row in rows if row[5]]


def _of_rowid(table: Table, alias: str) -> Unique:
    taken = {column.lower() for column in table.columns}
    names = {name for name in _ROWID_NAMES if name not in taken} | ({alias} if alias else set())
    here = f"{quoted(table.name)}.{quoted(table.rowid)}"
    return Unique(((here, f"NEW.{quoted(table.rowid)}"),), "", frozenset(names))


def _unique(db: sqlite3.Connection, table: Table, index: tuple[str, frozenset[str]]) -> Unique:
    """A unique index. index: its name, and the generated columns of its table."""
    name, generated = index
    row = db.execute("SELECT sql FROM sqlite_master WHERE name = ?", (name,)).fetchone()
    # What a constraint made has no text, and holds for all rows and for plain columns.
    terms, where = index_terms(row[0]) if row and row[0] else ([], "")
    used = set(_used(where, table))
    pairs = []
    for place, number, column, _, collation in _terms(db, name):
        if number == -2:
            needed = sorted(_used(terms[place], table))
            values = ", ".join(f"NEW.{quoted(one)} AS {quoted(one)}" for one in needed)
            source = f"(SELECT {values or 1}) AS {quoted(table.name)}"
            pairs.append((f"({terms[place]})", f"(SELECT {terms[place]} FROM {source})"))
            used.update(needed)
        else:
            one = column or table.rowid
            here = f"{quoted(table.name)}.{quoted(one)} COLLATE {quoted(collation)}"
            pairs.append((here, f"NEW.{quoted(one)}"))
            used.add(one)
    return Unique(tuple(pairs), where, None if used & generated else frozenset(used))


def index_terms(sql: str) -> tuple[list[str], str]:
    """The terms of a CREATE INDEX as SQL, without their direction, and its WHERE."""
    terms: list[str] = []
    now, depth, pieces = "", 0, _pieces(sql)
    for piece in pieces:
        depth += (piece == "(") - (piece == ")")
        if (depth, piece) in ((0, ")"), (1, ",")):
            terms.append(_DIRECTION.sub("", now).strip())
            now = ""
            if depth == 0:
                break
        elif depth > 1 or (depth == 1 and piece != "("):
            now += piece
    rest = "".join(pieces).strip().rstrip(";")
    return terms, rest[5:].strip() if rest[:5].upper() == "WHERE" else ""


def _pieces(sql: str) -> Iterator[str]:
    for match in _TOKEN.finditer(sql):
        yield " " if match[0].startswith(("--", "/*")) else match[0]


def _used(expression: str, table: Table) -> Iterator[str]:
    """The columns whose names stand in an expression; one too many does no harm."""
    words = {piece.strip('"`[]').replace('""', '"').lower() for piece in _pieces(expression)}
    return (column for column in table.columns if column.lower() in words)


def _refused(name: str, why: str) -> ConfigurationError:
    return ConfigurationError(f"table {name!r}: {why}", code="CDC_TABLE")
