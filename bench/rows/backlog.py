"""A million rows drained beside an open snapshot: dead rows that nobody can remove pile up.

Ours on both sides, and a broker that confirms at once, so that only the reading and settling is
left to be slowed down.  The backlog is copied from a template, so that every drain begins alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from urllib.parse import urlsplit

import psycopg

from bench.load import fill_postgres, prepare_postgres
from bench.measure import Row, Sample, Scale, Sides
from bench.places import database
from bench.process import run_side

__all__ = ["ROWS"]

BACKLOG = 1_000_000


@contextmanager
def _copy(template: str) -> Iterator[str]:
    """A database like the template."""
    name = urlsplit(template).path[1:]
    server = urlsplit(template)._replace(path="/postgres").geturl()
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}_copy TEMPLATE {name} STRATEGY file_copy")
        try:
            yield urlsplit(template)._replace(path=f"/{name}_copy").geturl()
        finally:
            admin.execute(f"DROP DATABASE {name}_copy WITH (FORCE)")


def _drain(template: str, count: int, *, snapshot: bool) -> Sample:
    with _copy(template) as url, psycopg.connect(url, autocommit=True) as reader:
        if snapshot:
            reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
            reader.execute("SELECT count(*) FROM keys")
        sample = run_side("ours.backlog", database=url, count=count)
        return Sample(sample.figure, {**sample.facts, "snapshot": snapshot})


@contextmanager
def _open(scale: Scale) -> Iterator[Sides]:
    count = scale.of(BACKLOG, least=1000) // 1000 * 1000
    with database() as url:
        prepare_postgres(url)
        fill_postgres(url, count, ours=True)
        yield Sides(
            ours=partial(_drain, url, count, snapshot=True),
            reference=partial(_drain, url, count, snapshot=False),
        )


ROWS = (
    Row(
        "postgres backlog 1M beside an open snapshot",
        "messages/s",
        "the same backlog without the open snapshot",
        _open,
        repeats_least=2,
    ),
)
