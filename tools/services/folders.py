"""Where servers keep their data, and as whom they run.

PostgreSQL and PgBouncer refuse to run as root, so root runs them as an ordinary user of the
machine.  That user may be unable to enter the checkout; the data then goes to a temporary folder,
and ``.services/elsewhere`` names it.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

from tools.services.processes import ServerFailedError, stepped_down

__all__ = ["HOME", "give", "home_for", "private_home", "remove", "unprivileged_user"]

ROOT = Path(__file__).resolve().parents[2]
HOME = ROOT / ".services"


def unprivileged_user() -> str | None:
    """The user that root steps down to; None when we are not root."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    for name in ("postgres", "nobody"):
        if name in known:
            return name
    raise ServerFailedError(
        "running as root, and there is neither a user postgres nor nobody to run servers as"
    )


def _can_enter(folder: Path, user: str) -> bool:
    done = subprocess.run(
        ["test", "-x", folder], cwd="/", timeout=10, check=False, **stepped_down(user)
    )
    return done.returncode == 0


def _base() -> Path:
    """``.services``, or a temporary folder when the user who runs the servers cannot enter it."""
    HOME.mkdir(exist_ok=True)
    HOME.chmod(0o755)
    user = unprivileged_user()
    if user is None or _can_enter(HOME, user):
        return HOME
    note = HOME / "elsewhere"
    if note.exists() and Path(note.read_text()).is_dir():
        return Path(note.read_text())
    elsewhere = Path(tempfile.mkdtemp(prefix="duly-services-"))
    elsewhere.chmod(0o755)
    note.write_text(str(elsewhere))
    return elsewhere


def home_for(name: str, *, fresh: bool = False) -> Path:
    """The folder ``name`` among the servers' data, made if missing, emptied if ``fresh``."""
    home = _base() / name
    if fresh and home.exists():
        shutil.rmtree(home)
    home.mkdir(exist_ok=True)
    home.chmod(0o755)
    return home


def private_home(name: str) -> Path:
    """A new folder for a server of one test's own."""
    home = Path(tempfile.mkdtemp(prefix=f"duly-{name}-"))
    home.chmod(0o755)
    return home


def give(path: Path, user: str | None) -> None:
    """Make ``user`` the owner of a file or folder of ours, where we are root."""
    if user:
        shutil.chown(path, user)


def remove() -> None:
    """Delete all data of the shared servers."""
    note = HOME / "elsewhere"
    if note.exists():
        shutil.rmtree(
            note.read_text(), ignore_errors=True
        )  # a temporary folder may be gone already
    if HOME.exists():
        shutil.rmtree(HOME)
