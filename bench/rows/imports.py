"""``import duly`` in a fresh process, beside ``import sqlalchemy``; raw is Python alone."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from statistics import median

from bench.measure import Row, Sample, Scale, Sides
from bench.process import ROOT

__all__ = ["ROWS"]

STARTS = 7


def start(statement: str) -> Sample:
    """Milliseconds of whole processes, the median of some; byte code is there after the first."""
    seconds = []
    for _ in range(STARTS):
        began = time.perf_counter()
        # Its pipes say at once that it is over; without them a wait with a limit looks every 50 ms.
        subprocess.run(
            [sys.executable, "-c", statement],
            cwd=ROOT,
            check=True,
            timeout=60,
            capture_output=True,
        )
        seconds.append(time.perf_counter() - began)
    return Sample(median(seconds) * 1000, {"starts": STARTS})


@contextmanager
def _open(_: Scale) -> Iterator[Sides]:
    for statement in ("import duly", "import sqlalchemy"):
        start(statement)
    yield Sides(
        ours=partial(start, "import duly"),
        reference=partial(start, "import sqlalchemy"),
        raw=partial(start, "pass"),
    )


ROWS = (Row("import duly", "ms", "import sqlalchemy", _open, falls=True),)
