"""``python -m bench``: measure the rows, print them, write ``build/bench.json``.

Read from the environment: ONLY a part of row names; REPEATS of each row, 5 by default; STRICT=1
makes a row that is short of its aim an error; SCALE less than 1 tries the harness with a smaller
load; OUT another place for the result. Exit code 1 when a row could not be produced.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from bench.aims import Aim, read_aims
from bench.measure import REPEATS, Row, Scale, measure
from bench.report import entry, table, write
from bench.rows import ROWS
from tools.services import load_environment

BUDGET_SECONDS = 25 * 60


def main() -> int:
    """Measure what was asked for; 0 when every row was produced."""
    load_environment()
    only, aims = os.environ.get("ONLY", ""), read_aims()
    repeats = int(os.environ.get("REPEATS") or REPEATS)
    scale = Scale(float(os.environ.get("SCALE") or 1.0))
    chosen = [row for row in ROWS if only in row.name]
    if not chosen:
        print(f"no row has {only!r} in its name: {', '.join(row.name for row in ROWS)}")
        return 2
    began, done, missing = time.monotonic(), [], []
    for row in chosen:
        if time.monotonic() - began > BUDGET_SECONDS:
            missing.append(
                f"{row.name}: the budget of {BUDGET_SECONDS / 60:.0f} minutes is used up"
            )
            continue
        found = _measured(row, aims.get(row.name, Aim()), repeats=repeats, scale=scale)
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


def _measured(row: Row, aim: Aim, *, repeats: int, scale: Scale) -> dict[str, Any] | str:
    began = time.monotonic()
    try:
        found = measure(
            row, repeats=repeats, scale=scale, told=lambda line: print(line, flush=True)
        )
    except Exception as error:  # noqa: BLE001  # the other rows are worth their time
        traceback.print_exc()
        return f"{row.name}: {type(error).__name__}: {error}"
    print(f"{row.name}  took {time.monotonic() - began:.0f} s", flush=True)
    return entry(found, aim)


if __name__ == "__main__":
    sys.exit(main())
