"""Waiting for a condition, with a generous limit."""

from __future__ import annotations

import time
from collections.abc import Callable

LIMIT_SECONDS = 20.0


def until(condition: Callable[[], object]) -> None:
    """Return as soon as it holds; fail when it never does."""
    end = time.monotonic() + LIMIT_SECONDS
    while not condition():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.005)
