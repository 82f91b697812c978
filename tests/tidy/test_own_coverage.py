"""Each module of the pure rooms is covered, every branch, by the test file of its own name alone.

Coverage that another file's tests give by the way says nothing about what a module promises.  Each
check runs in a process of its own, so that the module's first import is counted too.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("kernel", "wire")
SECONDS_MAX = 50

# What is no part of the measurement is imported before it starts, untraced: that halves the time.
MEASURE = """
import sys
import coverage, hypothesis, msgspec, pytest, pytest_asyncio
module, tests = sys.argv[1:]
measured = coverage.Coverage(data_file=None, branch=True, include=[module])
measured.start()
code = pytest.main(["-q", "-x", tests])
measured.stop()
percent = measured.report(show_missing=True)
sys.exit(code or (2 if percent < 100 else 0))
"""


def own_test(module: Path) -> Path:
    """Where the tests of a module live."""
    return ROOT / "tests" / "unit" / module.parent.name / f"test_{module.name}"


def modules() -> list[Path]:
    """The modules of the pure rooms that hold code."""
    found = [m for room in ROOMS for m in sorted((ROOT / "src" / "duly" / room).glob("*.py"))]
    return [module for module in found if module.read_text().strip()]


def measure(module: Path, tests: Path) -> subprocess.CompletedProcess[str]:
    """Run the tests of one module under coverage: 0 when they pass and cover it all."""
    return subprocess.run(
        [sys.executable, "-c", MEASURE, str(module), str(tests)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )


@pytest.mark.parametrize(
    "module", modules(), ids=lambda module: f"{module.parent.name}.{module.stem}"
)
def test_a_module_is_covered_by_its_own_tests(module: Path) -> None:
    assert own_test(module).exists(), f"{own_test(module).relative_to(ROOT)} is missing"
    done = measure(module, own_test(module))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


def test_a_branch_that_no_test_takes_is_seen(tmp_path: Path) -> None:
    module, tests = tmp_path / "sign.py", tmp_path / "test_sign.py"
    module.write_text("def sign(n):\n    if n > 0:\n        return 1\n    return -1\n")
    tests.write_text(f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\nfrom sign import sign\n")
    half = tests.read_text() + "def test_sign():\n    assert sign(1) == 1\n"
    tests.write_text(half)
    assert measure(module, tests).returncode == 2
    tests.write_text(half + "    assert sign(0) == -1\n")
    assert measure(module, tests).returncode == 0
