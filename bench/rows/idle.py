"""PostgreSQL and RabbitMQ: latency of an idle relay, and the statements that a relay costs.

Statements are counted on the wire (``bench.wiretap``): what the server answered to the relay's
connections, BEGIN and COMMIT included.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from bench.load import fill_postgres, fill_queue, prepare_postgres
from bench.measure import Row, Sample, Scale, Sides
from bench.places import database, virtual_host
from bench.process import ROOT, run_side
from bench.wiretap import Wiretap

__all__ = ["ROWS"]

SAMPLES = 100
BACKLOG = 100_000
WINDOW_SECONDS = 6.0  # four beats of a node; five windows make the half minute
SETTLES_SECONDS = 2.0
ENDS_SECONDS = 30.0


@contextmanager
def living(module: str, **arguments: Any) -> Iterator[None]:
    """A side that runs until the block ends. Raises RuntimeError when it does not start."""
    command = [sys.executable, "-m", f"bench.{module}", json.dumps(arguments)]
    side = subprocess.Popen(
        command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert side.stdout is not None
        if side.stdout.readline().strip() != "ready":
            raise RuntimeError(f"bench.{module} did not start")
        yield
    finally:
        assert side.stdin is not None
        side.stdin.close()
        try:
            side.wait(ENDS_SECONDS)
        finally:
            side.kill()


@contextmanager
def _latency(scale: Scale) -> Iterator[Sides]:
    with database() as url, virtual_host() as broker:
        prepare_postgres(url)
        fill_queue(broker, 0)
        given = {"database": url, "broker": broker, "count": scale.of(SAMPLES, least=5)}
        servers = {"database": url, "broker": broker}

        def beside(module: str, side: str) -> Sample:
            fill_postgres(url, 0, ours=True)
            with living(module, **servers):
                return run_side("latency", side=side, **given)

        yield Sides(
            ours=partial(beside, "ours.idle", "ours"),
            reference=partial(beside, "reference.listen", "reference"),
            raw=partial(run_side, "latency", side="raw", **given),
            share_least=0.1,
        )


@contextmanager
def _draining(scale: Scale) -> Iterator[Sides]:
    backlog = scale.of(BACKLOG, least=1000) // 1000 * 1000
    with database() as url, virtual_host() as broker, Wiretap(url) as tap:
        prepare_postgres(url)
        fill_queue(broker, 0)

        def count() -> Sample:
            fill_postgres(url, backlog, ours=True)
            before = tap.statements
            run_side("ours.relay", database=tap.url, broker=broker, count=backlog)
            statements = tap.statements - before
            return Sample(statements / backlog * 1000, {"statements": statements, "of": backlog})

        yield Sides(ours=count)


@contextmanager
def _idle(scale: Scale) -> Iterator[Sides]:
    with database() as url, virtual_host() as broker, Wiretap(url) as tap:
        prepare_postgres(url)
        fill_queue(broker, 0)
        with living("ours.idle", database=tap.url, broker=broker):
            time.sleep(SETTLES_SECONDS)
            yield Sides(ours=partial(_window, tap, max(0.5, WINDOW_SECONDS * scale.factor)))


def _window(tap: Wiretap, seconds: float) -> Sample:
    before = tap.statements
    time.sleep(seconds)
    statements = tap.statements - before
    return Sample(statements / seconds, {"statements": statements, "window_s": seconds})


def _row(name: str, unit: str, opened: Callable[[Scale], Any], *, reference: str = "") -> Row:
    return Row(name, unit, reference, opened, falls=True)


ROWS = (
    _row(
        "postgres idle latency p50",
        "ms",
        _latency,
        reference="hand-written LISTEN loop: commit -> notify -> select -> confirmed publish",
    ),
    _row("postgres statements per 1000", "statements", _draining),
    _row("postgres idle statements per second", "per second", _idle),
)
