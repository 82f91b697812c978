"""How far a step is and how fast, for people who wait for it.

Owns the arithmetic only: rate over the last seconds, time to go.  What is shown here is stored
nowhere; after a restart the numbers begin with those of the last checkpoint, and the rate counts
only what this attempt did.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

__all__ = ["Progress", "Seen"]

_SPAN_SECONDS = 10.0
_POINTS_MAX = 64


class Seen(NamedTuple):
    """What is known now. bytes_per_second, seconds_left: None while nobody can tell."""

    step: str
    rows: int
    size_bytes: int
    total_bytes: int | None
    rows_per_second: float | None
    bytes_per_second: float | None
    seconds_left: float | None


class Progress:
    """The progress of one attempt. Written by its thread, read by any."""

    def __init__(self) -> None:
        self._step = ""
        self._total: int | None = None
        self._points: deque[tuple[float, int, int]] = deque(maxlen=_POINTS_MAX)

    def begin(self, step: str, *, rows: int, size_bytes: int, now: float) -> None:
        """A step begins, or goes on from what is done of it. now: by a monotonic clock."""
        self._step, self._total = step, None
        self._points = deque([(now, rows, size_bytes)], maxlen=_POINTS_MAX)

    def told(self, rows: int, size_bytes: int, *, total_bytes: int | None, now: float) -> None:
        """So much is done of it, in all."""
        self._total = self._total if total_bytes is None else total_bytes
        points = self._points
        if len(points) > 1 and now - points[-2][0] < _SPAN_SECONDS / _POINTS_MAX:
            points.pop()  # told more often than is worth a point
        points.append((now, rows, size_bytes))

    def seen(self) -> Seen:
        """What is known now."""
        points = list(self._points) or [(0.0, 0, 0)]
        now, rows, size_bytes = points[-1]
        then = next(point for point in points if now - point[0] <= _SPAN_SECONDS)
        span = now - then[0]
        by_row = (rows - then[1]) / span if span > 0 else None
        by_byte = (size_bytes - then[2]) / span if span > 0 else None
        left = None
        if self._total is not None and by_byte:
            left = max(0, self._total - size_bytes) / by_byte
        return Seen(self._step, rows, size_bytes, self._total, by_row, by_byte, left)
