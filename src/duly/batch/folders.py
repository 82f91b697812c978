"""The folders in which attempts keep their files.

    SPOOL / APP / INSTANCE / (random)

Owns making, finding and removing them.  The invariants: an attempt's folder has a name that no
other attempt ever had, also after the database was made anew, so a process that was put out writes
into a folder that nobody reads for new work; and only folders of runs that have ended are removed.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from duly.errors import RetryableError

__all__ = ["Folders"]


class Folders:
    """The folders of one App. root: the spool directory; made when it is first needed."""

    def __init__(self, root: Path, app: str) -> None:
        self.root = root / app

    def path(self, instance: str, name: str) -> Path:
        """Where the folder of an attempt is."""
        return self.root / instance / name

    def make(self, folder: Path, *, shared: bool = False) -> None:
        """Make an attempt's folder, on the disk when this returns. shared: another thread of this
        process may be making it, too. Raises RetryableError (BATCH_SPOOL) where that cannot be.
        """
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=shared)
            for parent in (folder.parent, self.root, self.root.parent):
                _sync(parent)  # a checkpoint that names it must not outlive it
        except OSError as error:
            text = f"the spool folder {folder.parent} cannot be used: {error.strerror}"
            raise RetryableError(text, code="BATCH_SPOOL") from error

    def find(self, instance: str, name: str) -> Path | None:
        """The folder of an earlier attempt; None where this host does not see it."""
        folder = self.path(instance, name)
        return folder if folder.is_dir() else None

    def keep_only(self, folder: Path) -> None:
        """Remove the folders of the run's earlier attempts; what cannot be removed stays."""
        for other in folder.parent.iterdir() if folder.parent.is_dir() else ():
            if other != folder:
                shutil.rmtree(other, ignore_errors=True)

    def remove(self, instance: str) -> None:
        """Remove everything of a run; what cannot be removed stays."""
        shutil.rmtree(self.root / instance, ignore_errors=True)

    def older_than(self, seconds: float) -> list[str]:
        """The instances whose folders nobody changed for so long."""
        if not self.root.is_dir():
            return []
        before = time.time() - seconds
        found = (entry for entry in os.scandir(self.root) if entry.is_dir(follow_symlinks=False))
        return sorted(entry.name for entry in found if entry.stat().st_mtime < before)


def _sync(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
