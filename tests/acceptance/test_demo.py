"""``duly demo`` as a stranger runs it: it adds up with both kills, and says so when it does not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, inspect
from sqlalchemy.engine import make_url

from duly.admin.demo import driver
from duly.admin.demo.gateway import GatewayServer
from duly.admin.demo.main import main
from tests.conftest import rabbitmq_api

SOURCE = Path(__file__).parents[2] / "src"
FEW = ("--flights", "1000")


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "duly", "demo", *FEW, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(SOURCE)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def report_of(folder: Path, *arguments: str) -> dict[str, Any]:
    """Run it to its end; returns the one object on its standard output."""
    process = start(folder, "--json", *arguments)
    try:
        out, err = process.communicate(timeout=170)
    finally:
        process.kill()
        process.wait()
    report: dict[str, Any] = json.loads(out)
    assert process.returncode == 0, f"{[c for c in report['checks'] if not c['right']]}\n{err}"
    return report


def check_report(report: dict[str, Any]) -> None:
    assert report["adds_up"] is True
    assert all(check["right"] for check in report["checks"])
    assert [kill["signal"] for kill in report["kills"]] == [9, 9]
    assert report["kills"][1]["in_doubt"] >= 1
    assert report["transactions_rolled_back"] > 0
    assert report["savepoints_rolled_back"] > 0
    assert 0 < report["latency_p50_seconds"] <= report["latency_p99_seconds"]
    assert report["flights_per_second"] > 0 < report["messages_per_second"]


@pytest.mark.timeout(180)
def test_it_adds_up_without_any_server(tmp_path: Path) -> None:
    check_report(report_of(tmp_path, "--seed", "5"))
    assert [entry.name for entry in tmp_path.iterdir()] == ["duly-demo"]


@pytest.mark.timeout(180)
def test_it_adds_up_on_postgresql_and_rabbitmq(
    tmp_path: Path, postgres_url: str, rabbitmq_url: str
) -> None:
    check_report(report_of(tmp_path, "--database", postgres_url, "--broker", rabbitmq_url))
    engine = create_engine(make_url(postgres_url).set(drivername="postgresql+psycopg"))
    names = inspect(engine).get_table_names()
    engine.dispose()
    assert names
    assert all(name.startswith("duly_demo_") for name in names)
    vhost = make_url(rabbitmq_url).database
    assert json.loads(rabbitmq_api("GET", f"/api/queues/{vhost}")) == []


@pytest.mark.timeout(120)
def test_ctrl_c_ends_all_processes(tmp_path: Path) -> None:
    process = start(tmp_path)
    assert process.stdout is not None
    try:
        # The next line comes with the first progress, when the worker is under way.
        while "flights written" not in process.stdout.readline():
            assert process.poll() is None
        children = children_of(process.pid)
        assert len(children) == 2
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert not [pid for pid in children if alive(pid)]


@pytest.mark.timeout(120)
def test_children_do_not_outlive_a_killed_driver(tmp_path: Path) -> None:
    process = start(tmp_path)
    assert process.stdout is not None
    while "flights written" not in process.stdout.readline():
        assert process.poll() is None
    children = children_of(process.pid)
    process.kill()
    process.communicate()
    end = time.monotonic() + 40
    while any(map(alive, children)):
        assert time.monotonic() < end, "a child is still running"
        time.sleep(0.1)  # until they have noticed
    assert len(children) == 2


@pytest.mark.timeout(120)
def test_what_does_not_add_up_is_shown_line_by_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A gateway that takes nothing: no text message, so no kill in the middle of one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(driver, "_STALL_SECONDS", 6.0)
    monkeypatch.setattr(GatewayServer, "take", refuse)
    assert main(["--flights", "1000"]) == 1
    shown = capsys.readouterr().out
    wrong = [line for line in shown.splitlines() if line.endswith("WRONG")]
    assert any("text messages sent" in line for line in wrong)
    assert any("SIGKILLs with work open" in line for line in wrong)
    assert "It does not add up" in shown
    assert "stopped: nothing moves while waiting for the first text messages" in shown


def refuse(self: GatewayServer, key: str, flight_id: int) -> str:
    raise ConnectionError


def children_of(pid: int) -> list[int]:
    found = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, timeout=10, check=True
    )
    pairs = [line.split() for line in found.stdout.splitlines()]
    return [int(child) for child, parent in pairs if int(parent) == pid]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
