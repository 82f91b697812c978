"""The triggers that write down what happens to a table, as text.

Owns what they say; ``capture`` puts them into the schema and looks whether they are still there.
The invariant: every row that comes, changes or goes is one row of ``duly_change``, written by the
statement that did it.  ``OR REPLACE`` removes rows without firing delete triggers (unless the
connection has recursive_triggers on), so a BEFORE trigger copies the rows that stand in the way on
any unique key into ``duly_change_victim``, and the AFTER trigger tells of those that are gone.

A row of ``duly_change`` holds values as SQLite stores them, nothing is converted: c0, c1 ... are
the columns of the row after the change, then the columns of ``Shape.before`` as they were; of a
deleted row only the latter.
"""

from __future__ import annotations

from typing import NamedTuple

from duly.databases.sqlite.table import Table, quoted

__all__ = ["CREATE", "DELETE", "UPDATE", "Shape", "make_triggers", "trigger_names"]

CREATE, UPDATE, DELETE = 1, 2, 3
_VERBS = ("before insert", "insert", "before update", "update", "delete")


class Shape(NamedTuple):
    """How rows of ``duly_change`` with this number are read. before: the columns whose old values
    are kept, in the order of ``columns``; the primary key is among them.
    """

    number: int
    table: str
    columns: tuple[str, ...]
    before: tuple[str, ...]

    @property
    def width(self) -> int:
        """How many values its widest row has."""
        return len(self.columns) + len(self.before)


def trigger_names(table: str) -> tuple[str, ...]:
    """The names of the triggers on a table, as they were given when it was captured."""
    return tuple(f"duly_change {verb} {table}" for verb in _VERBS)


def make_triggers(table: Table, shape: Shape) -> dict[str, str]:
    """The CREATE TRIGGER statements by name.

    table: as it is now; only the columns that the shape knows are told of, by their place, so that
    the text for a table with renamed columns is what SQLite's RENAME makes of the text before.
    """
    return _Writer(table, shape).triggers()


class _Writer:
    def __init__(self, table: Table, shape: Shape) -> None:
        self._table, self._shape = table, shape
        self._on = quoted(table.name)
        self._columns = table.columns[: len(shape.columns)]
        self._before = tuple(self._columns[shape.columns.index(name)] for name in shape.before)

    def triggers(self) -> dict[str, str]:
        texts = (
            self._before_insert(),
            self._insert(),
            self._before_update(),
            self._update(),
            self._delete(),
        )
        named = zip(trigger_names(self._shape.table), texts, strict=True)
        return {name: f"CREATE TRIGGER {quoted(name)} {text}" for name, text in named}

    # --- the rows in the way ----------------------------------------------------------------------
    def _before_insert(self) -> str:
        return f"BEFORE INSERT ON {self._on} {self._watch('')}"

    def _before_update(self) -> str:
        unions = [unique.columns for unique in self._table.uniques]
        known = [columns for columns in unions if columns is not None]
        names = sorted({name for columns in known for name in columns})
        some = f" OF {', '.join(map(quoted, names))}" if len(known) == len(unions) else ""
        watch = self._watch(f" AND NOT ({self._same_row('OLD')})")
        return f"BEFORE UPDATE{some} ON {self._on} {watch}"

    def _watch(self, but: str) -> str:
        """Copy the rows that NEW would replace. but: which of them not."""
        conditions = [
            " AND ".join([*(f"{here} = {new}" for here, new in unique.pairs), *_part(unique.where)])
            for unique in self._table.uniques
        ]
        found = " OR ".join(
            f"EXISTS (SELECT 1 FROM {self._on} WHERE {condition}{but})" for condition in conditions
        )
        left = f"EXISTS (SELECT 1 FROM duly_change_victim WHERE shape = {self._shape.number})"
        rowid = f"{self._on}.{quoted(self._table.rowid)}" if self._table.rowid else "NULL"
        values = ", ".join(f"{self._on}.{quoted(name)}" for name in self._before)
        copies = "\n".join(
            f"INSERT INTO duly_change_victim (shape, row, {self._cells(len(self._before))}) "
            f"SELECT {self._shape.number}, {rowid}, {values} FROM {self._on} "
            f"WHERE {condition}{but} AND NOT EXISTS (SELECT 1 FROM duly_change_victim AS v "
            f"WHERE v.shape = {self._shape.number} AND {self._identity(self._on)});"
            for condition in conditions
        )
        return f"WHEN {found} OR {left} BEGIN\n{self._forget()}\n{copies}\nEND"

    # --- what happened ----------------------------------------------------------------------------
    def _insert(self) -> str:
        replaced = self._key("NEW")
        gone = f"({replaced}) IS NOT TRUE AND ({self._identity('NEW')} OR {self._missing()})"
        victims = ", ".join(f"v.c{n}" for n in range(len(self._before)))
        return (
            f"AFTER INSERT ON {self._on} BEGIN\n{self._tell_gone(gone)}\n"
            f"INSERT INTO duly_change (shape, op, {self._cells(self._shape.width)}) "
            f"SELECT {self._shape.number}, CASE WHEN v.shape IS NULL THEN {CREATE} "
            f"ELSE {UPDATE} END, {self._row('NEW', self._columns)}, {victims} "
            f"FROM (SELECT 1) LEFT JOIN duly_change_victim AS v "
            f"ON v.shape = {self._shape.number} AND {replaced};\n{self._forget()}\nEND"
        )

    def _update(self) -> str:
        gone = f"NOT ({self._identity('OLD')}) AND ({self._identity('NEW')} OR {self._missing()})"
        values = f"{self._row('NEW', self._columns)}, {self._row('OLD', self._before)}"
        return (
            f"AFTER UPDATE ON {self._on} BEGIN\n{self._tell_gone(gone)}\n"
            f"INSERT INTO duly_change (shape, op, {self._cells(self._shape.width)}) "
            f"VALUES ({self._shape.number}, {UPDATE}, {values});\n{self._forget()}\nEND"
        )

    def _delete(self) -> str:
        this = self._identity("OLD", victim="duly_change_victim")
        return (
            f"AFTER DELETE ON {self._on} BEGIN\n"
            f"INSERT INTO duly_change (shape, op, {self._cells(len(self._before))}) "
            f"VALUES ({self._shape.number}, {DELETE}, {self._row('OLD', self._before)});\n"
            f"{self._forget(f' AND {this}')}\nEND"
        )

    def _tell_gone(self, gone: str) -> str:
        count = len(self._before)
        victims = ", ".join(f"v.c{n}" for n in range(count))
        return (
            f"INSERT INTO duly_change (shape, op, {self._cells(count)}) "
            f"SELECT {self._shape.number}, {DELETE}, {victims} FROM duly_change_victim AS v "
            f"WHERE v.shape = {self._shape.number} AND {gone};"
        )

    # --- pieces -----------------------------------------------------------------------------------
    def _identity(self, of: str, *, victim: str = "v") -> str:
        """The victim is this very row."""
        if self._table.rowid:
            return f"{victim}.row = {of}.{quoted(self._table.rowid)}"
        return self._key(of, victim=victim)

    def _key(self, of: str, *, victim: str = "v") -> str:
        """The victim has this row's primary key; the same row, where there is none."""
        if not self._table.key:
            return self._identity(of, victim=victim)
        return " AND ".join(
            f"{victim}.c{self._before.index(column.name)} COLLATE {quoted(column.collation)} = "
            f"{of}.{quoted(column.name)}"
            for column in self._table.key
        )

    def _same_row(self, of: str) -> str:
        """The row of the table is this one."""
        if self._table.rowid:
            name = quoted(self._table.rowid)
            return f"{self._on}.{name} = {of}.{name}"
        return " AND ".join(
            f"{self._on}.{quoted(column.name)} COLLATE {quoted(column.collation)} = "
            f"{of}.{quoted(column.name)}"
            for column in self._table.key
        )

    def _missing(self) -> str:
        return f"NOT EXISTS (SELECT 1 FROM {self._on} WHERE {self._identity(self._on)})"

    def _forget(self, but: str = "") -> str:
        return f"DELETE FROM duly_change_victim WHERE shape = {self._shape.number}{but};"

    @staticmethod
    def _cells(count: int) -> str:
        return ", ".join(f"c{n}" for n in range(count))

    @staticmethod
    def _row(of: str, columns: tuple[str, ...]) -> str:
        return ", ".join(f"{of}.{quoted(name)}" for name in columns)


def _part(where: str) -> list[str]:
    return [f"({where})"] if where else []
