"""What a call costs that goes well, and what the thread costs that a plain function with a deadline
runs on; microseconds of one call, one after the other.  Ours has everything on - deadline, retry,
budget, breaker, bulkhead; the other sides have what they offer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from bench.measure import Row, Sample, Scale, Sides
from bench.process import run_side
from bench.rows.peers import beside
from tools.peers import peers_python

__all__ = ["ROWS"]

CALLS, HOPS = 100_000, 20_000


def _stamina(count: int) -> Sample:
    return run_side("reference.peer_stamina", peers_python(), count=count)


@contextmanager
def _happy(scale: Scale) -> Iterator[Sides]:
    count = scale.of(CALLS, least=100)
    yield beside(partial(run_side, "ours.call", what="happy", count=count), _stamina, count)


@contextmanager
def _hop(scale: Scale) -> Iterator[Sides]:
    count = scale.of(HOPS, least=100)
    yield Sides(
        ours=partial(run_side, "ours.call", what="hop", count=count),
        reference=partial(run_side, "reference.thread_hop", count=count),
    )


ROWS = (
    Row("call happy path", "us", "stamina.retry on the same async function", _happy, falls=True),
    Row(
        "call thread hop",
        "us",
        "ThreadPoolExecutor.submit(...).result(timeout) of the same plain function",
        _hop,
        falls=True,
    ),
)
