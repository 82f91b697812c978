"""How much memory this process has in use, and had at most."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["peak_bytes", "rss_bytes"]


def rss_bytes() -> int:
    """The resident memory now; 0 where the system does not say."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0


def peak_bytes() -> int:
    """The most that was resident; 0 where the system does not say.

    Not by ``getrusage``, which counts the memory of who started this process, too.
    """
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    told = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(told[0]) * 1024 if told else 0
