from __future__ import annotations

import json
from enum import Enum
from typing import NamedTuple

import pytest

from duly.admin.cli.output import clean, document, show_findings, table, when
from duly.ports import Finding, Severity


class Colour(Enum):
    RED = "red"


class Point(NamedTuple):
    name: str
    seen_at: float | None
    colour: Colour


def test_one_valid_document(capsys: pytest.CaptureFixture[str]) -> None:
    document({"points": [Point("a\n\x1b[2J\ud800", 0.0, Colour.RED), Point("", None, Colour.RED)]})
    shown = json.loads(capsys.readouterr().out)
    first, second = shown["points"]
    assert first == {
        "name": "a\n\x1b[2J\ud800",
        "seen_at": "1970-01-01 00:00:00+00:00",
        "colour": "red",
    }
    assert second["seen_at"] is None


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("plain é", "plain é"),
        ("a\nb\tc", "a\\nb\\tc"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("\u202eabc\ud800", "\\u202eabc\\ud800"),
        (None, ""),
        (7, "7"),
    ],
)
def test_nothing_steers_the_terminal(value: object, shown: str) -> None:
    assert clean(value) == shown


def test_columns_line_up(capsys: pytest.CaptureFixture[str]) -> None:
    table(("A", "LONG"), [("x" * 80, "y"), ("z", None)])
    lines = capsys.readouterr().out.splitlines()
    assert [len(line) for line in lines] == [66, 63, 1]
    assert lines[1] == f"{'x' * 57}...  y"


def test_findings_and_their_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    weak = Finding("WEAK", Severity.WEAK, "so so", "do this")
    red = Finding("BAD", Severity.RED, "no\x1b")
    assert show_findings([], as_json=False) == 0
    assert show_findings([weak], as_json=False) == 0
    assert show_findings([weak, red], as_json=False) == 1
    out = capsys.readouterr().out
    assert "weak   [WEAK] so so - do this" in out
    assert "red    [BAD] no\\x1b" in out
    assert show_findings([red], as_json=True) == 1
    assert json.loads(capsys.readouterr().out)["ok"] is False


def test_times() -> None:
    assert when(None) == ""
    assert when(1_700_000_000.4) == "2023-11-14 22:13:20+00:00"
