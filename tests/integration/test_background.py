"""The background as programs use it: under web frameworks, and at the end of the interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

APPS = Path(__file__).parent / "background_apps"
SOURCE = Path(__file__).parents[2] / "src"


def run(folder: Path, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program of the folder to its end."""
    return subprocess.run(
        [sys.executable, str(APPS / f"{name}.py"), *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


@pytest.mark.parametrize("framework", ["flask", "fastapi", "django"])
def test_under_a_framework(tmp_path: Path, framework: str) -> None:
    done = run(tmp_path, f"{framework}_app")
    assert done.stdout == f"{framework} ok\n", done.stderr
    assert "nobody looked" not in done.stderr


def test_no_failure_is_silent_at_exit(tmp_path: Path) -> None:
    done = run(tmp_path, "exits", "many", "20s")
    told = {int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("told")}
    assert told == {*range(100), *range(1000, 1100)}, done.stderr
    assert done.stdout.count("told") == 200
    assert done.returncode == 0


def test_the_loop_of_main_ends_first(tmp_path: Path) -> None:
    done = run(tmp_path, "exits", "loop", "20s")
    assert done.stdout.count("told") == 20, done.stderr


def test_work_is_ended_at_exit(tmp_path: Path) -> None:
    done = run(tmp_path, "exits", "slow", "20s")
    lines = done.stdout.splitlines()
    assert lines[0] == "end of main"
    assert sorted(lines[1:]) == [f"done {n}" for n in range(4)]


def test_a_stuck_call_does_not_hold_the_exit(tmp_path: Path) -> None:
    began = time.monotonic()
    done = run(tmp_path, "exits", "stuck", "500ms")
    assert done.returncode == 0
    assert time.monotonic() - began < 40
    assert "pool stuck does not wait any longer for stay, which is here:" in done.stderr
    assert "threading.Event().wait()" in done.stderr
    assert "1 calls had not begun and were cancelled, 1 still run" in done.stderr
