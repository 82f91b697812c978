"""Faults that are not kills of a process, each in a row of its own and with a few repetitions.

frozen            a worker stopped beyond its lease and thawed: its late writes change nothing
fenced            the same, stopped exactly between a refusal and storing it
relays N          the kill loop with one, two and four workers
poison            a key whose first message is refused, 10,000 followers: others go on, then it
                  is retried
database killed   PostgreSQL killed and restarted
broker killed     RabbitMQ likewise
connections       cut, half-open and answers lost, on both connections, through a proxy
after commit      nobody is killed: random histories of transactions, and what begins after them
refusals          RabbitMQ's queues are full and refuse: order is kept
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.crash import aftercommit, report
from tests.crash.cdc_stage import CAPTURES, make_cdc_stage
from tests.crash.checker import Verdict
from tests.crash.loop import Loop
from tests.crash.orders import SHORT, Lease, Orders
from tests.crash.pairs import (
    BATCH_MAX,
    PAIRS,
    Place,
    has_one_writer,
    keep_evidence,
    kind_of,
    run_pair,
)
from tests.crash.report import Result
from tests.crash.stage import Stage, ask_rabbitmq, now, postgres_stage

SQLITE, POSTGRES = PAIRS
ROUNDS = 4
FOLLOWERS = 10_000
OTHERS_SECONDS = 8.0
POISON_SETTLE_SECONDS = 360.0  # ten thousand of one key, one at a time
CALM = Lease(2.0, 0.6, 1.2, 2.0)
MINUTES = 4.0
UNFENCED = "a worker without its lease changed a row"
Act = Callable[[Loop], int]


def scenes(seed: int, place: Place) -> dict[str, Callable[[], Result]]:
    """Every row of this module by its name."""
    found: dict[str, Callable[[], Result]] = {
        aftercommit.NAME: partial(aftercommit.after_commit, seed, place)
    }
    for pair in PAIRS:
        for count in (1, 2, 4):
            orders = Orders(
                20,
                seed,
                slow_kills=0,
                workers=count,
                minutes=MINUTES,
                writers=1 if pair == SQLITE else 2,
            )
            name = f"crash {pair} relays {count}"
            found[name] = partial(run_pair, pair, orders, place, name=name)
        found[f"crash {pair} frozen"] = partial(
            scene, pair, "frozen", frozen, place, seed=seed, lease=SHORT
        )
        found[f"crash {pair} poison"] = partial(
            scene, pair, "poison", poison, place, seed=seed, impatient=True,
            settle_seconds=POISON_SETTLE_SECONDS,
        )  # fmt: skip
    for what, act, servers in (
        ("database killed", database_killed, private_database),
        ("broker killed", broker_killed, private_broker),
        ("connections", connections, proxied),
        ("refusals", refusals, usual),
        ("fenced", fenced, usual),
    ):
        found[f"crash {POSTGRES} {what}"] = partial(
            scene, POSTGRES, what, act, place, seed=seed, servers=servers
        )
    return found


def scene(
    pair: str, what: str, act: Act, place: Place, *, seed: int, lease: Lease = CALM,
    servers: Callable[[str, Path], Any] | None = None, impatient: bool = False,
    settle_seconds: float = 120.0,
) -> Result:  # fmt: skip
    """One scene: producer and workers run, ``act`` does its worst, everything settles, the checker
    judges."""
    kind = kind_of(pair)
    orders = Orders(
        0, seed, slow_kills=0, lease=lease, writers=1 if has_one_writer(pair) else 2,
        settle_seconds=settle_seconds, meddle=pair in CAPTURES,
    )  # fmt: skip
    name = f"crash {pair} {what}"
    with (servers or usual)(pair, place.folder) as stage:
        verdict, faults, began = Verdict(), 0, now()
        loop = kind.loop(stage, orders, source=place.source, quiet=place.quiet)
        loop.config["impatient"] = impatient
        try:
            with loop.prepared():
                faults = act(loop)
                loop.finish()
            verdict = kind.judge(stage, batch_max=BATCH_MAX)
        except Exception as error:  # a scene that broke off is a red row
            loop.tally.troubles.append(f"broke off: {type(error).__name__}: {error}"[:1500])
        finally:
            loop.close()
        result = report.make(
            name, f"{faults} x {what}", verdict, kills=faults, lease=lease.ttl, seed=seed,
            troubles=loop.tally.troubles, bounded=False, seconds=now() - began,
        )  # fmt: skip
        if not result.clean:
            keep_evidence(stage, result)
        stage.remove(keep_folder=not result.clean)
    return result


# --- stages -------------------------------------------------------------------------------------
@contextmanager
def usual(pair: str, folder: Path) -> Iterator[Stage]:
    """The usual servers."""
    yield kind_of(pair).make(pair, folder)


def _servers(folder: Path, what: str, **urls: str) -> Stage:
    given = {
        "postgres": os.environ["DULY_TEST_POSTGRES"],
        "rabbitmq": os.environ["DULY_TEST_RABBITMQ"],
        "api": os.environ.get("DULY_TEST_RABBITMQ_API", ""),
    }
    return postgres_stage(folder / f"{what}-{os.getpid()}-{int(now() * 1000)}", **{**given, **urls})


@contextmanager
def private_database(pair: str, folder: Path) -> Iterator[Stage]:
    """A PostgreSQL to be killed."""
    from tools.services import start_private_postgres

    with start_private_postgres() as server:
        if pair in CAPTURES:
            stage: Stage = make_cdc_stage(pair, folder, server=server.url)
        else:
            stage = _servers(folder, "database", postgres=server.url)
        stage.server = server
        yield stage


@contextmanager
def private_broker(pair: str, folder: Path) -> Iterator[Stage]:
    """A RabbitMQ to be killed."""
    from tools.services import start_private_rabbitmq

    with start_private_rabbitmq() as server:
        api = server.environment.get("DULY_TEST_RABBITMQ_API", "")
        stage = _servers(folder, "broker", rabbitmq=server.url, api=api)
        stage.server = server
        yield stage
        stage.vhost = ""  # it goes with its server


@contextmanager
def proxied(pair: str, folder: Path) -> Iterator[Stage]:
    """The usual servers behind proxies; the checker goes past them."""
    from duly.testing.fault_proxy import FaultProxy

    stage = kind_of(pair).make(pair, folder)
    with ExitStack() as stack:
        for peer, url in (("database", stage.database), ("broker", stage.broker)):
            parts = urlsplit(url)
            if not parts.port:
                continue  # a file
            proxy = stack.enter_context(FaultProxy(parts.hostname or "", parts.port or 0))
            login = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
            stage.through[peer] = parts._replace(netloc=f"{login}127.0.0.1:{proxy.port}").geturl()
            stage.proxies[peer] = proxy
        yield stage


# --- acts ---------------------------------------------------------------------------------------
def frozen(loop: Loop) -> int:
    """Freeze one of two workers beyond its lease, thaw it, several times over."""
    workers = [loop.worker(), loop.worker()]
    loop.hold(1.0)
    for n in range(ROUNDS):
        victim = workers[n % 2]
        loop.nursery.signal(victim.pid, signal.SIGSTOP)
        done = loop.stage.broker_positions()
        loop.note(
            "fault",
            n=n,
            point="frozen",
            unsettled=[],
            role="worker",
            done=done,
            pid=victim.pid,
        )
        loop.hold(loop.orders.lease.ttl * 3.5)
        loop.nursery.signal(victim.pid, signal.SIGCONT)
        loop.hold(1.5)
    for worker in workers:
        loop.stop(worker)
    return ROUNDS


def fenced(loop: Loop) -> int:
    """Freeze a relay that was refused a message, before it stores that; the next owner stores its
    own refusal, with a long back-off; thawed, the first one must leave that row alone."""
    loop.set_pace(9.0)
    loop.run_once("poisoner", followers=0)
    victim = loop.start_worker(roles=["relay"], slow=True, plan="relay.failure_not_stored@1=stop")
    until(
        loop,
        lambda: is_stopped(victim.pid),
        "the refused relay has stopped",
        seconds=30,
        pace=False,
    )
    done = loop.stage.broker_positions()
    loop.note("fault", n=0, point="fenced", unsettled=[], role="worker", done=done, pid=victim.pid)
    after = loop.start_worker(roles=["relay"], slow=True)
    sql = "SELECT id, status, attempts, due_at, last_error FROM duly_outbox WHERE status = 'retry'"
    until(
        loop,
        lambda: bool(loop.stage.rows(sql)),
        "its successor was refused too",
        seconds=30,
        pace=False,
    )
    stored = loop.stage.rows(sql)
    loop.nursery.signal(victim.pid, signal.SIGCONT)
    for _ in range(30):
        loop.hold(0.1, pace=False)
        if (now_stored := loop.stage.rows(sql)) != stored:
            loop.tally.troubles.append(f"{UNFENCED}: {stored}, then {now_stored}")
            break
    (loop.stage.folder / "healed").touch()
    loop.stage.rows("UPDATE duly_outbox SET due_at = created_at WHERE status = 'retry'")
    for worker in (victim, after):
        loop.stop(worker)
    return 1


def is_stopped(pid: int) -> bool:
    """Whether a process is frozen by a signal."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def poison(loop: Loop) -> int:
    """A refused message blocks its key and nobody else; retried by an operator, its followers
    follow."""
    worker = loop.worker()
    loop.run_once("poisoner", followers=FOLLOWERS)
    blocked = "SELECT id FROM duly_outbox WHERE status = 'failed'"
    until(
        loop, lambda: bool(loop.stage.rows(blocked)), "the refused message has failed", seconds=60
    )
    held = "SELECT count(*) FROM duly_outbox WHERE status = 'held'"
    until(loop, lambda: loop.stage.number(held) == FOLLOWERS, "its followers are held", seconds=90)
    others = "SELECT count(*) FROM crash_effect"
    before = loop.stage.number(others)
    loop.set_pace(0.02)
    loop.hold(OTHERS_SECONDS, pace=False)
    if loop.stage.number(others) - before < 100:
        loop.tally.troubles.append(
            f"others made {loop.stage.number(others) - before} effects in {OTHERS_SECONDS:g} s"
        )
    (loop.stage.folder / "healed").touch()
    loop.run_once("poisoner", retry=loop.stage.number(blocked))
    loop.stop(worker)
    return 1


def database_killed(loop: Loop) -> int:
    """Kill PostgreSQL and start it again, while everything runs."""
    return _outages(loop, rounds=3)


def broker_killed(loop: Loop) -> int:
    """Kill RabbitMQ and start it again."""
    return _outages(loop, rounds=2)


def _outages(loop: Loop, *, rounds: int) -> int:
    workers = [loop.worker(), loop.worker()]
    server = loop.stage.server
    for _ in range(rounds):
        loop.hold(2.0)
        begin = now()
        loop.stage.forget()
        server.kill()
        loop.hold(0.5, pace=False)
        server.start()
        loop.hold(0.5, pace=False)
        loop.note("outage", begin=begin, end=now())
        loop.hold(3.0)
    for worker in workers:
        loop.stop(worker)
    return rounds


def connections(loop: Loop) -> int:
    """Cut, half-open, answers lost: on each connection in turn."""
    from duly.testing.fault_proxy import DROP_REPLIES, PASS, SILENT

    workers = [loop.worker(), loop.worker()]
    count = 0
    for proxy in loop.stage.proxies.values():
        for fault, seconds in ((None, 0.2), (SILENT, 2.5), (DROP_REPLIES, 2.5)):
            loop.hold(1.5)
            begin = now()
            if fault is None:
                proxy.cut()
            else:
                proxy.set(fault)
            loop.hold(seconds)
            proxy.set(PASS)
            loop.note("outage", begin=begin, end=now())
            count += 1
            loop.hold(2.0)
    for worker in workers:
        loop.stop(worker)
    return count


def refusals(loop: Loop) -> int:
    """The queues are bounded and nobody reads them for a while: RabbitMQ refuses, and then takes
    again."""
    stage = loop.stage
    policy = {
        "pattern": "^(ordered|free):",
        "apply-to": "queues",
        "definition": {"max-length": 30, "overflow": "reject-publish"},
    }
    place = f"/api/policies/{stage.vhost}/full"
    ask_rabbitmq(stage.api, "PUT", place, json.dumps(policy).encode())
    relay = loop.worker(roles=["relay"])
    loop.hold(6.0)
    refused = sum(
        "refused" in f["odd"].values() for f in stage.facts("worker-*") if f["what"] == "answer"
    )
    if not refused:
        loop.tally.troubles.append("RabbitMQ refused nothing: the scene proves nothing")
    both = loop.worker()
    loop.hold(6.0)
    ask_rabbitmq(stage.api, "DELETE", place)
    loop.stop(relay)
    loop.stop(both)
    return refused


def until(
    loop: Loop, done: Callable[[], bool], what: str, *, seconds: float, pace: bool = True
) -> None:
    """Hold until something is so. Raises TimeoutError."""
    end = now() + seconds
    while not done():
        if now() > end:
            raise TimeoutError(f"not within {seconds:g} s: {what}")
        loop.hold(0.1, pace=pace)
