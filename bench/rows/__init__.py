"""The rows of ``make bench``, in the order in which they run: the short ones first."""

from __future__ import annotations

from bench.measure import Row
from bench.rows import backlog, idle, imports, kafka, nats, publish, rabbitmq, redis, sqlite

__all__ = ["ROWS"]

ROWS: tuple[Row, ...] = (
    *imports.ROWS,
    *sqlite.ROWS,
    *publish.ROWS,
    *rabbitmq.ROWS,
    *kafka.ROWS,
    *nats.ROWS,
    *redis.ROWS,
    *idle.ROWS,
    *backlog.ROWS,
)
