"""The pairs, each as one row: kills at every failpoint of publish, relay, consume and
effects."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tests.crash import report
from tests.crash.cdc_checker import check_cdc
from tests.crash.cdc_loop import CdcLoop
from tests.crash.cdc_sinks_checker import check_sinks
from tests.crash.cdc_sinks_loop import EffectsLoop, SinksLoop
from tests.crash.cdc_sinks_stage import SinksStage, make_sinks_stage
from tests.crash.cdc_stage import (
    CAPTURES,
    CDC_PAIRS,
    EFFECT_PAIRS,
    SINK_PAIRS,
    CdcStage,
    make_cdc_stage,
)
from tests.crash.checker import Verdict, check
from tests.crash.loop import Loop
from tests.crash.nursery import ROOT
from tests.crash.orders import (
    CDC_AND_ON,
    PRODUCTION,
    RANDOM,
    SINKS_AND_ON,
    Lease,
    Orders,
    Tally,
)
from tests.crash.report import Result
from tests.crash.stage import (
    Stage,
    activemq_stage,
    kafka_stage,
    mariadb_stage,
    nats_stage,
    postgres_stage,
    redis_stage,
    sqlite_stage,
)

SOURCE = ROOT / "src"
BATCH_MAX = 50 * (
    4 + 4
)  # four batches in flight, four that wait to be settled: the lane reader's own bound
PAIRS = ("sqlite embedded", "postgres rabbitmq")
FURTHER_PAIRS = (
    "mariadb rabbitmq",
    "mariadb kafka",
    "postgres kafka",
    "postgres nats",
    "postgres redis",
    "postgres activemq",
)  # each with a part of the kills


class ServersMissingError(RuntimeError):
    """A pair needs servers that no variable names."""


@dataclass(frozen=True)
class Place:
    """Where runs are kept. source: where ``duly`` is imported from."""

    folder: Path = ROOT / "build" / "crash"
    source: Path = SOURCE
    quiet: bool = False


def make_stage(pair: str, folder: Path) -> Stage:
    """A fresh stage for a pair. Raises ServersMissingError."""
    for number in range(10_000):
        path = folder / f"{pair.replace(' ', '-')}-{os.getpid()}-{number}"
        if not path.exists():
            break
    if pair == PAIRS[0]:
        return sqlite_stage(path)
    if pair == "mariadb rabbitmq":
        api = os.environ.get("DULY_TEST_RABBITMQ_API", "")
        urls = {"mariadb": _server("MARIADB"), "rabbitmq": _server("RABBITMQ"), "api": api}
        return mariadb_stage(path, **urls)
    if pair.endswith("kafka"):
        database = _server(pair.split()[0].upper())
        return kafka_stage(path, database=database, kafka=_server("KAFKA"))
    if pair == "postgres nats":
        return nats_stage(path, postgres=_server("POSTGRES"), nats=_server("NATS"))
    if pair == "postgres activemq":
        return activemq_stage(path, postgres=_server("POSTGRES"), activemq=_server("ACTIVEMQ"))
    if pair == "postgres redis":
        return redis_stage(path, postgres=_server("POSTGRES"), redis=_server("REDIS"))
    postgres, rabbitmq = os.environ.get("DULY_TEST_POSTGRES"), os.environ.get("DULY_TEST_RABBITMQ")
    if not postgres or not rabbitmq:
        raise ServersMissingError(
            "set DULY_TEST_POSTGRES and DULY_TEST_RABBITMQ, or run: make services"
        )
    api = os.environ.get("DULY_TEST_RABBITMQ_API", "")
    return postgres_stage(path, postgres=postgres, rabbitmq=rabbitmq, api=api)


def _server(name: str) -> str:
    url = os.environ.get(f"DULY_TEST_{name}")
    if not url:
        raise ServersMissingError(f"set DULY_TEST_{name}, or run: make services")
    return url


class Kind(NamedTuple):
    """What a pair is run with."""

    make: Callable[[str, Path], Any]
    loop: Callable[..., Loop]
    judge: Callable[..., Verdict]


def kind_of(pair: str) -> Kind:
    """Messages, or the capture of changes."""
    if pair in SINK_PAIRS:
        return Kind(sinks_stage, SinksLoop, check_sinks)
    if pair in CAPTURES:
        return Kind(cdc_stage, EffectsLoop if pair in EFFECT_PAIRS else CdcLoop, check_cdc)
    return Kind(make_stage, Loop, check)


def cdc_stage(pair: str, folder: Path) -> CdcStage:
    """A fresh stage for a pair of change capture. Raises ServersMissingError."""
    return make_cdc_stage(pair, folder, server=_source_server(pair))


def sinks_stage(pair: str, folder: Path) -> SinksStage:
    """A fresh stage for sinks. Raises ServersMissingError."""
    needed = ("redis",) if "redis" in pair else ("postgres",)
    servers = {form: _server(form.upper()) for form in needed}
    return make_sinks_stage(pair, folder, server=_source_server(pair), servers=servers)


def _source_server(pair: str) -> str:
    source = pair.split()[-1]
    return "" if source == "sqlite" else _server(source.upper())


def has_one_writer(pair: str) -> bool:
    """Whether its database takes one writer at a time, and so gets fewer of them."""
    return pair == PAIRS[0] or (pair in CAPTURES and pair.endswith("sqlite"))


def run_pair(pair: str, orders: Orders, place: Place, *, name: str = "") -> Result:
    """One run of the kill loop on a pair. Never raises for what the run finds."""
    kind = kind_of(pair)
    stage = kind.make(pair, place.folder)
    tally, verdict = Tally(), Verdict()
    loop = None
    try:
        loop = kind.loop(stage, orders, source=place.source, quiet=place.quiet)
        tally = loop.tally
        loop.run()
        verdict = kind.judge(stage, batch_max=BATCH_MAX)
    except Exception as error:  # a run that broke off is a red row, with what it saw until then
        tally.troubles.append(f"broke off: {type(error).__name__}: {error}"[:1500])
        if not place.quiet:
            traceback.print_exc()
        try:
            verdict = kind.judge(stage, batch_max=BATCH_MAX)
        except Exception as second:
            tally.troubles.append(f"could not be judged: {second}"[:300])
    result = report.make(
        name or f"crash {pair}",
        describe(tally, orders, verdict),
        verdict,
        kills=tally.kills.total(),
        lease=orders.lease.ttl,
        seed=orders.seed,
        recoveries=tally.recoveries,
        troubles=tally.troubles,
        seconds=tally.seconds,
    )
    if not place.quiet:
        print(
            f"  kills by point: {dict(sorted(tally.kills.items()))}, "
            f"{tally.uncounted} more with nothing open",
            flush=True,
        )
        print(f"  worst recovery by kind of work, seconds: {tally.worst}", flush=True)
    if not result.clean:
        keep_evidence(stage, result)
    stage.remove(keep_folder=not result.clean)
    return result


def keep_evidence(stage: Stage, result: Result) -> None:
    """Keep tables and journals of a red run."""
    result.problems.append(f"the journals are in {stage.folder}")
    try:
        stage.keep_tables()
    except (
        Exception
    ) as error:  # a server that was killed may be gone for good; the journals are there
        result.problems.append(f"its tables could not be kept: {error}"[:200])


def describe(tally: Tally, orders: Orders, verdict: Verdict) -> str:
    """The faults of a row in words."""
    named = sum(1 for point in tally.kills if point != RANDOM)
    slow, short = len(tally.recoveries), orders.lease
    text = f"SIGKILL at {named} failpoints and {tally.kills[RANDOM]} times at random"
    text += f"; {slow} at a lease of {PRODUCTION.ttl:g} s, "
    text += f"the others at {short.ttl:g} s in forked processes"
    stalls = f"; {verdict.stalls} living processes were too slow to renew" if verdict.stalls else ""
    return text + stalls


def orders_for(pair: str, kills: int, seed: int, *, minutes: float) -> Orders:
    """The usual orders of a pair's row; a database of one writer gets fewer of them."""
    slow = min(20, max(1, kills // 10))
    few = has_one_writer(pair)
    if pair in CAPTURES:
        points = SINKS_AND_ON if pair in SINK_PAIRS else CDC_AND_ON
        return cdc_orders(
            kills, seed, slow_kills=slow, minutes=minutes, writers=1 if few else 2, points=points
        )
    return Orders(
        kills,
        seed,
        slow_kills=slow,
        minutes=minutes,
        workers=2 if few else 3,
        writers=1 if few else 2,
    )


def cdc_orders(kills: int, seed: int, **more: Any) -> Orders:
    """Two readers and a carrier, a writer, and an operator who asks for snapshots."""
    given = {"points": CDC_AND_ON, "workers": 3, "meddle": True, **more}
    return Orders(kills, seed, **given)


__all__ = [
    "BATCH_MAX",
    "CAPTURES",
    "CDC_PAIRS",
    "FURTHER_PAIRS",
    "PAIRS",
    "SOURCE",
    "Lease",
    "Place",
    "ServersMissingError",
    "make_stage",
    "orders_for",
    "run_pair",
]
