"""The words said to docker, against a stand-in that writes them down; no engine is needed."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.services import docker
from tools.services.processes import ServerFailedError


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that a stand-in for docker writes its arguments to, one command a line."""
    calls = tmp_path / "calls"
    program = tmp_path / "docker"
    program.write_text(
        f'#!/bin/sh\necho "$*" >>{calls}\n[ "$1" != info ] || [ ! -e {tmp_path}/down ] || exit 1\n'
        '[ "$1" != create ] || echo c0ffee\n'
        '[ "$1" != kill ] || { echo "is not running" >&2; exit 1; }\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    return calls


@pytest.fixture
def postgres_port() -> Iterator[int]:
    """A port that answers an SSL request as PostgreSQL does."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            wire, _ = server.accept()
            with wire:
                if len(wire.recv(8)) == 8:
                    wire.sendall(b"N")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        thread.join(5)


def test_an_engine_that_does_not_answer_is_no_engine(said: Path) -> None:
    assert docker.engine_runs()
    (said.parent / "down").touch()
    assert not docker.engine_runs()


@pytest.mark.parametrize(
    ("name", "image", "inside"),
    [("postgres", "postgres:17", (5432,)), ("rabbitmq", "rabbitmq:4-management", (5672, 15672))],
)
def test_ports_are_published_on_loopback_only(
    said: Path, name: str, image: str, inside: tuple[int, ...]
) -> None:
    made = docker.container_for(name)
    assert made.container == "c0ffee"
    words = said.read_text().split()
    published = [words[at + 1] for at, word in enumerate(words) if word == "-p"]
    expected = [f"127.0.0.1:{at}:{to}" for at, to in zip(made.ports, inside, strict=True)]
    assert published == expected
    assert image in words
    assert str(made.ports[0]) in made.url


def test_it_is_started_stopped_and_removed_by_its_id(said: Path, postgres_port: int) -> None:
    made = docker.Container("postgres", "c0ffee", [postgres_port], {"DULY_TEST_POSTGRES": "url"})
    made.start()
    made.stop()
    made.remove()
    assert said.read_text().splitlines() == [
        "start c0ffee",
        "stop c0ffee",
        "rm --force --volumes c0ffee",
    ]


def test_docker_s_own_words_are_shown(said: Path) -> None:
    with pytest.raises(ServerFailedError, match="docker kill failed: is not running"):
        docker.Container("postgres", "c0ffee", [1]).kill()
