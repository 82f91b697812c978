"""Jars are there whole or not at all."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from tools.services import folders, maven
from tools.services.processes import ServerFailedError

ARTIFACTS = ["org.example:server:1.2", "org.example:log:3"]


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands run; Maven puts one jar where it is told, unless its name is ``broken``."""
    commands: list[list[str]] = []

    def run(command: list[str], *, cwd: Path, **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        (cwd / "server-1.2.jar").touch()
        broken = "broken" in str(cwd)
        return subprocess.CompletedProcess(command, int(broken), "noise\n[ERROR] not found", "")

    monkeypatch.setattr(folders, "home_for", lambda name: tmp_path)
    monkeypatch.setattr(subprocess, "run", run)
    return commands


def test_jars_are_fetched_once(asked: list[list[str]]) -> None:
    assert maven.fetched("server-1.2") is None
    folder = maven.fetch("server-1.2", ARTIFACTS)
    assert (folder / "server-1.2.jar").exists()
    pom = (folder / "pom.xml").read_text()
    assert "<artifactId>server</artifactId><version>1.2</version>" in pom
    assert "<artifactId>log</artifactId><version>3</version>" in pom
    assert maven.fetch("server-1.2", ARTIFACTS) == maven.fetched("server-1.2") == folder
    assert len(asked) == 1


def test_what_is_not_a_jar_is_fetched_and_put_where_it_belongs(asked: list[list[str]]) -> None:
    def arrange(work: Path) -> None:
        assert maven.fetched("server-1.2") is None, "not before all is in its place"
        (work / "lib").mkdir()
        (work / "server-1.2.jar").rename(work / "lib" / "server-1.2.jar")

    folder = maven.fetch("server-1.2", ["org.example:plugin:4:zip"], arrange=arrange)
    assert (folder / "lib" / "server-1.2.jar").exists()
    assert "<version>4</version><type>zip</type>" in (folder / "pom.xml").read_text()


def test_a_fetch_that_fails_leaves_nothing_that_looks_done(asked: list[list[str]]) -> None:
    for _ in range(2):
        with pytest.raises(ServerFailedError, match=r"\[ERROR\] not found"):
            maven.fetch("broken-1", ARTIFACTS)
        assert maven.fetched("broken-1") is None
    assert len(asked) == 2
