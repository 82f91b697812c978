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
some of them frozen beyond the lease; when it is done they go on with the next."""

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

from tests.crash import report
from tests.crash.checker import Verdict
from tests.crash.nursery import Nursery
from tests.crash.pairs import Place
from tests.crash.report import Result
from tests.crash.stage import new_database, now, read_lines

NAME = "crash batch sftp"
STARTERS_NAME = "crash batch sftp starters"
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
FREEZES = (SAVED, "batch.block_acked", "batch.verified", "batch.renamed_unanswered")
ROWS = 700
WAITING = 6  # parts that are started ahead of the work
KILLS_PER_PART = 3
SHORT, SLOW = 1.0, 5.0
PATIENCE_SECONDS = 12.0
SETTLE_SECONDS = 120.0


@dataclass(frozen=True)
class BatchOrders:
    """What a run is to do. slow: of the kills, at the lease of production. points: where."""

    kills: int
    seed: int
    slow: int = 0
    minutes: float = 100.0
    points: tuple[str, ...] = POINTS


@dataclass
class Seen:
    """What the run saw."""

    kills: Counter[str] = field(default_factory=Counter)
    uncounted: int = 0
    at_random: int = 0
    frozen: int = 0
    died: dict[str, float] = field(default_factory=dict)  # instance -> when its worker did
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
        self, orders: BatchOrders, folder: Path, *, source: Path, peers: dict[str, str]
    ) -> None:
        self._orders, self.folder, self._peers = orders, folder, peers
        self._chance = random.Random(orders.seed)
        self.seen = Seen()
        self.parts = 0
        self._began = now()
        self._stop = threading.Event()
        self._remote = Path(unquote(urlsplit(peers["sftp"]).path))
        self._nursery = Nursery(source, folder / "logs")
        self._workers: dict[int, tuple[str, float]] = {}  # pid -> its point, and since when
        self._points: list[str] = []

    def run(self, act: Callable[[BatchLoop], None]) -> None:
        """Do the worst, and look at the other side meanwhile; then let everything settle."""
        watcher = threading.Thread(target=self._watch, daemon=True)
        watcher.start()
        try:
            self.ask("CREATE TABLE payout (id bigint PRIMARY KEY, part int, amount numeric(12, 2), "
                     "note text)")  # fmt: skip
            self.ask("CREATE INDEX ON payout (part, id)")
            act(self)
            self._settle()
        finally:
            self._stop.set()
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
            while len(self._workers) < 2:
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
        if self.parts and len(self._unfinished()) >= WAITING:
            return
        fresh = list(range(self.parts, self.parts + WAITING))
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
        most = 25 if name in OFTEN else 8 if name in BLOCKS else 2
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
        still: dict[str, bool] = {}
        for fact in facts:
            if fact["what"] in ("began", "ended"):
                still[fact["instance"]] = fact["what"] == "began"
        held = [instance for instance, is_open in still.items() if is_open]
        if not killed or not held:
            self.seen.uncounted += 1
            return
        self.seen.kills[point] += 1
        self.seen.died |= dict.fromkeys(held, at)

    def _fork(self, **config: Any) -> int:
        return self._nursery.fork("batch", {"folder": str(self.folder), **self._peers, **config})

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
        again = counts[SAVED] - verdict.attempted
        if again > 0:
            verdict.unexplained = again
            verdict.problems.append(f"unexplained {again}: stored chunks were extracted again")
        return verdict

    def _chunks(self) -> dict[int, int]:
        """How many chunks each part's file has, by the manifest that its last attempt left."""
        found = dict.fromkeys(range(self.parts), 0)
        for path in (self.folder / "spool").glob("crash/*/*/manifest.json"):
            manifest = json.loads(path.read_bytes())
            part = int(manifest["name"][5:-4])
            found[part] = max(found[part], len(manifest["chunks"]))
        return found

    def facts(self) -> list[dict[str, Any]]:
        """All journals of the run."""
        return [one for path in self.folder.glob("batch-*.jsonl") for one in read_lines(path)]

    def recoveries(self) -> list[float]:
        """From the death of a worker to the next attempt at its run."""
        began: dict[str, list[float]] = {}
        for fact in self.facts():
            if fact["what"] == "began":
                began.setdefault(fact["instance"], []).append(fact["at"])
        found = []
        for instance, at in self.seen.died.items():
            after = [when for when in began.get(instance, ()) if when > at]
            if after:
                found.append(min(after) - at)
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
            loop = BatchLoop(orders, folder, source=place.source, peers=peers)
            seen = loop.seen
            loop.run(act)
        except Exception as error:  # a run that broke off is a red row, with what it saw until then
            seen.troubles.append(f"broke off: {type(error).__name__}: {error}"[:1500])
        if loop is not None:
            with suppress(Exception):  # tables that were never made cannot be judged
                verdict, times = loop.judge(), loop.recoveries()
    words = ", ".join(f"{count} x {point}" for point, count in sorted(seen.kills.items()))
    result = report.make(
        name, f"{words}; {seen.frozen} frozen; {seen.uncounted} more with nothing open", verdict,
        kills=seen.kills.total(), lease=SLOW if orders.slow else SHORT, seed=orders.seed,
        recoveries=times, troubles=seen.troubles, seconds=now() - began,
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
    return {
        NAME: partial(run, orders, place, name=NAME, act=BatchLoop.strike),
        STARTERS_NAME: partial(run, calm, place, name=STARTERS_NAME, act=start),
    }
