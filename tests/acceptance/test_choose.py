"""``duly choose`` as it is typed, and the examples that it names."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import pytest

from duly.admin.choosing import WAYS
from tests.conftest import mariadb, server_url

ROOT = Path(__file__).resolve().parents[2]
SAYS = {
    "sync": "now: 1.08\naway: 1.05\n",
    "background": "receipt of order 7\n",
    "after-commit": "sent, or not\n",
    "outbox": "billed order 7\n",
    "cdc": "shipped order 7\n",
    "batch": "settlement-2026-11-23.csv\n",
}


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environ = {k: v for k, v in os.environ.items() if not k.startswith("DULY_")}
    environ["PYTHONPATH"] = str(ROOT / "src")
    return subprocess.run(
        [sys.executable, *command], cwd=folder, env=environ, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=55, check=False,
    )  # fmt: skip


def test_flags_in_a_recommendation_out(tmp_path: Path) -> None:
    flags = ["--code", "yes", "--together", "no", "--bulk", "no", "--answer", "no", "--loss", "no"]
    shown = run(["-m", "duly", "choose", *flags], tmp_path)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "Use a message through the outbox." in shown.stdout
    assert "app.publish(session" in shown.stdout
    told = json.loads(run(["-m", "duly", "choose", *flags, "--json"], tmp_path).stdout)
    assert told["recommendation"]["name"] == "outbox"
    assert set(told["recommendation"]) >= {"reason", "guarantee", "cost", "snippet", "example"}


def test_where_nobody_can_be_asked_the_open_question_is_named(tmp_path: Path) -> None:
    asked = run(["-m", "duly", "choose", "--code", "yes"], tmp_path)
    assert asked.returncode == 2
    assert "--together yes" in asked.stderr


@pytest.mark.parametrize("way", SAYS)
def test_its_example_runs(way: str, tmp_path: Path) -> None:
    shutil.copy(ROOT / WAYS[way].example, tmp_path)
    done = run([Path(WAYS[way].example).name], tmp_path)
    assert (done.returncode, done.stdout) == (0, SAYS[way]), done.stderr[-2000:]


def test_the_global_transaction_runs_on_its_servers(postgres_url: str, tmp_path: Path) -> None:
    name, server = f"duly_{uuid4().hex}", server_url("DULY_TEST_MARIADB")
    parts = urlsplit(server)
    with closing(mariadb(server)) as admin, admin.cursor() as ask:
        ask.execute(f"CREATE DATABASE {name}")
        try:
            ledger = parts._replace(scheme="mysql+pymysql", path=f"/{name}").geturl()
            way = WAYS["global-transaction"]
            done = run([str(ROOT / way.example), postgres_url, ledger], tmp_path)
        finally:
            ask.execute(f"DROP DATABASE {name}")
    assert (done.returncode, done.stdout) == (0, "entries: [7]\n"), done.stderr[-2000:]


def test_every_example_is_run_here() -> None:
    ours = {Path(way.example).name for way in WAYS.values()}
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == ours
