"""Child processes: told on standard input, watched, ended by pid."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from duly.admin.demo.children import Child, DemoError, _environment
from duly.admin.demo.ground import clean_database
from duly.admin.demo.setup import Setup


def setup_of(**changes: object) -> Setup:
    given = {
        "database": "sqlite:///flights.db",
        "broker": "embedded:///broker.db",
        "gateway_port": 9,
        "seed": 1,
        "flights": 1_000,
        "total": 1_000,
    }
    return Setup(**(given | changes))  # type: ignore[arg-type]


def wait_for(child: Child, *, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while child.status is None:
        assert time.monotonic() < end, "the child does not end"
        time.sleep(0.02)  # until the process is gone


def test_a_worker_ends_on_sigterm_and_leaves_no_process(tmp_path: Path) -> None:
    clean_database(f"sqlite:///{tmp_path / 'flights.db'}", broker="embedded:///:memory:")
    child = Child("worker", setup_of(), log=tmp_path / "worker.log")
    deadline = time.monotonic() + 20
    while not (tmp_path / "broker.db").exists() and time.monotonic() < deadline:
        time.sleep(0.05)  # until it runs, so that the signal finds its handler
    time.sleep(0.5)  # the rest of its start
    assert child.stop() == 0
    assert child.stop() == 0
    with pytest.raises(ProcessLookupError):
        os.kill(child._process.pid, 0)


def test_a_worker_ends_when_its_driver_is_gone(tmp_path: Path) -> None:
    clean_database(f"sqlite:///{tmp_path / 'flights.db'}", broker="embedded:///:memory:")
    child = Child("worker", setup_of(), log=tmp_path / "worker.log")
    assert child._process.stdin is not None
    child._process.stdin.close()
    wait_for(child)
    assert child.status in (0, -15)


def test_a_killed_child_says_so(tmp_path: Path) -> None:
    child = Child("airline", setup_of(), log=tmp_path / "airline.log")
    assert child.kill() == -9
    with pytest.raises(DemoError, match="status -9"):
        for _ in range(3):
            child.tell("write\n" * 100_000)
    assert child.stop() == -9


def test_trouble_names_the_log_and_shows_its_end(tmp_path: Path) -> None:
    child = Child("airline", setup_of(database="nonsense://x"), log=tmp_path / "a.log")
    child.tell("write\n")
    wait_for(child)
    trouble = str(child.trouble())
    child.stop()
    assert "a.log" in trouble
    assert "nonsense" in trouble


def test_settings_of_other_apps_do_not_reach_a_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DULY_LEASE_TTL", "1h")
    monkeypatch.setenv("PYTHONPATH", "here")
    given = _environment()
    assert "DULY_LEASE_TTL" not in given
    assert all(Path(path).is_absolute() for path in given["PYTHONPATH"].split(os.pathsep))
    assert str(Path("here").resolve()) in given["PYTHONPATH"]
