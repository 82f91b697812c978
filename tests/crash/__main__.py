"""``make crash``: every row, a table, ``build/crash.json``, exit 1 when anything does not add up.

Options, each also as an environment variable: KILLS per pair, ONLY rows with this word, SEED,
MINUTES per row, PLANTED=1 for the planted bugs instead (each must turn a run red),
HISTORIES of the row 'after commit', where nobody is killed."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.crash import batch, batch_cell, defer, gtx, planted, report
from tests.crash.nursery import ROOT
from tests.crash.pairs import (
    CAPTURES,
    CDC_PAIRS,
    FURTHER_PAIRS,
    PAIRS,
    Place,
    ServersMissingError,
    orders_for,
    run_pair,
)
from tests.crash.report import Result

MINUTES = {PAIRS[0]: 15.0, PAIRS[1]: 25.0, "postgres kafka": 20.0, "mariadb kafka": 60.0}
MINUTES |= dict.fromkeys(CDC_PAIRS, 40.0)
FURTHER_MINUTES, FURTHER_PART = 10.0, 5  # a fifth of the kills
WHOLE = (*PAIRS, "mariadb kafka", *CDC_PAIRS)  # all of them: each database with one broker


def options(arguments: list[str]) -> argparse.Namespace:
    """What was asked for; a flag before its variable."""
    env = os.environ.get
    parser = argparse.ArgumentParser(prog="make crash", description=__doc__)
    parser.add_argument("--kills", type=int, default=int(env("KILLS") or 1000))
    parser.add_argument("--only", default=env("ONLY") or "")
    parser.add_argument("--seed", type=int, default=int(env("SEED") or time.time_ns() % 10**6))
    parser.add_argument("--minutes", type=float, default=float(env("MINUTES") or 0))
    parser.add_argument("--source", type=Path, default=ROOT / "src", help="where duly is, to judge")
    parser.add_argument("--planted", action="store_true", default=env("PLANTED") == "1")
    return parser.parse_args(arguments)


def rows(given: argparse.Namespace, place: Place) -> dict[str, Callable[[], Result]]:
    """Every row by its name."""
    found: dict[str, Callable[[], Result]] = {}
    for pair in (*PAIRS, *FURTHER_PAIRS, *CAPTURES):
        minutes = given.minutes or MINUTES.get(pair, FURTHER_MINUTES)
        kills = given.kills if pair in WHOLE else max(1, given.kills // FURTHER_PART)
        orders = orders_for(pair, kills, given.seed, minutes=minutes)
        found[f"crash {pair}"] = lambda pair=pair, orders=orders: run_pair(pair, orders, place)  # type: ignore[misc]
    half = gtx.scenes(given.seed, place, kills=max(1, given.kills // 2), minutes=given.minutes)
    whole = defer.defer_rows(given.kills, given.seed, place, minutes=given.minutes or defer.MINUTES)
    files = batch.scenes(given.seed, place, kills=given.kills)
    files[batch_cell.NAME] = lambda: batch_cell.run(place, seed=given.seed)
    return found | planted.every_scene(given.seed, place) | half | whole | files


def main(arguments: list[str]) -> int:
    """Read the options and run; the exit code."""
    given = options(arguments)
    folder = ROOT / "build" / "crash"
    source = (
        folder / f"src-{os.getpid()}"
    )  # a copy: what is edited meanwhile is not half in the run
    shutil.copytree(given.source, source, ignore=shutil.ignore_patterns("__pycache__"))
    try:
        return run(given, Place(folder, source))
    finally:
        shutil.rmtree(source, ignore_errors=True)  # nothing in it is evidence


def run(given: argparse.Namespace, place: Place) -> int:
    """Run what was asked for; 0 when all is clean."""
    if given.planted:
        return planted_bugs(given, place)
    every = rows(given, place)
    exact = {name: row for name, row in every.items() if given.only == name}
    chosen = exact or {name: row for name, row in every.items() if given.only in name}
    if not chosen:
        print(f"no row has {given.only!r} in its name", file=sys.stderr)
        return 2
    results = []
    for name, row in chosen.items():
        print(f"{name}  (seed {given.seed})", flush=True)
        try:
            result = row()
        except ServersMissingError as error:
            print(f"  {error}", file=sys.stderr)
            return 1
        results.append(result)
        report.write(ROOT / "build" / "crash.json", results)  # each as it ends: runs are long
        for problem in result.problems:
            print(f"  WRONG {problem}", flush=True)
        if not result.clean:
            print(f"  again: {report.replay(result.row)}", flush=True)
    print("\n" + report.table(results), flush=True)
    for result in results:
        print(f"{result.row.name}: {result.row.faults}; {result.seconds:.0f} s")
    return 0 if all(result.clean for result in results) else 1


def planted_bugs(given: argparse.Namespace, place: Place) -> int:
    """Every planted bug must be caught, and the same run without one be clean; 0 when so."""
    bugs = [bug for bug in planted.BUGS if given.only in bug.name or given.only in bug.pair]
    missed = 0
    for result in planted.controls(bugs, given.seed, place):
        missed += not result.clean
        print(
            f"{'clean' if result.clean else 'RED':6} no bug, {result.row.name} "
            f"({result.seconds:.0f} s)",
            flush=True,
        )
        for problem in result.problems:
            print(f"         {problem[:300]}", flush=True)
    caught = 0
    for bug in bugs:
        try:
            result, by = planted.run_bug(bug, place, seed=given.seed)
        except ValueError as error:  # the source has changed: the patch must follow it
            print(f"MISSED {error}", flush=True)
            continue
        caught += bool(by)
        print(
            f"{'caught' if by else 'MISSED'} {bug.name}, {bug.pair} ({result.seconds:.0f} s): "
            f"{by[:200]}",
            flush=True,
        )
        if not by:
            for problem in result.problems:
                print(f"         {problem[:300]}", flush=True)
            print(f"       again: {report.replay(result.row, planted=bug.name)}", flush=True)
    print(f"{caught} of {len(bugs)} planted bugs caught")
    return 0 if caught == len(bugs) and bugs and not missed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
