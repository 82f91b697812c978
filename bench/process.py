"""One side in a process of its own: arguments go in as JSON, the last line it prints comes back.

Invariant: a side that hangs is killed at its deadline, and one that fails tells why; nothing of a
side is measured in the process of the harness.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.measure import Sample

__all__ = ["ROOT", "SIDE_SECONDS", "run_side"]

ROOT = Path(__file__).resolve().parents[1]
SIDE_SECONDS = 180.0


def run_side(module: str, python: Path | str = sys.executable, /, **arguments: Any) -> Sample:
    """Run ``python -m bench.MODULE`` with arguments; its last line is {"figure": ..., facts ...}.

    python: another one, where a side needs packages that are not ours. Raises RuntimeError with
    what it said when it failed, subprocess.TimeoutExpired.
    """
    done = subprocess.run(
        [str(python), "-m", f"bench.{module}", json.dumps(arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=SIDE_SECONDS,
        check=False,
    )
    lines = done.stdout.splitlines()
    if done.returncode != 0 or not lines:
        raise RuntimeError(f"bench.{module} ended with {done.returncode}: {done.stderr[-2000:]}")
    answer = json.loads(lines[-1])
    return Sample(answer.pop("figure"), answer)
