from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import pytest

from bench.aims import Aim
from bench.measure import Measured, Row, Sample, Sides
from bench.report import entry, table, verdict, write

ROW = Row(
    "postgres relay", "messages/s", "by hand", lambda _: nullcontext(Sides(lambda: Sample(1)))
)


def made(void: str = "") -> Measured:
    facts = {"fsync": "on"}
    return Measured(ROW, [Sample(80, facts)], [Sample(100, facts)], [Sample(150)], void=void)


def test_the_form_of_an_entry():
    row = entry(made(), Aim(at_least=0.8))
    form = {"name", "unit", "figure", "reference", "reference_figure", "ratio", "spread"}
    assert form <= set(row)
    assert (row["ratio"], row["verdict"], row["settings"]) == (0.8, "ok", {"fsync": "on"})
    assert row["reference_share_of_raw"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("void", "aim", "said"),
    [
        ("", Aim(at_least=0.8), "ok"),
        ("", Aim(at_least=0.9), "short"),
        ("", Aim(), "-"),
        ("no share", Aim(at_least=0.1), "void"),
    ],
)
def test_the_verdict(void: str, aim: Aim, said: str):
    assert verdict(made(void), aim) == said


def test_the_table_says_figures_settings_and_why_a_row_is_void():
    text = table([entry(made("too slow"), Aim(at_least=0.9))])
    assert "postgres relay" in text
    assert "0.80" in text
    assert "ratio >= 0.9" in text
    assert "ours: fsync=on" in text
    assert "void: too slow" in text


def test_what_is_written_is_one_list(tmp_path: Path):
    path = tmp_path / "deep" / "bench.json"
    write([entry(made(), Aim())], path)
    assert [row["name"] for row in json.loads(path.read_text())] == ["postgres relay"]
