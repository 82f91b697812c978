"""A PgBouncer of our own in transaction mode, in front of whichever PostgreSQL the tests use."""

from __future__ import annotations

import os
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tools.services import folders, processes
from tools.services.postgres import answers
from tools.services.processes import ServerFailedError

__all__ = ["PgBouncer", "find"]

START_SECONDS = 20.0
STOP_SECONDS = 10.0
SETTINGS = """
[databases]
* = {target}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
max_client_conn = 400
default_pool_size = 20
ignore_startup_parameters = extra_float_digits
"""


def find() -> Path | None:
    """The folder with ``pgbouncer``; None when it is not installed."""
    found = shutil.which("pgbouncer", path=os.environ.get("PATH", os.defpath) + ":/usr/sbin")
    return Path(found).parent if found else None


@dataclass
class PgBouncer:
    """One pooler. home: its folder. programs: where ``pgbouncer`` is. port: of 127.0.0.1.

    target: the URL of the PostgreSQL it stands before.
    """

    home: Path
    programs: Path
    port: int
    target: str
    name: str = "pgbouncer"

    @classmethod
    def create(cls, home: Path, programs: Path, *, target: str) -> PgBouncer:
        """Write its settings for the PostgreSQL at ``target``; the pooler is not started."""
        pooler = cls(home, programs, processes.free_ports(1)[0], target)
        user = folders.unprivileged_user()
        folders.give(home, user)
        settings = home / "pgbouncer.ini"
        settings.touch(mode=0o600)
        settings.write_text(SETTINGS.format(target=_connection(target), port=pooler.port))
        folders.give(settings, user)
        return pooler

    @property
    def url(self) -> str:
        """Where it answers; the database of the same name is reached through it."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    @property
    def environment(self) -> dict[str, str]:
        """What tests read."""
        return {"DULY_TEST_PGBOUNCER": self.url}

    @property
    def _record(self) -> Path:
        return self.home / "process.json"

    def alive(self) -> bool:
        """Whether our process lives and its port answers."""
        return processes.alive(self._record) and answers(self.port)

    def start(self) -> None:
        """Start it and wait until it takes connections."""
        log = self.home / "log"
        env = {"HOME": str(self.home), "PATH": os.environ.get("PATH", os.defpath)}
        user = folders.unprivileged_user()
        command: list[str | Path] = [self.programs / "pgbouncer", self.home / "pgbouncer.ini"]
        processes.launch(command, self._record, env=env, log=log, user=user)
        processes.wait_for(lambda: self.alive() or not processes.alive(self._record), START_SECONDS)
        if not self.alive():
            raise ServerFailedError(f"PgBouncer did not start:\n{processes.tail(log)}")

    def stop(self) -> None:
        """Stop it; clients are cut."""
        pid = processes.pid_of(self._record)
        processes.end(
            self._record,
            signals={pid: signal.SIGTERM} if pid else None,
            within_seconds=STOP_SECONDS,
        )

    def kill(self) -> None:
        """SIGKILL it."""
        processes.end(self._record)

    def remove(self) -> None:
        """End it at once and delete its data."""
        self.kill()
        shutil.rmtree(self.home, ignore_errors=True)  # made new by whoever needs it next


def _connection(url: str) -> str:
    """The URL of a PostgreSQL server in PgBouncer's own form."""
    parts = urlsplit(url)
    words = {"host": parts.hostname or "127.0.0.1", "port": str(parts.port or 5432)}
    words["user"] = unquote(parts.username or "postgres")
    if parts.password:
        words["password"] = unquote(parts.password)
    return " ".join(
        f"{name}='{value.replace(chr(39), chr(39) * 2)}'" for name, value in words.items()
    )
