"""What a Python team would pick today, beside duly on the same servers.

A peer runs in a process and an environment of its own, on its own tables and its own form of a
1 KB message, tuned as its documentation says (``bench/reference/peer_*.py``); both sides say batch
size, concurrency and durability.  The slower side has the smaller backlog, at least 5 s of its
work: rates are compared.  A peer's clock begins with its first message, ours earlier, with the
lease.  Invariant: a plain client finds every message confirmed afterwards, and a peer that cannot
be installed or run makes its row void, with the reason.
"""

from __future__ import annotations

import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import redis

from bench.load import fill_postgres, fill_queue, prepare_postgres
from bench.measure import Row, Sample, Scale, Side, Sides
from bench.places import database, folder, redis_prefix, server
from bench.process import run_side
from bench.rows.redis import Ground, server_facts
from tools.peers import PeersMissingError, peers_python

__all__ = ["ROWS", "TRIAL", "beside"]

BACKLOG = 100_000
TRIAL = 1_000  # before it is measured: a peer that cannot run is found, and its code is compiled
OURS = {"batch_size": 1000, "processes": 1, "loop": "asyncio"}
_Count = Callable[[Any, str], int]


# --- the peers ------------------------------------------------------------------------------------
def _on_stream(script: str, confirmed: _Count, count: int, **given: Any) -> Sample:
    """A peer that writes to a stream, or reads one. confirmed: so many were, says a client."""
    url = server("DULY_TEST_REDIS")
    stream = f"duly-bench-peer-{uuid4().hex[:12]}"
    with database() as place, redis.Redis.from_url(url, socket_timeout=60) as client:
        try:
            asked = {"database": place, "redis": url, "stream": stream, "count": count, **given}
            sample = run_side(f"reference.{script}", peers_python(), **asked)
            _expect(count, confirmed(client, stream))
            return Sample(sample.figure, {**sample.facts, **server_facts(client)})
        finally:
            client.delete(stream)


def _pgqueuer(count: int) -> Sample:
    with database() as place:
        sample = run_side("reference.peer_pgqueuer", peers_python(), database=place, count=count)
        with psycopg.connect(place) as db:
            done = "SELECT count(*) FROM pgqueuer_log WHERE status = 'successful'"
            left = db.execute("SELECT count(*) FROM pgqueuer").fetchone()
            _expect(count, _first(db.execute(done).fetchone()))
            _expect(0, _first(left))
    return sample


def _added(client: Any, stream: str) -> int:
    return int(client.xlen(stream))


def _acknowledged(client: Any, stream: str) -> int:
    """None, unless the group is at the end of the stream."""
    group, end = client.xinfo_groups(stream)[0], client.xinfo_stream(stream)["last-generated-id"]
    read = client.xlen(stream) if group["last-delivered-id"] == end else 0
    return int(read - group["pending"])


def _first(row: tuple[Any, ...] | None) -> int:
    return int(row[0] or 0) if row else 0


def _expect(wanted: int, found: int) -> None:
    if found != wanted:
        raise RuntimeError(f"{found} messages, not {wanted}")


# --- the rows -------------------------------------------------------------------------------------
def beside(ours: Side, peer: Callable[[int], Sample], count: int) -> Sides:
    """Both sides, once the peer has shown that it is there and runs."""
    try:
        peer(TRIAL)
    except PeersMissingError as error:
        return Sides(ours=ours, void=f"the peer cannot be installed: {error}")
    except (RuntimeError, subprocess.SubprocessError) as error:
        last = str(error).strip().splitlines()[-1]  # where a traceback says what it is about
        return Sides(ours=ours, void=f"the peer cannot be run: {last}")
    return Sides(ours=ours, reference=partial(peer, count))


def _said(side: Side) -> Sample:
    sample = side()
    return Sample(sample.figure, {**sample.facts, **OURS})


@contextmanager
def _redis(
    scale: Scale, *, peer: Callable[[int], Sample], count: int, consume: bool
) -> Iterator[Sides]:
    backlog, theirs = (scale.of(n, least=1000) // 1000 * 1000 for n in (BACKLOG, count))
    with database() as url, redis_prefix() as broker:
        ground = Ground(url, broker, backlog)
        ours = ground.consume if consume else partial(ground.relay, "ours.relay", ours=True)
        yield beside(partial(_said, ours), peer, theirs)


def _drain(url: str, place: Path, count: int) -> Sample:
    """Ours to the embedded log; all of it must be in its file then."""
    fill_postgres(url, count, ours=True)
    log = place / f"{uuid4().hex}.db"
    broker = f"embedded:///{log}"
    fill_queue(broker, 0)
    sample = run_side("ours.relay", database=url, broker=broker, count=count)
    with sqlite3.connect(log) as db:
        _expect(count, _first(db.execute("SELECT sum(count) FROM chunk").fetchone()))
        facts = {"log_journal_mode": db.execute("PRAGMA journal_mode").fetchone()[0]}
    db.close()
    log.unlink()
    return Sample(sample.figure, {**sample.facts, **facts})


@contextmanager
def _embedded(scale: Scale, *, count: int) -> Iterator[Sides]:
    backlog, theirs = (scale.of(n, least=1000) // 1000 * 1000 for n in (BACKLOG, count))
    with database() as url, folder() as place:
        prepare_postgres(url)
        ours = partial(_drain, url, place, backlog)
        yield beside(partial(_said, ours), _pgqueuer, theirs)


def _relay(script: str, count: int) -> Callable[[Scale], Any]:
    return partial(_redis, peer=partial(_on_stream, script, _added), count=count, consume=False)


def _consume(count: int, *, batch: bool) -> Callable[[Scale], Any]:
    peer = partial(_on_stream, "peer_faststream", _acknowledged, batch=batch)
    return partial(_redis, peer=peer, count=count, consume=True)


ROWS = (
    Row(
        "peer relay faststream-outbox redis",
        "messages/s",
        "faststream-outbox, tuned as its documentation says, to a Redis stream",
        _relay("peer_faststream_outbox", 15_000),
    ),
    Row(
        "peer relay txoutbox redis",
        "messages/s",
        "txoutbox (batch 500, 50 groups at once), one XADD per message, to a Redis stream",
        _relay("peer_txoutbox", 30_000),
    ),
    Row(
        "peer consume faststream redis",
        "messages/s",
        "FastStream on a group of a Redis stream, a handler of single messages that does nothing, "
        "no dedupe; ours: batch handler, dedupe, one effect row each",
        _consume(25_000, batch=False),
    ),
    Row(
        "peer consume faststream batch redis",
        "messages/s",
        "FastStream's batch handler that does nothing, no dedupe; ours: dedupe, one effect row "
        "each",
        _consume(BACKLOG, batch=True),
    ),
    Row(
        "peer drain pgqueuer",
        "messages/s",
        "PgQueuer draining its queue with a handler that does nothing; ours: relay to the embedded "
        "log",
        partial(_embedded, count=BACKLOG),
    ),
)
