"""Statements as they are written in ``sql/*.sql``, and both dialects name the same ones."""

from __future__ import annotations

import re
from typing import Any

import pytest

from duly.databases.statements import (
    COLUMNS,
    drive,
    load_migrations,
    load_statements,
    single,
)
from duly.errors import InvalidNameError
from duly.ports import Result, Statement, Steps

DIALECTS = {"duly.databases.sqlite": ":group", "duly.databases.postgres": "%(group)s"}
ONE_DIALECT_ONLY = re.compile(r"outbox\.insert\w*|meta\.tables")


def loaded(package: str, prefix: str = "duly_") -> dict[str, Any]:
    return load_statements(package, prefix=prefix, group_marker=DIALECTS[package])


@pytest.mark.parametrize("package", DIALECTS)
def test_the_prefix_is_in_every_table_name(package: str) -> None:
    found = loaded(package, "shop_")
    texts = [text for sql in found.values() for text in sql.texts]
    assert not [text for text in texts if re.search(r"\bduly_(?!guard)", text)]
    assert any("shop_outbox" in text for text in texts)


@pytest.mark.parametrize("package", DIALECTS)
def test_lane_statements_are_rendered_for_both_boxes(package: str) -> None:
    found = loaded(package)
    for box, columns in COLUMNS.items():
        (text,) = found[f"{box}.read"].texts
        assert f"duly_{box} b" in text
        assert ", ".join(f"b.{column}" for column in columns) in text
        assert (DIALECTS[package] in text) == (box == "inbox")
        assert "{" not in text


@pytest.mark.parametrize("package", DIALECTS)
def test_no_text_is_empty_and_none_has_comments(package: str) -> None:
    for name, sql in loaded(package).items():
        assert sql.texts, name
        for text in sql.texts:
            assert text.strip(), name
            assert "--" not in text, name


def test_the_dialects_name_the_same_statements() -> None:
    sqlite, postgres = (set(loaded(package)) for package in DIALECTS)
    different = {name for name in sqlite ^ postgres if not ONE_DIALECT_ONLY.fullmatch(name)}
    assert different == set()


def test_free_holds_runs_in_two_steps() -> None:
    assert len(loaded("duly.databases.postgres")["outbox.free_holds"].texts) == 2


@pytest.mark.parametrize("prefix", ["", "Duly_", "a;drop table x;--", "a b", "x" * 42, "9a"])
@pytest.mark.parametrize("package", DIALECTS)
def test_a_prefix_that_may_not_stand_in_sql(package: str, prefix: str) -> None:
    with pytest.raises(InvalidNameError):
        loaded(package, prefix)
    with pytest.raises(InvalidNameError):
        load_migrations(package, prefix=prefix)


@pytest.mark.parametrize("package", DIALECTS)
def test_migrations_are_numbered_without_a_gap(package: str) -> None:
    found = load_migrations(package, prefix="shop_")
    assert [version for version, _, _ in found] == list(range(1, len(found) + 1))
    assert all(name and "shop_" in text and "duly_" not in text for _, name, text in found)


def test_both_dialects_have_the_same_versions() -> None:
    versions = [[v for v, _, _ in load_migrations(p, prefix="duly_")] for p in DIALECTS]
    assert versions[0] == versions[1]


# --- driving --------------------------------------------------------------------------------------
def test_drive_gives_each_result_back_and_returns_the_end() -> None:
    def steps() -> Steps[int]:
        first = yield Statement("one")
        second = yield Statement("two")
        return first.count + second.count

    asked: list[str] = []

    def call(statement: Statement) -> Result:
        asked.append(statement.name)
        return Result([], 20)

    assert drive(steps(), call) == 40
    assert asked == ["one", "two"]


def test_drive_hands_an_exception_to_the_steps_and_goes_on() -> None:
    def steps() -> Steps[str]:
        try:
            yield Statement("fails")
        except ValueError:
            yield Statement("instead")
        return "saved"

    asked: list[str] = []

    def call(statement: Statement) -> Result:
        asked.append(statement.name)
        if statement.name == "fails":
            raise ValueError
        return Result([], 0)

    assert drive(steps(), call) == "saved"
    assert asked == ["fails", "instead"]


def test_what_the_steps_do_not_catch_comes_out() -> None:
    def call(statement: Statement) -> Result:
        raise ValueError(statement.name)

    with pytest.raises(ValueError, match="only"):
        drive(single(Statement("only")), call)


def test_steps_without_a_statement() -> None:
    def steps() -> Steps[int]:
        return 1
        yield Statement("never")

    assert drive(steps(), lambda _: Result([], 0)) == 1
