"""A missing server skips its tests on a laptop and fails them in CI."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TESTS = """
def test_database(postgres_url):
    assert postgres_url

def test_broker(rabbitmq_url):
    assert rabbitmq_url

def test_file(sqlite_url):
    assert sqlite_url.startswith("sqlite:///")
"""


@pytest.mark.parametrize(
    ("ci", "code", "outcome"),
    [("", 0, "1 passed, 2 skipped"), ("true", 1, "1 passed, 2 errors")],
)
def test_a_missing_server(tmp_path: Path, ci: str, code: int, outcome: str) -> None:
    (tmp_path / "test_planted.py").write_text(TESTS)
    # An empty variable counts as set, so that .services/env of this checkout is not used.
    env = {**os.environ, "CI": ci, "DULY_TEST_POSTGRES": "", "DULY_TEST_RABBITMQ": ""}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "tests.conftest",
        "-c",
        str(ROOT / "pyproject.toml"),
    ]
    done = subprocess.run(
        [*command, str(tmp_path)],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert outcome in done.stdout
    assert "DULY_TEST_POSTGRES is not set; run: make services" in done.stdout
