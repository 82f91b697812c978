"""One call in the background, submitted and waited for, beside the standard library's pool.

Memory is told beside it: per idle thread (resident, not the address space of its stack), per idle
task of an async function, and per call that waits in the queue.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from bench.measure import Row, Scale, Sides
from bench.process import run_side

__all__ = ["ROWS"]

COUNT = 50_000
WORKERS = 8
THREADS = 200
WAITING = 20_000


@contextmanager
def _open(scale: Scale) -> Iterator[Sides]:
    given = {
        "count": scale.of(COUNT, least=200),
        "workers": WORKERS,
        "threads": scale.of(THREADS, least=10),
        "waiting": scale.of(WAITING, least=100),
    }
    yield Sides(
        ours=partial(run_side, "ours.background", **given),
        reference=partial(run_side, "reference.background_submit", **given),
    )


ROWS = (
    Row(
        "background submit",
        "us/call",
        "concurrent.futures.ThreadPoolExecutor submit + result",
        _open,
        falls=True,
    ),
)
