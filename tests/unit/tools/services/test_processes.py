"""Processes are ended with all their children, and never somebody else's."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.services import processes

FAMILY = "sleep 300 & sleep 300 & wait"


@pytest.fixture
def record(tmp_path: Path) -> Iterator[Path]:
    """Where a process is written down; it is ended after the test."""
    path = tmp_path / "process.json"
    yield path
    processes.end(path)


def start(record: Path, shell: str) -> int:
    """Start a shell command apart and return its pid."""
    env = {"PATH": os.environ["PATH"]}
    processes.launch(["/bin/sh", "-c", shell], record, env=env, log=record.parent / "log")
    pid = processes.pid_of(record)
    assert pid is not None
    return pid


def children(pid: int) -> list[int]:
    """The pids below one."""
    return [child for child, row in processes.table().items() if row[0] == pid]


def living(pids: set[int]) -> set[int]:
    """Those that still run; one that only waits to be reaped does not."""
    return {pid for pid, row in processes.table().items() if pid in pids and row[1] != "Z"}


def test_kill_takes_the_children_along(record: Path) -> None:
    pid = start(record, FAMILY)
    assert processes.wait_for(lambda: len(children(pid)) == 2, 5.0)
    family = children(pid)
    processes.end(record)
    assert not living({pid, *family})
    assert not record.exists()
    assert not processes.alive(record)


def test_a_signal_is_given_time_before_the_kill(record: Path) -> None:
    pid = start(record, "trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.05; done")
    assert processes.wait_for(lambda: "ready" in processes.tail(record.parent / "log"), 5.0)
    processes.end(record, signals={pid: signal.SIGTERM}, within_seconds=10.0)
    assert processes.tail(record.parent / "log").endswith("bye")


def test_one_that_ignores_the_signal_is_killed(record: Path) -> None:
    pid = start(record, "trap '' TERM; while :; do sleep 0.05; done")
    processes.end(record, signals={pid: signal.SIGTERM}, within_seconds=0.3)
    assert not living({pid})


def test_a_pid_given_to_somebody_else_is_left_alone(tmp_path: Path) -> None:
    record = tmp_path / "process.json"
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as stranger:
        record.write_text(json.dumps({"pid": stranger.pid, "birth": "long ago"}))
        assert not processes.alive(record)
        processes.end(record)
        assert stranger.poll() is None
        assert not record.exists()
        stranger.communicate(b"\n", timeout=10)
    assert stranger.returncode == 0


def test_a_zombie_is_not_alive(record: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = start(record, "sleep 0.3")
    monkeypatch.setattr(processes, "_children", {})  # as if another process had started it
    assert processes.wait_for(lambda: processes.table()[pid][1] == "Z", 5.0)
    assert not processes.alive(record)


@pytest.mark.skipif(shutil.which("ps") is None, reason="this machine lists processes in /proc only")
def test_both_ways_of_listing_processes_agree() -> None:
    ours = os.getpid()
    listed = processes._table()[ours]
    assert listed[0] == os.getppid()
    assert processes.table()[ours][0] == os.getppid()


def test_free_ports_are_different_and_free() -> None:
    ports = processes.free_ports(4)
    assert len(set(ports)) == 4
    for port in ports:
        socket.create_server(("127.0.0.1", port)).close()


def test_a_log_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    assert processes.tail(tmp_path / "none") == "(no log)"
