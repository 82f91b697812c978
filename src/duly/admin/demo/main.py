"""``duly demo``: the main job on real data, from a shell.

Owns the wiring, the exit status and the words at the end: 0 when everything adds up, 1 when
anything does not or the demo could not go on, 130 after Ctrl-C.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

from duly.admin.demo.children import DemoError
from duly.admin.demo.data import FLIGHTS_LEAST, load
from duly.admin.demo.driver import Course, Driver
from duly.admin.demo.folder import BROKER_FILE, DATABASE_FILE, FOLDER, own_folder
from duly.admin.demo.gateway import GatewayServer
from duly.admin.demo.ground import (
    BROKERS,
    DATABASES,
    clean_broker,
    clean_database,
    plain_engine,
    scheme_of,
)
from duly.admin.demo.meter import Meter
from duly.admin.demo.reconcile import Check, Evidence, percentiles, reconcile
from duly.admin.demo.screen import PlainScreen, Screen, open_screen
from duly.admin.demo.setup import Setup
from duly.errors import ConfigurationError, DulyError

__all__ = ["FLIGHTS_DEFAULT", "Options", "demo", "demonstrate", "main"]

FLIGHTS_DEFAULT = 3_000
_SEED_MOST = 10_000
_STOPPED = 130


class Options(NamedTuple):
    """What was asked for. flights: None for the whole year. database, broker: URLs, empty for the
    files in ``./duly-demo``.
    """

    seed: int
    flights: int | None = FLIGHTS_DEFAULT
    as_json: bool = False
    database: str = ""
    broker: str = ""


@click.command(name="demo")
@click.option("--all", "everything", is_flag=True, help="The whole year: 336,776 flights.")
@click.option(
    "--flights",
    type=click.IntRange(min=FLIGHTS_LEAST),
    default=FLIGHTS_DEFAULT,
    show_default=True,
    help="How many, from a week of thunderstorms on.",
)
@click.option("--database", default="", help="URL of a database server; default SQLite.")
@click.option("--broker", default="", help="URL of a broker; default the embedded one.")
@click.option("--seed", type=int, help="What is left to chance: the same seed chooses the same.")
@click.option("--json", "as_json", is_flag=True, help="One object at the end.")
def demo(
    *,
    everything: bool,
    flights: int,
    database: str,
    broker: str,
    seed: int | None,
    as_json: bool,
) -> int:
    """Run the main job on real flights, kill the worker twice, and see whether it adds up.

    Writes only into ./duly-demo, and into tables and queues named after the demo.
    """
    chosen = random.randrange(_SEED_MOST) if seed is None else seed
    return demonstrate(
        Options(chosen, None if everything else flights, as_json, database=database, broker=broker)
    )


def main(arguments: Sequence[str]) -> int:
    """``duly demo`` with its arguments; returns the exit status. Raises click.ClickException."""
    status = demo.main(list(arguments), prog_name="duly demo", standalone_mode=False)
    return status if isinstance(status, int) else 0


def demonstrate(options: Options) -> int:
    """Run the demo in ``./duly-demo`` and show it; returns the exit status.

    As JSON, one object is all that is written to standard output; progress goes to standard error.
    """
    screen: Screen = PlainScreen(sys.stderr) if options.as_json else open_screen(sys.stdout)
    try:
        report = _run(screen, options)
    except (DulyError, DemoError) as error:
        report = {"adds_up": False, "error": str(error)}
        screen.close()
        print(f"duly demo: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        screen.close()
        print("duly demo: stopped, and its processes with it", file=sys.stderr)
        return _STOPPED
    finally:
        screen.close()
    if options.as_json:
        print(json.dumps(report))
    return 0 if report["adds_up"] else 1


class _Stack(NamedTuple):
    """Where tables and messages are. seen, told: the database as this process and as the children,
    which live in the folder, reach it.
    """

    seen: str
    told: str
    broker: str
    embedded: bool

    def __str__(self) -> str:
        database = DATABASES.get(scheme_of(self.seen), "SQLite")
        return f"{database} + {BROKERS.get(scheme_of(self.broker), 'embedded broker')}"


def _stack_of(options: Options) -> _Stack:
    database, broker = options.database, options.broker
    if database and scheme_of(database) not in DATABASES:
        known = ", ".join(f"{scheme}://" for scheme in DATABASES)
        raise ConfigurationError(f"--database takes the URL of a server: {known}")
    if broker and scheme_of(broker) not in BROKERS:
        known = ", ".join(f"{scheme}://" for scheme in BROKERS)
        raise ConfigurationError(f"--broker takes the URL of a server: {known}")
    return _Stack(
        seen=database or f"sqlite:///{FOLDER}/{DATABASE_FILE}",
        told=database or f"sqlite:///{DATABASE_FILE}",
        broker=broker or f"embedded:///{BROKER_FILE}",
        embedded=not database and not broker,
    )


def _run(screen: Screen, options: Options) -> dict[str, Any]:
    stack = _stack_of(options)
    flights = load(options.flights)
    with own_folder(Path.cwd(), embedded=stack.embedded) as folder:
        screen.title(
            f"{len(flights):,} real departures from New York, {flights[0].day} to "
            f"{flights[-1].day}, on {stack} (seed {options.seed})"
        )
        clean_broker(stack.broker)
        clean_database(stack.seen, broker=stack.broker)
        engine = plain_engine(stack.seen)
        try:
            with GatewayServer() as gateway, Meter(engine) as meter:
                setup = Setup(
                    database=stack.told,
                    broker=stack.broker,
                    gateway_port=gateway.port,
                    seed=options.seed,
                    flights=options.flights,
                    total=len(flights),
                )
                with Driver(setup, flights=flights, folder=folder, gateway=gateway) as driver:
                    course = driver.run(meter, screen)
            clean_broker(stack.broker)
            evidence = Evidence(gateway.record(), course.undone, course.kills)
            checks = reconcile(engine, flights, evidence)
            latency = percentiles(engine, since=course.live_since)
        finally:
            engine.dispose()
    report = {"seed": options.seed, "flights": len(flights), "stack": str(stack)}
    report |= _report(course, checks, latency=latency)
    screen.verdict(checks, _words(report, embedded=stack.embedded))
    return report


def _report(
    course: Course, checks: Sequence[Check], *, latency: tuple[float, float] | None
) -> dict[str, Any]:
    p50, p99 = latency or (None, None)
    return {
        "adds_up": all(check.right for check in checks),
        "checks": [check._asdict() for check in checks],
        "kills": [kill._asdict() for kill in course.kills],
        "transactions": course.transactions,
        "transactions_rolled_back": course.rolled_back,
        "savepoints_rolled_back": course.savepoints,
        "flights_per_second": round(course.flights_per_second, 1),
        "messages_handled": course.messages,
        "messages_per_second": round(course.messages_per_second, 1),
        "latency_p50_seconds": p50,
        "latency_p99_seconds": p99,
    }


def _words(report: dict[str, Any], *, embedded: bool) -> Iterator[str]:
    wrong = sum(not check["right"] for check in report["checks"])
    yield ""
    if wrong:
        yield f"It does not add up: {wrong} of {len(report['checks'])} lines are wrong."
    else:
        yield "It adds up: nothing lost, nothing twice."
    yield (
        f"  {report['flights_per_second']:,.0f} flights/s written in "
        f"{report['transactions']:,} transactions; {report['transactions_rolled_back']:,} "
        f"transactions and {report['savepoints_rolled_back']:,} savepoints rolled back on purpose"
    )
    yield (
        f"  {report['messages_handled']:,} messages handled, {report['messages_per_second']:,.0f} "
        "a second with both kills"
    )
    if report["latency_p50_seconds"] is not None:
        p50, p99 = (report[f"latency_{p}_seconds"] * 1000 for p in ("p50", "p99"))
        yield f"  from a flight's commit to its handler: {p50:.0f} ms (p50), {p99:.0f} ms (p99)"
    times = [kill["recovered_seconds"] for kill in report["kills"]]
    shown = " and ".join("never" if t is None else f"{t:.1f} s" for t in times)
    yield f"  all groups went on again after the kills: {shown} (the lease is 5 s)"
    yield ""
    yield "What to look at next:"
    yield f"  the consumers, 100 lines:      {Path(__file__).with_name('handlers.py')}"
    if embedded:
        yield f"  what was handled, by group:     cd {FOLDER} && duly inbox stats"
    else:
        yield "  the same without servers:      duly demo"
    yield "  a service of your own:         duly init my-service"
