"""A MariaDB server of our own: private data, a free port, loopback only, crash-safe settings.

``innodb_flush_log_at_trx_commit`` and ``sync_binlog`` are 1: the tests kill servers and count what
survived.  The binary log is on, in row format, as change data capture reads it.  The server's own
option files are never read.
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

__all__ = ["MariaDB", "answers", "find"]

START_SECONDS = 60.0
STOP_SECONDS = 20.0
FOLDERS = (
    "/usr/sbin",
    "/usr/libexec",
    "/opt/homebrew/opt/mariadb*/bin",
    "/usr/local/opt/mariadb*/bin",
)
SETTINGS = (
    "--bind-address=127.0.0.1",
    "--skip-name-resolve",
    "--max-connections=300",
    "--innodb-buffer-pool-size=64M",
    "--innodb-log-file-size=48M",
    "--innodb-flush-log-at-trx-commit=1",
    "--sync-binlog=1",
    "--server-id=1",
    "--log-bin=mysql-bin",
    "--binlog-format=ROW",
    "--binlog-row-image=FULL",
    "--binlog-row-metadata=FULL",
    "--expire-logs-days=1",
    "--character-set-server=utf8mb4",
)
# Over TCP by name and address: --skip-name-resolve leaves only addresses.
USERS = """\
CREATE USER IF NOT EXISTS 'root'@'127.0.0.1' IDENTIFIED BY '';
GRANT ALL PRIVILEGES ON *.* TO 'root'@'127.0.0.1' WITH GRANT OPTION;
"""


def find() -> Path | None:
    """The folder with ``mariadbd``; None if there is none, or nothing that makes its data."""
    candidates = [path for pattern in FOLDERS for path in Path("/").glob(pattern.lstrip("/"))]
    on_path = shutil.which("mariadbd")
    if on_path:
        candidates.insert(0, Path(on_path).resolve().parent)
    return next((p for p in candidates if (p / "mariadbd").exists() and _installer(p)), None)


def _installer(programs: Path) -> Path | None:
    """What makes the system tables: beside the server, or where Debian puts it."""
    beside = programs / "mariadb-install-db"
    elsewhere = shutil.which("mariadb-install-db")
    return beside if beside.exists() else Path(elsewhere) if elsewhere else None


def answers(port: int) -> bool:
    """Whether something there greets with MySQL's protocol, version 10."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2.0) as wire:
            greeting = wire.recv(5)
            return len(greeting) == 5 and greeting[4] == 10
    except OSError:
        return False


@dataclass
class MariaDB:
    """One server. home: its folder. programs: where ``mariadbd`` is. port: of 127.0.0.1."""

    home: Path
    programs: Path
    port: int
    name: str = "mariadb"

    @classmethod
    def create(cls, home: Path, programs: Path) -> MariaDB:
        """Make the data folder; the server is not started."""
        server = cls(home, programs, processes.free_ports(1)[0])
        user = folders.unprivileged_user()
        folders.give(home, user)
        installer = _installer(programs)
        assert installer is not None, "find() gave a folder without an installer"
        command: list[str | Path] = [
            installer,
            "--no-defaults",
            f"--datadir={server.data}",
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
        ]
        (home / "users.sql").write_text(USERS)
        with (home / "install.log").open("wb") as log:
            done = subprocess.run(
                command,
                cwd=home,
                env=server._environment(),
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=120,
                check=False,
                **processes.stepped_down(user),
            )
        if done.returncode:
            raise ServerFailedError(
                f"mariadb-install-db failed:\n{processes.tail(home / 'install.log')}"
            )
        return server

    @property
    def data(self) -> Path:
        """The data folder."""
        return self.home / "data"

    @property
    def url(self) -> str:
        """Where it answers, with a superuser."""
        return f"mysql://root@127.0.0.1:{self.port}/mysql"

    @property
    def environment(self) -> dict[str, str]:
        """What tests read."""
        return {"DULY_TEST_MARIADB": self.url}

    @property
    def _record(self) -> Path:
        return self.home / "process.json"

    def _environment(self) -> dict[str, str]:
        return {
            "HOME": str(self.home),
            "PATH": os.pathsep.join((str(self.programs), os.environ.get("PATH", os.defpath))),
            "LC_ALL": "C",
            "TZ": "UTC",
        }

    def alive(self) -> bool:
        """Whether our process lives and its port answers."""
        return processes.alive(self._record) and answers(self.port)

    def start(self) -> None:
        """Start it and wait until it takes connections."""
        log = self.home / "log"
        command: list[str | Path] = [
            self.programs / "mariadbd",
            "--no-defaults",
            f"--datadir={self.data}",
            f"--socket={self.home / 's'}",
            f"--pid-file={self.home / 'pid'}",
            f"--init-file={self.home / 'users.sql'}",
            f"--port={self.port}",
            *SETTINGS,
        ]
        processes.launch(
            command,
            self._record,
            env=self._environment(),
            log=log,
            user=folders.unprivileged_user(),
        )
        processes.wait_for(
            lambda: answers(self.port) or not processes.alive(self._record), START_SECONDS
        )
        if not self.alive():
            raise ServerFailedError(f"MariaDB did not start:\n{processes.tail(log)}")

    def stop(self) -> None:
        """Stop it as an operator would: connections are cut, everything is written out."""
        pid = processes.pid_of(self._record)
        processes.end(
            self._record,
            signals={pid: signal.SIGTERM} if pid else None,
            within_seconds=STOP_SECONDS,
        )

    def kill(self) -> None:
        """SIGKILL the server and all its children."""
        processes.end(self._record)

    def remove(self) -> None:
        """End it at once and delete its data."""
        self.kill()
        shutil.rmtree(self.home, ignore_errors=True)  # made new by whoever needs it next
