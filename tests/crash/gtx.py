"""The row "crash twophase": coordinators, recoverers and all servers die; nothing is mixed.

Private servers: PostgreSQL with the App's tables, MariaDB, and ActiveMQ, whose clients have a Java
VM each.  Coordinators pay in all at once; one sweeps beside the recoverers without a lease.
Faults, in turn: a coordinator dies at each failpoint and at random, freezes beyond its time and
goes on, a recoverer dies at its work, a server is killed while a coordinator stands at a failpoint.
A kill counts if the journal of the process shows a payment open at that moment.

    unexpected   a payment in one place and not in another, or not with its message; one that was
                 acknowledged and is nowhere, or was refused and is somewhere
    lost         branches left in doubt: prepared, or rows of the journal without an end"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import psycopg
import pymysql
import stomp

from tests.crash import report
from tests.crash.checker import Verdict
from tests.crash.gtx_mailbox import Mailbox
from tests.crash.nursery import Nursery
from tests.crash.pairs import Place
from tests.crash.report import Result
from tests.crash.stage import now, read_lines

NAME = "crash twophase"
RANDOM = "at random"
COORDINATOR = (
    "twophase.journalled",
    "twophase.branch_prepared",
    "twophase.prepared_not_decided",
    "twophase.decided",
    "twophase.branch_ended",
    "twophase.ended_not_recorded",
)
RECOVERER = ("twophase.abort_presumed", "twophase.branch_recovered")
SERVERS = ("postgres", "mariadb", "activemq")
FAULTS = (
    *(("dies", point) for point in (*COORDINATOR, RANDOM)),
    *(("recoverer dies", point) for point in RECOVERER),
    *((f"{server} dies", point) for server in SERVERS for point in COORDINATOR),
)
FROZEN_SECONDS = 2.5  # beyond the time of a coordinator, in the fast part
PATIENCE_SECONDS = 25.0
SETTLE_SECONDS = 60.0
PAYMENTS_PER_KILL = 10
MINUTES = 45.0
SLOW_LEASE = 5.0


@dataclass(frozen=True)
class GtxOrders:
    """What a run is to do. slow: of the kills, at the times of production."""

    kills: int
    seed: int
    slow: int = 0
    minutes: float = MINUTES


@dataclass
class Servers:
    """All servers, and what may be asked of them with their drivers alone."""

    private: dict[str, Any]
    mailbox: Mailbox

    @property
    def shop(self) -> str:
        return str(self.private["postgres"].url)

    @property
    def ledger(self) -> str:
        return urlsplit(self.private["mariadb"].url)._replace(path="/ledger").geturl()

    def ask_shop(self, sql: str) -> list[Any]:
        with psycopg.connect(self.shop, autocommit=True, connect_timeout=5) as connection:
            cursor = connection.execute(sql)
            return cursor.fetchall() if cursor.description else []

    def ask_ledger(self, sql: str, database: str | None = "ledger") -> list[Any]:
        parts = urlsplit(self.ledger)
        where = {"host": parts.hostname, "port": parts.port, "user": "root", "database": database}
        connection = pymysql.connect(**where, autocommit=True, connect_timeout=5)
        with closing(connection), connection.cursor() as cursor:
            cursor.execute(sql)
            return list(cursor.fetchall())

    def prepared(self) -> list[str]:
        """Branches of duly's that are prepared anywhere."""
        ours = [row[0] for row in self.ask_shop("SELECT gid FROM pg_prepared_xacts")]
        theirs = [row[3].decode() for row in self.ask_ledger("XA RECOVER")]
        return ours + theirs + self.mailbox.prepared()

    @property
    def xa(self) -> str:
        """The URL of ActiveMQ as a participant."""
        server = self.private["activemq"]
        jars = urlencode({"jars": server.environment["DULY_TEST_ACTIVEMQ_JARS"]})
        login = urlsplit(server.url).netloc.rpartition("@")[0]
        place = f"{login}@{server.environment['DULY_TEST_ACTIVEMQ_CORE']}"
        return urlsplit(server.url)._replace(scheme="activemq", netloc=place, query=jars).geturl()


@dataclass
class Seen:
    """What the run saw."""

    kills: Counter[str] = field(default_factory=Counter)
    uncounted: int = 0
    frozen: int = 0
    recoveries: list[float] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)


class GtxLoop:
    """One run."""

    def __init__(self, servers: Servers, orders: GtxOrders, folder: Path, *, source: Path) -> None:
        self._servers, self._orders, self.folder = servers, orders, folder
        self._chance = random.Random(orders.seed)
        self.seen = Seen()
        self._nursery = Nursery(source, folder / "logs")
        self._began = now()
        self._stop = threading.Event()
        self._recoverers: list[int] = []

    def run(self) -> Seen:
        """Strike until there are enough kills, then let everything settle."""
        helper = threading.Thread(target=self._grant, daemon=True)
        helper.start()
        try:
            self._slow_part()
            self._fast_part()
        finally:
            self._stop.set()
            helper.join(60)
            self._nursery.close()
        return self.seen

    # --- the parts --------------------------------------------------------------------------------
    def _slow_part(self) -> None:
        """One coordinator at a time dies at its work; how long its branches stay in doubt."""
        if not self._orders.slow:
            return
        recoverers = [self._fork("recoverer", slow=True) for _ in range(2)]
        for _ in range(self._orders.slow):
            self._check_time()
            point = self._chance.choice(COORDINATOR[1:])
            pid = self._fork("coordinator", slow=True, plan=self._plan(point), sweeps=False)
            death = self._nursery.wait(pid, PATIENCE_SECONDS)
            if death is None:
                self._nursery.signal(pid, signal.SIGKILL)
                continue
            self._count(pid, f"dies {point}")
            end = now() + SETTLE_SECONDS
            while self._servers.prepared():
                if now() > end:
                    raise TimeoutError(f"{self._servers.prepared()} are prepared for ever")
                threading.Event().wait(0.1)
            self.seen.recoveries.append(now() - death.at)
        for pid in recoverers:
            self._end(pid)

    def _fast_part(self) -> None:
        steady = self._fork("coordinator", sweeps=True)
        faults = self._turns()
        while self.seen.kills.total() < self._orders.kills or self._few() or self._short():
            self._check_time()
            self._recoverers = [pid for pid in self._recoverers if pid in self._nursery.living]
            if not self._recoverers:
                self._recoverers.append(self._fork("recoverer"))
            self._strike(*next(faults))
        self._end(steady)
        self._recoverers.append(self._fork("recoverer"))
        self._settle()
        for pid in self._recoverers:
            self._end(pid)

    def _short(self) -> list[str]:
        """Faults that have struck less often than a third of their share."""
        share = self._orders.kills // (3 * len(FAULTS))
        names = [" ".join(fault) for fault in FAULTS]
        return [name for name in names if self.seen.kills[name] < share]

    def _turns(self) -> Iterator[tuple[str, str]]:
        """Every fault once, in another order each time, and a frozen coordinator between them."""
        while True:
            faults = [
                *FAULTS,
                ("freezes", "twophase.prepared_not_decided"),
                ("freezes", "twophase.branch_prepared"),
            ]
            self._chance.shuffle(faults)
            yield from faults

    def _few(self) -> bool:
        begun = sum(fact["what"] == "began" for fact in facts(self.folder))
        return begun < PAYMENTS_PER_KILL * self._orders.kills

    def _strike(self, fault: str, point: str) -> None:
        if fault == "recoverer dies":
            self._strike_recoverer(point)
        elif fault == "freezes":
            self._freeze(point)
        elif fault == "dies":
            plan = "" if point == RANDOM else self._plan(point)
            pid = self._fork("coordinator", plan=plan)
            if not plan:
                self._await_work(pid)
                threading.Event().wait(self._chance.uniform(0.0, 0.8))
                self._nursery.signal(pid, signal.SIGKILL)
            self._await(pid, f"{fault} {point}")
        else:
            server = fault.split()[0]
            wish = (point, self._chance.randint(2, 8), server)
            pid = self._fork("coordinator", wishes=[wish])
            self._await_wish(pid, f"{fault} {point}")
            self._end(pid)

    def _strike_recoverer(self, point: str) -> None:
        """It dies at the work that a coordinator's death makes; it has the lease for itself."""
        for pid in self._recoverers:
            self._end(pid)
        recoverer = self._fork("recoverer", plan=f"{point}@1=kill")
        where = "twophase.prepared_not_decided" if point == RECOVERER[0] else "twophase.decided"
        self._await(self._fork("coordinator", plan=self._plan(where)), f"dies {where}")
        self._await(recoverer, f"recoverer dies {point}")

    def _freeze(self, point: str) -> None:
        """Stopped beyond its time and thawed: it must follow what was decided meanwhile."""
        pid = self._fork("coordinator", plan=self._plan(point, "stop"))
        end = now() + PATIENCE_SECONDS
        while not _is_stopped(pid) and now() < end:
            threading.Event().wait(0.05)
        threading.Event().wait(FROZEN_SECONDS)
        self._nursery.signal(pid, signal.SIGCONT)
        threading.Event().wait(0.5)
        self.seen.frozen += 1
        self._end(pid)

    # --- children ---------------------------------------------------------------------------------
    def _fork(self, what: str, **more: Any) -> int:
        config = {
            "what": what,
            "folder": str(self.folder),
            "shop": self._servers.shop,
            "ledger": self._servers.ledger,
            "xa": self._servers.xa,
            "seed": self._chance.randrange(10**9),
            "plan": "",
            "wishes": [],
            "slow": False,
            "sweeps": False,
            **more,
        }
        return self._nursery.fork("gtx", config)

    def _plan(self, point: str, action: str = "kill") -> str:
        return f"{point}@{self._chance.randint(2, 8)}={action}"

    def _await(self, pid: int, fault: str) -> None:
        """A child is to die by its plan; one that does not is killed, and counts as at random."""
        if self._nursery.wait(pid, PATIENCE_SECONDS) is None:
            self._nursery.signal(pid, signal.SIGKILL)
            self._nursery.wait(pid, 10)
            fault = f"dies {RANDOM}"
        self._count(pid, fault)

    def _await_work(self, pid: int) -> None:
        """Until it has paid once: its Java VM takes a while."""
        end = now() + PATIENCE_SECONDS
        path = self.folder / f"gtx-{pid}.jsonl"
        while now() < end and pid in self._nursery.living:
            if path.exists() and any(f["what"] == "acknowledged" for f in read_lines(path)):
                return
            threading.Event().wait(0.05)

    def _await_wish(self, pid: int, fault: str) -> None:
        end = now() + PATIENCE_SECONDS
        path = self.folder / f"granted-{pid}"
        while not path.exists() and now() < end and pid in self._nursery.living:
            threading.Event().wait(0.05)
        if path.exists():
            self.seen.kills[fault] += 1
        else:
            self.seen.uncounted += 1

    def _count(self, pid: int, fault: str) -> None:
        """Whether work was open, by the journal of the dead."""
        mine = list(read_lines(self.folder / f"gtx-{pid}.jsonl"))
        is_open = bool(mine) and mine[-1]["what"] in ("began", "struck")
        if is_open:
            self.seen.kills[fault] += 1
        else:
            self.seen.uncounted += 1

    def _end(self, pid: int) -> None:
        self._nursery.signal(pid, signal.SIGTERM)
        if self._nursery.wait(pid, PATIENCE_SECONDS) is None:
            self._nursery.signal(pid, signal.SIGKILL)
            self._nursery.wait(pid, 10)

    # --- servers ----------------------------------------------------------------------------------
    def _grant(self) -> None:
        """Kill a server where a child waits for it, and start it again."""
        while not self._stop.wait(0.01):
            for wish in self.folder.glob("wish-*"):
                if wish.suffix == ".new":
                    continue
                server = self._servers.private[wish.read_text()]
                server.kill()
                wish.rename(self.folder / f"granted-{wish.name.removeprefix('wish-')}")
                threading.Event().wait(0.3)
                server.start()

    def _settle(self) -> None:
        """Until nothing is in doubt, or it takes too long."""
        end = now() + SETTLE_SECONDS
        while now() < end:
            with suppress(psycopg.Error, pymysql.MySQLError, stomp.exception.StompException):
                if not in_doubt(self._servers):
                    return
            threading.Event().wait(0.3)

    def _check_time(self) -> None:
        if now() - self._began > self._orders.minutes * 60:
            text = f"{self.seen.kills.total()} of {self._orders.kills} kills"
            raise TimeoutError(f"{text} in {self._orders.minutes:g} minutes")


def _is_stopped(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except OSError:
        return True  # it is gone: there is nothing to wait for


# --- the verdict ----------------------------------------------------------------------------------
def facts(folder: Path) -> Iterator[dict[str, Any]]:
    """All journals of a run."""
    for path in sorted(folder.glob("gtx-*.jsonl")):
        yield from read_lines(path)


def in_doubt(servers: Servers) -> list[str]:
    """Prepared branches, and rows without an end."""
    sql = "SELECT id || ' ' || status FROM duly_global_tx WHERE status NOT LIKE '%ed'"
    return [*servers.prepared(), *(row[0] for row in servers.ask_shop(sql))]


def judge(servers: Servers, folder: Path) -> Verdict:
    """What was promised, against what is there."""
    verdict = Verdict()
    told: dict[str, str] = {}
    for fact in facts(folder):
        if fact["what"] in ("began", "acknowledged", "failed", "unknown"):
            told[fact["payment"]] = fact["what"]
    shop = {row[0] for row in servers.ask_shop("SELECT id FROM orders")}
    sql = "SELECT convert_from(payload, 'UTF8')::json ->> 'id' FROM duly_outbox"
    messages = [row[0] for row in servers.ask_shop(sql)]
    ledger = {row[0] for row in servers.ask_ledger("SELECT id FROM entries")}
    notes = servers.mailbox.payments()
    acknowledged = {payment for payment, what in told.items() if what == "acknowledged"}
    refused = {payment for payment, what in told.items() if what == "failed"}
    verdict.attempted, verdict.acknowledged = len(told), len(acknowledged)
    verdict.delivered = len(shop & ledger & set(messages) & set(notes))
    verdict.recovered = len(shop & ledger - acknowledged)
    verdict.blame("lost", "in doubt", in_doubt(servers))
    verdict.blame("unexpected", "in one database only", shop ^ ledger)
    verdict.blame("unexpected", "not with its note in ActiveMQ, or that alone", shop ^ set(notes))
    verdict.blame("unexpected", "without its message, or the message alone", shop ^ set(messages))
    verdict.blame("unexpected", "acknowledged, and nowhere", acknowledged - (shop | ledger))
    verdict.blame("unexpected", "refused, and there", refused & (shop | ledger))
    for kept in (messages, notes):
        twice = [payment for payment, count in Counter(kept).items() if count > 1]
        verdict.blame("unexpected", "with two messages", twice)
    return verdict


def run(orders: GtxOrders, place: Place) -> Result:
    """The row. Never raises for what the run finds."""
    from tools.services import (
        start_private_activemq,
        start_private_mariadb,
        start_private_postgres,
    )

    folder = place.folder / f"twophase-{int(now() * 1000)}"
    (folder / "logs").mkdir(parents=True)
    verdict, began = Verdict(), now()
    seen = Seen()
    with ExitStack() as stack:
        postgres = stack.enter_context(start_private_postgres())
        mariadb = stack.enter_context(start_private_mariadb())
        activemq = stack.enter_context(start_private_activemq())
        private = {"postgres": postgres, "mariadb": mariadb, "activemq": activemq}
        servers = Servers(private, Mailbox(activemq.url))
        try:
            prepare(servers, place.source)
            loop = GtxLoop(servers, orders, folder, source=place.source)
            seen = loop.seen
            loop.run()
            verdict = judge(servers, folder)
        except Exception as error:  # a run that broke off is a red row, with what it saw until then
            seen.troubles.append(f"broke off: {type(error).__name__}: {error}"[:1500])
            with suppress(Exception):  # a server that is gone for good cannot be judged
                verdict = judge(servers, folder)
    words = ", ".join(f"{count} x {fault}" for fault, count in sorted(seen.kills.items()))
    result = report.make(
        NAME, f"{words}; {seen.frozen} frozen; {seen.uncounted} more with nothing open", verdict,
        kills=seen.kills.total(), lease=SLOW_LEASE if orders.slow else 1.0, seed=orders.seed,
        recoveries=seen.recoveries, troubles=seen.troubles, seconds=now() - began,
    )  # fmt: skip
    if result.clean:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        result.problems.append(f"the journals are in {folder}")
    return result


def prepare(servers: Servers, source: Path) -> None:
    """Tables and a queue; duly's tables by its own command, from the source that is judged."""
    servers.mailbox.prepare()
    servers.ask_shop("CREATE TABLE orders (id varchar(40) PRIMARY KEY)")
    servers.ask_ledger("CREATE DATABASE ledger", database=None)
    servers.ask_ledger("CREATE TABLE entries (id varchar(40) PRIMARY KEY) ENGINE=InnoDB")
    environ = {**os.environ, "PYTHONPATH": str(source)}
    command = [sys.executable, "-m", "duly", "db", "upgrade", "--database", servers.shop]
    subprocess.run(command, env=environ, check=True, timeout=60, capture_output=True)


def scenes(seed: int, place: Place, *, kills: int, minutes: float = 0.0) -> dict[str, Any]:
    """The row, by its name. minutes: at most; 0 for the usual."""
    orders = GtxOrders(kills, seed, slow=min(20, kills // 10), minutes=minutes or MINUTES)
    return {NAME: partial(run, orders, place)}
