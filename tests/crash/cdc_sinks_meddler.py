"""An operator who has copies filled anew while everything runs, and readers of a cache.

A reader fills an entry that is not there with the row as it is, and holds the row meanwhile: what
it puts there is never of the past, so an entry that is wrong in the end was not removed in time.
And somebody looks at the entries that a sink fills: what was seen is in the journal, line by line
with what has changed since."""

from __future__ import annotations

import random
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from duly.cdc.offsets import read, requests
from duly.errors import DulyError
from duly.outbox.operator import By
from duly.testing.journal import Journal
from tests.crash.cdc_copies import COPIES, KEYS, Cache, Copy, Rows
from tests.crash.cdc_shop import make_app
from tests.crash.stop import Stop

LOOK_SECONDS = 0.1
FILLED = 10  # keys in one go
OFTEN = ("item", "small")  # the others are too large to be read again and again


def main(config: dict[str, Any]) -> int:
    """Ask, fill and look until SIGTERM; the exit code."""
    stop = Stop()
    journal = Journal(f"{config['folder']}/meddler.jsonl")
    copies = COPIES[config["rules"]]
    cached = [copy for copy in copies if not copy.is_sql]
    broken: list[BaseException] = []
    work: list[Callable[[], None]] = []
    if cached:
        cache = Cache(config["targets"]["redis"], config["targets"]["mark"])
        filling = Filling(config, cache, [copy for copy in cached if not copy.is_filled])
        looking = Looking(cache, _seen(cached), journal)
        work = [filling.once, looking.once]
    threads = [threading.Thread(target=_repeat, args=(one, stop, broken)) for one in work]
    for thread in threads:
        thread.start()
    _ask(config, copies, journal, stop)
    for thread in threads:
        thread.join()
    if cached:
        journal.append("filled", counts=filling.counts)
    journal.append("end")
    if broken:
        raise broken[0]
    return 0


def _seen(copies: list[Copy]) -> list[Copy]:
    return [copy for copy in copies if copy.is_filled and copy.table in OFTEN]


def _repeat(once: Callable[[], None], stop: Stop, broken: list[BaseException]) -> None:
    try:
        while not stop.wait(LOOK_SECONDS):
            once()
    except BaseException as error:  # told by the main thread
        broken.append(error)


def _ask(config: dict[str, Any], copies: tuple[Copy, ...], journal: Journal, stop: Stop) -> None:
    app, chance = make_app(config), random.Random(config["seed"])
    streams = app.streams()
    wanted = _seen(list(copies))
    while not stop.wait(LOOK_SECONDS + chance.random()):
        copy = chance.choice(wanted)
        try:
            if _is_held(config) or not _is_done(app, copy.stream):
                continue
            streams.snapshot(copy.table, by=By("crash", "meddling"), stream=copy.stream)
            journal.append("asked", copy=copy.name)
        except DulyError as error:
            journal.append("error", code=error.code)


def _is_done(app: Any, stream: str) -> bool:
    """Whether a reader has begun, no snapshot is under way, and none is asked for."""
    with closing(app.database.connect()) as plain:
        asked, offset = plain.run(requests(stream)), plain.run(read(stream))
    snapshots = offset.state.tables.values()
    return bool(offset.state.fed and not asked and all(one.done for one in snapshots))


def _is_held(config: dict[str, Any]) -> bool:
    """Whether the driver wants nothing new for now."""
    try:
        return float((Path(config["folder"]) / "pace").read_text() or 0) >= 1
    except (OSError, ValueError):
        return False


class Looking:
    """Looks at the entries that sinks fill."""

    def __init__(self, cache: Cache, copies: list[Copy], journal: Journal) -> None:
        self._cache, self._copies, self._journal = cache, copies, journal
        self._last: dict[str, Rows] = {copy.name: {} for copy in copies}

    def once(self) -> None:
        """Write down what has changed since the last look."""
        for copy in self._copies:
            now, last = self._cache.held(copy, ("v",)), self._last[copy.name]
            keys = [key for key in now.keys() | last.keys() if now.get(key) != last.get(key)]
            if keys:
                rows = {key: now[key][0] if key in now else None for key in sorted(keys)}
                self._journal.append("seen", copy=copy.name, rows=rows)
            self._last[copy.name] = now


class Filling:
    """Readers of a cache that find nothing there."""

    def __init__(self, config: dict[str, Any], cache: Cache, copies: list[Copy]) -> None:
        self._url, self._cache, self._copies = config["database"], cache, copies
        self._sqlite = self._url.startswith("sqlite")
        self._chance = random.Random(config["seed"])
        self._db: Any = None
        self.counts: Counter[str] = Counter()

    def once(self) -> None:
        """A few keys of each table; the source may be too busy for this, and is asked again."""
        import psycopg

        try:
            self._db = self._db or self._connect()
            for copy in self._copies:
                self._some(copy)
        except (psycopg.Error, sqlite3.OperationalError):
            self._db.close()
            self._db = None

    def _some(self, copy: Copy) -> None:
        mark, lock = ("?", "") if self._sqlite else ("%s", " FOR UPDATE")
        for key in sorted(self._chance.sample(range(KEYS[copy.table]), FILLED)):
            self._db.execute("BEGIN IMMEDIATE" if self._sqlite else "BEGIN")
            sql = f"SELECT v FROM {copy.table} WHERE id = {mark}{lock}"
            found = self._db.execute(sql, (key,)).fetchone()
            if found is not None:
                self.counts[copy.name] += self._cache.fill(copy, str(key), found[0])
            self._db.execute("COMMIT")

    def _connect(self) -> Any:
        if self._sqlite:
            path = self._url.removeprefix("sqlite:///")
            return sqlite3.connect(path, timeout=5, isolation_level=None)
        import psycopg

        return psycopg.connect(
            self._url, autocommit=True, connect_timeout=10, options="-c lock_timeout=5s"
        )
