from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from duly.errors import GapError, PermanentError
from duly.kernel import rules as subject
from duly.kernel.changes import ABSENT, Change, Op, Transaction
from duly.kernel.rules import (
    ROW_KEY,
    Emit,
    Masked,
    Naming,
    Rule,
    RuleFailedError,
    coalesce,
    evaluate,
    why_not,
)

Row = dict[str, Any] | None


def change(
    op: Op, number: int, before: Row = None, after: Row = None, *, table: str = "t"
) -> Change:
    row = after or before or {}
    key = {"id": row["id"]} if "id" in row else {}
    return Change("db", table, op, key, before, after, "5", number)


def made(rules: list[Rule], *changes: Change) -> list[Any]:
    whole = Transaction("db", "5", "5", "", None, list(changes))
    names = Naming(table for rule in rules for table in rule.tables)
    return list(evaluate(rules, whole, names))


def values(emitted: list[Any]) -> list[Any]:
    return [one.emit.message for one in emitted]


def row(number: int, **more: Any) -> dict[str, Any]:
    return {"id": number, **more}


# --- which and in which order ---------------------------------------------------------------------
def test_each_change_is_shown_to_each_rule_in_order() -> None:
    first = Rule("first", lambda c: [("first", c.ordinal), ("again", c.ordinal)], ("t",))
    second = Rule("second", lambda c: "one", ("t", "u"))
    found = made([first, second], change("create", 0, after=row(1)), change("create", 1, table="u"))
    assert values(found) == [("first", 0), ("again", 0), "one", "one"]
    place = change("create", 0, after=row(1))
    assert [one.id for one in found[:3]] == [
        place.event_id("first", 0),
        place.event_id("first", 1),
        place.event_id("second", 0),
    ]
    assert found[0].emit.key is ROW_KEY
    assert found[0].change is not None


def test_a_rule_gives_nothing_one_or_several() -> None:
    def several(c: Change) -> Iterator[Any]:
        yield "a"
        yield Emit("b", key="k")

    one = change("create", 0, after=row(1))
    assert values(made([Rule("r", lambda c: None, ("t",))], one)) == []
    assert values(made([Rule("r", lambda c: "x", ("t",))], one)) == ["x"]
    assert values(made([Rule("r", lambda c: Emit("x", key="k"), ("t",))], one)) == ["x"]
    assert values(made([Rule("r", several, ("t",))], one)) == ["a", "b"]


def test_tables_are_named_with_or_without_their_schema() -> None:
    naming = Naming(["orders", "crm.people", "people"])
    found = [naming.of(name) for name in ("orders", "public.orders", "crm.people", "x.people", "y")]
    assert found == ["orders", "orders", "crm.people", "people", ""]


def test_rows_of_a_snapshot_only_where_they_are_asked_for() -> None:
    read = change("read", 0, after=row(1))
    quiet = Rule("quiet", lambda c: "quiet", ("t",))
    asked = Rule("asked", lambda c: "asked", ("t",), on_snapshot=True)
    assert values(made([quiet, asked], read)) == ["asked"]
    assert "snapshot" in why_not(quiet, read, "t")
    assert why_not(asked, read, "u") == "is about t"


def test_a_rule_that_raises_is_named_without_what_it_said() -> None:
    def broken(c: Change) -> Iterator[Any]:
        yield "fine"
        raise ZeroDivisionError("4711")

    found: list[Any] = []
    with pytest.raises(RuleFailedError) as error:
        found.extend(
            evaluate(
                [Rule("r", broken, ("t",))],
                Transaction("db", "5", "5", "", None, [change("create", 0, after=row(1))]),
                Naming(["t"]),
            )
        )
    assert (error.value.rule, error.value.cause, error.value.position) == (
        "r",
        "ZeroDivisionError",
        "5",
    )
    assert "4711" not in str(error.value)
    assert re.search(r"ZeroDivisionError, raised at test_rules.py:\d+: ", str(error.value))
    assert values(found) == ["fine"]
    absent = Rule("absent", lambda c: c.changed("x"), ("t",))
    with pytest.raises(RuleFailedError, match="ABSENT_VALUE"):
        made([absent], change("update", 0, None, row(1)))


def test_a_log_that_breaks_off_is_not_the_rules_fault() -> None:
    def lost(_: Any) -> None:
        raise GapError("gone")

    with pytest.raises(GapError):
        made([Rule("r", lost, ("t",))], change("create", 0, after=row(1)))


# --- what is seen ---------------------------------------------------------------------------------
def test_columns_are_left_out_and_masked_everywhere() -> None:
    seen: list[Change] = []
    rule = Rule(
        "r", seen.append, ("t",), exclude=frozenset({"x"}), mask=frozenset({"id", "secret"})
    )
    before = row(1, x=1, secret="a", note=1)
    made([rule], change("update", 0, before, {**before, "secret": "b"}))
    assert seen[0].before is not None
    assert seen[0].after is not None
    assert set(seen[0].after) == {"id", "secret", "note"}
    assert seen[0].changed("secret")
    assert seen[0].moved("secret", "a", "b")
    assert not seen[0].changed("note")
    assert repr(seen[0].after["secret"]) == f"{seen[0].key['id']}" == "***"
    included = Rule("r", seen.append, ("t",), include=frozenset({"note"}))
    made([included], change("create", 0, after=before))
    assert (seen[1].after, seen[1].before, seen[1].key) == ({"note": 1}, None, {"id": 1})


def test_nothing_stays_nothing_behind_a_mask() -> None:
    seen: list[Change] = []
    rule = Rule("r", seen.append, ("t",), mask=frozenset({"a", "b"}))
    made([rule], change("create", 0, after=row(1, a=None, b=ABSENT)))
    assert seen[0].after == {"id": 1, "a": None, "b": ABSENT}
    assert len({Masked(1), Masked(1), Masked(2)}) == 2
    assert Masked(1) != Masked(2)


def test_a_whole_transaction_is_seen_as_the_rule_may() -> None:
    seen: list[Transaction] = []

    def whole(given: Transaction) -> Iterator[Any]:
        seen.append(given)
        yield len(given.changes)
        yield given.changes[0].after

    rule = Rule("r", whole, ("t", "u"), whole=True, exclude=frozenset({"x"}))
    changes = [
        change("create", 0, after=row(1, x=1)),
        change("create", 1, after=row(2), table="other"),
        change("update", 2, row(1, x=1), row(1, x=2), table="u"),
    ]
    found = made([rule], *changes)
    assert values(found) == [2, {"id": 1}]
    assert [one.change for one in found] == [None, None]
    assert found[0].id != found[1].id
    assert made([rule], changes[1]) == []
    assert made([rule], change("read", 0, after=row(1))) == []  # a snapshot is no transaction
    joined = Rule("r", lambda t: len(t.changes), ("t",), whole=True, coalesce=True)
    twice = [change("create", 0, after=row(1)), change("update", 1, row(1), row(1, a=1))]
    assert values(made([joined], *twice)) == [1]


# --- several changes of one row -------------------------------------------------------------------
def shape(changes: list[Change]) -> list[tuple[str, int, Row, Row]]:
    return [
        (one.op, one.ordinal, one.before and dict(one.before), one.after and dict(one.after))
        for one in changes
    ]


def test_a_row_is_seen_once_from_its_first_to_its_last_state() -> None:
    a, b, c = row(1, s="a"), row(1, s="b"), row(1, s="c")
    assert shape(coalesce([change("update", 0, a, b), change("update", 3, b, c)])) == [
        ("update", 3, a, c)
    ]
    assert shape(coalesce([change("create", 0, None, a), change("update", 1, a, b)])) == [
        ("create", 1, None, b)
    ]
    assert shape(coalesce([change("update", 0, a, b), change("delete", 1, b, None)])) == [
        ("delete", 1, a, None)
    ]
    assert shape(coalesce([change("delete", 0, a, None), change("create", 1, None, b)])) == [
        ("update", 1, a, b)
    ]
    assert coalesce([change("create", 0, None, a), change("delete", 1, a, None)]) == []


def test_a_row_is_followed_through_a_new_key() -> None:
    changes = [
        change("update", 0, row(1, s="a"), row(1, s="b")),
        change("update", 1, row(1, s="b"), row(2, s="b")),
        change("update", 2, row(2, s="b"), row(2, s="c")),
        change("create", 3, None, row(1, s="new")),
    ]
    assert shape(coalesce(changes)) == [
        ("update", 2, row(1, s="a"), row(2, s="c")),
        ("create", 3, None, row(1, s="new")),
    ]


def test_what_cannot_be_joined_stays() -> None:
    partly = {"id": ABSENT, "s": "a"}
    changes = [
        change("truncate", 0),
        change("create", 1, None, {"s": 1}),
        change("create", 2, None, {"s": 1}),
        change("read", 3, None, row(1)),
        change("update", 4, partly, row(1, s="b")),
        change("update", 5, None, row(1, s="c")),
        change("create", 6, None, row(1), table="u"),
    ]
    assert [one.ordinal for one in coalesce(changes)] == [0, 1, 2, 3, 5, 6]


def test_coalesced_rules_see_rows_and_others_see_changes() -> None:
    plain = Rule("plain", lambda c: c.ordinal, ("t",))
    joined = Rule("joined", lambda c: (c.op, c.ordinal), ("t",), coalesce=True)
    a, b = row(1, s="a"), row(1, s="b")
    found = made([plain, joined], change("update", 0, a, b), change("update", 1, b, a))
    assert values(found) == [0, 1, "update", 1]
    assert values(made([joined], change("create", 0, None, a, table="u"))) == []


def test_too_many_rows_to_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "COALESCE_MAX", 2)
    changes = [change("create", n, None, row(n)) for n in range(3)]
    with pytest.raises(PermanentError) as error:
        coalesce(changes)
    assert error.value.code == "TRANSACTION_TOO_LARGE"
    with pytest.raises(RuleFailedError, match="TRANSACTION_TOO_LARGE"):
        made([Rule("r", lambda c: None, ("t",), coalesce=True)], *changes)


def test_the_row_key_shows_itself() -> None:
    assert repr(ROW_KEY) == "ROW_KEY"


# --- the row that a rule makes for a copy ---------------------------------------------------------
def test_a_rule_about_a_copy_sees_its_own_table_and_columns() -> None:
    rule = Rule("copy", lambda c: c.after, ("t",), exclude=frozenset({"secret"}))
    changes = [
        change("create", 0, None, row(1, secret="s")),
        change("create", 1, None, row(2), table="u"),
    ]
    changes += [change("read", 2, None, row(3))]
    (seen,) = subject.seen_by(rule, changes, Naming(["t", "u"]))
    assert subject.projected(rule, seen) == row(1)
    assert subject.projected(Rule("none", lambda c: None, ("t",)), seen) is None


def test_a_projection_that_fails_says_where_and_shows_no_row() -> None:
    def gap(c: Change) -> None:
        raise GapError("gone")

    with pytest.raises(GapError):
        subject.projected(Rule("gap", gap, ("t",)), change("create", 0, None, row(1)))
    for function, cause in (
        (lambda c: c.after["secret"], "KeyError"),
        (lambda c: "text", "NOT_A_ROW"),
    ):
        with pytest.raises(RuleFailedError) as error:
            subject.projected(Rule("r", function, ("t",)), change("create", 0, None, row(1)))
        assert (error.value.cause, error.value.position) == (cause, "5")
