"""A PostgreSQL server of our own: private data, a free port, loopback only, crash-safe settings.

``fsync`` stays on: the tests kill servers and count what survived.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tools.services import folders, processes
from tools.services.processes import ServerFailedError

__all__ = ["Postgres", "find"]

START_SECONDS = 60.0
STOP_SECONDS = 20.0
FOLDERS = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/opt/homebrew/opt/postgresql*/bin",
    "/usr/local/opt/postgresql*/bin",
)
SETTINGS = """
listen_addresses = '127.0.0.1'
port = {port}
unix_socket_directories = ''
fsync = on
max_connections = 200
max_prepared_transactions = 20
max_replication_slots = 20
max_wal_senders = 20
wal_level = logical
"""


def find() -> Path | None:
    """The folder with ``initdb`` and ``postgres`` of the newest version; None if there is none."""
    candidates = [path for pattern in FOLDERS for path in Path("/").glob(pattern.lstrip("/"))]
    candidates.sort(key=lambda path: _version(path.parent.name), reverse=True)
    on_path = shutil.which("initdb")
    if on_path:
        candidates.append(Path(on_path).resolve().parent)
    return next(
        (
            path
            for path in candidates
            if (path / "initdb").exists() and (path / "postgres").exists()
        ),
        None,
    )


def _version(name: str) -> int:
    digits = "".join(c for c in name if c.isdigit())
    return int(digits) if digits else 0


def answers(port: int) -> bool:
    """Whether something there speaks PostgreSQL's protocol: answers an SSL request with S or N."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2.0) as wire:
            wire.sendall((8).to_bytes(4, "big") + (80877103).to_bytes(4, "big"))
            return wire.recv(1) in (b"S", b"N")
    except OSError:
        return False


@dataclass
class Postgres:
    """One server. home: its folder. programs: where ``postgres`` is. port: of 127.0.0.1."""

    home: Path
    programs: Path
    port: int
    name: str = "postgres"

    @classmethod
    def create(cls, home: Path, programs: Path) -> Postgres:
        """Make the data folder; the server is not started."""
        server = cls(home, programs, processes.free_ports(1)[0])
        user = folders.unprivileged_user()
        folders.give(home, user)
        command: list[str | Path] = [
            programs / "initdb",
            "-D",
            server.data,
            "-U",
            "postgres",
            "-A",
            "trust",
        ]
        with (home / "initdb.log").open("wb") as log:
            done = subprocess.run(
                [*command, "-E", "UTF8", "--locale=C", "--no-instructions"],
                cwd=home,
                env=server._environment(),
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=120,
                check=False,
                **processes.stepped_down(user),
            )
        if done.returncode:
            raise ServerFailedError(f"initdb failed:\n{processes.tail(home / 'initdb.log')}")
        with (server.data / "postgresql.conf").open("a") as settings:
            settings.write(SETTINGS.format(port=server.port))
        return server

    @property
    def data(self) -> Path:
        """The data folder."""
        return self.home / "data"

    @property
    def url(self) -> str:
        """Where it answers, with a superuser."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    @property
    def environment(self) -> dict[str, str]:
        """What tests read."""
        return {"DULY_TEST_POSTGRES": self.url}

    @property
    def _record(self) -> Path:
        return self.home / "process.json"

    def _environment(self) -> dict[str, str]:
        return {
            "HOME": str(self.home),
            "PATH": os.environ.get("PATH", os.defpath),
            "LC_ALL": "C",
            "TZ": "UTC",
        }

    def alive(self) -> bool:
        """Whether our process lives and its port answers."""
        return processes.alive(self._record) and answers(self.port)

    def start(self) -> None:
        """Start it and wait until it takes connections."""
        log = self.home / "log"
        user = folders.unprivileged_user()
        command: list[str | Path] = [self.programs / "postgres", "-D", self.data]
        processes.launch(command, self._record, env=self._environment(), log=log, user=user)
        if not processes.wait_for(
            lambda: self._ready() or not processes.alive(self._record), START_SECONDS
        ):
            raise ServerFailedError(
                f"PostgreSQL is not ready after {START_SECONDS:.0f} s:\n{processes.tail(log)}"
            )
        if not self.alive():
            raise ServerFailedError(f"PostgreSQL did not start:\n{processes.tail(log)}")

    def _ready(self) -> bool:
        # The postmaster writes its state to the eighth line; a killed one leaves another pid.
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return (
            len(lines) > 7
            and lines[7].strip() == "ready"
            and int(lines[0]) == processes.pid_of(self._record)
        )

    def stop(self) -> None:
        """Stop it as an operator would: connections are cut, everything is written out."""
        pid = processes.pid_of(self._record)
        processes.end(
            self._record, signals={pid: signal.SIGINT} if pid else None, within_seconds=STOP_SECONDS
        )

    def kill(self) -> None:
        """SIGKILL the server and all its children."""
        processes.end(self._record)

    def remove(self) -> None:
        """End it at once and delete its data."""
        self.kill()
        shutil.rmtree(self.home, ignore_errors=True)  # made new by whoever needs it next
