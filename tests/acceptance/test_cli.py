"""The command line as a user meets it: real processes, pipes and terminals."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from duly.adapters import make_database
from duly.admin.cli.main import invoke
from duly.config import Settings
from duly.outbox.schema import Schema
from tests.unit.outbox.rows import Rows

DULY = [sys.executable, "-m", "duly"]


def clean_environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DULY_")}
    return kept | {"NO_COLOR": "1"}


class Shell:
    """Runs ``duly`` in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.environment = folder, clean_environment()

    def __call__(
        self, *arguments: str, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*DULY, *arguments],
            cwd=self.folder,
            env=self.environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=40,
            check=False,
        )

    def json(self, *arguments: str, code: int = 0) -> Any:
        done = self(*arguments, "--json")
        assert done.returncode == code, done.stdout + done.stderr
        return json.loads(done.stdout)

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*DULY, *arguments], cwd=self.folder, env=self.environment, text=True, **options
        )


@pytest.fixture
def duly(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


@pytest.fixture
def shop(duly: Shell) -> Shell:
    """A folder with tables and a few messages that need somebody."""
    database = make_database(Settings(database=f"sqlite:///{duly.folder / 'shop.db'}"))
    Schema(database, "shop").start()
    rows = Rows(database)
    rows.outbox(message_id="m1")
    rows.outbox(message_id="m2", topic="mails")
    rows.outbox(message_id="m3", topic="mails", key="k")
    rows.inbox(message_id="m4", last_error="UNDECODABLE: \x1b[2Jevil\n")
    database.close()
    duly.environment["DULY_DATABASE"] = "sqlite:///shop.db"
    return duly


def until(condition: Callable[[], bool], seconds: float = 25) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)  # another process decides when


# --- usage, errors, exit codes --------------------------------------------------------------------
def test_help_is_quick_and_imports_no_driver(duly: Shell) -> None:
    code = (
        "import sys; from duly.admin.cli.main import invoke; invoke(['--help']);"
        "print({'sqlalchemy', 'psycopg', 'pika', 'rich'} & set(sys.modules) or 'light')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.endswith("light\n")
    for name in ("run", "outbox", "inbox", "failures", "reconcile", "doctor"):
        assert f"  {name} " in done.stdout
    assert duly("--version").stdout.startswith("duly")


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("outbox", "nonsense"),
        ("outbox", "show"),
        ("outbox", "show", "abc"),
        ("outbox", "show", "--", "--"),
        ("outbox", "list", "--status", "done"),
        ("outbox", "list", "--limit", "0"),
        ("outbox", "list"),
        ("outbox", "retry", "--database", "sqlite:///x.db"),
        ("outbox", "retry", "1", "--all", "--database", "sqlite:///x.db"),
        ("outbox", "retry", "1", "--topic", "x", "--database", "sqlite:///x.db"),
        ("outbox", "edit", "1", "--database", "sqlite:///x.db"),
        ("db", "upgrade", "a:b", "c:d"),
        ("outbox", "show", "shop:app"),
        ("outbox", "show", "1", "shop:app"),
        ("outbox", "show", "1", "2"),
        ("outbox", "pause", "shop:app", "orders", "mails"),
        ("db", "upgrade", "a:b", "--database", "sqlite:///x.db"),
        ("reconcile", "--source", "SELECT 1", "--database", "sqlite:///x.db"),
        ("run",),
        ("run", "shop:app", "--workers", "0"),
        ("run", "shop:app", "--roles", "relay,cook"),
        ("check",),
        ("topics", "tail"),
        ("topics", "tail", "orders", "--follow", "--json"),
    ],
)
def test_wrong_usage_is_2(
    arguments: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DULY_DATABASE", raising=False)
    assert invoke(arguments) == 2
    assert capsys.readouterr().err.startswith("Usage: ")
    assert not list(tmp_path.iterdir())  # and leaves nothing behind


def test_wrong_usage_ends_the_process_with_2(duly: Shell) -> None:
    done = duly("outbox", "show")
    assert (done.returncode, done.stderr.count("Traceback")) == (2, 0), done.stderr


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("outbox", "list", "--database", "sqlite:///missing.db"), "DATABASE_MISSING"),
        (("outbox", "list", "--database", "sqlit:///x.db"), "CONFIGURATION"),
        (("outbox", "list", "--database", "x"), "CONFIGURATION"),
        (("check", "nowhere:app"), "APP_MODULE"),
        (("check", "../x"), "APP_SPEC"),
        (("topics", "tail", "a b"), "INVALID_NAME"),
        (("topics", "list"), "BROKER_MISSING"),
    ],
)
def test_our_errors_are_one_line(duly: Shell, arguments: tuple[str, ...], code: str) -> None:
    done = duly(*arguments)
    assert done.returncode == 1
    assert done.stderr.startswith(f"[{code}] ")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert duly.json(*arguments, code=1)["error"]["code"] == code
    assert not list(duly.folder.iterdir())


def test_no_password_is_ever_shown(duly: Shell) -> None:
    url = "postgresql://anna:s3cret@127.0.0.1:1/shop"
    for arguments in (
        ("outbox", "list", "--database", url),
        ("db", "status", "--database", url),
        ("doctor", "--database", url, "--broker", "amqp://anna:s3cret@127.0.0.1:1/"),
        ("doctor", "--database", "postgresql://anna:s3cret@[:1/shop"),
    ):
        done = duly(*arguments)
        assert done.returncode == 1
        assert "s3cret" not in done.stdout + done.stderr


def test_a_reader_that_went_away_ends_it_quietly(shop: Shell) -> None:
    with sqlite3.connect(shop.folder / "shop.db") as connection:
        connection.execute(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 900)"
            " INSERT INTO duly_outbox (message_id, message_type, kind, topic, lane, payload,"
            " status, last_error, created_at)"
            " SELECT 'x' || i, 't', 'event', 'o', 0, '{}', 'failed', printf('%200c', 'e'), 1 FROM n"
        )
    for json_flag in ((), ("--json",)):
        reading, writing = os.pipe()
        process = shop.start(
            "outbox", "list", "--limit", "1000", *json_flag, stdout=writing, stderr=subprocess.PIPE
        )
        os.close(writing)
        os.read(reading, 10)
        os.close(reading)
        _, said = process.communicate(timeout=20)
        assert process.returncode == 141
        assert "Traceback" not in said
        assert "BrokenPipe" not in said


def test_interrupted_is_130(duly: Shell) -> None:
    code = (
        "import os, signal, sys; from duly.admin.cli import main, start;"
        "start.write = lambda text: os.kill(os.getpid(), signal.SIGINT);"
        "sys.exit(main.invoke(['init', sys.argv[1]]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(duly.folder / "new")],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, "Traceback" in done.stderr) == (130, False)


# --- the operator's commands ----------------------------------------------------------------------
def test_looking(shop: Shell) -> None:
    listed = shop("outbox", "list")
    assert listed.returncode == 0
    assert listed.stdout.splitlines()[0].split()[:3] == ["ROW", "STATUS", "TYPE"]
    assert listed.stderr == "3 of 3\n"
    found = shop.json("outbox", "list", "--topic", "mails", "--limit", "1")
    assert (found["total"], [m["id"] for m in found["messages"]]) == (2, [2])
    shown = shop("inbox", "show", "1")
    assert "\x1b" not in shown.stdout
    assert "\\x1b[2Jevil\\n" in shown.stdout
    detail = shop.json("inbox", "show", "1")
    assert detail["payload"] == {"order_id": 7}
    assert detail["line"]["group"] == "billing"
    assert shop.json("inbox", "stats")["stats"][0]["rows"] == 1
    missing = shop("outbox", "show", "4711")
    assert (missing.returncode, missing.stderr.startswith("[NOT_FOUND]")) == (1, True)


def test_one_message(shop: Shell) -> None:
    done = shop("outbox", "retry", "1", "--reason", "broker is back", "--actor", "anna")
    assert (done.returncode, done.stdout) == (0, "retry: 1 changed, 0 refused\n")
    assert shop.json("outbox", "retry", "1")["changed"] == 0
    audit = shop.json("outbox", "show", "1")["audit"]
    assert [(a["actor"], a["verb"], a["reason"]) for a in audit] == [
        ("anna", "retry", "broker is back")
    ]
    refused = shop("outbox", "skip", "1", "--yes")
    assert (refused.returncode, refused.stderr.startswith("[WRONG_STATUS]")) == (1, True)


def test_who_acts_is_the_user_by_default(shop: Shell) -> None:
    shop.environment["LOGNAME"] = "bert \x1b"
    shop.json("outbox", "retry", "1")
    assert shop.json("outbox", "show", "1")["audit"][0]["actor"] == "bert_"


def test_what_destroys_says_how_many_and_wants_yes(shop: Shell) -> None:
    for arguments, count in (
        (("outbox", "drop", "1"), "1 message"),
        (("outbox", "drop", "--all"), "3 messages"),
        (("outbox", "retry", "--all", "--topic", "mails"), "2 messages"),
        (("outbox", "retry", "1", "2"), "2 messages"),
    ):
        done = shop(*arguments)
        assert done.returncode == 2
        assert f" {count}; add --yes" in done.stderr
    assert shop.json("outbox", "list")["total"] == 3
    assert shop.json("outbox", "drop", "--all", "--topic", "orders", "--yes")["changed"] == 1
    swept = shop.json("outbox", "retry", "--all", "--yes", code=1)
    assert (swept["changed"], swept["refused"][0]["code"]) == (1, "KEY_MOVED_ON")
    assert shop.json("outbox", "retry", "3", "--out-of-order")["changed"] == 1
    assert shop.json("outbox", "retry", "--all", "--yes")["changed"] == 0


def test_edit_from_the_command_line_and_from_a_pipe(shop: Shell) -> None:
    acted = shop.json("inbox", "edit", "1", "--payload", '{"order_id": 8}', "--message-id", "m4")
    assert acted["message_id"] != "m4"
    assert shop.json("inbox", "show", "1")["payload"] == {"order_id": 8}
    done = shop("outbox", "edit", "1", "--file", "-", stdin='{"order_id": 9}')
    assert done.returncode == 0
    assert shop.json("outbox", "show", "1")["payload"] == {"order_id": 9}
    broken = shop("outbox", "edit", "2", "--payload", "{")
    assert (broken.returncode, broken.stderr.startswith("[UNDECODABLE]")) == (1, True)


def test_pause_and_resume(shop: Shell) -> None:
    assert shop.json("outbox", "pause", "orders") == {
        "verb": "pause",
        "topic": "orders",
        "changed": True,
    }
    assert shop("outbox", "pause", "orders").stdout == "topic orders: paused already\n"
    assert shop.json("outbox", "stats")["paused"] == ["orders"]
    assert shop.json("inbox", "pause", "billing")["group"] == "billing"
    assert shop("outbox", "resume", "orders").stdout == "topic orders: resumed\n"
    assert shop("outbox", "pause", "a b").returncode == 1


def test_failures(shop: Shell) -> None:
    with sqlite3.connect(shop.folder / "shop.db") as connection:
        for n in range(4):
            connection.execute(
                "INSERT INTO duly_failure (source, message_id, message_type, kind, topic, payload,"
                f" state, error, created_at) VALUES ('publish', 'm{n}', 't', 'event', 'o', '[1]',"
                " 'open', 'REFUSED: x', 1000)"
            )
    assert shop.json("failures", "list")["total"] == 4
    assert shop.json("failures", "list", "--error", "UNKNOWN")["failures"] == []
    assert shop.json("failures", "show", "1")["payload"] == [1]
    assert shop.json("failures", "retry", "1")["changed"] == 1
    assert shop("failures", "drop", "2").returncode == 2
    assert shop.json("failures", "drop", "2", "3", "--yes")["changed"] == 2
    assert shop.json("failures", "resolve", "--all", "--yes")["changed"] == 2
    assert shop.json("failures", "resolve", "2", "--yes", code=1)["error"]["code"] == "WRONG_STATUS"


def test_tables(duly: Shell) -> None:
    url = ("--database", "sqlite:///t.db")
    assert "CREATE TABLE" in duly("db", "sql", *url).stdout
    assert not (duly.folder / "t.db").exists()
    every = ["0001_house", "0002_offset", "0003_run", "0004_global_tx", "0005_settled"]
    assert duly.json("db", "upgrade", *url) == {"done": every, "version": 5}
    assert duly.json("db", "upgrade", *url)["done"] == []
    assert duly.json("db", "status", *url)["pending"] == []
    assert duly.json("db", "check", *url) == {"ok": True, "findings": []}
    with sqlite3.connect(duly.folder / "t.db") as connection:
        connection.execute("DROP INDEX duly_outbox_due")
    assert duly.json("db", "check", *url, code=1)["findings"][0]["code"] == "INDEX_MISSING"
    with sqlite3.connect(duly.folder / "t.db") as connection:
        connection.execute("UPDATE duly_meta SET value = '0' WHERE name = 'schema_version'")
    assert duly.json("db", "status", *url, code=1)["pending"] == every


def test_prune(shop: Shell) -> None:
    with sqlite3.connect(shop.folder / "shop.db") as connection:
        connection.execute(
            "UPDATE duly_outbox SET status = 'sent', settled_at = 1, created_at = 1 WHERE id = 1"
        )
    refused = shop("db", "prune")
    assert (refused.returncode, "1 outbox; add --yes" in refused.stderr) == (2, True)
    assert shop("db", "prune", "--older-than", "1d").returncode == 1  # below the dedupe window
    assert shop.json("db", "prune", "--yes")["outbox"] == 1
    assert shop.json("outbox", "list")["total"] == 2


def test_reconcile(shop: Shell) -> None:
    assert shop.json("reconcile", code=2)["verdict"] == "not provable"
    source = ("--topic", "orders", "--source", "SELECT 1")
    assert shop.json("reconcile", *source)["verdict"] == "adds up"
    assert shop.json("reconcile", *source[:3], "SELECT 2", code=1)["source"]["accounted"] == 1
    shop.environment["DULY_KEEP_SENT"] = "true"
    assert shop("reconcile").stdout.endswith("adds up\n")


def test_doctor(shop: Shell) -> None:
    codes = {finding["code"] for finding in shop.json("doctor")["findings"]}
    assert {"PYTHON", "SQLITE_VERSION", "BROKER_NEW"} <= codes
    assert not (shop.folder / "duly-broker.db").exists()


# --- a terminal -----------------------------------------------------------------------------------
def on_terminal(shell: Shell, *arguments: str) -> str:
    """What a command shows on a terminal of 80 columns."""
    screen, end = pty.openpty()
    shell.environment |= {"TERM": "xterm", "COLUMNS": "80"}
    process = shell.start(*arguments, stdin=end, stdout=end, stderr=end)
    os.close(end)
    shown = b""
    while select.select([screen], [], [], 20)[0]:
        try:
            part = os.read(screen, 65_536)
        except OSError:  # Linux says EIO at the end of a terminal
            break
        if not part:
            break
        shown += part
    os.close(screen)
    assert process.wait(10) == 0
    return shown.decode()


def test_a_terminal_gets_a_table_that_cannot_steer_it(shop: Shell) -> None:
    shown = on_terminal(shop, "inbox", "list")
    assert "ERROR" in shown
    assert "\x1b[2J" not in shown
    assert json.loads(on_terminal(shop, "inbox", "list", "--json"))["total"] == 1


# --- an App from the first line -------------------------------------------------------------------
def billed(folder: Path) -> int:
    try:
        with sqlite3.connect(folder / "shop.db", timeout=10) as connection:
            return int(connection.execute("SELECT count(*) FROM invoices").fetchone()[0])
    except sqlite3.OperationalError:  # not made yet
        return 0


def place_order(shell: Shell) -> None:
    subprocess.run(
        [sys.executable, "shop.py"],
        cwd=shell.folder,
        env=shell.environment,
        timeout=30,
        check=True,
        capture_output=True,
    )


@pytest.mark.parametrize("workers", ["1", "2"])
def test_init_check_run(duly: Shell, workers: str) -> None:
    assert duly("init").returncode == 0
    again = duly("init")
    assert (again.returncode, again.stderr.startswith("[FILE_EXISTS]")) == (1, True)
    assert duly("check").returncode == 0
    assert duly("db", "upgrade").returncode == 0
    place_order(duly)
    assert duly("db", "status", "shop:app").returncode == 0
    process = duly.start("run", "--workers", workers, stderr=subprocess.PIPE)
    try:
        until(lambda: billed(duly.folder) == 1)
        place_order(duly)
        until(lambda: billed(duly.folder) == 2)
    finally:
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=40)
    assert process.returncode == 0, said
    assert "Traceback" not in said
    topics = duly.json("topics", "list")["topics"]
    assert [(t["name"], t["depth"], t["groups"][0]["lag"]) for t in topics] == [("orders", 2, 0)]
    tailed = duly.json("topics", "tail", "orders")["messages"]
    assert [m["message"]["payload"]["order_id"] for m in tailed] == [1, 2]
    assert duly.json("inbox", "stats")["stats"][0]["status"] == "done"
    (duly.folder / "duly.toml").unlink()
    duly.environment["DULY_BROKER"] = "embedded:///shop-broker.db"
    duly.environment["DULY_DATABASE"] = "sqlite:///shop.db"
    assert duly.json("inbox", "show", "shop:app", "1")["line"]["status"] == "done"
    assert duly.json("topics", "tail", "shop:app", "orders", "-n", "1")["messages"]
    assert duly.json("inbox", "pause", "shop:app", "billing")["changed"]


def test_a_run_that_cannot_start_ends_with_its_reason(duly: Shell) -> None:
    duly("init")
    duly.environment["DULY_DATABASE"] = "sqlite:////nowhere/at/all/shop.db"
    for workers in ("1", "2"):
        done = duly("run", "--workers", workers)
        assert done.returncode == 1
        assert "/nowhere/at/all" in done.stderr
        assert "Traceback" not in done.stderr


# --- a command that nobody takes ------------------------------------------------------------------
def test_a_command_that_nobody_takes_is_seen_by_who_looks(duly: Shell) -> None:
    duly("init")
    program = duly.folder / "shop.py"
    program.write_text(program.read_text().replace("if __name__", FAR + "if __name__"))
    process = duly.start("run", "shop:app", stderr=subprocess.PIPE)
    try:
        place_order(duly)
        until(lambda: duly.json("outbox", "stats")["stuck"] != [], seconds=60)
        (stuck,) = duly.json("outbox", "list")["stuck"]
        assert (stuck["topic"], stuck["rows"], stuck["error"].partition(":")[0]) == (
            *("far.away", 1),
            "UNROUTED",
        )
        for command in (("outbox", "stats"), ("outbox", "list")):
            assert "far.away: 1 message waits since 20" in duly(*command).stderr
        found = {f["code"]: f for f in duly.json("doctor")["findings"]}
        assert found["TOPIC_STUCK"]["message"].startswith("far.away: 1 message")
        (duly.folder / "far.py").write_text(FAR_HANDLER)
        duly.environment["DULY_DATABASE"] = "sqlite:///far.db"
        far = duly.start("run", "far:app", stderr=subprocess.PIPE)
        try:
            del duly.environment["DULY_DATABASE"]
            until(lambda: duly.json("outbox", "stats")["stats"] == [], seconds=60)
            assert duly.json("outbox", "stats")["stuck"] == []
        finally:
            far.terminate()
            far.communicate(timeout=40)
    finally:
        process.terminate()
        _, said = process.communicate(timeout=40)
    assert "runtime.connected peer=broker" in said
    assert "set aside" in said


FAR = """

from duly import Command

class Ship(Command, name="far.ship", queue="far.away", handled_by="far"):
    order_id: int

def place_order(total: int) -> int:
    engine = app.database.engine()
    with Session(engine) as session, session.begin():
        app.send(session, Ship(order_id=1))
    return 1
"""
FAR_HANDLER = """
from duly import App, Command

app = App("far")

class Ship(Command, name="far.ship", queue="far.away"):
    order_id: int

@app.handle(Ship)
def ship(command: Ship) -> None:
    pass
"""
