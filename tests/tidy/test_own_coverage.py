"""Each module of the pure rooms is covered, every branch, by the test file of its own name alone.

Coverage that another file's tests give by the way says nothing about what a module promises.  Each
check runs in a process of its own, so that the module's first import is counted too.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("kernel", "wire")

# What is no part of the measurement is imported once, untraced; each module is measured in a fork.
MEASURE = """
import json, os, sys
import coverage, hypothesis, msgspec, pytest
import _hypothesis_pytestplugin, pytest_asyncio.plugin, pytest_timeout

os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # others, duly's own among them, import a lot
PLUGINS = ["-p", "_hypothesis_pytestplugin", "-p", "pytest_asyncio.plugin", "-p", "pytest_timeout"]

def measure(module, tests):
    measured = coverage.Coverage(data_file=None, branch=True, include=[module])
    measured.start()
    code = pytest.main(["-q", "-x", "--noconftest", *PLUGINS, tests])
    measured.stop()
    percent = measured.report(show_missing=True)
    return int(code) or (2 if percent < 100 else 0)

for line in sys.stdin:
    module, tests, said = json.loads(line)
    child = os.fork()
    if child == 0:
        log = os.open(said, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        code = 1
        try:
            code = measure(module, tests)
        finally:
            sys.stdout.flush()
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""

Measure = Callable[[Path, Path], tuple[int, str]]


def own_test(module: Path) -> Path:
    """Where the tests of a module live."""
    return ROOT / "tests" / "unit" / module.parent.name / f"test_{module.name}"


def modules() -> list[Path]:
    """The modules of the pure rooms that hold code."""
    found = [m for room in ROOMS for m in sorted((ROOT / "src" / "duly" / room).glob("*.py"))]
    return [module for module in found if module.read_text().strip()]


@pytest.fixture(scope="module")
def measure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Measure]:
    """Runs the tests of one module under coverage: 0 when they pass and cover it all."""
    said = tmp_path_factory.mktemp("measured") / "said"
    process = subprocess.Popen(
        [sys.executable, "-c", MEASURE], cwd=ROOT, text=True, start_new_session=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    asks, answers = process.stdin, process.stdout

    def measured(module: Path, tests: Path) -> tuple[int, str]:
        print(json.dumps([str(module), str(tests), str(said)]), file=asks, flush=True)
        code = answers.readline()
        return int(code), said.read_text()

    try:
        yield measured
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.parametrize(
    "module", modules(), ids=lambda module: f"{module.parent.name}.{module.stem}"
)
def test_a_module_is_covered_by_its_own_tests(module: Path, measure: Measure) -> None:
    assert own_test(module).exists(), f"{own_test(module).relative_to(ROOT)} is missing"
    code, said = measure(module, own_test(module))
    assert code == 0, said[-4000:]


def test_a_branch_that_no_test_takes_is_seen(tmp_path: Path, measure: Measure) -> None:
    module, tests = tmp_path / "sign.py", tmp_path / "test_sign.py"
    module.write_text("def sign(n):\n    if n > 0:\n        return 1\n    return -1\n")
    tests.write_text(f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\nfrom sign import sign\n")
    half = tests.read_text() + "def test_sign():\n    assert sign(1) == 1\n"
    tests.write_text(half)
    assert measure(module, tests)[0] == 2
    tests.write_text(half + "    assert sign(0) == -1\n")
    assert measure(module, tests)[0] == 0
