"""Extraction from real servers: killed at every place, rows that change, cells without end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest

from duly.adapters import make_row_source
from duly.batch.extract import Query
from duly.batch.formats.csv_file import CsvFile
from duly.batch.formats.json_file import JsonLines
from duly.databases.postgres import copy_out
from duly.errors import ConfigurationError, DulyError, PermanentError
from duly.kernel import failpoints
from duly.rows import KeyColumn, Reading, RowQuery
from duly.testing.failpoints import ENVIRONMENT
from tests.conftest import mariadb
from tests.unit.batch.spooling import Context, World

ROOT = Path(__file__).resolve().parents[2]
COUNT = 30_000
TEXT = "SELECT id, name, amount, at FROM payout"
SMALL = {"chunk_bytes": 64 * 1024}
POINTS = (
    failpoints.BATCH_CHUNK_WRITTEN,
    failpoints.BATCH_CHUNK_SYNCED,
    failpoints.BATCH_CHECKPOINT_SAVED,
    failpoints.BATCH_SEALED,
)


@pytest.fixture
def filled_url(postgres_url: str) -> str:
    with psycopg.connect(postgres_url, autocommit=True) as db:
        db.execute(
            "CREATE TABLE payout (id bigint PRIMARY KEY, name text, amount numeric(12,2), "
            "at timestamptz NOT NULL)"
        )
        db.execute(
            "INSERT INTO payout SELECT g, CASE WHEN g %% 10 = 0 THEN NULL ELSE 'n, \"' || g END, "
            "g / 100.0, timestamptz '2026-01-01' + g * interval '1 second' "
            "FROM generate_series(1, %s) g",
            (COUNT,),
        )
        db.execute("ANALYZE payout")
    return postgres_url


def start(
    url: str, folder: Path, attempt: int, /, *, plan: str = "", **given: Any
) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    asked = {"url": url, "folder": str(folder), "attempt": attempt, "text": TEXT, **given}
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), ENVIRONMENT: plan}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.integration.extract_worker", json.dumps(asked)],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        text=True,
    )


def told_by(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, _ = process.communicate(timeout=50)
    assert process.returncode == 0
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


def journal(folder: Path, attempt: int, name: str) -> list[Any]:
    lines = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    return [value for number, what, value in lines if (number, what) == (attempt, name)]


def stored_key(folder: Path) -> list[str] | None:
    import sqlite3

    with closing(sqlite3.connect(folder / "runs.db")) as db:
        row = db.execute("SELECT data FROM checkpoint WHERE step = 'extract'").fetchone()
    return json.loads(row[0])["parts"][0].get("last") if row else None


# --- killed ---------------------------------------------------------------------------------------
def test_killed_at_every_place_the_file_is_the_same(filled_url: str, tmp_path: Path):
    whole = told_by(start(filled_url, tmp_path / "whole", 1, query=SMALL))
    assert whole["rows"] == COUNT
    for point in POINTS:
        folder = tmp_path / point
        hit = 1 if point == failpoints.BATCH_SEALED else 7
        killed = start(filled_url, folder, 1, plan=f"{point}@{hit}=kill", query=SMALL)
        assert killed.wait(50) == -signal.SIGKILL
        last = stored_key(folder)
        again = told_by(start(filled_url, folder, 2, query=SMALL))
        assert (again["sha256"], again["rows"]) == (whole["sha256"], COUNT)
        assert Path(again["path"]).read_bytes() == Path(whole["path"]).read_bytes()
        begun = journal(folder, 2, "after")
        assert begun == ([] if point == failpoints.BATCH_SEALED else [last])
        assert not journal(folder, 2, "restarted")


def test_a_frozen_attempt_that_wakes_up_late_changes_nothing(filled_url: str, tmp_path: Path):
    whole = told_by(start(filled_url, tmp_path / "whole", 1, query=SMALL))
    folder = tmp_path / "run"
    plan = f"{failpoints.BATCH_CHUNK_WRITTEN}@7=stop"
    frozen = start(filled_url, folder, 1, plan=plan, query=SMALL)
    try:
        until_stopped(frozen.pid)
        again = told_by(start(filled_url, folder, 2, query=SMALL))
        os.kill(frozen.pid, signal.SIGCONT)
        assert told_by(frozen)["code"] == "LEASE_LOST"
    finally:
        frozen.kill()
        frozen.wait(10)
    assert again["sha256"] == whole["sha256"]
    assert Path(again["path"]).read_bytes() == Path(whole["path"]).read_bytes()


def until_stopped(pid: int) -> None:
    end = time.monotonic() + 40
    while time.monotonic() < end:
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T":
            return
        time.sleep(0.01)  # between two looks
    pytest.fail("it did not come to its failpoint")


# --- memory ---------------------------------------------------------------------------------------
MEMORY_MB_MAX = 100


def test_memory_is_bounded_however_much_there_is(postgres_url: str, tmp_path: Path):
    text = "SELECT g AS id, repeat('x', 900) AS body FROM generate_series(1, 150000) g"
    told = told_by(start(postgres_url, tmp_path / "run", 1, text=text))
    assert told["rows"] == 150_000
    assert Path(told["path"]).stat().st_size > 130_000_000
    assert told["peak_mb"] < MEMORY_MB_MAX


def test_a_cell_that_does_not_fit_into_memory_is_refused_before_it_is_sent(
    postgres_url: str, tmp_path: Path
):
    with psycopg.connect(postgres_url, autocommit=True) as db:
        db.execute("CREATE TABLE large (id int PRIMARY KEY, body text)")
        db.execute("INSERT INTO large VALUES (1, 'a'), (2, repeat('x', 90000000))")
    told = told_by(start(postgres_url, tmp_path / "run", 1, text="SELECT * FROM large"))
    assert told["code"] == "BATCH_ROW_TOO_LARGE"
    assert "90000000 bytes" in told["text"]
    assert told["peak_mb"] < MEMORY_MB_MAX


# --- the same bytes -------------------------------------------------------------------------------
def read_all(url: str, query: RowQuery, **reading: Any) -> list[Any]:
    with closing(make_row_source(url).open()) as reader:
        return list(reader.read(query, Reading(**{"block_bytes": 4096, **reading})))


def test_libpq_gives_the_same_blocks_as_the_socket(
    filled_url: str, monkeypatch: pytest.MonkeyPatch
):
    query = RowQuery(f"{TEXT} WHERE id < 3000", (KeyColumn("id"),))
    direct = {form: read_all(filled_url, query, form=form) for form in ("csv", "values")}
    monkeypatch.setattr(copy_out, "_by_messages", copy_out._by_libpq)
    for form, blocks in direct.items():
        found = read_all(filled_url, query, form=form)
        assert [(b.rows, b.last) for b in found] == [(b.rows, b.last) for b in blocks]
        assert [b"".join(b.data) for b in found] == [b"".join(b.data) for b in blocks]
    for text in ("SELECT 1 / (id - 5) AS x, id FROM payout", "SELECT 1/0 AS id"):
        with pytest.raises(PermanentError, match="division by zero"):
            read_all(filled_url, RowQuery(text, (KeyColumn("id"),)), form="csv")


def test_settings_of_the_role_do_not_change_a_byte(filled_url: str, tmp_path: Path):
    query = RowQuery(
        "SELECT id, at, 0.1::float8 + 0.2 AS f, '\\x00ff'::bytea AS b, at::date AS d, "
        "interval '1 day 2 hours' AS i, 12.5::money AS m, "
        "CASE WHEN id = 50 THEN (SELECT 'late' FROM pg_sleep(0.5)) END AS z "
        "FROM payout WHERE id < 100",
        (KeyColumn("id"),),
    )
    before = read_all(filled_url, query, form="csv")
    name = urlsplit(filled_url).path.strip("/")
    with psycopg.connect(filled_url, autocommit=True) as db:
        for setting in (
            "DateStyle = 'SQL, DMY'",
            "TimeZone = 'Asia/Tokyo'",
            "IntervalStyle = 'iso_8601'",
            "extra_float_digits = -3",
            "bytea_output = 'escape'",
            "statement_timeout = '250ms'",
        ):
            db.execute(f"ALTER DATABASE {name} SET {setting}".encode())
    assert read_all(filled_url, query, form="csv") == before
    assert b"0.30000000000000004,\\x00ff" in before[0].data[0]


def test_a_pooler_in_transaction_mode_gives_the_same(filled_url: str, pgbouncer_url: str):
    query = RowQuery(f"{TEXT} WHERE id < 3000", (KeyColumn("id"),))
    through, direct = (
        [(b.rows, b.last, b"".join(b.data)) for b in read_all(url, query, form="csv")]
        for url in (pgbouncer_url, filled_url)
    )
    assert through == direct


def test_what_duly_writes_is_what_postgresql_writes(filled_url: str, tmp_path: Path):
    world = World(filled_url)
    forms = (CsvFile("a"), CsvFile("a", spreadsheet_safe=True), CsvFile("a", quote="all"))
    first, second, third = (
        world.run(world.job(text=TEXT, write=form), Context(tmp_path / str(n))).path.read_bytes()
        for n, form in enumerate(forms)
    )
    assert first == second
    assert first != third
    assert first.count(b"\n") == COUNT + 1


def test_a_text_key_is_ordered_by_its_bytes_whatever_the_collation(
    postgres_url: str, mariadb_url: str
):
    names = ["a", "B", "ä", "a ", "_", "Z", "z", "É", "e", "10", "9"]
    values = ", ".join(f"('{name}')" for name in names)
    with psycopg.connect(postgres_url, autocommit=True) as db:
        db.execute('CREATE TABLE n (name text COLLATE "und-x-icu" PRIMARY KEY)')
        db.execute(f"INSERT INTO n VALUES {values}".encode())
    with closing(mariadb(mariadb_url)) as db, db.cursor() as ask:
        # There 'a' is 'a ', so the key is not unique for the server but for its bytes.
        ask.execute("CREATE TABLE n (name VARCHAR(20)) COLLATE utf8mb4_general_ci")
        ask.execute(f"INSERT INTO n VALUES {values}")
    wanted = sorted(names, key=str.encode)
    query = RowQuery("SELECT name FROM n", (KeyColumn("name"),))
    for url in (postgres_url, mariadb_url):
        assert [row[0] for b in read_all(url, query) for row in b.values] == wanted
        found = read_all(url, query, block_bytes=1)
        assert [b.last[0] for b in found] == wanted
        assert read_all(url, query, after=("a",), block_bytes=1) == found[wanted.index("a") + 1 :]
    from duly.databases.alchemy.extract import AlchemyRows

    other = AlchemyRows(urlsplit(mariadb_url)._replace(scheme="mysql+pymysql").geturl())
    with pytest.raises(PermanentError, match="BATCH_KEY_ORDER"):
        list(other.open().read(query, Reading()))


def test_a_snapshot_in_parts_is_one_moment(filled_url: str, tmp_path: Path):
    source = make_row_source(filled_url)
    opened, readers = source.open, []

    def open_(**moment: str) -> Any:
        if len(readers) == 3:  # the plan's, the keeper's, the first part's: rows change between
            with psycopg.connect(filled_url, autocommit=True) as db:
                db.execute("UPDATE payout SET name = 'changed'")
        readers.append(1)
        return opened(**moment)

    source.open = open_
    job = SimpleNamespace(
        name="job",
        read=Query(TEXT, key="id", mode="snapshot", partitions=3, chunk_bytes=64 * 1024),
        process=None,
        write=JsonLines("a.jsonl"),
        places=SimpleNamespace(row_source=lambda url, **_: source),
    )
    context = Context(tmp_path / "1")
    found = World(filled_url).run(job, context)
    assert found.rows == COUNT
    assert len(readers) >= 4
    assert b"changed" not in found.path.read_bytes()


def test_a_server_that_goes_away_is_told_and_the_run_goes_on(filled_url: str, tmp_path: Path):
    world, first = World(filled_url), Context(tmp_path / "1")
    whole = world.run(world.job(text=TEXT), Context(tmp_path / "whole")).path.read_bytes()
    save = first.save

    async def cutting(checkpoint: bytes, **done: int) -> None:
        await save(checkpoint, **done)
        if first.saves == 3:
            with psycopg.connect(filled_url, autocommit=True) as db:
                db.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE application_name = 'duly batch'"
                )

    first.save = cutting  # type: ignore[method-assign]
    job = world.job(text=TEXT, chunk_bytes=2048)
    try:
        world.run(job, first)
    except DulyError as error:
        assert error.code in ("DATABASE_UNAVAILABLE", "DATABASE_ERROR")  # noqa: PT017
    else:
        pytest.fail("nothing was cut")
    assert world.run(job, first.next(tmp_path / "2")).path.read_bytes() == whole


def test_mysql_goes_on_where_it_was(mariadb_url: str, tmp_path: Path):
    with closing(mariadb(mariadb_url)) as db, db.cursor() as ask:
        ask.execute(
            "CREATE TABLE payout (id BIGINT UNSIGNED PRIMARY KEY, name TEXT, amount DECIMAL(12,2))"
        )
        rows = [(2**63 + n, f"n '{n}'", n) for n in range(2000)]
        ask.executemany("INSERT INTO payout VALUES (%s, %s, %s)", rows)
    from duly.testing.failpoints import Plan

    world = World(mariadb_url)
    job = world.job()
    whole = world.run(job, Context(tmp_path / "whole")).path.read_bytes()
    first = Context(tmp_path / "1")
    world.broken_off(job, first, Plan(failpoints.BATCH_CHECKPOINT_SAVED, 3, "raise"))
    assert world.run(job, first.next(tmp_path / "2")).path.read_bytes() == whole
    assert whole.count(b"\n") == 2001


def test_the_options_of_a_mysql_url_are_those_of_the_reader(mariadb_url: str):
    query = RowQuery("SELECT 1 AS id, @asked AS asked", (KeyColumn("id"),))
    found = read_all(f"{mariadb_url}?init_command=SET+%40asked%3D77", query)
    assert [row for block in found for row in block.values] == [(1, 77)]
    with pytest.raises(ConfigurationError, match="no_such_option"):
        read_all(f"{mariadb_url}?no_such_option=1", query)
