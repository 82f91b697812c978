"""A Redis server of our own: private settings and data, a free port, loopback only.

Every confirmed write is on the disk (``appendfsync always``), as a server for messages should be
set up, and a full server refuses instead of evicting.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
from dataclasses import dataclass
from pathlib import Path

from tools.services import processes
from tools.services.processes import ServerFailedError

__all__ = ["Redis", "answers", "find"]

START_SECONDS = 30.0
STOP_SECONDS = 20.0
SETTINGS = """\
bind 127.0.0.1
port {port}
dir "{home}"
daemonize no
save ""
appendonly yes
appendfsync always
maxmemory 1gb
maxmemory-policy noeviction
"""


def find() -> Path | None:
    """The folder with ``redis-server``, else None."""
    found = shutil.which("redis-server")
    return Path(found).parent if found else None


def answers(port: int) -> bool:
    """Whether something there answers PING, and is not still loading its data."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5.0) as wire:
            wire.sendall(b"PING\r\n")
            return wire.recv(7) == b"+PONG\r\n"
    except OSError:
        return False


@dataclass
class Redis:
    """One server. home: its folder. programs: where ``redis-server`` is."""

    home: Path
    programs: Path
    port: int
    name: str = "redis"

    @classmethod
    def create(cls, home: Path, programs: Path, *, more: str = "") -> Redis:
        """Write its settings; the server is not started. more: further lines, which win."""
        server = cls(home, programs, processes.free_ports(1)[0])
        (home / "redis.conf").write_text(SETTINGS.format(port=server.port, home=home) + more)
        return server

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def environment(self) -> dict[str, str]:
        """What tests read."""
        return {"DULY_TEST_REDIS": self.url}

    @property
    def _record(self) -> Path:
        return self.home / "process.json"

    def alive(self) -> bool:
        """Whether our process lives and answers."""
        return processes.alive(self._record) and answers(self.port)

    def start(self) -> None:
        """Start it and wait until it has read its data."""
        log = self.home / "stdout"
        command = [self.programs / "redis-server", self.home / "redis.conf"]
        env = {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8"}
        processes.launch(command, self._record, env=env, log=log)
        if not processes.wait_for(
            lambda: self.alive() or not processes.alive(self._record), START_SECONDS
        ):
            raise ServerFailedError(f"Redis is not ready:\n{processes.tail(log)}")
        if not self.alive():
            raise ServerFailedError(f"Redis did not start:\n{processes.tail(log)}")

    def stop(self) -> None:
        """Stop it as an operator would."""
        pid = processes.pid_of(self._record)
        signals = {pid: signal.SIGTERM} if pid else None
        processes.end(self._record, signals=signals, within_seconds=STOP_SECONDS)

    def kill(self) -> None:
        """SIGKILL it."""
        processes.end(self._record)

    def remove(self) -> None:
        """End it at once and delete its data."""
        self.kill()
        shutil.rmtree(self.home, ignore_errors=True)  # made new by whoever needs it next
