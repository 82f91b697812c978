"""`make bench` on a small load: rows are produced, and told in the agreed form."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 40
FORM = {"name", "unit", "figure", "reference", "reference_figure", "ratio", "spread"}


def run(tmp_path: Path, **environment: str) -> tuple[subprocess.CompletedProcess[str], Path]:
    out = tmp_path / "bench.json"
    done = subprocess.run(
        [sys.executable, "-m", "bench"],
        cwd=ROOT,
        env={**os.environ, "SCALE": "0.01", "REPEATS": "1", "OUT": str(out), **environment},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    return done, out


@pytest.mark.timeout(SECONDS + 5)
def test_two_quick_rows_have_the_form(tmp_path: Path):
    done, out = run(tmp_path, ONLY="sqlite consume")
    rows = json.loads(out.read_text())
    assert done.returncode == 0, done.stdout + done.stderr
    assert [row["name"] for row in rows] == ["sqlite consume batch", "sqlite consume single"]
    for row in rows:
        assert set(row) >= FORM
        assert row["ratio"] == pytest.approx(row["figure"] / row["reference_figure"])
        assert row["verdict"] in ("ok", "short")
        durable = {"journal_mode": "wal", "synchronous": "2"}
        assert durable.items() <= row["settings"].items()
        assert durable.items() <= row["reference_settings"].items()
        assert row["name"] in done.stdout


def test_a_word_that_no_row_has_is_an_error(tmp_path: Path):
    done, out = run(tmp_path, ONLY="no such row")
    assert done.returncode == 2
    assert "import duly" in done.stdout
    assert not out.exists()
