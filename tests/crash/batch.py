"""The row "crash batch sftp": whoever extracts and delivers dies, again and again.

PostgreSQL and an SSH server of its own.  Two workers at a time, each to die at a failpoint - while
extracting, sealing, uploading, verifying, renaming, marking - or at random, or to freeze beyond its
lease and go on.  A kill counts if the journal of the dead shows an attempt open.  Beside them
somebody looks at the remote folder all the time: what stands there under a final name is complete.

    attempted     chunks of all files
    delivered     chunks of the files that are there, byte for byte as the table says
    recovered     attempts that another process took over
    duplicated    chunks that were written again
    unexplained   of these, chunks that had been stored
    unexpected    wrong bytes, a partial file, another file; a second effective run (two events)
    lost          chunks of files that are not there

A second row: 50 processes start one and the same instance all the time and all want to work on it,
some of them frozen beyond the lease; when it is done they go on with the next.

Further rows do the first with something more, which each counts in its line:

    partitions  one run is read in eight partitions by three workers
    torn        who dies takes along what was not synced: bytes behind a sync, names of files
    replies     a proxy before the server: answers that are lost, resets, cuts in a transfer
    clocks      the database's clock jumps, so that leases end early or late; so does each worker's
    full        the disk of the spool is full for a while, again and again"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import psycopg

from duly.testing.fault_proxy import DROP_REPLIES, PASS, RESET, SILENT, Fault, FaultProxy
from tests.crash import report
from tests.crash.batch_disk import FULL
from tests.crash.checker import Verdict
from tests.crash.nursery import Nursery
from tests.crash.pairs import Place
from tests.crash.report import Result
from tests.crash.stage import new_database, now, read_lines

NAME = "crash batch sftp"
STARTERS_NAME = "crash batch sftp starters"
TWISTS = ("partitions", "torn", "replies", "clocks", "full")
TWISTED_PART = 5  # of the kills of the first row, for each of these
PARTITIONS = 8
COUNTED = {
    "partitions": "partitions taken by helpers",
    "torn": "files torn",
    "replies": "cuts, resets and silences",
    "clocks": "leases moved",
    "full": "times full",
}
STARTERS, STARTERS_SECONDS, STARTERS_FEW_SECONDS = 50, 150.0, 40.0
RANDOM = "at random"
WRITTEN, SAVED = "batch.chunk_written", "batch.checkpoint_saved"
OFTEN = (WRITTEN, "batch.chunk_synced", SAVED)
BLOCKS = ("batch.block_acked",)
ONCE = (
    "batch.claimed",
    "batch.sealed",
    "batch.uploaded",
    "batch.verified",
    "batch.renamed_unanswered",
    "batch.marked",
    "batch.step_done",
    "batch.done_not_told",
)
POINTS = (*OFTEN, *BLOCKS, *ONCE, RANDOM)
SHARED = ("batch.partition_claimed", "batch.partitions_gathered")
READING = (*OFTEN, SHARED[0])
MORE_POINTS = {"partitions": SHARED, "torn": (WRITTEN,) * 6}
FREEZES = (SAVED, "batch.block_acked", "batch.verified", "batch.renamed_unanswered")
ROWS = 700
WAITING = 6  # parts that are started ahead of the work
KILLS_PER_PART = 3
SHORT, SLOW = 1.0, 5.0
PATIENCE_SECONDS = 12.0
SETTLE_SECONDS = 120.0


@dataclass(frozen=True)
class BatchOrders:
    """What a run is to do. slow: of the kills, at the lease of production. points: where. twist:
    what happens besides.
    """

    kills: int
    seed: int
    slow: int = 0
    minutes: float = 100.0
    points: tuple[str, ...] = POINTS
    twist: str = ""

    @property
    def workers(self) -> int:
        """How many are at work at a time."""
        return 3 if self.twist == "partitions" else 2


@dataclass
class Seen:
    """What the run saw."""

    kills: Counter[str] = field(default_factory=Counter)
    uncounted: int = 0
    at_random: int = 0
    frozen: int = 0
    twists: int = 0
    died: dict[str, tuple[int, float]] = field(default_factory=dict)  # run -> its attempt, and when
    partial: set[str] = field(default_factory=set)
    troubles: list[str] = field(default_factory=list)


def wanted(part: int) -> bytes:
    """The file of a part, by hand."""
    lines = ["id,part,amount,note\n"]
    for n in range(ROWS):
        number = part * ROWS + n
        lines.append(f'{number},{part},{n * 7 % 100_000}.{n % 100:02d},"note, {n}"\n')
    return "".join(lines).encode()


SQL = f"""INSERT INTO payout
    SELECT %(part)s * {ROWS} + n, %(part)s, (n * 7 %% 100000) + (n %% 100) / 100.0, 'note, ' || n
    FROM generate_series(0, {ROWS} - 1) AS n"""


class BatchLoop:
    """One run."""

    def __init__(
        self,
        orders: BatchOrders,
        folder: Path,
        *,
        source: Path,
        peers: dict[str, str],
        proxy: FaultProxy | None = None,
    ) -> None:
        self._orders, self.folder, self._peers, self.proxy = orders, folder, peers, proxy
        self._chance = random.Random(orders.seed)
        self.seen = Seen()
        self.parts = 0
        self._began = now()
        self._stop, self._calm = threading.Event(), threading.Event()
        self._remote = Path(unquote(urlsplit(peers["sftp"]).path))
        self._nursery = Nursery(source, folder / "logs")
        self._workers: dict[int, tuple[str, float]] = {}  # pid -> its point, and since when
        self._points: list[str] = []

    def run(self, act: Callable[[BatchLoop], None]) -> None:
        """Do the worst, and look at the other side meanwhile; then let everything settle."""
        watcher = threading.Thread(target=self._watch, daemon=True)
        watcher.start()
        twister = threading.Thread(target=self._twist, daemon=True)
        try:
            self.ask("CREATE TABLE payout (id bigint PRIMARY KEY, part int, amount numeric(12, 2), "
                     "note text)")  # fmt: skip
            self.ask("CREATE INDEX ON payout (part, id)")
            twister.start()
            act(self)
            self._calm.set()
            twister.join(30)
            self._settle()
        finally:
            self._stop.set()
            self._calm.set()
            watcher.join(30)
            self._nursery.close()

    def strike(self) -> None:
        """Until there are enough kills."""
        self._phase(self._orders.slow, SLOW)
        self._phase(self._orders.kills, SHORT)

    def start_at_once(self, seconds: float) -> None:
        """Fifty at a time, on one instance after the other, for so long."""
        self._prepare([])
        starters = [self._fork(what="start", plan="", lease=SHORT) for _ in range(STARTERS)]
        frozen: dict[int, float] = {}
        end = now() + seconds
        while now() < end or not self.parts:
            if not self._unfinished():
                self.ask(SQL, {"part": self.parts})
                (self.folder / "part").write_text(str(self.parts))
                self.parts += 1
                threading.Event().wait(1.0)
            pid = self._chance.choice([*starters, *self._owners() * STARTERS])
            if pid not in frozen and len(frozen) < STARTERS // 5:
                self._nursery.signal(pid, signal.SIGSTOP)
                frozen[pid] = now() + SHORT * self._chance.uniform(0.5, 3.0)
                self.seen.frozen += 1
            threading.Event().wait(0.1)
            for pid in [one for one, until in frozen.items() if until < now()]:
                self._nursery.signal(pid, signal.SIGCONT)
                del frozen[pid]
        for pid in starters:
            self._nursery.signal(pid, signal.SIGCONT)
            self._nursery.signal(pid, signal.SIGTERM)
        for pid in starters:
            if self._nursery.wait(pid, PATIENCE_SECONDS) is None:
                self._nursery.signal(pid, signal.SIGKILL)

    def _phase(self, kills: int, lease: float) -> None:
        """Until there are so many kills in all; every worker of the phase has this lease."""
        while self.seen.kills.total() < kills or self.parts * KILLS_PER_PART < kills:
            if now() - self._began > self._orders.minutes * 60:
                text = f"{self.seen.kills.total()} of {kills} kills"
                raise TimeoutError(f"{text} in {self._orders.minutes:g} minutes")
            self._feed()
            while len(self._workers) < self._orders.workers:
                self._begin(lease)
            for death in self._nursery.deaths(0.2):
                self._bury(death.pid, death.at, killed=death.killed)
            self._strike_late()
        for pid in list(self._workers):
            self._nursery.signal(pid, signal.SIGTERM)
            death = self._nursery.wait(pid, PATIENCE_SECONDS)
            if death is None:
                self._nursery.signal(pid, signal.SIGKILL)
                death = self._nursery.wait(pid, PATIENCE_SECONDS)
            if death is not None:
                self._bury(pid, death.at, killed=death.killed)

    def _feed(self) -> None:
        """Keep some work ahead."""
        # Who has a run of its own helps nobody.
        waiting = 1 if self._orders.twist == "partitions" else WAITING
        if self.parts and len(self._unfinished()) >= waiting:
            return
        fresh = list(range(self.parts, self.parts + waiting))
        for part in fresh:
            self.ask(SQL, {"part": part})
        self._prepare(fresh)
        self.parts += len(fresh)

    def _prepare(self, parts: list[int]) -> None:
        pid = self._fork(what="prepare", parts=parts, plan="", lease=SLOW)
        death = self._nursery.wait(pid, 60)
        if death is None or death.status:
            raise RuntimeError(f"the parts could not be started: {self.folder}/logs")

    def _begin(self, lease: float) -> None:
        if not self._points:
            self._points = [*self._orders.points]
            if len(self._orders.points) > 1:
                self._points += [f"freeze {point}" for point in FREEZES]
            self._chance.shuffle(self._points)
        point = self._points.pop()
        name = point.removeprefix("freeze ")
        often = 8 if self._orders.twist == "partitions" else 25
        most = often if name in READING else 8 if name in BLOCKS else 2
        action = "stop" if point.startswith("freeze") else "kill"
        hit = self._chance.randint(1, most)
        plan = "" if point == RANDOM else f"{name}@{hit}={action}"
        pid = self._fork(what="work", plan=plan, lease=lease)
        late = self._chance.uniform(0.3, 1.5) if point == RANDOM else PATIENCE_SECONDS
        self._workers[pid] = (point, now() + late)

    def _strike_late(self) -> None:
        """Kill whose time has come; thaw who froze beyond its lease."""
        for pid, (point, until) in list(self._workers.items()):
            if point.startswith("freeze") and is_stopped(pid):
                threading.Event().wait(SHORT * 2.5)
                self.seen.frozen += 1
                self._nursery.signal(pid, signal.SIGCONT)
                self._workers[pid] = (RANDOM, now() + 1.0)
            elif now() > until:
                self.seen.at_random += 1
                self._workers[pid] = (RANDOM, now() + PATIENCE_SECONDS)
                self._nursery.signal(pid, signal.SIGKILL)

    def _bury(self, pid: int, at: float, *, killed: bool) -> None:
        point, _ = self._workers.pop(pid, ("", 0.0))
        path = self.folder / f"batch-{pid}.jsonl"
        facts = list(read_lines(path)) if path.exists() else []
        held: dict[str, int] = {}
        for fact in facts:
            if fact["what"] == "began":
                held[fact["instance"]] = fact["attempt"]
            elif fact["what"] == "ended":
                held.pop(fact["instance"], None)
        struck = [fact for fact in facts if fact["what"] == "struck"]
        helped = any(fact["point"] in READING for fact in struck)  # nothing else is read meanwhile
        if self._orders.twist == "torn":
            self.seen.twists += sum(fact["torn"] for fact in struck)
        if self._orders.twist == "partitions":
            taken = [fact for fact in facts if fact["what"] == SHARED[0]]
            self.seen.twists += sum(not fact["instances"] for fact in taken)
        if not killed or not (held or helped):
            self.seen.uncounted += 1
            return
        self.seen.kills[point] += 1
        self.seen.died |= {instance: (attempt, at) for instance, attempt in held.items()}

    def _fork(self, **config: Any) -> int:
        twist = self._orders.twist
        given = {"folder": str(self.folder), **self._peers, "twist": twist, **config}
        if twist == "partitions":
            given["partitions"] = PARTITIONS
        if twist == "replies":
            given["timeout"] = "1500ms"
        return self._nursery.fork("batch", given)

    def _settle(self) -> None:
        """One worker without a plan does what is left."""
        pid = self._fork(what="work", plan="", lease=SHORT)
        end = now() + SETTLE_SECONDS
        while self._unfinished():
            if now() > end:
                self.seen.troubles.append(f"never done: {self._unfinished()[:5]}")
                break
            threading.Event().wait(0.2)
        self._nursery.signal(pid, signal.SIGTERM)
        self._nursery.wait(pid, PATIENCE_SECONDS)

    # --- what happens besides ---------------------------------------------------------------------
    def _twist(self) -> None:
        """Until it shall be calm."""
        while not self.parts and not self._calm.wait(0.05):
            pass  # there are no tables yet
        twist = {"replies": self._cut, "clocks": self._jump, "full": self._fill}
        if self._orders.twist in twist:
            try:
                twist[self._orders.twist]()
            except Exception as error:  # told with the row
                self.seen.troubles.append(f"twist: {type(error).__name__}: {error}"[:500])

    def _cut(self) -> None:
        """Between the workers and the server."""
        assert self.proxy is not None
        faults = (DROP_REPLIES, RESET, SILENT, Fault(cut_after_bytes=0))
        while not self._calm.wait(self._chance.uniform(0.3, 1.2)):
            fault = self._chance.choice(faults)
            if fault.mode == "pass":
                fault = Fault(cut_after_bytes=self._chance.randint(2_000, 40_000))
            self.proxy.set(fault)
            self.seen.twists += 1
            self._calm.wait(self._chance.uniform(0.1, 0.6))
            self.proxy.set(PASS)

    def _jump(self) -> None:
        """Of the clock of the database, as leases see it: they end at once, or late."""
        sql = """UPDATE duly_lease SET until = until + make_interval(secs => %(by)s)
            WHERE name LIKE 'role/batch/%%' AND until > clock_timestamp()"""
        while not self._calm.wait(self._chance.uniform(0.2, 0.8)):
            by = self._chance.choice((-3600.0, -3600.0, 20.0))
            with psycopg.connect(self._peers["database"], autocommit=True) as connection:
                self.seen.twists += connection.execute(sql.encode(), {"by": by}).rowcount

    def _fill(self) -> None:
        """The disk, and make room again."""
        full = self.folder / FULL
        while not self._calm.wait(self._chance.uniform(0.3, 1.5)):
            full.touch()
            self.seen.twists += 1
            self._calm.wait(self._chance.uniform(0.05, 0.5))
            full.unlink()

    # --- looking ----------------------------------------------------------------------------------
    def ask(self, sql: str, values: Any = None) -> list[Any]:
        """Ask the database with its driver alone."""
        with psycopg.connect(self._peers["database"], autocommit=True) as connection:
            cursor = connection.execute(sql.encode(), values)
            return cursor.fetchall() if cursor.description else []

    def _owners(self) -> list[int]:
        """Who works on the run now; the likeliest to be frozen."""
        found = self.ask("SELECT owner FROM duly_run WHERE status = 'running'")
        return [int(row[0].rpartition(":")[2]) for row in found]

    def _unfinished(self) -> list[Any]:
        return self.ask("SELECT instance, status, last_error FROM duly_run WHERE status <> 'done'")

    def remote(self) -> dict[str, Path]:
        """The files under final names."""
        found = {}
        with suppress(FileNotFoundError):
            for entry in os.scandir(self._remote):
                if entry.name.startswith("part-"):
                    found[entry.name] = Path(entry.path)
        return found

    def _watch(self) -> None:
        """Whether a file is complete from the first moment under its final name."""
        known: set[str] = set()
        while not self._stop.wait(0.003):
            for name, path in self.remote().items():
                if name in known or not name.endswith(".csv"):
                    continue
                with suppress(FileNotFoundError):
                    if path.read_bytes() != wanted(int(name[5:-4])):
                        self.seen.partial.add(name)
                    known.add(name)

    def judge(self) -> Verdict:
        """What was promised, against what is there."""
        verdict = Verdict()
        chunks = self._chunks()
        counts = Counter(fact["what"] for fact in self.facts())
        verdict.attempted = verdict.acknowledged = sum(chunks.values())
        there = self.remote()
        for part, count in chunks.items():
            name, content = f"part-{part}.csv", wanted(part)
            found = there[name].read_bytes() if name in there else None
            marker = there.get(f"{name}.done")
            verdict.delivered += count if found == content else 0
            verdict.lost += 0 if found is not None else count
            if found not in (None, content):
                verdict.blame("unexpected", "wrong bytes", [name])
            digest = sha256(content).hexdigest()
            if marker is None or digest not in marker.read_text():
                verdict.blame("unexpected", "no marker with its hash", [name])
        verdict.blame("unexpected", "seen partial under its final name", self.seen.partial)
        names = {f"part-{part}.csv{more}" for part in range(self.parts) for more in ("", ".done")}
        verdict.blame("unexpected", "a file that nobody wants", set(there) - names)
        events = self.ask("SELECT convert_from(payload, 'UTF8')::json ->> 'part' FROM duly_outbox")
        told = Counter(int(row[0]) for row in events)
        odd = [part for part in range(self.parts) if told[part] != 1]
        verdict.blame("unexpected", "not exactly one event", odd)
        (lost,) = self.ask("SELECT count(*) FROM duly_attempt WHERE status = 'lost'")[0]
        verdict.recovered = lost
        verdict.duplicated = max(0, counts[WRITTEN] - verdict.attempted)
        headers = sum(count > 0 for count in chunks.values())  # each is stored with what follows it
        again = counts[SAVED] - (verdict.attempted - headers)
        if again > 0:
            verdict.unexplained = again
            verdict.problems.append(f"unexplained {again}: stored chunks were extracted again")
        return verdict

    def _chunks(self) -> dict[int, int]:
        """How many chunks each part's file has, by the manifest that its last attempt left."""
        found = dict.fromkeys(range(self.parts), 0)
        for path in (self.folder / "spool").glob("crash/*/*/manifest.json"):
            with suppress(ValueError):  # torn: then it is an earlier attempt's, or its part is lost
                manifest = json.loads(path.read_bytes())
                part = int(manifest["name"][5:-4])
                found[part] = max(found[part], len(manifest["chunks"]))
        return found

    def facts(self) -> list[dict[str, Any]]:
        """All journals of the run."""
        return [one for path in self.folder.glob("batch-*.jsonl") for one in read_lines(path)]

    def recoveries(self) -> list[float]:
        """From the death of a worker to the next attempt at its run, if it held it still."""
        began: dict[str, list[tuple[int, float]]] = {}
        for fact in self.facts():
            if fact["what"] == "began":
                began.setdefault(fact["instance"], []).append((fact["attempt"], fact["at"]))
        found = []
        for instance, (attempt, at) in self.seen.died.items():
            later = [when for number, when in began.get(instance, ()) if number > attempt]
            if later and min(later) > at:
                found.append(min(later) - at)
        return found


@contextmanager
def own_database() -> Iterator[str]:
    """The URL of a database that is gone afterwards."""
    server = os.environ["DULY_TEST_POSTGRES"]
    name = new_database(server)
    try:
        yield urlsplit(server)._replace(path=f"/{name}").geturl()
    finally:
        with psycopg.connect(server, autocommit=True) as admin:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@contextmanager
def before(peers: dict[str, str]) -> Iterator[FaultProxy]:
    """A proxy before the server; ``peers`` names it instead from now on."""
    url = urlsplit(peers["sftp"])
    assert url.hostname
    assert url.port
    with FaultProxy(url.hostname, url.port) as proxy:
        user = url.netloc.rpartition("@")[0]
        peers["sftp"] = url._replace(netloc=f"{user}@{proxy.host}:{proxy.port}").geturl()
        known = Path(peers["known_hosts"])
        line = known.read_text().partition(" ")[2]
        named = known.with_name("known_hosts_of_the_proxy")
        named.write_text(f"[{proxy.host}]:{proxy.port} {line}")
        peers["known_hosts"] = str(named)
        yield proxy


def is_stopped(pid: int) -> bool:
    """Whether a process is frozen by a signal."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except OSError:
        return False  # it is gone


def run(
    orders: BatchOrders, place: Place, *, name: str, act: Callable[[BatchLoop], None]
) -> Result:
    """A row. Never raises for what the run finds."""
    from tools.services import start_private_sshd

    folder = (place.folder / f"batch-{os.getpid()}-{int(now() * 1000)}").resolve()
    (folder / "logs").mkdir(parents=True)
    verdict, began, seen, times = Verdict(), now(), Seen(), []
    with ExitStack() as stack:
        sshd = stack.enter_context(start_private_sshd())
        loop = None
        database = stack.enter_context(own_database())
        try:
            peers = {
                "database": database,
                "sftp": sshd.environment["DULY_TEST_SFTP"],
                "key": sshd.environment["DULY_TEST_SFTP_KEY"],
                "known_hosts": sshd.environment["DULY_TEST_SFTP_KNOWN_HOSTS"],
            }
            proxy = stack.enter_context(before(peers)) if orders.twist == "replies" else None
            loop = BatchLoop(orders, folder, source=place.source, peers=peers, proxy=proxy)
            seen = loop.seen
            loop.run(act)
        except Exception as error:  # a run that broke off is a red row, with what it saw until then
            seen.troubles.append(f"broke off: {type(error).__name__}: {error}"[:1500])
        if loop is not None:
            with suppress(Exception):  # tables that were never made cannot be judged
                verdict, times = loop.judge(), loop.recoveries()
    words = ", ".join(f"{count} x {point}" for point, count in sorted(seen.kills.items()))
    if orders.twist in COUNTED:
        words += f"; {seen.twists} {COUNTED[orders.twist]}"
        if not seen.twists:
            seen.troubles.append(f"no {COUNTED[orders.twist]}")
    result = report.make(
        name, f"{words}; {seen.frozen} frozen; {seen.uncounted} more with nothing open", verdict,
        kills=seen.kills.total(), lease=SLOW if orders.slow else SHORT, seed=orders.seed,
        recoveries=times, troubles=seen.troubles, seconds=now() - began,
        bounded=orders.twist != "partitions",  # where one run at a time meets many kills
    )  # fmt: skip
    if result.clean:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        result.problems.append(f"the journals are in {folder}")
    return result


def scenes(seed: int, place: Place, *, kills: int) -> dict[str, Any]:
    """The row, by its name."""
    orders = BatchOrders(kills, seed, slow=min(20, kills // 10))
    calm = BatchOrders(0, seed)
    seconds = STARTERS_FEW_SECONDS if place.quiet else STARTERS_SECONDS
    start = partial(BatchLoop.start_at_once, seconds=seconds)
    twisted = {}
    for twist in TWISTS:
        points = (*POINTS, *MORE_POINTS.get(twist, ()))
        some = BatchOrders(max(10, kills // TWISTED_PART), seed, points=points, twist=twist)
        name = f"{NAME} {twist}"
        twisted[name] = partial(run, some, place, name=name, act=BatchLoop.strike)
    return twisted | {
        NAME: partial(run, orders, place, name=NAME, act=BatchLoop.strike),
        STARTERS_NAME: partial(run, calm, place, name=STARTERS_NAME, act=start),
    }
