"""A RabbitMQ server of our own: private data, cookie, plugins and epmd; free ports; loopback only.

The distribution's wrapper script is passed by, because it switches to a system user; a private epmd
is started first, because one that the Erlang runtime starts by itself would listen on every
interface and stay behind.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tools.services import processes
from tools.services.processes import ServerFailedError

__all__ = ["RabbitMQ", "answers", "find"]

START_SECONDS = 120.0
STOP_SECONDS = 40.0
FOLDERS = (
    "/usr/lib/rabbitmq/bin",
    "/opt/homebrew/opt/rabbitmq/sbin",
    "/usr/local/opt/rabbitmq/sbin",
)
SETTINGS = """
management.tcp.ip = 127.0.0.1
management.tcp.port = {management}
loopback_users = none
disk_free_limit.absolute = 100MB
vm_memory_high_watermark.absolute = 1GB
"""


def find() -> Path | None:
    """The folder with ``rabbitmq-server``, when Erlang's ``epmd`` is there too; else None."""
    on_path = shutil.which("rabbitmq-server")
    candidates = [Path(folder) for folder in FOLDERS] + ([Path(on_path).parent] if on_path else [])
    return next(
        (path for path in candidates if (path / "rabbitmq-server").exists() and _epmd()), None
    )


def _epmd() -> str | None:
    bundled = sorted(Path("/usr/lib/erlang").glob("erts-*/bin/epmd"))
    return shutil.which("epmd") or (str(bundled[-1]) if bundled else None)


def answers(port: int) -> bool:
    """Whether something there speaks AMQP 0-9-1: answers the header with a method frame."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5.0) as wire:
            wire.sendall(b"AMQP\x00\x00\x09\x01")
            return wire.recv(1) == b"\x01"
    except OSError:
        return False


@dataclass
class RabbitMQ:
    """One server. home: its folder. programs: where ``rabbitmq-server`` is."""

    home: Path
    programs: Path
    port: int
    management: int
    distribution: int
    epmd: int
    name: str = "rabbitmq"

    @classmethod
    def create(cls, home: Path, programs: Path) -> RabbitMQ:
        """Write its settings; the server is not started."""
        port, management, distribution, epmd = processes.free_ports(4)
        server = cls(home, programs, port, management, distribution, epmd)
        (home / "enabled_plugins").write_text("[rabbitmq_management].\n")
        (home / "rabbitmq.conf").write_text(SETTINGS.format(management=server.management))
        return server

    @property
    def url(self) -> str:
        """Where it answers, as its administrator, in the default virtual host."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}/"

    @property
    def api(self) -> str:
        """The root of its management interface, with the administrator's name."""
        return f"http://guest:guest@127.0.0.1:{self.management}"

    @property
    def environment(self) -> dict[str, str]:
        """What tests read."""
        return {"DULY_TEST_RABBITMQ": self.url, "DULY_TEST_RABBITMQ_API": self.api}

    @property
    def _record(self) -> Path:
        return self.home / "process.json"

    @property
    def _epmd_record(self) -> Path:
        return self.home / "epmd.json"

    def _environment(self) -> dict[str, str]:
        home, none = str(self.home), str(self.home / "none")
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "LANG": "C.UTF-8",
            "HOME": home,  # where the Erlang cookie is
            "ERL_EPMD_PORT": str(self.epmd),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"duly-{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self.distribution),
            "RABBITMQ_BASE": home,
            "RABBITMQ_MNESIA_BASE": f"{home}/mnesia",
            "RABBITMQ_LOG_BASE": f"{home}/log",
            "RABBITMQ_PID_FILE": f"{home}/pid",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{home}/enabled_plugins",
            "RABBITMQ_CONFIG_FILE": f"{home}/rabbitmq",
            "RABBITMQ_CONF_ENV_FILE": none,
            "RABBITMQ_ADVANCED_CONFIG_FILE": none,
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        }

    def alive(self) -> bool:
        """Whether our process lives and its port answers."""
        return processes.alive(self._record) and answers(self.port)

    def start(self) -> None:
        """Start it and wait until it has booted with its plugins."""
        log, env = self.home / "stdout", self._environment()
        epmd = _epmd()
        if epmd is None:
            raise ServerFailedError("RabbitMQ needs Erlang's epmd, which is gone")
        if not processes.alive(self._epmd_record):
            command = [epmd, "-address", "127.0.0.1", "-port", str(self.epmd)]
            processes.launch(command, self._epmd_record, env=env, log=self.home / "epmd.log")
        (self.home / "pid").unlink(missing_ok=True)
        processes.launch([self.programs / "rabbitmq-server"], self._record, env=env, log=log)
        if not processes.wait_for(
            lambda: self.alive() or not processes.alive(self._record), START_SECONDS
        ):
            raise ServerFailedError(
                f"RabbitMQ is not ready after {START_SECONDS:.0f} s:\n{processes.tail(log)}"
            )
        if not self.alive():
            raise ServerFailedError(f"RabbitMQ did not start:\n{processes.tail(log)}")
        self._await_startup(env)

    def _await_startup(self, env: dict[str, str]) -> None:
        # The AMQP port opens before the management plugin has started.
        command = [str(self.programs / "rabbitmqctl"), "--timeout", "60", "await_startup"]
        done = subprocess.run(
            command, cwd=self.home, env=env, capture_output=True, text=True, timeout=90, check=False
        )
        if done.returncode:
            raise ServerFailedError(
                f"RabbitMQ did not finish its start: {done.stderr.strip()[-500:]}"
            )

    def stop(self) -> None:
        """Stop it as an operator would, and its epmd."""
        try:
            erlang = int((self.home / "pid").read_text())
        except (OSError, ValueError):  # it has not come so far as to write it
            erlang = None
        signals = {erlang: signal.SIGTERM} if erlang else None
        processes.end(
            self._record, signals=signals, within_seconds=STOP_SECONDS if signals else 0.0
        )
        processes.end(self._epmd_record)

    def kill(self) -> None:
        """SIGKILL the server and all its children; epmd, which holds no data, stays."""
        processes.end(self._record)

    def remove(self) -> None:
        """End it and its epmd at once and delete its data."""
        self.kill()
        processes.end(self._epmd_record)
        shutil.rmtree(self.home, ignore_errors=True)  # made new by whoever needs it next
