"""The same servers as containers, for a machine that has a Docker engine and none of the servers.

Ports are published on 127.0.0.1 only and stay the same over restarts, as with a server of our own.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tools.services import mariadb, postgres, processes, rabbitmq
from tools.services.processes import ServerFailedError

__all__ = ["Container", "container_for", "engine_runs"]

START_SECONDS = 120.0
PULL_SECONDS = 600
COMMAND_SECONDS = 60

MARIADB_SETTINGS = (
    "--log-bin",
    "--binlog-format=ROW",
    "--binlog-row-image=FULL",
    "--binlog-row-metadata=FULL",
    "--server-id=1",
    "--sync-binlog=1",
    "--max-connections=300",
)
POSTGRES_SETTINGS = ("max_connections=200", "max_prepared_transactions=20", "wal_level=logical")
ANSWERS: dict[str, Callable[[int], bool]] = {
    "mariadb": mariadb.answers,
    "postgres": postgres.answers,
    "rabbitmq": rabbitmq.answers,
}


def docker(*words: str, timeout_seconds: int = COMMAND_SECONDS) -> str:
    """Run one docker command and return what it printed. Raises ServerFailedError."""
    done = subprocess.run(
        ["docker", *words], capture_output=True, text=True, timeout=timeout_seconds, check=False
    )
    if done.returncode:
        raise ServerFailedError(f"docker {words[0]} failed: {done.stderr.strip()[-300:]}")
    return done.stdout.strip()


def engine_runs() -> bool:
    """Whether an engine answers, not only whether the command exists."""
    if shutil.which("docker") is None:
        return False
    try:
        docker("info", timeout_seconds=10)
    except (ServerFailedError, subprocess.TimeoutExpired):
        return False
    return True


@dataclass
class Container:
    """One server in a container. container: its id. ports: of 127.0.0.1, the server's own first."""

    name: str
    container: str
    ports: list[int]
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """Where it answers."""
        return next(iter(self.environment.values()))

    def alive(self) -> bool:
        """Whether it runs and its port answers."""
        return ANSWERS[self.name](self.ports[0])

    def start(self) -> None:
        """Start it (again) and wait until it answers."""
        docker("start", self.container)
        if not processes.wait_for(self.alive, START_SECONDS):
            raise ServerFailedError(
                f"the container of {self.name} does not answer after {START_SECONDS:.0f} s"
            )

    def stop(self) -> None:
        """Stop it; its data stays until ``remove``."""
        docker("stop", self.container)

    def kill(self) -> None:
        """SIGKILL everything in it."""
        docker("kill", self.container)

    def remove(self) -> None:
        """Stop it and drop its data."""
        docker("rm", "--force", "--volumes", self.container)


def container_for(name: str) -> Container:
    """Create a container of PostgreSQL, MariaDB or RabbitMQ; it is not started. Raises
    ServerFailedError.
    """
    image, inside, settings, command = _recipe(name)
    ports = processes.free_ports(len(inside))
    words = [
        "create",
        *(
            word
            for at, to in zip(ports, inside, strict=True)
            for word in ("-p", f"127.0.0.1:{at}:{to}")
        ),
    ]
    words += [word for key, value in settings.items() for word in ("-e", f"{key}={value}")]
    container = docker(*words, image, *command, timeout_seconds=PULL_SECONDS)
    if name == "postgres":
        environment = {"DULY_TEST_POSTGRES": f"postgresql://postgres@127.0.0.1:{ports[0]}/postgres"}
    elif name == "mariadb":
        environment = {"DULY_TEST_MARIADB": f"mysql://root@127.0.0.1:{ports[0]}/mysql"}
    else:
        environment = {
            "DULY_TEST_RABBITMQ": f"amqp://guest:guest@127.0.0.1:{ports[0]}/",
            "DULY_TEST_RABBITMQ_API": f"http://guest:guest@127.0.0.1:{ports[1]}",
        }
    return Container(name, container, ports, environment)


def _recipe(name: str) -> tuple[str, list[int], Mapping[str, str], list[str]]:
    """Image, ports inside, environment, arguments."""
    if name == "postgres":
        arguments = [word for setting in POSTGRES_SETTINGS for word in ("-c", setting)]
        return "postgres:17", [5432], {"POSTGRES_HOST_AUTH_METHOD": "trust"}, arguments
    if name == "mariadb":
        settings = {"MARIADB_ALLOW_EMPTY_ROOT_PASSWORD": "1"}
        return "mariadb:11", [3306], settings, list(MARIADB_SETTINGS)
    return "rabbitmq:4-management", [5672, 15672], {}, []
