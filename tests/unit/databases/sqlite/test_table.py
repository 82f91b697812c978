"""Unique keys are found in whatever way they are written."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

from duly.databases.sqlite.table import index_terms, quoted, read_table


@pytest.mark.parametrize(
    ("sql", "terms", "where"),
    [
        ("CREATE UNIQUE INDEX i ON t (a)", ["a"], ""),
        ('CREATE UNIQUE INDEX "i(" ON "t)" ("a,b" DESC, [c d] ASC)', ['"a,b"', "[c d]"], ""),
        ("CREATE UNIQUE INDEX i ON t(lower(a||'),('), b) ", ["lower(a||'),(')", "b"], ""),
        ("create unique index i on t(a -- x, y)\n, b) WHERE a > 1;", ["a", "b"], "a > 1"),
        ("CREATE UNIQUE INDEX i ON t(f(g(a, b), /* , */ c))where(a)", ["f(g(a, b),   c)"], "(a)"),
    ],
)
def test_terms_are_split_where_sqlite_splits_them(sql: str, terms: list[str], where: str) -> None:
    assert index_terms(sql) == (terms, where)


def test_what_names_a_row() -> None:
    with closing(sqlite3.connect(":memory:")) as db:
        db.executescript(
            'CREATE TABLE a ("I d" INTEGER PRIMARY KEY, rowid);'
            "CREATE TABLE b (x TEXT COLLATE NOCASE, y, PRIMARY KEY (y, x)) WITHOUT ROWID;"
            "CREATE TABLE c (x TEXT PRIMARY KEY);"
            "CREATE TABLE d (x INTEGER PRIMARY KEY DESC);"
            "CREATE TABLE e (x);"
        )
        found = {name: read_table(db, name.upper()) for name in "abcde"}
    said = {
        name: (table.name, table.rowid, table.lasting, [tuple(column) for column in table.key])
        for name, table in found.items()
        if table is not None
    }
    assert said == {
        "a": ("a", "_rowid_", True, [("I d", "BINARY")]),
        "b": ("b", "", True, [("y", "BINARY"), ("x", "NOCASE")]),
        "c": ("c", "rowid", False, [("x", "BINARY")]),
        "d": ("d", "rowid", False, [("x", "BINARY")]),
        "e": ("e", "rowid", False, []),
    }
    watched = {name: [u.columns for u in table.uniques] for name, table in found.items() if table}
    assert watched["a"] == [frozenset({"I d", "_rowid_", "oid"})]
    assert watched["b"] == [frozenset({"x", "y"})]
    assert watched["c"] == [frozenset({"x"}), frozenset({"rowid", "_rowid_", "oid"})]


def test_a_name_is_quoted_whatever_it_is_made_of() -> None:
    assert quoted('a"b') == '"a""b"'
