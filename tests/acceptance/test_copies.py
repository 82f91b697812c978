"""The example of an index and a cache: killed on the way, both hold what the table holds."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.servers.opensearch import OpenSearch

ROOT = Path(__file__).resolve().parents[2]
LIMIT_SECONDS = 90
FLIGHTS, FIRST = 60, 640  # twice so many, of a bad day's afternoon: some late, many cancelled
KILLED_AT = 30  # flights in the index

pytestmark = pytest.mark.timeout(240)


class Copies:
    """The example in a folder of its own. settings: its environment. indexed: how many flights."""

    def __init__(self, folder: Path, settings: dict[str, str], indexed: Callable[[], int]) -> None:
        for file in (ROOT / "examples" / "copies").glob("*.py"):
            shutil.copy(file, folder)
        known = {name: value for name, value in os.environ.items() if not name.startswith("DULY_")}
        self.folder, self.indexed = folder, indexed
        self.environ = {**known, "PYTHONPATH": str(ROOT / "src"), **settings}
        self.started: list[subprocess.Popen[str]] = []

    def start(self, *words: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *words],
            cwd=self.folder,
            env=self.environ,
            stdout=subprocess.PIPE if words[0] == "check.py" else None,
            text=True,
        )
        self.started.append(process)
        return process

    def run(self) -> subprocess.Popen[str]:
        return self.start("-m", "duly", "run", "copies:app", "--roles", "cdc")

    def operate(self, count: int, first: int = 0) -> None:
        """What the service does, in this process: it is not what is killed."""
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.folder)
            patch.setattr(sys, "argv", ["service.py", str(count), str(first)])
            patch.setenv("SERVICE_URL", self.environ["SERVICE_URL"])
            runpy.run_path("service.py", run_name="__main__")

    def until(self, count: int) -> None:
        end = time.monotonic() + LIMIT_SECONDS
        while (there := self.indexed()) < count:
            assert time.monotonic() < end, there
            time.sleep(0.02)  # between two looks


@pytest.fixture(params=["files", "servers"])
def copies(request: pytest.FixtureRequest, tmp_path: Path, redis_url: str) -> Iterator[Copies]:
    """From SQLite into SQLite, as its README begins; from MariaDB into OpenSearch."""
    at = urlsplit(redis_url)
    settings = {"SERVICE_URL": "sqlite:///flights.db"}
    settings["REDIS_URL"] = at._replace(query="").geturl()
    settings["REDIS_PREFIX"] = at.query.removeprefix("prefix=") + "flight:"

    def found() -> int:
        with closing(sqlite3.connect(tmp_path / "search.db", timeout=30)) as db:
            try:
                return int(db.execute("SELECT count(*) FROM found").fetchone()[0])
            except sqlite3.OperationalError:  # there is no such table yet
                return 0

    indexed = found
    if request.param == "servers":
        server: OpenSearch = request.getfixturevalue("opensearch")
        settings["SERVICE_URL"] = request.getfixturevalue("mariadb_url")
        settings |= {"SEARCH_URL": server.feeder, "SEARCH_INDEX": server.index}
        settings |= {"SEARCH_CA_FILE": server.ca_file} if server.ca_file else {}
        indexed = lambda: len(server.documents())  # noqa: E731
    made = Copies(tmp_path, settings, indexed)
    yield made
    for process in made.started:
        process.kill()
        process.wait(10)


def test_index_and_cache_hold_what_the_table_holds_whatever_is_killed(copies: Copies) -> None:
    copies.operate(0)
    running = copies.run()
    copies.operate(FLIGHTS, FIRST)
    copies.until(KILLED_AT)
    running.kill()
    running.wait(10)
    copies.operate(FLIGHTS, FIRST + FLIGHTS)
    check = copies.start("check.py", str(LIMIT_SECONDS))
    assert check.stdout is not None
    behind = check.stdout.readline()
    assert not re.search(r": 0 differ", behind), behind
    copies.run()
    said, _ = check.communicate(timeout=LIMIT_SECONDS + 30)
    assert check.returncode == 0, said
    counts = re.fullmatch(
        r"table (\d+), index (\d+) of (\d+): 0 differ, cache (\d+) of (\d+): 0 differ",
        said.splitlines()[-1],
    )
    assert counts is not None, said
    rows, found, every, kept, shown = map(int, counts.groups())
    assert 2 * KILLED_AT < rows == found == every < 2 * FLIGHTS
    assert KILLED_AT < kept == shown < rows
