"""What ``check`` and ``doctor`` say of a SQLite file."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from duly.ports import Finding, Severity

__all__ = ["inspect_file"]

_NETWORK = {"nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "9p"}


def inspect_file(path: str) -> list[Finding]:
    """Findings on version, journal mode, free space and the kind of disk below the file."""
    found = [Finding("SQLITE_VERSION", Severity.GREEN, f"SQLite {sqlite3.sqlite_version}")]
    if sqlite3.sqlite_version_info < (3, 35):
        found = [
            Finding(
                "SQLITE_VERSION",
                Severity.RED,
                f"SQLite {sqlite3.sqlite_version}",
                "3.35 or newer is needed",
            )
        ]
    folder = str(Path(path).parent)
    if not os.access(folder, os.W_OK):
        found.append(
            Finding(
                "DATABASE_READ_ONLY", Severity.RED, f"{folder} is not writable", "give write rights"
            )
        )
    kind = _filesystem(folder)
    if kind in _NETWORK:
        found.append(
            Finding(
                "NETWORK_DISK",
                Severity.RED,
                f"the file lies on {kind}",
                "SQLite's locks need a local disk",
            )
        )
    room = os.statvfs(folder) if hasattr(os, "statvfs") and Path(folder).is_dir() else None
    if room is not None and room.f_bavail * room.f_frsize < 100 * 1024 * 1024:
        found.append(
            Finding("DISK_NEARLY_FULL", Severity.WEAK, "less than 100 MB are free", "make room")
        )
    return found


def _filesystem(folder: str) -> str:
    """The type of the file system below a folder, from the longest mount point that holds it; ""
    when unknown.
    """
    best, kind = "", ""
    try:
        with Path("/proc/mounts").open(encoding="utf-8", errors="replace") as mounts:
            for line in mounts:
                _, point, this, *_ = line.split(" ")
                inside = folder == point or folder.startswith(point.rstrip("/") + "/")
                if inside and len(point) > len(best):
                    best, kind = point, this
    except OSError:
        return ""
    return kind
