"""The armed worker: it dies by SIGKILL at the n-th effect, and nowhere else."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
from duly.admin.demo import worker
from duly.kernel import failpoints
worker._arm({nth})
for n in range(1, 6):
    failpoints.hit(failpoints.EFFECT_INTENT)
    print("called", n, flush=True)
    failpoints.hit(failpoints.EFFECT_CALLED)
    failpoints.hit(failpoints.EFFECT_RECORDED)
print("end", flush=True)
"""


def run(nth: int) -> tuple[int, list[str]]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(nth=nth)],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout.splitlines()


def test_it_dies_between_the_call_and_the_record() -> None:
    assert run(3) == (-9, ["called 1", "called 2", "called 3"])


def test_it_lives_when_it_does_not_come_so_far() -> None:
    status, lines = run(6)
    assert status == 0
    assert lines[-1] == "end"
