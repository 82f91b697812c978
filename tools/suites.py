"""Runs the test suites, each in a process of its own and within its time budget.

There are three lanes, side by side: most tests wait, for leases and for servers, and seldom work.
Their files lie in memory where there is room: a killed process leaves the same behind there as on a
disk, and thousands of small databases do not wait for one.  The servers write to the disk.
Invariant: nothing passes by not running.  A suite that exists but collects no test fails, and so
does one that runs past its budget or ends without a report.  The last line counts what ran: ``N
passed, N failed, N skipped``.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
REPORTS = ROOT / "build" / "tests"
INTERRUPT_SECONDS = 10
MEMORY = Path("/dev/shm")  # noqa: S108  # each suite has a folder of its own in it, made as tempfile does
MEMORY_BYTES_MIN = 4 << 30
INTERRUPTED = threading.Event()


class Suite(NamedTuple):
    """One folder of tests/, how long it may take, and the lane that it runs in."""

    name: str
    budget_seconds: int
    lane: int = 0


SUITES = (
    Suite("tidy", 120),
    Suite("unit", 420),
    Suite("property", 120),
    Suite("conformance", 540),
    Suite("integration", 960, lane=1),
    Suite("acceptance", 960, lane=2),
)


class Result(NamedTuple):
    """How one suite ended. note: why it failed as a whole, empty when it did not."""

    passed: int
    failed: int
    skipped: int
    seconds: float
    note: str = ""


def read_report(report: Path) -> tuple[int, int, int]:
    """Passed, failed and skipped of a JUnit report; an error of a fixture counts as a failure."""
    suite = ET.parse(report).getroot().find("testsuite")  # noqa: S314  # pytest wrote it a moment ago
    if suite is None:
        return 0, 0, 0
    failed = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
    skipped = int(suite.get("skipped", 0))
    return int(suite.get("tests", 0)) - failed - skipped, failed, skipped


def run(suite: Suite, tests: Path, *, live: bool = True) -> Result:
    """Run one suite and judge it. live: let it print, else into a file beside its report."""
    report = REPORTS / f"{suite.name}.xml"
    report.unlink(missing_ok=True)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--durations=10",
        "--durations-min=5",
        f"--junitxml={report}",
        str(tests / suite.name),
    ]
    started = time.monotonic()
    with ExitStack() as stack:
        if roomy(MEMORY):
            folder = stack.enter_context(
                TemporaryDirectory(prefix="duly-tests-", dir=MEMORY, ignore_cleanup_errors=True)
            )
            command.append(f"--basetemp={folder}/pytest")
        out = None if live else stack.enter_context((REPORTS / f"{suite.name}.log").open("wb"))
        child = subprocess.Popen(
            command, cwd=ROOT, start_new_session=True, stdout=out, stderr=subprocess.STDOUT
        )
        stack.callback(end, child)
        code = wait(child, suite.budget_seconds)
    seconds = time.monotonic() - started
    passed, failed, skipped = read_report(report) if report.exists() else (0, 0, 0)
    return Result(
        passed,
        failed,
        skipped,
        seconds,
        judge(code, suite, ran=passed + failed + skipped, failed=failed),
    )


def roomy(folder: Path) -> bool:
    """Whether the files of a suite may lie there."""
    return os.access(folder, os.W_OK) and shutil.disk_usage(folder).free >= MEMORY_BYTES_MIN


def wait(child: subprocess.Popen[bytes], budget_seconds: float) -> int | None:
    """The exit code; None when the time is up or all was interrupted."""
    until = time.monotonic() + budget_seconds
    while time.monotonic() < until and not INTERRUPTED.is_set():
        try:
            return child.wait(0.5)
        except subprocess.TimeoutExpired:
            pass
    return None


def end(child: subprocess.Popen[bytes]) -> None:
    """End a suite that still runs: so that pytest can clean up, then for good."""
    if child.poll() is None:
        child.send_signal(signal.SIGINT)
        try:
            child.wait(INTERRUPT_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def judge(code: int | None, suite: Suite, *, ran: int, failed: int) -> str:
    """Why the suite failed as a whole, beyond its failed tests; empty when it did not."""
    if code is None:
        return f"ran past its budget of {suite.budget_seconds} s"
    if code == 5 or (code == 0 and ran == 0):
        return "has no test"
    if code != 0 and not failed:
        return f"pytest ended with {code}"
    return ""


def chosen(names: Sequence[str], tests: Path) -> list[Suite]:
    """The suites to run: those named, else all that exist. Raises SystemExit for another name."""
    there = [suite for suite in SUITES if (tests / suite.name).is_dir()]
    unknown = set(names) - {suite.name for suite in there}
    if unknown or not there:
        raise SystemExit(f"no such suite: {' '.join(sorted(unknown)) or 'any'}")
    return [suite for suite in there if not names or suite.name in names]


def run_lane(suites: Sequence[Suite], tests: Path, *, live: bool) -> dict[str, Result]:
    """Run the suites of one lane in turn, and print what each has printed when it ends."""
    results = {}
    for suite in suites:
        title = f"\n=== {suite.name} (at most {suite.budget_seconds} s)"
        if live:
            print(title, flush=True)
        results[suite.name] = run(suite, tests, live=live)
        if not live:
            text = (REPORTS / f"{suite.name}.log").read_text(errors="replace")
            print(f"{title}\n{text}", end="", flush=True)
    return results


def run_all(suites: Sequence[Suite], tests: Path) -> dict[str, Result]:
    """Run the lanes side by side. Raises KeyboardInterrupt once all processes have ended."""
    lanes = [[s for s in suites if s.lane == lane] for lane in sorted({s.lane for s in suites})]
    live = len(lanes) == 1
    with ThreadPoolExecutor(len(lanes)) as pool:
        running = [pool.submit(run_lane, lane, tests, live=live) for lane in lanes]
        try:
            done = [lane.result() for lane in running]
        except BaseException:
            INTERRUPTED.set()
            raise
    return {name: result for lane in done for name, result in lane.items()}


def main(names: Sequence[str], tests: Path = ROOT / "tests") -> int:
    """Run the suites, print how each ended and the sum; 1 when anything failed."""
    REPORTS.mkdir(parents=True, exist_ok=True)
    results = run_all(chosen(names, tests), tests)
    print()
    for name, result in results.items():
        counts = f"{result.passed:6} passed {result.failed:4} failed {result.skipped:4} skipped"
        print(f"{name:12} {counts} {result.seconds:7.1f} s  {result.note}")
    # A suite that failed as a whole counts as one failure more: the last line cannot look green.
    failed = sum(result.failed + bool(result.note) for result in results.values())
    passed, skipped = (
        sum(column)
        for column in zip(*((r.passed, r.skipped) for r in results.values()), strict=True)
    )
    print(f"{passed} passed, {failed} failed, {skipped} skipped", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
