"""Extraction of a query into a file: beside ``psql \\copy``, a loop with ``csv.writer``, and dlt.

Ours ends with a sealed file: a synced chunk and a durable checkpoint every 4 MB, each chunk and the
whole digested.  The others end with a file.  Every file has the same rows, which is checked by size
against psql's.  The slower sides read fewer rows of the same table: rates are compared.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import psycopg

from bench.measure import Row, Sample, Scale, Sides
from bench.places import database, folder
from bench.process import run_side
from bench.rows.peers import beside
from tools.peers import peers_python

__all__ = ["ROWS"]

ROWS_COPIED = 5_000_000
ROWS_WRITTEN = 1_000_000
ROWS_PEER = 300_000
MEMORY_MB_MAX = 100

_MAKE = """
CREATE TABLE payout (id bigint PRIMARY KEY, iban text NOT NULL, amount numeric(12,2) NOT NULL,
  day date NOT NULL, at timestamptz NOT NULL, note text);
"""
_FILL = """
INSERT INTO payout SELECT g, 'DE' || lpad(g::text, 20, '0'), (g %% 100000) / 100.0,
  date '2026-01-01' + (g %% 365)::int, timestamptz '2026-01-01 00:00+00' + g * interval '1 second',
  CASE WHEN g %% 10 = 0 THEN NULL ELSE 'note, no. ' || g END
FROM generate_series(1, %(count)s) g
"""


@contextmanager
def _filled(count: int) -> Iterator[tuple[str, Path]]:
    with database() as url, folder() as place:
        with psycopg.connect(url, autocommit=True) as admin:
            admin.execute(_MAKE)
            admin.execute(_FILL, {"count": count})
            admin.execute("VACUUM (ANALYZE, FREEZE) payout")
            admin.execute("CHECKPOINT")
        yield url, place


def _side(module: str, url: str, place: Path, /, *, count: int, **given: str) -> Sample:
    query = f"SELECT id, iban, amount, day, at, note FROM payout WHERE id <= {count}"
    asked = {"database": url, "folder": str(place), "query": query, "count": count, **given}
    try:
        sample = run_side(module, **asked)
    finally:
        for left in place.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    if int(sample.facts.get("peak_mb", 0)) > MEMORY_MB_MAX:
        raise RuntimeError(f"{sample.facts['peak_mb']} MB at its peak")
    return Sample(sample.figure, {**sample.facts, "rows": count})


@contextmanager
def _copy(scale: Scale) -> Iterator[Sides]:
    psql = shutil.which("psql") or ""
    count = scale.of(ROWS_COPIED, least=10_000)
    with _filled(count) as (url, place):
        ours = partial(_side, "ours.extract", url, place, count=count)
        if not psql:
            yield Sides(ours=ours, void="psql is not installed")
            return
        copied = partial(_side, "reference.batch_copy", url, place, count=count, psql=psql)
        sizes = [side().facts["bytes"] for side in (ours, copied)]
        if sizes[0] != sizes[1]:
            raise RuntimeError(f"files of {sizes[0]} and {sizes[1]} bytes")
        yield Sides(ours=ours, reference=copied)


@contextmanager
def _csv(scale: Scale) -> Iterator[Sides]:
    count = scale.of(ROWS_WRITTEN, least=10_000)
    with _filled(count) as (url, place):
        yield Sides(
            ours=partial(_side, "ours.extract", url, place, count=count),
            reference=partial(_side, "reference.batch_csv", url, place, count=count),
        )


@contextmanager
def _dlt(scale: Scale) -> Iterator[Sides]:
    count, theirs = (scale.of(rows, least=10_000) for rows in (ROWS_WRITTEN, ROWS_PEER))
    with _filled(count) as (url, place):

        def peer(rows: int) -> Sample:
            query = {"database": url, "folder": str(place), "count": rows}
            try:
                sample = run_side("reference.peer_dlt", peers_python(), **query)
                if sample.facts["lines"] != rows + 1:
                    raise RuntimeError(f"{sample.facts['lines']} lines, not {rows + 1}")
                return sample
            finally:
                for left in place.iterdir():
                    shutil.rmtree(left)

        yield beside(partial(_side, "ours.extract", url, place, count=count), peer, theirs)


ROWS = (
    Row(
        "batch extract copy",
        "rows/s",
        "psql \\copy of the same ordered query + fsync",
        _copy,
    ),
    Row("batch extract csv.writer", "rows/s", "server-side cursor + csv.writer", _csv),
    Row(
        "batch extract dlt",
        "rows/s",
        "dlt sql_table (pyarrow backend) -> filesystem csv",
        _dlt,
    ),
)
