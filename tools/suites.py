"""Runs the test suites one by one, each in a process of its own and within its time budget.

Invariant: nothing passes by not running.  A suite that exists but collects no test fails, and so
does one that runs past its budget or ends without a report.  The last line counts what ran: ``N
passed, N failed, N skipped``.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
REPORTS = ROOT / "build" / "tests"
INTERRUPT_SECONDS = 10


class Suite(NamedTuple):
    """One folder of tests/ and how long it may take."""

    name: str
    budget_seconds: int


SUITES = (
    Suite("tidy", 120),
    Suite("unit", 240),
    Suite("property", 120),
    Suite("conformance", 240),
    Suite("integration", 420),
    Suite("acceptance", 540),
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


def run(suite: Suite, tests: Path) -> Result:
    """Run one suite and judge it."""
    report = REPORTS / f"{suite.name}.xml"
    report.unlink(missing_ok=True)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        f"--junitxml={report}",
        str(tests / suite.name),
    ]
    started = time.monotonic()
    child = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    try:
        code: int | None = child.wait(suite.budget_seconds)
    except subprocess.TimeoutExpired:
        code = None
    finally:
        end(child)
    seconds = time.monotonic() - started
    passed, failed, skipped = read_report(report) if report.exists() else (0, 0, 0)
    return Result(
        passed,
        failed,
        skipped,
        seconds,
        judge(code, suite, ran=passed + failed + skipped, failed=failed),
    )


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


def main(names: Sequence[str], tests: Path = ROOT / "tests") -> int:
    """Run the suites, print how each ended and the sum; 1 when anything failed."""
    REPORTS.mkdir(parents=True, exist_ok=True)
    results = {}
    for suite in chosen(names, tests):
        print(f"\n=== {suite.name} (at most {suite.budget_seconds} s)", flush=True)
        results[suite.name] = run(suite, tests)
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
