"""The rows of ``make bench``, in the order in which they run: the short ones first."""

from __future__ import annotations

from bench.measure import Row
from bench.rows import backlog, idle, imports, publish, rabbitmq, sqlite

__all__ = ["ROWS"]

ROWS: tuple[Row, ...] = (
    *imports.ROWS,
    *sqlite.ROWS,
    *publish.ROWS,
    *rabbitmq.ROWS,
    *idle.ROWS,
    *backlog.ROWS,
)
