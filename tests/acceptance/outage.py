"""``make outage``: system A commits while the broker is away for a minute, and slow after it.

A (a process that publishes and relays, on PostgreSQL), RabbitMQ behind a proxy, and B (a process
that consumes, on a database of its own). Each round has four windows: the broker is there, is
killed, is back and slow, and the backlog drains. A commits at a steady pace through all of them.
Shown per round: the median time of a commit in each window against the first one; at the end:
orders lost or handled twice. Exit 1 when the median over the rounds is off by more than 15 %, or
anything is lost, doubled or left behind.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import NamedTuple
from urllib.parse import urlsplit
from uuid import uuid4

import sqlalchemy as sa

from duly.testing.fault_proxy import PASS, Fault, FaultProxy
from tests.acceptance.shop_app import ROOT, Shop, child
from tools.services import PrivateServer, load_environment, start_private_rabbitmq

SLOW = Fault(delay_seconds=0.05, bytes_per_second=100_000)
OFF_MOST = 0.15
DRAIN_SECONDS = 120
PACE_SECONDS = 0.02

A = """
import asyncio, json, time
def commit(until, n):
    while time.monotonic() < until:
        n += 1
        began, at = time.perf_counter(), time.time()
        shop.place(n)
        print(json.dumps([at, time.perf_counter() - began]))
        time.sleep(%f)
async def main():
    async with app.running():
        await asyncio.to_thread(commit, time.monotonic() + %f, 0)
        await asyncio.Event().wait()  # the relay goes on until the parent has seen it drain
asyncio.run(main())
"""
B = """
@app.on(Placed, group="b")
def handle(event: Placed, tx: Tx) -> None:
    tx.session.execute(insert(event.order_id))
app.run()
"""


class Round(NamedTuple):
    """Median seconds of a commit by window, and how long the backlog took to drain."""

    there: float
    away: float
    slow: float
    commits: int
    drained_seconds: float


class Place(NamedTuple):
    """What the windows act on."""

    broker: PrivateServer
    proxy: FaultProxy
    backlog: Callable[[], int]
    commits: Path


def main(arguments: list[str]) -> int:
    """Run the rounds, print them, write ``build/outage.json``; the exit code."""
    given = options(arguments)
    load_environment()
    result = prove(given)
    out = ROOT / "build" / "outage.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result["summary"]))
    return 0 if result["summary"]["clean"] else 1


def options(arguments: list[str]) -> argparse.Namespace:
    """What was asked for; a flag before its variable."""
    parser = argparse.ArgumentParser(prog="make outage", description=__doc__)
    for name, default in (("rounds", 5), ("there", 20), ("away", 60), ("slow", 20)):
        value = float(os.environ.get(name.upper()) or default)
        parser.add_argument(f"--{name}", type=float, default=value)
    return parser.parse_args(arguments)


def prove(given: argparse.Namespace) -> dict[str, object]:
    """All rounds on fresh databases and a broker of our own."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        broker = stack.enter_context(start_private_rabbitmq())
        parts = urlsplit(broker.url)
        assert parts.hostname
        assert parts.port
        proxy = stack.enter_context(FaultProxy(parts.hostname, parts.port))
        address = parts._replace(netloc=f"guest:guest@127.0.0.1:{proxy.port}").geturl()
        one, two = (Shop(stack.enter_context(fresh_database()), address) for _ in "ab")
        for shop in (one, two):
            shop.prepare()
            stack.callback(shop.close)
        # One process publishes and relays, the other consumes; neither knows of the other.
        stack.enter_context(process(two, address, B, folder / "b.log"))
        seconds = given.rounds * (given.there + given.away + given.slow + DRAIN_SECONDS)
        commits = folder / "commits.jsonl"
        stack.enter_context(process(one, address, A % (PACE_SECONDS, seconds), commits))
        waiting = lambda: len(one.outbox())  # noqa: E731  # the only use
        place = Place(broker, proxy, waiting, commits)
        wait_for(lambda: bool(two.work()), 60)
        rounds = [one_round(n, given, place) for n in range(int(given.rounds))]
        return judge(rounds, one.ordered(), two)


def one_round(number: int, given: argparse.Namespace, place: Place) -> Round:
    """The four windows of one round."""
    times = [time.time()]
    time.sleep(given.there)
    times.append(time.time())
    place.broker.kill()
    time.sleep(given.away)
    times.append(time.time())
    place.proxy.set(SLOW)
    place.broker.start()
    time.sleep(given.slow)
    times.append(time.time())
    place.proxy.set(PASS)
    wait_for(lambda: place.backlog() < 10, DRAIN_SECONDS)
    drained = time.time() - times[-1]
    found = [
        json.loads(line) for line in place.commits.read_text().splitlines() if line[-1:] == "]"
    ]
    windows = [
        [took for at, took in found if since <= at < until] for since, until in pairwise(times)
    ]
    there, away, slow = (median(window) for window in windows)
    done = Round(there, away, slow, sum(map(len, windows)), drained)
    print(
        f"round {number + 1}: commit {there * 1000:.2f} ms with the broker, "
        f"{away / there:.2f} x without, {slow / there:.2f} x slow, "
        f"{done.commits} commits, drained in {drained:.1f} s",
        flush=True,
    )
    return done


def judge(rounds: list[Round], ordered: list[int], consumer: Shop) -> dict[str, object]:
    """The medians of the rounds, and what became of every order committed so far."""
    wait_for(lambda: set(ordered) <= set(consumer.work()), DRAIN_SECONDS)
    handled = consumer.work()
    away = [each.away / each.there for each in rounds]
    slow = [each.slow / each.there for each in rounds]
    summary = {
        "commits": len(ordered),
        "lost": len(set(ordered) - set(handled)),
        "doubled": len(handled) - len(set(handled)),
        "away": round(median(away), 3),
        "away_spread": [round(min(away), 3), round(max(away), 3)],
        "slow": round(median(slow), 3),
        "slow_spread": [round(min(slow), 3), round(max(slow), 3)],
    }
    steady = median(away) <= 1 + OFF_MOST and median(slow) <= 1 + OFF_MOST
    clean = steady and not summary["lost"] and not summary["doubled"]
    return {"rounds": [each._asdict() for each in rounds], "summary": {**summary, "clean": clean}}


@contextmanager
def fresh_database() -> Iterator[str]:
    """A database of our own on the server of ``make services``, dropped at the end."""
    server = sa.make_url(os.environ["DULY_TEST_POSTGRES"]).set(drivername="postgresql+psycopg")
    engine = sa.create_engine(server, isolation_level="AUTOCOMMIT")
    name = f"outage_{uuid4().hex}"
    with engine.connect() as admin:
        admin.execute(sa.text(f"CREATE DATABASE {name}"))
    try:
        plain = server.set(drivername="postgresql", database=name)
        yield plain.render_as_string(hide_password=False)
    finally:
        with engine.connect() as admin:
            admin.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))
        engine.dispose()


@contextmanager
def process(shop: Shop, address: str, body: str, output: Path) -> Iterator[None]:
    """A process of its own that runs ``body``, what it prints in a file; ended by its pid."""
    database = shop.app.settings.database
    with output.open("w") as written:
        running = child(database, address, body, output=written)
        try:
            yield
            if running.poll() is not None:
                raise RuntimeError(f"a process ended with {running.returncode}")
        except BaseException:
            print(output.read_text()[-2000:], file=sys.stderr)
            raise
        finally:
            end(running)


def end(running: subprocess.Popen[str]) -> None:
    """As an operator would, then for good."""
    running.send_signal(signal.SIGTERM)
    try:
        running.communicate(timeout=10)
    except subprocess.TimeoutExpired:
        running.kill()
        running.communicate()


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    """Until something is so. Raises TimeoutError."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError(f"not so within {seconds:.0f} s")
        time.sleep(0.2)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
