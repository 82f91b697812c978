"""The parent of several workers, with small real processes as workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PARENT = """
import sys
from duly.admin.cli.workers import Workers

def command(pipe):
    return [sys.executable, sys.argv[1], sys.argv[2], str(pipe)]

sys.exit(Workers(command, int(sys.argv[3]), kill_silent=sys.argv[4] == "1", drain_seconds=3,
                 silence_seconds=2.5).run())
"""
WORKER = """
import os, signal, sys, time
from duly.admin.cli.workers import Heart

stops = []  # not an Event: a handler that sets one while it is asked waits for itself
open(sys.argv[1], "a").write(f"started {os.getpid()}\\n")
BODY
signal.signal(signal.SIGTERM, lambda *_: stops.append(1))
Heart(int(sys.argv[2]), lambda: stops.append(1)).start()
READY
open(sys.argv[1], "a").write(f"ready {os.getpid()}\\n")
while not stops:
    time.sleep(0.05)
open(sys.argv[1], "a").write(f"drained {os.getpid()}\\n")
"""


class Family:
    """A parent, what its workers wrote, and what it said."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "log"
        self.process: subprocess.Popen[str] | None = None

    def start(self, *, body: str = "", ready: str = "", count: int = 1, kill: bool = False) -> None:
        (self.folder / "parent.py").write_text(PARENT)
        worker = WORKER.replace("BODY", body).replace("READY", ready)
        (self.folder / "worker.py").write_text(worker)
        self.log.touch()
        arguments = [str(self.folder / "worker.py"), str(self.log), str(count), str(int(kill))]
        self.process = subprocess.Popen(
            [sys.executable, str(self.folder / "parent.py"), *arguments],
            stderr=subprocess.PIPE,
            text=True,
        )

    def pids(self, word: str = "started") -> list[int]:
        lines = self.log.read_text().splitlines()
        return [int(line.split()[1]) for line in lines if line.startswith(word)]

    def until(self, condition: Callable[[], bool], seconds: float = 12) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.02)  # a process of its own decides when

    def end(self, *signals: int, pause: float = 0.0) -> tuple[int, str]:
        assert self.process is not None
        for which in signals:
            self.process.send_signal(which)
            time.sleep(pause)  # two equal signals at once would be one
        _, said = self.process.communicate(timeout=15)
        return self.process.returncode, said


@pytest.fixture
def family(tmp_path: Path) -> Iterator[Family]:
    family = Family(tmp_path)
    yield family
    if family.process is not None and family.process.poll() is None:
        family.process.kill()
        family.process.communicate(timeout=10)
    for pid in family.pids():
        if lives(pid):
            os.kill(pid, signal.SIGKILL)


def lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in ("Z", "X")


@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_is_passed_on_and_waited_for(family: Family, which: int) -> None:
    family.start(count=2)
    family.until(lambda: len(family.pids("ready")) == 2)
    code, _ = family.end(which)
    assert code == 0
    assert sorted(family.pids("drained")) == sorted(family.pids())


def test_a_worker_that_dies_is_started_again(family: Family) -> None:
    family.start(count=2)
    family.until(lambda: len(family.pids("ready")) == 2)
    time.sleep(0.5)  # until its first byte was heard
    os.kill(family.pids()[0], signal.SIGKILL)
    family.until(lambda: len(family.pids("ready")) == 3)
    code, said = family.end(signal.SIGTERM)
    assert (code, "signal 9" in said) == (0, True)


def test_a_program_that_cannot_start_is_given_up(family: Family) -> None:
    family.start(body="sys.exit(3)", count=2)
    assert family.process is not None
    _, said = family.process.communicate(timeout=15)
    assert family.process.returncode == 1
    assert "before it had started (3)" in said


def test_a_second_signal_ends_everything_at_once(family: Family) -> None:
    family.start(ready="signal.signal(signal.SIGTERM, signal.SIG_IGN)", count=2)
    family.until(lambda: len(family.pids("ready")) == 2)
    time.sleep(0.5)  # until both ignore the first
    began = time.monotonic()
    code, _ = family.end(signal.SIGTERM, signal.SIGTERM, pause=0.5)
    assert code == 128 + signal.SIGTERM
    assert time.monotonic() - began < 2.5
    assert not any(map(lives, family.pids()))


def test_a_drain_has_an_end(family: Family) -> None:
    family.start(ready="signal.signal(signal.SIGTERM, signal.SIG_IGN)")
    family.until(lambda: len(family.pids("ready")) == 1)
    time.sleep(0.5)  # until it ignores the signal
    code, _ = family.end(signal.SIGTERM)
    assert code == 1
    assert not any(map(lives, family.pids()))


def test_a_frozen_worker_is_killed_where_it_could_hold_the_file(family: Family) -> None:
    family.start(kill=True)
    family.until(lambda: len(family.pids("ready")) == 1)
    time.sleep(0.5)  # until its first byte was heard
    os.kill(family.pids()[0], signal.SIGSTOP)
    family.until(lambda: len(family.pids("ready")) == 2)
    code, said = family.end(signal.SIGTERM)
    assert (code, "has been silent" in said) == (0, True)


def test_elsewhere_a_frozen_worker_is_left_alone(family: Family) -> None:
    family.start()
    family.until(lambda: len(family.pids("ready")) == 1)
    time.sleep(0.5)  # until its first byte was heard
    os.kill(family.pids()[0], signal.SIGSTOP)
    time.sleep(3.5)  # longer than the silence that would be its death
    os.kill(family.pids()[0], signal.SIGCONT)
    code, _ = family.end(signal.SIGTERM)
    assert (code, len(family.pids())) == (0, 1)


def test_workers_end_when_their_parent_is_gone(family: Family) -> None:
    family.start(count=2)
    family.until(lambda: len(family.pids("ready")) == 2)
    time.sleep(0.5)  # until both are started
    family.end(signal.SIGKILL)
    family.until(lambda: not any(map(lives, family.pids())))
    assert sorted(family.pids("drained")) == sorted(family.pids())
