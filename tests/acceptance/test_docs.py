"""The documentation as a stranger meets it: every block runs, every link and every name is there.

How a page is run: in an empty folder, its blocks from top to bottom.

    first line "# shop.py"      the block is that file; a module no later block names is imported
    python, without a name      a program of its own
    sh                          a script, with `duly` on the path
    text behind one of them     its lines appear in that output, "..." for what differs each time
    json, toml                  is read; no language is a drawing
    <!-- not run: reason -->    above a block that cannot run; at most NOT_RUN_MAX in all pages

The blocks of a folder's README.md come first on every page of that folder.  A ``duly run`` in the
foreground is ended by SIGTERM as soon as nothing is left to do, one in the background at the end of
its block.  The example URLs of servers stand for those of the tests.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import duly
from duly import config
from duly.admin.cli.main import cli
from tests.acceptance import reference_pages
from tests.conftest import server_url

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
NOT_RUN_MAX = 8
BLOCK_SECONDS = 90
POSTGRES_EXAMPLE = "postgresql://shop:secret@localhost/shop"
MARIADB_EXAMPLE = "//ledger:secret@localhost/ledger"
REDIS_EXAMPLE = "redis://shop:secret@localhost/0"
ACTIVEMQ_EXAMPLE = "stomp://shop:secret@localhost/shop"
KAFKA_EXAMPLE = "kafka://localhost/shop"
NATS_EXAMPLE = "nats://localhost/shop"
RABBITMQ_EXAMPLE = "amqp://shop:secret@localhost/shop"

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_REASON = re.compile(r"<!-- not run: (.+?) -->\n\Z")
_FILE = re.compile(r"(?:#|--) ([\w.-]+\.(?:py|toml|sql|ini))\b.*\n")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_TEST = re.compile(r"`((?:tests|src)/[\w/.]+\.py)((?:::\w+)+)`")

pytestmark = pytest.mark.timeout(240)


@dataclass(frozen=True)
class Block:
    """A fenced block. file: the name it is written under, empty for none."""

    page: Path
    line: int
    language: str
    text: str
    reason: str

    @property
    def file(self) -> str:
        named = _FILE.match(self.text)
        return named[1] if named else ""

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def pages() -> list[Path]:
    found = [p for p in DOCS.rglob("*.md") if "adr" not in p.relative_to(DOCS).parts]
    return [ROOT / "README.md", *sorted(found)]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        reason = _REASON.search(text[: match.start()])
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(page, line, match[1], match[2], reason[1] if reason else ""))
    return found


# An environment that was made before the plugin existed does not load it by itself.
_PLUGGED = entry_points(group="pytest11", name="duly")
PLUGIN = "-p no:cacheprovider" + ("" if _PLUGGED else " -p duly.testing.plugin")


# --- running --------------------------------------------------------------------------------------
SHIM = """#!{python}
# `duly` for the pages: the real one, and for `duly run` somebody who presses Ctrl-C in the end.
import asyncio, os, signal, sys, time

arguments = sys.argv[1:]


def ready(pid):
    with open(f"/proc/{{pid}}/status") as file:
        caught = next(line for line in file if line.startswith("SigCgt"))
    return int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1


async def lag(app):
    broker = app.make_broker()
    await broker.start()
    try:
        ours = app.handlers.groups  # a page may have readers of its own beside the App
        return sum(
            group.lag
            for topic in await broker.topics()
            for group in topic.groups
            if topic.kind == "command" or group.group in ours
        )
    finally:
        await broker.close()


def quiet(app):
    from duly.outbox.operator import Scope

    operator = app.operator()
    scope = Scope(statuses=("ready", "retry"))
    waiting = operator.count("outbox", scope) + operator.count("inbox", scope)
    return not waiting and captured(app) and not asyncio.run(lag(app))


def captured(app):
    if not app.captures.streams:
        return True
    streams = asyncio.run(app.streams().status())
    return all(
        one.source and not one.source.lag_transactions and all(s.done for s in one.snapshots)
        for one in streams
    )


def watch(pid):
    end = time.monotonic() + {seconds}
    sys.stdout = sys.stderr = open(os.devnull, "w")
    from duly.admin.cli.target import require_app

    app = require_app(next((a for a in arguments[1:] if ":" in a), None))
    looks = 0
    while os.getppid() == pid and time.monotonic() < end and looks < 2:
        time.sleep(0.25)  # until the program that the page started has come so far
        if "DOC_BACKGROUND" not in os.environ:
            looks = looks + 1 if ready(pid) and quiet(app) else 0
    if os.getppid() == pid:
        os.kill(pid, signal.SIGTERM)


if arguments[:1] == ["run"] and "--help" not in arguments:
    pid = os.getpid()
    if os.fork() == 0:
        try:
            watch(pid)
        finally:
            os._exit(0)
os.execv({python!r}, [{python!r}, "-m", "duly", *arguments])
"""


class Shell:
    """Runs the blocks of a page in a folder. replaced: text of the page -> what it stands for."""

    def __init__(self, folder: Path, replaced: dict[str, str]) -> None:
        self.folder, self.replaced = folder, replaced
        self.output = ""
        tools = folder / ".bin"
        tools.mkdir(exist_ok=True)
        self._tool(tools / "duly", SHIM.format(python=sys.executable, seconds=BLOCK_SECONDS - 20))
        self._tool(tools / "python", f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        self._tool(
            tools / "pytest", f'#!/bin/sh\nexec "{sys.executable}" -m pytest {PLUGIN} "$@"\n'
        )
        kept = {n: v for n, v in os.environ.items() if not n.startswith(("DULY_", "PYTEST_"))}
        path = os.pathsep.join([str(tools), kept.get("PATH", "")])
        sources = os.pathsep.join([str(ROOT / "src"), str(folder)])
        self.environment = kept | {
            "PATH": path, "PYTHONPATH": sources, "NO_COLOR": "1", "PYTHONUNBUFFERED": "1",
            "USER": "anna", "LOGNAME": "anna", "COLUMNS": "200",
        }  # fmt: skip

    @staticmethod
    def _tool(path: Path, text: str) -> None:
        path.write_text(text)
        path.chmod(0o755)

    def run(self, block: Block, *, later: bool = False) -> None:
        """One block, as the table at the top says. later: another one uses this file."""
        text = block.text
        for example, real in self.replaced.items():
            text = text.replace(example, real)
        if block.file:
            (self.folder / block.file).write_text(text)
            if not (later and block.language == "python"):
                self._check(block)
        elif block.language == "sh":
            self._start(block, ["sh", "-eu", "-c", text])
        elif block.language == "python":
            self._start(block, [sys.executable, "-c", text])
        elif block.language == "text":
            self._expect(block)
        elif block.language:
            {"json": json.loads, "toml": tomllib.loads}[block.language](text)

    def _check(self, block: Block) -> None:
        path = self.folder / block.file
        if path.suffix == ".toml":
            tomllib.loads(path.read_text())
        elif path.suffix == ".py" and not path.name.startswith(("test_", "conftest")):
            self._start(block, [sys.executable, "-c", f"import {path.stem}"])

    def _start(self, block: Block, command: list[str]) -> None:
        log = self.folder / ".output"
        background = (
            {"DOC_BACKGROUND": "1"} if re.search(r"&\s*$", block.text, re.MULTILINE) else {}
        )
        with log.open("w+") as file:
            process = subprocess.Popen(
                command, cwd=self.folder, env=self.environment | background, stdout=file,
                stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
            try:
                code = process.wait(BLOCK_SECONDS)
            except subprocess.TimeoutExpired:
                code = -1
            finally:
                self._end(process)
        self.output = log.read_text(errors="replace")
        assert code == 0, f"{block.place} ended with {code}\n{block.text}\n{self.output}"

    @staticmethod
    def _end(process: subprocess.Popen[bytes]) -> None:
        """End what the block left behind: its own session, nothing else."""
        for which, seconds in ((signal.SIGTERM, 8.0), (signal.SIGKILL, 5.0)):
            end = time.monotonic() + seconds
            number: int = which
            while time.monotonic() < end:
                try:
                    os.killpg(process.pid, number)
                except ProcessLookupError:
                    return
                process.poll()
                time.sleep(0.2)  # nobody says when a foreign process has ended
                number = 0  # only look whether anybody is left

    def _expect(self, block: Block) -> None:
        said = " ".join(self.output.split())
        for line in block.text.splitlines():
            parts = [re.escape(" ".join(part.split())) for part in line.split("...")]
            wanted = r".*?".join(parts)
            assert re.search(wanted, said), f"{block.place}: not shown: {line}\n{self.output}"


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path | None]:
    """Page -> the folder that the README of its folder has set up, made once; None for none."""
    made: dict[Path, Path] = {}

    def prepared(page: Path) -> Path | None:
        readme = page.parent / "README.md"
        if page == readme or page.parent in (ROOT, DOCS):
            return None
        if readme not in made:
            shell = Shell(tmp_path_factory.mktemp("prepared"), {})
            for block in blocks(readme):
                if not block.reason:
                    shell.run(block)
            made[readme] = shell.folder
        return made[readme]

    return prepared


@pytest.fixture
def shell(
    tmp_path: Path,
    page: Path,
    folders: Callable[[Path], Path | None],
    request: pytest.FixtureRequest,
) -> Shell:
    text = page.read_text(encoding="utf-8")
    replaced = {}
    if POSTGRES_EXAMPLE in text:
        replaced[POSTGRES_EXAMPLE] = request.getfixturevalue("postgres_url")
    if MARIADB_EXAMPLE in text:
        replaced[MARIADB_EXAMPLE] = request.getfixturevalue("mariadb_url").removeprefix("mysql:")
    if RABBITMQ_EXAMPLE in text:
        replaced[RABBITMQ_EXAMPLE] = request.getfixturevalue("rabbitmq_url")
    if ACTIVEMQ_EXAMPLE in text:
        replaced[ACTIVEMQ_EXAMPLE] = request.getfixturevalue("activemq_url")
    if KAFKA_EXAMPLE in text:
        replaced[KAFKA_EXAMPLE] = request.getfixturevalue("kafka_url")
    if NATS_EXAMPLE in text:
        replaced[NATS_EXAMPLE] = request.getfixturevalue("nats_url")
    if REDIS_EXAMPLE in text:
        replaced[REDIS_EXAMPLE] = request.getfixturevalue("redis_database")
    folder = tmp_path / "stranger"
    if before := folders(page):
        shutil.copytree(before, folder)
    else:
        folder.mkdir()
    return Shell(folder, replaced)


@pytest.fixture
def redis_database() -> Iterator[str]:
    """A database of Redis that no other test uses, empty before and after."""
    import redis

    url = urlsplit(server_url("DULY_TEST_REDIS"))._replace(path="/9").geturl()
    with redis.Redis.from_url(url, socket_timeout=10) as client:
        client.flushdb()
        yield url
        client.flushdb()


RUNNABLE = [page for page in pages() if any(not b.reason for b in blocks(page))]


@pytest.mark.parametrize("page", RUNNABLE, ids=name_of)
def test_every_block_of_a_page_runs(page: Path, shell: Shell) -> None:
    running = [block for block in blocks(page) if not block.reason]
    for n, block in enumerate(running):
        stem = block.file.partition(".")[0]
        imported = any(re.search(rf"\b{stem}\b", later.text) for later in running[n + 1 :])
        shell.run(block, later=bool(stem) and imported)
    assert running


# --- what keeps the pages honest ------------------------------------------------------------------
def test_few_blocks_are_not_run_and_each_says_why() -> None:
    left_out = [block.place for page in pages() for block in blocks(page) if block.reason]
    assert len(left_out) <= NOT_RUN_MAX, left_out
    marks = sum(page.read_text(encoding="utf-8").count("<!-- not run:") for page in pages())
    assert marks == len(left_out), "a mark does not stand right above a block"


def test_blocks_have_a_known_language_and_pages_are_whole() -> None:
    known = {"python", "sh", "text", "toml", "json", ""}
    for page in pages():
        assert page.read_text(encoding="utf-8").count("\n```") % 2 == 0, page
        for block in blocks(page):
            assert block.language in known or (block.language == "sql" and block.file), block.place


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    outside = _FENCE.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.+)$", outside, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in _LINK.findall(_FENCE.sub("", page.read_text(encoding="utf-8"))):
        path, _, anchor = link.partition("#")
        if "://" in path:
            continue
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name_of(page)}: {link}"
        assert not anchor or anchor in anchors(target), f"{name_of(page)}: {link}"


def test_every_page_is_reached_from_the_index() -> None:
    seen: set[Path] = set()
    todo = [DOCS / "README.md"]
    while todo:
        page = todo.pop()
        seen.add(page)
        for link in _LINK.findall(page.read_text(encoding="utf-8")):
            target = (page.parent / link.partition("#")[0]).resolve()
            if target.suffix == ".md" and target.exists() and target not in seen:
                todo.append(target)
    assert set(DOCS.rglob("*.md")) <= seen


def test_every_guarantee_names_a_test() -> None:
    text = (DOCS / "guarantees.md").read_text(encoding="utf-8")
    for section in re.split(r"^## (?=[GW]\d)", text, flags=re.MULTILINE)[1:]:
        section = section.partition("\n## ")[0]
        assert _TEST.search(section), f"no test: {section.splitlines()[0]}"


def test_every_test_that_a_page_names_exists() -> None:
    for path, names in (found for page in pages() for found in _TEST.findall(page.read_text())):
        source = (ROOT / path).read_text(encoding="utf-8")
        for name in names.split("::")[1:]:
            found = re.search(rf"^\s*(?:async )?(?:def|class) {name}\b", source, re.MULTILINE)
            assert found, f"{path}::{name}"


# --- the reference --------------------------------------------------------------------------------
@pytest.mark.parametrize("name", sorted(reference_pages.PAGES))
def test_generated_pages_are_what_the_code_says(name: str) -> None:
    written = (DOCS / "reference" / name).read_text(encoding="utf-8")
    again = "run: python -m tests.acceptance.reference_pages"
    assert written == reference_pages.PAGES[name](), f"docs/reference/{name} is old; {again}"


def test_the_reference_names_everything_public() -> None:
    folder = DOCS / "reference"
    api, settings = (folder / "api.md").read_text(), (folder / "settings.md").read_text()
    for name in duly.__all__:
        assert re.search(rf"^## `{name}`$", api, re.MULTILINE), name
    for key in config.keys():  # noqa: SIM118  # no dictionary
        assert f"| `{key.name}` |" in settings, key.name
    for command in cli.list_commands(None):  # type: ignore[arg-type]
        assert f"## `duly {command}`" in (folder / "cli.md").read_text(), command


def test_the_tables_are_those_of_the_migrations() -> None:
    text = (DOCS / "reference" / "tables.md").read_text()
    sections = re.split(r"^## `(\w+)`$", text, flags=re.MULTILINE)[1:]
    described = {
        table: re.findall(r"^\| `(\w+)` \|", body, re.MULTILINE)
        for table, body in zip(sections[::2], sections[1::2], strict=True)
    }
    for dialect in ("sqlite", "postgres"):
        assert described == reference_pages.tables(dialect), dialect
