"""An OpenSSH server of our own for SFTP: private keys and folder, a free port, loopback only.

It runs as an ordinary user, and lets that user in with one key; passwords cannot be checked without
being root.  ``known_hosts`` and ``key`` beside its data are what a client needs.
"""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tools.services import folders, processes
from tools.services.processes import ServerFailedError

__all__ = ["Sshd", "answers", "find"]

START_SECONDS = 20.0
STOP_SECONDS = 10.0
KEYGEN_SECONDS = 20.0
SETTINGS = """\
ListenAddress 127.0.0.1
Port {port}
HostKey {home}/host_key
PidFile none
AuthorizedKeysFile {home}/authorized_keys
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
StrictModes no
MaxStartups 100
Subsystem sftp internal-sftp
ForceCommand internal-sftp
"""


def find() -> Path | None:
    """The folder with ``sshd``, where ``ssh-keygen`` is there as well; else None."""
    found = shutil.which("sshd", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"]))
    return Path(found).parent if found and shutil.which("ssh-keygen") else None


def answers(port: int) -> bool:
    """Whether something there greets as SSH does."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2.0) as wire:
            return wire.recv(4) == b"SSH-"
    except OSError:
        return False


def _keygen(path: Path) -> str:
    """Make a key pair; the public half."""
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "duly", "-f", str(path)]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=KEYGEN_SECONDS)
    except subprocess.SubprocessError as error:
        raise ServerFailedError(f"ssh-keygen failed: {error}") from error
    return path.with_suffix(".pub").read_text()


@dataclass
class Sshd:
    """One server. home: its folder; what is sent lies in ``home/files``. user: as whom it runs and
    whom it lets in.
    """

    home: Path
    programs: Path
    port: int
    user: str
    name: str = "sshd"

    @classmethod
    def create(cls, home: Path, programs: Path) -> Sshd:
        """Make its keys, settings and folder; the server is not started."""
        stepped = folders.unprivileged_user()
        user = stepped or getpass.getuser()
        port = processes.free_ports(1)[0]
        public = _keygen(home / "host_key")
        folders.give(home / "host_key", stepped)
        (home / "authorized_keys").write_text(_keygen(home / "key"))
        (home / "known_hosts").write_text(f"[127.0.0.1]:{port} {public}")
        (home / "sshd_config").write_text(SETTINGS.format(port=port, home=home))
        (home / "files").mkdir()
        folders.give(home / "files", stepped)
        folders.give(home, stepped)
        return cls(home, programs, port, user)

    @property
    def url(self) -> str:
        """The folder that it serves."""
        return f"sftp://{self.user}@127.0.0.1:{self.port}{self.home}/files"

    @property
    def environment(self) -> dict[str, str]:
        """What tests read."""
        return {
            "DULY_TEST_SFTP": self.url,
            "DULY_TEST_SFTP_KEY": str(self.home / "key"),
            "DULY_TEST_SFTP_KNOWN_HOSTS": str(self.home / "known_hosts"),
        }

    @property
    def _record(self) -> Path:
        return self.home / "process.json"

    def alive(self) -> bool:
        """Whether our process lives and answers."""
        return processes.alive(self._record) and answers(self.port)

    def start(self) -> None:
        """Start it and wait until it greets."""
        log = self.home / "stdout"
        config = str(self.home / "sshd_config")
        command = [str(self.programs / "sshd"), "-D", "-e", "-f", config]
        env = {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8"}
        user = folders.unprivileged_user()
        processes.launch(command, self._record, env=env, log=log, user=user)
        if not processes.wait_for(
            lambda: self.alive() or not processes.alive(self._record), START_SECONDS
        ):
            raise ServerFailedError(f"sshd is not ready:\n{processes.tail(log)}")
        if not self.alive():
            raise ServerFailedError(f"sshd did not start:\n{processes.tail(log)}")

    def stop(self) -> None:
        """Stop it as an operator would; connections that are open end as well."""
        pid = processes.pid_of(self._record)
        signals = {pid: signal.SIGTERM} if pid else None
        processes.end(self._record, signals=signals, within_seconds=STOP_SECONDS)

    def kill(self) -> None:
        """SIGKILL it with the process of every connection."""
        processes.end(self._record)

    def remove(self) -> None:
        """End it at once and delete its data."""
        self.kill()
        shutil.rmtree(self.home, ignore_errors=True)  # made new by whoever needs it next
