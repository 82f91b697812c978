"""Arming failpoints: at the n-th hit, once, and only what was asked for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from duly.kernel import failpoints as points
from duly.testing.failpoints import (
    EXIT_CODE,
    FailpointError,
    Plan,
    arm,
    arm_from_environment,
    armed,
    disarm,
    parse,
)


@pytest.fixture(autouse=True)
def _off() -> Iterator[None]:
    yield
    disarm()


def test_a_plan_fires_once_at_its_hit() -> None:
    with armed(Plan(points.RELAY_READ, 3, "raise")):
        points.hit(points.RELAY_READ)
        points.hit(points.RELAY_SENT)
        points.hit(points.RELAY_READ)
        with pytest.raises(FailpointError, match=r"relay\.read"):
            points.hit(points.RELAY_READ)
        points.hit(points.RELAY_READ)
    points.hit(points.RELAY_READ)


def test_before_sees_what_is_about_to_fire() -> None:
    seen: list[str] = []
    with armed(Plan(points.RELAY_READ, 2, "raise"), before=seen.append):
        points.hit(points.RELAY_READ)
        assert not seen
        with pytest.raises(FailpointError):
            points.hit(points.RELAY_READ)
    assert seen == [points.RELAY_READ]


def test_every_hit_can_be_watched() -> None:
    seen: list[str] = []
    arm(every=seen.append)
    points.hit(points.RELAY_READ)
    points.hit(points.RELAY_SENT)
    disarm()
    points.hit(points.RELAY_READ)
    assert seen == [points.RELAY_READ, points.RELAY_SENT]


def test_hits_of_all_threads_are_counted_together() -> None:
    fired: list[str] = []
    arm(Plan(points.RELAY_READ, 400, "hang", 0.001), before=fired.append)
    threads = [
        threading.Thread(target=lambda: [points.hit(points.RELAY_READ) for _ in range(100)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert fired == [points.RELAY_READ]


def test_hang_blocks_for_its_time() -> None:
    with armed(Plan(points.RELAY_READ, action="hang", hang_seconds=0.05)):
        began = time.monotonic()
        points.hit(points.RELAY_READ)
        assert time.monotonic() - began >= 0.05


@pytest.mark.parametrize(
    ("action", "code"), [("kill", -signal.SIGKILL), ("exit", EXIT_CODE)], ids=["kill", "exit"]
)
def test_kill_and_exit_end_the_process_there(action: str, code: int) -> None:
    program = (
        "from duly.testing.failpoints import arm_from_environment\n"
        "from duly.kernel import failpoints\n"
        "arm_from_environment()\n"
        "failpoints.hit('relay.read'); print('one', flush=True)\n"
        "failpoints.hit('relay.read'); print('two', flush=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "DULY_TEST_FAILPOINTS": f"relay.read@2={action}"},
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout) == (code, b"one\n"), done.stderr


def test_stop_freezes_the_process_until_it_is_continued() -> None:
    program = (
        "from duly.testing.failpoints import Plan, arm\n"
        "from duly.kernel import failpoints\n"
        "arm(Plan('relay.read', action='stop'))\n"
        "failpoints.hit('relay.read'); print('on', flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as child:
        _, status = os.waitpid(child.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        child.send_signal(signal.SIGCONT)
        out, _ = child.communicate(timeout=30)
    assert out == b"on\n"


def test_the_environment_is_read_whole() -> None:
    text = "relay.read@2=kill, relay.confirmed=hang:1.5 ,"
    assert arm_from_environment({"DULY_TEST_FAILPOINTS": text}) == [
        Plan("relay.read", 2),
        Plan("relay.confirmed", 1, "hang", 1.5),
    ]
    assert arm_from_environment({}) == []


@pytest.mark.parametrize(
    "text",
    ["relay.nowhere", "relay.read=explode", "relay.read@0", "relay.read@x", "relay.read=hang:-1"],
)
def test_what_could_never_fire_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"failpoint|action|hit|invalid"):
        parse(text)
