"""Each import contract catches a planted import in the wrong direction."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHECK = "import sys; from importlinter.cli import lint_imports_command as run; run(sys.argv[1:])"

PLANTED = [
    # contract, module, what it may not import
    ("layers", "runtime/clock.py", "duly.outbox.publish"),
    ("layers", "kernel/names.py", "duly.message"),
    ("adapters-know-no-feature", "brokers/embedded/log.py", "duly.observe.hooks"),
    ("adapters-know-no-adapter", "brokers/embedded/log.py", "duly.databases.sqlite.gate"),
    ("features-know-no-adapter", "outbox/publish.py", "duly.databases.sqlite.database"),
    ("sinks-know-no-feature", "observe/hooks.py", "duly.outbox.publish"),
    ("testing-is-for-tests", "outbox/publish.py", "duly.testing"),
    ("kernel-and-wire-are-pure", "wire/urls.py", "socket"),
    ("drivers-stay-in-their-adapter", "outbox/publish.py", "psycopg"),
]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the source, to be spoilt."""
    folder = tmp_path_factory.mktemp("house")
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def check(house: Path, contract: str) -> str:
    """What the import checker says about one contract."""
    command = [sys.executable, "-c", CHECK, "--no-cache", "--contract", contract]
    env = {**os.environ, "PYTHONPATH": str(house / "src"), "COLUMNS": "200"}
    done = subprocess.run(
        command, cwd=house, env=env, capture_output=True, text=True, timeout=50, check=False
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize(("contract", "module", "wrong"), PLANTED)
def test_a_contract_catches_what_it_is_for(
    house: Path, contract: str, module: str, wrong: str
) -> None:
    file = house / "src" / "duly" / module
    clean = file.read_text()
    file.write_text(f"{clean}\nimport {wrong}\n")
    try:
        said = check(house, contract)
    finally:
        file.write_text(clean)
    assert "0 kept, 1 broken" in said, said
    assert f"-> {wrong}" in said


def test_every_contract_has_a_planted_import() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    contracts = {line.split('"')[1] for line in text.splitlines() if line.startswith('id = "')}
    assert contracts == {contract for contract, *_ in PLANTED}
