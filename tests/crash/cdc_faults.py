"""Faults of change data capture that are no kills, each in a row of its own.

frozen             a reader stopped beyond its lease where it has something in hand, and thawed when
                   another one has gone on: nothing of what it had is stored
database killed    PostgreSQL killed and restarted, with its slot
connections        cut, half-open and answers lost, on every connection to the source
triggers dropped   a table of SQLite is rebuilt and changed behind our back: the stream stops and
                   says so, and a snapshot mends it
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import closing
from functools import partial

from tests.crash.cdc_loop import CARRIES, CdcLoop
from tests.crash.cdc_sinks_loop import SinksLoop
from tests.crash.cdc_stage import CAPTURES, CDC_POSTGRES, CDC_SQLITE
from tests.crash.faults import (
    connections,
    database_killed,
    is_stopped,
    private_database,
    proxied,
    scene,
    until,
)
from tests.crash.loop import Child, Loop
from tests.crash.orders import SHORT
from tests.crash.pairs import Place
from tests.crash.report import Result
from tests.crash.stage import now

FREEZE_POINTS = ("cdc.read", "cdc.chunk_read", "cdc.stored_not_confirmed", "cdc.chunk_marked")
FREEZE_TRIES = 5
SINK_FREEZE_POINTS = (
    "cdc.read",
    "cdc.chunk_read",
    "sink.applied_not_stored",
    "cdc.stored_not_confirmed",
)
LOCKING_POINTS = ("cdc.written_not_committed",)  # the server ends its transaction after a while
UNNOTICED = "lost: triggers were dropped, and nobody noticed"
LOST = "CDC_TRIGGERS"
WAIT_SECONDS = 90.0


def cdc_scenes(seed: int, place: Place) -> dict[str, Callable[[], Result]]:
    """Every row of this module by its name."""
    found: dict[str, Callable[[], Result]] = {}
    for pair in CAPTURES:
        found[f"crash {pair} frozen"] = partial(
            scene, pair, "frozen", frozen, place, seed=seed, lease=SHORT
        )
    for what, act, servers in (
        ("database killed", database_killed, private_database),
        ("connections", connections, proxied),
    ):
        found[f"crash {CDC_POSTGRES} {what}"] = partial(
            scene, CDC_POSTGRES, what, act, place, seed=seed, servers=servers
        )
    found[f"crash {CDC_SQLITE} triggers dropped"] = partial(
        scene, CDC_SQLITE, "triggers dropped", triggers_dropped, place, seed=seed
    )
    return found


def frozen(loop: Loop) -> int:
    """Freeze a reader with something in hand, let another one go on, thaw the first."""
    assert isinstance(loop, CdcLoop)
    carrier = loop.worker(roles=CARRIES)
    points = FREEZE_POINTS + (LOCKING_POINTS if loop.stage.dialect == "postgres" else ())
    if isinstance(loop, SinksLoop):
        points = SINK_FREEZE_POINTS + (() if loop.stage.tables else ("sink.written_not_committed",))
    for number, point in enumerate(points):
        victim = _frozen_at(loop, f"{point}@{3 + number}=stop")
        loop.note("fault", n=number, point="frozen", unsettled=[], role="worker", done={},
                  pid=victim.pid)  # fmt: skip
        heir = loop.worker(roles=["cdc"])
        here = loop.stage.offset()[0]
        until(
            loop,
            lambda: loop.stage.offset()[0] > here,  # noqa: B023  # asked before the next round
            "another one went on",
            seconds=WAIT_SECONDS,
        )
        loop.hold(0.5)
        loop.nursery.signal(victim.pid, signal.SIGCONT)
        loop.hold(2.0)
        for reader in (victim, heir):
            loop.stop(reader)
    loop.stop(carrier)
    return len(points)


def _frozen_at(loop: CdcLoop, plan: str) -> Child:
    """A reader that has stopped at a point and leaves the others the file."""
    for _ in range(FREEZE_TRIES):
        victim = loop.start_worker(roles=["cdc"], plan=plan)
        until(
            loop,
            lambda pid=victim.pid: is_stopped(pid),  # type: ignore[misc]
            f"the reader has stopped: {plan}",
            seconds=WAIT_SECONDS,
        )
        if loop.stage.can_write():
            return victim
        # Another thread of it has the one lock of the file: nobody writes, nothing goes on.
        loop.nursery.signal(victim.pid, signal.SIGCONT)
        loop.stop(victim)
    raise TimeoutError(f"every reader held the file when it was stopped: {plan}")


def triggers_dropped(loop: Loop) -> int:
    """Drop the triggers of a table and change it while nobody sees."""
    assert isinstance(loop, CdcLoop)
    loop.expected_stops = frozenset({LOST})
    worker = loop.worker()
    loop.hold(3.0)
    loop.set_pace(9.0)
    until(loop, lambda: not loop.unfinished(), "all is told", seconds=WAIT_SECONDS, pace=False)
    loop.hold(0.5, pace=False)  # whatever was begun before the pace was seen
    until(loop, lambda: not loop.unfinished(), "all is told", seconds=WAIT_SECONDS, pace=False)
    with closing(loop.stage.connect()) as plain:
        _change_unseen(plain)
    end = now() + WAIT_SECONDS
    while not any(f["what"] == "stopped" for f in loop.stage.facts(f"worker-{worker.pid}")):
        if now() > end:
            loop.tally.troubles.append(UNNOTICED)
            break
        loop.hold(0.1, pace=False)
    loop.run_once("meddler", ask="item")
    seen = 'SELECT count(*) FROM cdc_effect WHERE body LIKE \'%"key": "100000"%\''
    until(
        loop,
        lambda: bool(loop.stage.number(seen)),
        "the snapshot told what nobody saw",
        seconds=WAIT_SECONDS,
        pace=False,
    )
    loop.hold(2.0)
    loop.stop(worker)
    return 1


def _change_unseen(plain: object) -> None:
    run = plain.execute  # type: ignore[attr-defined]
    run("BEGIN IMMEDIATE")
    names = run("SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'item'")
    for (name,) in names.fetchall():
        run(f'DROP TRIGGER "{name}"')
    last = run("SELECT max(seq) FROM duly_change").fetchone()[0]
    run("INSERT INTO item (id, v, note) VALUES (100000, 77, 'unseen')")
    run(
        "INSERT INTO cdc_history (tbl, op, key, old, new, txn) "
        "VALUES ('item', 'gap', '100000', ?, 77, 'gap')",
        (last,),
    )
    run("COMMIT")
