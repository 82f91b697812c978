"""A NATS server of our own with JetStream: private data, free ports, loopback only.

The monitoring endpoint is on, because ``check`` reads the sync interval there.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
from dataclasses import dataclass
from pathlib import Path

from tools.services import install, processes
from tools.services.processes import ServerFailedError

__all__ = ["NATS", "answers", "find"]

START_SECONDS = 30.0
STOP_SECONDS = 15.0
SETTINGS = """\
server_name: duly-{port}
listen: "127.0.0.1:{port}"
http: "127.0.0.1:{monitor}"
jetstream {{ store_dir: "{home}/data", max_file_store: 4GB }}
{more}
"""


def find() -> Path | None:
    """The folder with ``nats-server``: from a wheel that was installed before, else on the PATH."""
    found = shutil.which("nats-server")
    return install.unpacked_nats() or (Path(found).parent if found else None)


def answers(port: int) -> bool:
    """Whether something there greets as NATS does."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2.0) as wire:
            return wire.recv(5) == b"INFO "
    except OSError:
        return False


@dataclass
class NATS:
    """One server. home: its folder. programs: where ``nats-server`` is. ports: of 127.0.0.1."""

    home: Path
    programs: Path
    port: int
    monitor: int
    name: str = "nats"

    @classmethod
    def create(cls, home: Path, programs: Path, *, more: str = "") -> NATS:
        """Write its settings; the server is not started. more: further lines of its own syntax."""
        port, monitor = processes.free_ports(2)
        text = SETTINGS.format(port=port, monitor=monitor, home=home, more=more)
        (home / "nats.conf").write_text(text)
        return cls(home, programs, port, monitor)

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"nats://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What tests read."""
        return {"DULY_TEST_NATS": self.url, "DULY_TEST_NATS_MONITOR": str(self.monitor)}

    @property
    def _record(self) -> Path:
        return self.home / "process.json"

    def alive(self) -> bool:
        """Whether our process lives and its port answers."""
        return processes.alive(self._record) and answers(self.port)

    def start(self) -> None:
        """Start it and wait until it answers."""
        log = self.home / "log"
        command: list[str | Path] = [self.programs / "nats-server", "-c"]
        command.append(self.home / "nats.conf")
        env = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(self.home)}
        processes.launch(command, self._record, env=env, log=log)
        processes.wait_for(lambda: self.alive() or not processes.alive(self._record), START_SECONDS)
        if not self.alive():
            raise ServerFailedError(f"NATS did not start:\n{processes.tail(log)}")

    def stop(self) -> None:
        """Stop it as an operator would."""
        pid = processes.pid_of(self._record)
        signals = {pid: signal.SIGINT} if pid else None
        processes.end(self._record, signals=signals, within_seconds=STOP_SECONDS)

    def kill(self) -> None:
        """SIGKILL it."""
        processes.end(self._record)

    def remove(self) -> None:
        """End it at once and delete its data."""
        self.kill()
        shutil.rmtree(self.home, ignore_errors=True)  # made new by whoever needs it next
