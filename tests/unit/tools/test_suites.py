"""The suites' judge: nothing passes by not running."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import suites
from tools.suites import Suite

PASSES = "def test_a():\n    assert 1 + 1 == 2\n"
FAILS = "def test_b():\n    assert 1 + 1 == 3\n"
SKIPS = "import pytest\n@pytest.mark.skip\ndef test_c():\n    assert 1\n"
BREAKS = "import no_such_module_anywhere\n"
HANGS = "import time\ndef test_d():\n    time.sleep(60)\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty tests folder, with the reports beside it."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # the runs inside start quicker
    monkeypatch.setattr(suites, "REPORTS", tmp_path / "reports")
    suites.REPORTS.mkdir()
    return tmp_path


def plant(folder: Path, text: str) -> Suite:
    """A suite of one file."""
    (folder / "unit").mkdir()
    (folder / "unit" / "test_planted.py").write_text(text)
    return Suite("unit", 30)


@pytest.mark.parametrize(
    ("text", "counts", "note"),
    [
        (PASSES + FAILS + SKIPS, (1, 1, 1), ""),
        (BREAKS, (0, 1, 0), ""),
        ("", (0, 0, 0), "has no test"),
    ],
)
def test_a_suite_is_judged_by_its_report(
    folder: Path, text: str, counts: tuple[int, int, int], note: str
) -> None:
    result = suites.run(plant(folder, text), folder)
    assert (result.passed, result.failed, result.skipped) == counts
    assert result.note == note


def test_a_suite_past_its_budget_fails_and_is_ended(folder: Path) -> None:
    result = suites.run(plant(folder, HANGS)._replace(budget_seconds=3), folder)
    assert result.note == "ran past its budget of 3 s"
    assert result.seconds < 20


@pytest.mark.parametrize(("bytes_min", "in_memory"), [(1, True), (1 << 60, False)])
def test_files_lie_in_memory_where_there_is_room_and_are_gone_in_the_end(
    folder: Path, monkeypatch: pytest.MonkeyPatch, bytes_min: int, in_memory: bool
) -> None:
    memory = folder / "memory"
    memory.mkdir()
    monkeypatch.setattr(suites, "MEMORY", memory)
    monkeypatch.setattr(suites, "MEMORY_BYTES_MIN", bytes_min)
    told = folder / "told"
    text = f"def test_f(tmp_path):\n    open({str(told)!r}, 'w').write(str(tmp_path))\n"
    assert suites.run(plant(folder, text), folder).passed == 1
    assert told.read_text().startswith(str(memory)) == in_memory
    assert list(memory.iterdir()) == []


def test_the_last_line_counts_and_the_exit_code_agrees(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(folder, "")
    (folder / "tidy").mkdir()
    (folder / "tidy" / "test_fine.py").write_text(PASSES)
    assert suites.main([], folder) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "1 passed, 1 failed, 0 skipped"
    assert suites.main(["tidy"], folder) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "1 passed, 0 failed, 0 skipped"


def test_lanes_run_side_by_side_and_print_what_they_found(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    meets = "import pathlib, time\ndef test_e():\n    here = pathlib.Path({one!r})\n"
    meets += "    here.touch()\n    until = time.monotonic() + 20\n"
    meets += "    while not pathlib.Path({other!r}).exists():\n"
    meets += "        assert time.monotonic() < until\n        time.sleep(0.05)\n"
    one, other = str(folder / "one"), str(folder / "other")
    plant(folder, meets.format(one=one, other=other))
    (folder / "acceptance").mkdir()
    met = meets.format(one=other, other=one)
    (folder / "acceptance" / "test_other.py").write_text(met + "\n" + FAILS)
    assert suites.main([], folder) == 1
    printed = capsys.readouterr().out
    assert "=== unit" in printed
    assert "assert (1 + 1) == 3" in printed
    assert printed.splitlines()[-1] == "2 passed, 1 failed, 0 skipped"


def test_a_suite_that_is_not_there_cannot_be_asked_for(folder: Path) -> None:
    with pytest.raises(SystemExit, match="no such suite: any"):
        suites.chosen([], folder)
    plant(folder, PASSES)
    with pytest.raises(SystemExit, match="no such suite: integraton"):
        suites.chosen(["unit", "integraton"], folder)


def test_a_green_report_of_a_pytest_that_died_is_not_green() -> None:
    assert suites.judge(3, Suite("unit", 1), ran=5, failed=0) == "pytest ended with 3"
    assert suites.judge(0, Suite("unit", 1), ran=0, failed=0) == "has no test"
    assert suites.judge(1, Suite("unit", 1), ran=5, failed=1) == ""
