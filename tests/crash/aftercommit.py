"""The row of random histories: what was to begin after a commit began if and only if it came to be.

Nobody is killed here; what breaks this is the order of events inside one process.  It runs in a
process of its own, which imports the source to be judged."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time

from tests.crash import report
from tests.crash.checker import Verdict
from tests.crash.nursery import ROOT
from tests.crash.pairs import PAIRS, Place
from tests.crash.report import Result

__all__ = ["NAME", "after_commit"]

NAME = f"crash {PAIRS[0]} after commit"
HISTORIES = 100_000
HISTORIES_FEW = 2_000  # with a planted bug, and without one beside it
MINUTES = 60.0
LATE_SECONDS = 300  # for the last history, and the end of a program on a busy machine
WHAT = {
    "lost": "committed, and the call did not run",
    "unexpected": "ran for what was not committed, or before it could be seen",
    "duplicated": "ran more than once",
    "dangling": "the handle of what was rolled back never ended",
}


def after_commit(seed: int, place: Place) -> Result:
    """Play the histories and judge them. HISTORIES in the environment: another number; MINUTES: at
    most.
    """
    folder = place.folder / f"histories-{os.getpid()}-{seed}"
    count = HISTORIES_FEW if place.quiet else int(os.environ.get("HISTORIES") or HISTORIES)
    seconds = 60 * (float(os.environ.get("MINUTES") or 0) or MINUTES)
    began = time.monotonic()
    command = [sys.executable, "-m", "tests.crash.histories", str(count), str(seed), str(folder)]
    command.append(str(seconds))
    paths = os.pathsep.join([str(place.source), str(ROOT)])
    ran, verdict, troubles = 0, Verdict(), list[str]()
    try:
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, "PYTHONPATH": paths}, capture_output=True,
            text=True, timeout=seconds + LATE_SECONDS, check=False,
        )  # fmt: skip
        troubles = [] if done.returncode == 0 else [f"broke off: {done.stderr[-1500:]}"]
        if not troubles:
            found = json.loads(done.stdout)
            ran, verdict = found["histories"], judge(found)
    except subprocess.TimeoutExpired:
        troubles = [f"was not over in {seconds + LATE_SECONDS:g} s"]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    what = (
        f"{ran} of {count} histories of commit, rollback, close and raise in {seconds / 60:g} min"
    )
    return report.make(
        NAME, what, verdict, kills=0, lease=0.0, seed=seed, troubles=troubles, bounded=False,
        seconds=time.monotonic() - began,
    )  # fmt: skip


def judge(found: dict[str, int]) -> Verdict:
    """The counts as a verdict."""
    verdict = Verdict(
        attempted=found["units"],
        acknowledged=found["kept"],
        delivered=found["kept"] - found["lost"],
        lost=found["lost"],
        unexpected=found["unexpected"] + found["dangling"],
        duplicated=found["duplicated"],
    )
    for count, what in WHAT.items():
        if found[count]:
            word = "unexpected" if count in ("duplicated", "dangling") else count
            verdict.problems.append(f"{word} {found[count]}: {what}; {found['example']}")
    if not found["kept"] or found["kept"] == found["units"]:
        verdict.problems.append("unexpected: the histories kept all of their work, or none of it")
    return verdict
