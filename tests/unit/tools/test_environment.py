"""Which pins the environment is made from."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import environment

ROOT = Path(__file__).resolve().parents[3]
TEXT = """# Written.

# --- build
pip==26.3 \\
    --hash=sha256:00 \\
    --hash=sha256:11

# --- run
click==8.5.1 \\
    --hash=sha256:22
"""


def test_sections_are_told_apart() -> None:
    found = environment.sections(TEXT)
    assert list(found) == ["build", "run"]
    assert found["run"] == ["click==8.5.1 \\", "    --hash=sha256:22"]


def test_pins_without_hashes_are_whole_lines() -> None:
    assert environment.without_hashes(environment.sections(TEXT)["build"]) == ["pip==26.3"]


def test_the_committed_pins_have_all_sections() -> None:
    found = environment.sections((ROOT / "constraints.txt").read_text())
    names = {
        title: {line.split("==")[0] for line in environment.without_hashes(lines)}
        for title, lines in found.items()
    }
    assert {"pip", "hatchling", "setuptools"} <= names["build"]
    assert {"sqlalchemy", "msgspec", "click", "pytest", "ruff", "mypy"} <= names["run"]
    assert not names["build"] & names["run"]
    assert {"faststream", "faststream-outbox", "pgqueuer", "txoutbox"} <= names["peers"]


@pytest.mark.parametrize(
    ("system", "machine", "version", "covered"),
    [
        ("linux", "x86_64", (3, 11), True),
        ("linux", "aarch64", (3, 13), True),
        ("darwin", "arm64", (3, 12), True),
        ("linux", "riscv64", (3, 11), False),
        ("linux", "x86_64", (3, 14), False),
        ("win32", "AMD64", (3, 11), False),
    ],
)
def test_hashes_are_checked_where_the_pins_cover_the_platform(
    monkeypatch: pytest.MonkeyPatch,
    system: str,
    machine: str,
    version: tuple[int, int],
    covered: bool,
) -> None:
    monkeypatch.setattr("sys.platform", system)
    monkeypatch.setattr("sys.version_info", (*version, 0))
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", "2.36"))
    assert environment.covered() is covered


def test_musl_is_not_covered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("platform.libc_ver", lambda: ("", ""))
    assert not environment.covered()
