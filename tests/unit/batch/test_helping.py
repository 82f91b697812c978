from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from duly import App
from duly.batch import CsvFile, Local, Query
from duly.batch.helping import Helping
from duly.batch.runner import BatchRole
from duly.running import batch_context
from tests.unit.batch.world import BY, LIMIT_SECONDS, make_app, until, until_status, working

ROWS = 400


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    with closing(sqlite3.connect(tmp_path / "source.db")) as db, db:
        db.execute("CREATE TABLE payout (id INTEGER PRIMARY KEY, cents INTEGER)")
        db.executemany("INSERT INTO payout VALUES (?, ?)", [(n, n * 7) for n in range(ROWS)])
    (tmp_path / "out").mkdir()
    app = make_app(tmp_path)
    yield app
    app.close()


def add_job(app: App, folder: Path, process: Any) -> None:
    class Settlement:
        read = Query(
            "SELECT * FROM payout",
            key="id",
            database=f"sqlite:///{folder / 'source.db'}",
            partitions=6,
            chunk_bytes=4096,
        )
        write = CsvFile("all.csv", header=False)
        send = Local(f"file://{folder / 'out'}")

    Settlement.process = staticmethod(process)  # type: ignore[attr-defined]
    app.batch("settlement")(Settlement)


def helping(app: App, instance: str, *, stopped: bool = False) -> Helping:
    context = batch_context(app)
    return Helping(
        app.jobs.get("settlement"),
        instance,
        leasing=context.leasing,
        folders=context.folders,
        stopped=lambda: stopped,
    )


async def test_two_processes_read_one_run_and_the_file_is_the_same(app: App, tmp_path: Path):
    folders: set[Path] = set()

    def process(row: dict[str, Any]) -> dict[str, Any]:
        """Nobody gets on before two have begun."""
        end = time.monotonic() + LIMIT_SECONDS
        while len(folders) < 2 and time.monotonic() < end:
            folders.update((tmp_path / "spool" / "shop" / instance).iterdir())
            time.sleep(0.005)  # between two looks
        return row

    add_job(app, tmp_path, process)
    instance = app.batches.start("settlement", by=BY).instance
    other = BatchRole(batch_context(app))
    task = asyncio.create_task(other.run())
    async with working(app):
        await until_status(app, instance, "done")
    other.stop()
    await asyncio.wait_for(task, LIMIT_SECONDS)
    assert len(folders) == 2
    written = (tmp_path / "out" / "all.csv").read_text()
    assert written == "".join(f"{n},{n * 7}\n" for n in range(ROWS))
    shown = app.batches.show(instance)
    assert [(one.step, one.rows) for one in shown.steps] == [
        (step, ROWS) for step in ("extract", "write", "send")
    ]
    assert len(list((tmp_path / "spool" / "shop" / instance).iterdir())) == 1


async def test_when_there_is_nothing_to_help_with(app: App, tmp_path: Path):
    open_ = asyncio.Event()

    def process(row: dict[str, Any]) -> dict[str, Any]:
        end = time.monotonic() + LIMIT_SECONDS
        while not open_.is_set() and time.monotonic() < end:
            time.sleep(0.005)  # between two looks
        return row

    add_job(app, tmp_path, process)
    instance = app.batches.start("settlement", by=BY).instance
    run = tmp_path / "spool" / "shop" / instance
    assert await helping(app, instance).run()  # nobody works on it yet
    async with working(app) as role:
        await until(lambda: len(list(run.glob("*/*.data"))) == 4)  # it opens no file any more
        run.rename(tmp_path / "hidden")
        assert await helping(app, instance).run()  # another host's folder
        (tmp_path / "hidden").rename(run)
        assert await helping(app, instance, stopped=True).run()
        assert len(list(run.iterdir())) == 1
        assert not role.idle
        open_.set()
        await until_status(app, instance, "done")
        assert await helping(app, instance).run()
    assert len(list(run.iterdir())) == 1


async def test_what_a_helper_meets_is_left_to_the_run_s_own_attempt(app: App, tmp_path: Path):
    open_ = asyncio.Event()

    def process(row: dict[str, Any]) -> dict[str, Any]:
        """The attempt reads four of six partitions at once, and waits in them."""
        end = time.monotonic() + LIMIT_SECONDS
        while row["id"] < ROWS // 6 * 4 and not open_.is_set() and time.monotonic() < end:
            time.sleep(0.005)  # between two looks
        if row["id"] == ROWS - 1 and not open_.is_set():
            raise ValueError("no such row, please")
        return row

    add_job(app, tmp_path, process)
    instance = app.batches.start("settlement", by=BY).instance
    async with working(app):
        run = tmp_path / "spool" / "shop" / instance
        await until(lambda: len(list(run.glob("*/*.data"))) == 4)
        assert not await helping(app, instance).run()
        assert app.batches.show(instance).row.status == "running"
        open_.set()
        await until_status(app, instance, "done")
    assert (tmp_path / "out" / "all.csv").read_text().count("\n") == ROWS
