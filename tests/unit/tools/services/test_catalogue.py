"""Servers are found in order, used again while they answer, and replaced when they do not."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest

from tools.services import catalogue, docker, folders, install, processes
from tools.services.pgbouncer import PgBouncer
from tools.services.postgres import Postgres
from tools.services.processes import ServerFailedError
from tools.services.rabbitmq import RabbitMQ


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout of its own, on a machine without any server, package manager or engine."""
    for name, kind in catalogue.KINDS.items():
        monkeypatch.delenv(kind.variable, raising=False)
        absent = dataclasses.replace(kind, find=lambda: None)
        monkeypatch.setitem(catalogue.KINDS, name, absent)
    monkeypatch.delenv("DULY_TEST_RABBITMQ_API", raising=False)
    home = tmp_path / ".services"
    monkeypatch.setattr(folders, "HOME", home)
    monkeypatch.setattr(folders, "unprivileged_user", lambda: None)
    monkeypatch.setattr(catalogue, "ENV", home / "env")
    monkeypatch.setattr(install, "can_apt", lambda: False)
    monkeypatch.setattr(install, "wheel_postgres", no_wheel)
    monkeypatch.setattr(install, "wheel_nats", no_wheel)
    monkeypatch.setattr(docker, "engine_runs", lambda: False)
    return home


def no_wheel() -> Path:
    """What pip says on a machine without a network."""
    raise ServerFailedError("pip could not install it")


def present(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Pretend that these servers' programs are on the machine and start at once."""
    for name in names:
        found = dataclasses.replace(catalogue.KINDS[name], find=lambda: Path("/nowhere"))
        monkeypatch.setitem(catalogue.KINDS, name, found)
    for cls in (Postgres, RabbitMQ, PgBouncer):
        monkeypatch.setattr(cls, "start", lambda server: (server.home / "up").touch())
        monkeypatch.setattr(cls, "alive", lambda server: (server.home / "up").exists())
    monkeypatch.setattr(
        Postgres, "create", lambda home, programs: Postgres(home, programs, 5000 + len(home.parts))
    )


def started() -> tuple[list[str], dict[str, str]]:
    """What ``start`` says, and what it misses."""
    said: list[str] = []
    missing = catalogue.start(said.append)
    return said, missing


def test_what_cannot_be_had_is_one_line_each(checkout: Path) -> None:
    said, missing = started()
    assert not said
    assert set(missing) == set(catalogue.KINDS)
    assert "install it (Debian: rabbitmq-server), or start Docker" in missing["rabbitmq"]
    assert missing["postgres"].endswith("pip could not install it")
    assert "Docker" not in missing["pgbouncer"]
    assert (checkout / "env").read_text() == ""


def test_a_given_url_is_taken_as_it_is(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DULY_TEST_POSTGRES", "postgresql://me:it's@db/x y")
    said, missing = started()
    assert said == ["postgres   is given by DULY_TEST_POSTGRES"]
    assert "postgres" not in missing
    monkeypatch.delenv("DULY_TEST_POSTGRES")
    catalogue.load_environment()
    assert os.environ["DULY_TEST_POSTGRES"] == "postgresql://me:it's@db/x y"


def test_what_runs_is_used_again(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    present(monkeypatch, "postgres", "rabbitmq", "pgbouncer")
    said, missing = started()
    assert not {"postgres", "rabbitmq", "pgbouncer"} & set(missing)
    assert [line.split()[1] for line in said] == ["started"] * 3
    first = (checkout / "env").read_text()
    said, missing = started()
    assert [line.split()[1] for line in said] == ["runs"] * 3
    assert (checkout / "env").read_text() == first


def test_a_dead_server_is_replaced_and_its_pooler_too(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    present(monkeypatch, "postgres", "pgbouncer")
    started()
    (checkout / "postgres" / "up").unlink()
    monkeypatch.setattr(Postgres, "create", lambda home, programs: Postgres(home, programs, 6000))
    said, _ = started()
    assert [line.split()[:2] for line in said] == [
        ["postgres", "started"],
        ["pgbouncer", "started"],
    ]
    assert json.loads((checkout / "pgbouncer.json").read_text())["target"].endswith(
        ":6000/postgres"
    )


def test_a_start_that_fails_leaves_no_record(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    present(monkeypatch, "rabbitmq")

    def fail(server: RabbitMQ) -> None:
        raise ServerFailedError("no memory")

    monkeypatch.setattr(RabbitMQ, "start", fail)
    _, missing = started()
    assert missing["rabbitmq"] == "no memory"
    assert not (checkout / "rabbitmq.json").exists()


def test_a_client_that_cannot_be_had_keeps_no_server_away(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def apt(packages: list[str]) -> None:
        asked.append(packages)
        if "kcat" in packages or "redis-server" not in packages:
            raise ServerFailedError("apt-get install failed: no package kcat")

    monkeypatch.setattr(install, "can_apt", lambda: True)
    monkeypatch.setattr(install, "apt", apt)
    monkeypatch.setattr(catalogue.shutil, "which", lambda name: None)
    _, missing = started()
    assert [packages[-1] for packages in asked] == ["kcat", "openssh-server"]
    assert "apt-get" not in missing["redis"]  # its packages were installed, as far as apt says


def test_docker_is_the_last_resort(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def said(*words: str, timeout_seconds: int = 0) -> str:
        ran.append(words[0])
        return "c0ffee"

    monkeypatch.setattr(docker, "engine_runs", lambda: True)
    monkeypatch.setattr(docker, "docker", said)
    monkeypatch.setattr(docker.Container, "alive", lambda container: True)
    _, missing = started()
    assert set(missing) == {name for name, kind in catalogue.KINDS.items() if not kind.in_docker}
    count = len(catalogue.KINDS) - len(missing)
    assert sorted(ran) == ["create"] * count + ["start"] * count
    catalogue.stop(ran.append)
    assert ran.count("rm") == count >= 3
    assert not checkout.exists()


def test_a_record_of_another_version_is_cleared_away(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    present(monkeypatch, "postgres")
    home = folders.home_for("postgres")
    processes.launch(["sleep", "300"], home / "process.json", env=os.environ, log=home / "log")
    pid = processes.pid_of(home / "process.json")
    record = {"class": "Postgres", "home": str(home), "no_such_field": 1}
    (checkout / "postgres.json").write_text(json.dumps(record))
    said, _ = started()
    assert pid not in processes.table()
    assert [line.split()[:2] for line in said] == [["postgres", "started"]]
