"""How much memory this process has in use, for figures per thread and per call."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["rss_bytes"]


def rss_bytes() -> int:
    """The resident memory now; 0 where the system does not say."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0
