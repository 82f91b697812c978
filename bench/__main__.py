"""``python -m bench``: measure the rows, print them, write ``build/bench.json``.

Read from the environment: ONLY a part of row names; REPEATS of each row, by default 5, or fewer
where 5 would take a row beyond its share of the 25 minutes; STRICT=1
makes a row that is short of its aim an error; SCALE less than 1 tries the harness with a smaller
load; OUT another place for the result. Exit code 1 when a row could not be produced.
"""

from __future__ import annotations

import math
import os
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from bench.aims import Aim, read_aims
from bench.measure import REPEATS, Measured, Scale, measure
from bench.report import entry, table, write
from bench.rows import ROWS
from tools.services import load_environment

BUDGET_SECONDS = 25 * 60


def main(arguments: list[str]) -> int:
    """Measure what was asked for; 0 when every row was produced."""
    if arguments:
        print(__doc__)
        return 0 if arguments in (["-h"], ["--help"]) else 2
    load_environment()
    only, aims = os.environ.get("ONLY", ""), read_aims()
    asked = int(os.environ.get("REPEATS") or 0)
    scale = Scale(float(os.environ.get("SCALE") or 1.0))
    chosen = [row for row in ROWS if only in row.name]
    if not chosen:
        print(f"no row has {only!r} in its name: {', '.join(row.name for row in ROWS)}")
        return 2
    began, done, missing = time.monotonic(), [], []
    for place, row in enumerate(chosen):
        left = began + BUDGET_SECONDS - time.monotonic()
        if left < 0:
            missing.append(
                f"{row.name}: the budget of {BUDGET_SECONDS / 60:.0f} minutes is used up"
            )
            continue
        measuring = partial(
            measure,
            row,
            repeats=asked or REPEATS,
            scale=scale,
            seconds=math.inf if asked else left / (len(chosen) - place),
        )
        found = _measured(measuring, row.name, aims.get(row.name, Aim()))
        if isinstance(found, str):
            missing.append(found)
        else:
            done.append(found)
    if scale.factor != 1.0:
        print(f"scaled by {scale.factor:g}: this shows that the harness works, and no more")
    print(table(done))
    for line in missing:
        print(f"MISSING {line}")
    write(done, Path(os.environ.get("OUT") or "build/bench.json"))
    shorts = [row["name"] for row in done if row["verdict"] == "short"]
    strict = os.environ.get("STRICT") == "1"
    return int(bool(missing or any(row["void"] for row in done) or (strict and shorts)))


def _measured(measuring: Callable[..., Measured], name: str, aim: Aim) -> dict[str, Any] | str:
    began = time.monotonic()
    try:
        found = measuring(told=lambda line: print(line, flush=True))
    except Exception as error:  # noqa: BLE001  # the other rows are worth their time
        traceback.print_exc()
        return f"{name}: {type(error).__name__}: {error}"
    print(f"{name}  took {time.monotonic() - began:.0f} s", flush=True)
    return entry(found, aim)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
