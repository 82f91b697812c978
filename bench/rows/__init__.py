"""The rows of ``make bench``, in the order in which they run: the short ones first."""

from __future__ import annotations

from bench.measure import Row
from bench.rows import (
    activemq,
    background,
    backlog,
    batch,
    binlog,
    calls,
    cdc,
    changes,
    delivery,
    idle,
    imports,
    kafka,
    nats,
    peers,
    publish,
    rabbitmq,
    redis,
    sqlite,
    twophase,
)

__all__ = ["ROWS"]

ROWS: tuple[Row, ...] = (
    *imports.ROWS,
    *calls.ROWS,
    *background.ROWS,
    *sqlite.ROWS,
    *changes.ROWS,
    *batch.ROWS,
    *delivery.ROWS,
    *cdc.ROWS,
    *binlog.ROWS,
    *publish.ROWS,
    *rabbitmq.ROWS,
    *kafka.ROWS,
    *nats.ROWS,
    *activemq.ROWS,
    *redis.ROWS,
    *twophase.ROWS,
    *peers.ROWS,
    *idle.ROWS,
    *backlog.ROWS,
)
