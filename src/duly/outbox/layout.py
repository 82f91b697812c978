"""What migrations make - tables, columns, indexes, functions -, read from their text and compared
with what is there.

Owns a reader for the small part of SQL that our migrations use: CREATE TABLE with one column or one
KEY a line, CREATE INDEX, ALTER TABLE ... ADD COLUMN, CREATE OR REPLACE FUNCTION, of which the name
counts; the rows of an INSERT IGNORE are data.  The invariant: a statement of any other form is an
AssertionError in the test of the migrations, so that nothing a migration makes can escape the
check.  Extra tables and columns are allowed - a newer schema only adds - unless they would make our
inserts fail.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from duly.ports import Finding, Severity

__all__ = ["Index", "Layout", "compare", "layout_of", "live_layout"]

_COMMENT = re.compile(r"--[^\n]*")
_TABLE = re.compile(r"CREATE TABLE IF NOT EXISTS (\w+) \((.*)\)(?: ENGINE=[^()]*)?", re.DOTALL)
_KEY = re.compile(r"(UNIQUE )?KEY (\w+) \(([^)]*)\),?")
_COLUMN = re.compile(
    r"([a-z_]\w*)\s+([a-z][a-z ]*?(?:\(\d+\))?)( collate \"?\w+\"?)?"
    r"(?:\s+(?:not null|default|primary key|generated|auto_increment)\b.*)?,?",
    re.IGNORECASE,
)
_ADDED = re.compile(r"ALTER TABLE (\w+) ADD COLUMN (?:IF NOT EXISTS )?(.*)", re.DOTALL)
_INDEX = re.compile(
    r"CREATE (UNIQUE )?INDEX IF NOT EXISTS (\w+) ON (\w+) \(([^)]*)\)( WHERE .*)?", re.DOTALL
)
_FUNCTION = re.compile(r"CREATE OR REPLACE FUNCTION (\w+)\(.*?\$\$.*?\$\$;", re.DOTALL)
_LONG_NAMES = {"timestamptz": "timestamp with time zone", "int": "integer", "bool": "boolean"}


class Index(NamedTuple):
    """An index as far as it is compared. partial: whether it has a WHERE; valid: False after a
    failed build.
    """

    table: str
    unique: bool
    partial: bool
    valid: bool
    columns: str


class Layout(NamedTuple):
    """tables: type of each column by table and name. required: columns an insert must name.
    indexes, functions: by name.
    """

    tables: Mapping[str, Mapping[str, str]]
    required: frozenset[tuple[str, str]]
    indexes: Mapping[str, Index]
    functions: frozenset[str]


def layout_of(migrations: Iterable[str]) -> Layout:
    """What these migrations make, run in order."""
    tables: dict[str, dict[str, str]] = {}
    indexes: dict[str, Index] = {}
    functions: set[str] = set()
    for text in migrations:
        functions.update(_FUNCTION.findall(text))
        for statement in _statements(_FUNCTION.sub("", text)):
            if table := _TABLE.fullmatch(statement):
                lines = list(filter(None, map(str.strip, table[2].splitlines())))
                keys = {line: _KEY.fullmatch(line) for line in lines}
                columns = (li for li in lines if not (keys[li] or li.startswith("PRIMARY KEY")))
                tables[table[1]] = dict(map(_column, columns))
                for key in filter(None, keys.values()):
                    indexes[key[2]] = Index(table[1], bool(key[1]), False, True, _listed(key[3]))
            elif added := _ADDED.fullmatch(statement):
                tables[added[1]].update([_column(added[2].strip())])
            else:
                index = _INDEX.fullmatch(statement)
                assert index is not None, f"a migration has an unknown form: {statement[:80]}"
                listed = _listed(index[4])
                indexes[index[2]] = Index(index[3], bool(index[1]), bool(index[5]), True, listed)
    return Layout(tables, frozenset(), indexes, frozenset(functions))


def _statements(text: str) -> Iterable[str]:
    """Those that make something, without MySQL's quotes around names."""
    plain = _COMMENT.sub("", text).replace("`", "")
    parts = filter(None, map(str.strip, plain.split(";")))
    return (part for part in parts if not part.startswith("INSERT IGNORE INTO "))


def _listed(columns: str) -> str:
    return ",".join(part.strip() for part in columns.split(","))


def _column(line: str) -> tuple[str, str]:
    found = _COLUMN.fullmatch(line)
    assert found is not None, f"a migration has a column of unknown form: {line[:80]}"
    kind = found[2].lower()
    collation = (found[3] or "").replace('"', "").replace(" COLLATE ", " collate ")
    return found[1], _LONG_NAMES.get(kind, kind) + collation


def live_layout(
    columns: Iterable[tuple[Any, ...]],
    indexes: Iterable[tuple[Any, ...]],
    functions: Iterable[tuple[Any, ...]],
) -> Layout:
    """What ``schema.columns``, ``schema.indexes`` and ``schema.functions`` read."""
    tables: dict[str, dict[str, str]] = {}
    required = set()
    for table, column, kind, needed in columns:
        tables.setdefault(table, {})[column] = kind
        if needed:
            required.add((table, column))
    found = {
        name: Index(table, bool(unique), bool(partial), bool(valid), listed)
        for name, table, unique, partial, valid, listed in indexes
    }
    return Layout(tables, frozenset(required), found, frozenset(name for (name,) in functions))


def compare(wanted: Layout, live: Layout) -> list[Finding]:
    """What is missing or different in ``live``; nothing when it carries everything ``wanted``."""
    return [*_tables(wanted, live), *_indexes(wanted, live), *_functions(wanted, live)]


def _tables(wanted: Layout, live: Layout) -> Iterable[Finding]:
    for table, columns in wanted.tables.items():
        there = live.tables.get(table)
        if there is None:
            yield _red("TABLE_MISSING", f"table {table} is missing")
            continue
        for column, kind in columns.items():
            if column not in there:
                yield _red("COLUMN_MISSING", f"{table}.{column} is missing")
            elif there[column] != kind:
                yield _red("COLUMN_TYPE", f"{table}.{column} is {there[column]}, made as {kind}")
        for column in there.keys() - columns.keys():
            if (table, column) in live.required:
                text = f"{table}.{column} is not duly's, may not be NULL and has no default"
                yield _red("COLUMN_REQUIRED", text)


def _indexes(wanted: Layout, live: Layout) -> Iterable[Finding]:
    for name, index in wanted.indexes.items():
        there = live.indexes.get(name)
        if there is None:
            yield _red("INDEX_MISSING", f"index {name} on {index.table} is missing")
        elif not there.valid:
            yield _red("INDEX_INVALID", f"index {name} on {index.table} was not built to its end")
        elif there != index:
            yield _red("INDEX_DIFFERS", f"index {name} is {_shown(there)}, made as {_shown(index)}")


def _functions(wanted: Layout, live: Layout) -> Iterable[Finding]:
    for name in sorted(wanted.functions - live.functions):
        yield _red("FUNCTION_MISSING", f"function {name} is missing")


def _shown(index: Index) -> str:
    unique, partial = "unique " * index.unique, " partial" * index.partial
    return f"{unique}{index.table} ({index.columns}){partial}"


def _red(code: str, message: str) -> Finding:
    fix = "restore it as `duly db sql` shows it"
    return Finding(code, Severity.RED, message, fix)
