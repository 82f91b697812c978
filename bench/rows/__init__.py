"""The rows of ``make bench``, in the order in which they run: the short ones first."""

from __future__ import annotations

from bench.measure import Row
from bench.rows import (
    activemq,
    backlog,
    changes,
    idle,
    imports,
    kafka,
    nats,
    peers,
    publish,
    rabbitmq,
    redis,
    sqlite,
)

__all__ = ["ROWS"]

ROWS: tuple[Row, ...] = (
    *imports.ROWS,
    *sqlite.ROWS,
    *changes.ROWS,
    *publish.ROWS,
    *rabbitmq.ROWS,
    *kafka.ROWS,
    *nats.ROWS,
    *activemq.ROWS,
    *redis.ROWS,
    *peers.ROWS,
    *idle.ROWS,
    *backlog.ROWS,
)
