"""The command itself: options, and how it ends when it cannot start."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import click
import pytest

from duly.admin.demo.main import main


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("arguments", [["--flights", "10"], ["--flights", "x"], ["--nonsense"]])
def test_wrong_usage_is_refused(arguments: list[str], here: Path) -> None:
    with pytest.raises(click.UsageError):
        main(arguments)
    assert list(here.iterdir()) == []


def test_help_says_what_it_writes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "./duly-demo" in capsys.readouterr().out


def test_a_foreign_folder_is_an_error_of_one_line(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "duly-demo").mkdir()
    assert main(["--seed", "1"]) == 1
    captured = capsys.readouterr()
    assert "DEMO_FOLDER" in captured.err
    assert "Traceback" not in captured.err


@pytest.mark.parametrize(
    "arguments", [["--database", "sqlite:///mine.db"], ["--broker", "embedded:///mine.db"]]
)
def test_other_files_are_not_written_to(
    arguments: list[str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 1
    assert arguments[0] in capsys.readouterr().err
    assert list(here.iterdir()) == []


def test_json_is_one_object_also_for_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"postgresql://me:secret@127.0.0.1:{taken.getsockname()[1]}/db"
        assert main(["--json", "--database", url, "--broker", "amqp://x"]) == 1
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert report["adds_up"] is False
    assert "secret" not in captured.out + captured.err


def test_what_does_not_add_up_is_an_exit_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = {"adds_up": False, "checks": []}
    monkeypatch.setattr("duly.admin.demo.main._run", lambda screen, options: report)
    assert main(["--json", "--seed", "1"]) == 1
    assert json.loads(capsys.readouterr().out) == report
