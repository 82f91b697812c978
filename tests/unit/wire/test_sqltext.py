from __future__ import annotations

import pytest

from duly.wire.sqltext import Term, behind, marked, up_to


@pytest.mark.parametrize(
    ("text", "expected", "names"),
    [
        ("select :a, :b_2;", "select <a>, <b_2>", ["a", "b_2"]),
        ("select ':a', \":b\", `:c`, :d", "select ':a', \":b\", `:c`, <d>", ["d"]),
        ("select 'it''s :a', x::int, :b", "select 'it''s :a', x::int, <b>", ["b"]),
        ("select E'\\':a', :b", "select E'\\':a', <b>", ["b"]),
        (
            "-- :a\n/* :b\n*/ $$ :c $$ $t$ :d $t$ :e",
            "-- :a\n/* :b\n*/ $$ :c $$ $t$ :d $t$ <e>",
            ["e"],
        ),
        ("select 1 ; ", "select 1", []),
    ],
)
def test_names_are_found_where_they_stand_for_values(text: str, expected: str, names: list[str]):
    assert marked(text, lambda name: f"<{name}>") == (expected, names)


def test_a_backslash_escapes_where_the_dialect_says_so():
    assert marked("'\\':a' :b", lambda n: f"<{n}>", backslash=True) == ("'\\':a' <b>", ["b"])


def test_other_text_is_passed_through_the_literal():
    found = marked("a % :b %", lambda n: f"%({n})s", literal=lambda part: part.replace("%", "%%"))
    assert found == ("a %% %(b)s %%", ["b"])


@pytest.mark.parametrize(
    ("terms", "after", "until"),
    [
        ([Term("a", "1")], "a > 1", "(a < 1 OR a = 1)"),
        ([Term("a", "1", True)], "a < 1", "(a > 1 OR a = 1)"),
        (
            [Term("a", "1"), Term("b", "2")],
            "(a, b) > (1, 2)",
            "((a, b) < (1, 2) OR (a, b) = (1, 2))",
        ),
        (
            [Term("a", "1"), Term("b", "2", True)],
            "(a > 1 OR (a = 1 AND b < 2))",
            "((a < 1 OR (a = 1 AND b > 2)) OR (a, b) = (1, 2))",
        ),
        (
            [Term("a", "1"), Term("b", "2", True), Term("c", "3")],
            "(a > 1 OR (a = 1 AND (b < 2 OR (b = 2 AND c > 3))))",
            "((a < 1 OR (a = 1 AND (b > 2 OR (b = 2 AND c < 3)))) OR (a, b, c) = (1, 2, 3))",
        ),
    ],
)
def test_conditions_of_a_key(terms: list[Term], after: str, until: str):
    assert behind(terms) == after
    assert up_to(terms) == until
