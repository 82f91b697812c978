from __future__ import annotations

import asyncio
import errno
import gzip
import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from duly.batch import spool
from duly.batch.formats.csv_file import CsvFile
from duly.batch.formats.json_file import JsonArray
from duly.batch.manifest import MANIFEST
from duly.batch.steps import StopAtCheckpoint
from duly.errors import (
    ConfigurationError,
    DulyError,
    PermanentError,
    RetryableError,
    StaleLeaseError,
)
from duly.kernel import failpoints
from duly.testing.failpoints import Plan
from tests.unit.batch.spooling import COUNT, Context, World, forgetful, make_world

POINTS = (
    failpoints.BATCH_CHUNK_WRITTEN,
    failpoints.BATCH_CHUNK_SYNCED,
    failpoints.BATCH_CHECKPOINT_SAVED,
)
HITS = (1, 2, 5)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path)


def code_of(world: World, folder: Path, **job: Any) -> str:
    with pytest.raises(DulyError) as caught:
        world.run(world.job(**job), Context(folder))
    return caught.value.code


# --- restart --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "write", [CsvFile("a.csv", last_line="{rows}"), CsvFile("a.gz", compress="gzip")]
)
@pytest.mark.parametrize("point", POINTS)
def test_broken_off_anywhere_the_file_is_the_same_and_nothing_stored_is_read_again(
    world: World, tmp_path: Path, write: CsvFile, point: str
):
    job = world.job(write=write)
    whole = world.run(job, Context(tmp_path / "whole"))
    for hit in HITS:
        world.began.clear()
        first = Context(tmp_path / f"{hit}-1")
        world.broken_off(job, first, Plan(point, hit, "raise"))
        stored, rows = first.rows, len(world.began)
        second = first.next(tmp_path / f"{hit}-2")
        again = world.run(job, second)
        assert again.path.read_bytes() == whole.path.read_bytes()
        assert (again.sha256, again.rows) == (whole.sha256, COUNT)
        assert again.chunks == whole.chunks
        assert world.began[rows:] == [(stored,) if stored else None]
        assert "restarted" not in second.facts or stored == 0
        assert second.facts.get("resumed_at_rows", 0) == stored


def test_two_attempts_in_a_row_break_off_and_the_same_attempt_goes_on(world: World, tmp_path: Path):
    job = world.job()
    whole = world.run(job, Context(tmp_path / "whole")).path.read_bytes()
    first = Context(tmp_path / "1")
    world.broken_off(job, first, Plan(failpoints.BATCH_CHUNK_WRITTEN, 4, "raise"))
    second = first.next(tmp_path / "2")
    world.broken_off(job, second, Plan(failpoints.BATCH_CHUNK_SYNCED, 2, "raise"))
    second.previous_spool = None  # what is stored by now was stored by this attempt
    assert world.run(job, second).path.read_bytes() == whole
    assert world.run(job, second).path.read_bytes() == whole  # that had ended ends again


def test_an_ended_extraction_is_copied_to_the_next_attempt(world: World, tmp_path: Path):
    job = world.job(write=CsvFile("a.csv", last_line="{rows}"))
    first = Context(tmp_path / "1")
    whole = world.run(job, first)
    second = first.next(tmp_path / "2")
    world.began.clear()
    again = world.run(job, second)
    assert world.began == []
    assert again.path.parent == tmp_path / "2"
    assert again.path.stat().st_ino != whole.path.stat().st_ino
    assert again.path.read_bytes() == whole.path.read_bytes()


def test_a_copy_that_broke_off_is_made_again(world: World, tmp_path: Path):
    job = world.job()
    whole = world.run(job, Context(tmp_path / "whole")).path.read_bytes()
    first = Context(tmp_path / "1")
    world.broken_off(job, first, Plan(failpoints.BATCH_CHECKPOINT_SAVED, 4, "raise"))
    second = first.next(tmp_path / "2")
    (second.spool / "part-000.data").write_bytes(whole[:100] + b"?" * 5000)
    assert world.run(job, second).path.read_bytes() == whole
    assert second.facts["resumed_at_rows"] == first.rows


def test_a_predecessor_that_was_thawed_writes_into_nothing_that_is_read(
    world: World, tmp_path: Path
):
    job = world.job()
    whole = world.run(job, Context(tmp_path / "whole")).path.read_bytes()
    frozen = Context(tmp_path / "1")
    world.broken_off(job, frozen, Plan(failpoints.BATCH_CHUNK_SYNCED, 4, "raise"))
    second = frozen.next(tmp_path / "2")
    world.broken_off(job, second, Plan(failpoints.BATCH_CHECKPOINT_SAVED, 2, "raise"))
    frozen.stale = True
    with pytest.raises(StaleLeaseError):
        world.run(job, frozen)
    assert world.run(job, second.next(tmp_path / "3")).path.read_bytes() == whole


def test_without_the_spool_it_begins_again_and_says_so(world: World, tmp_path: Path):
    job = world.job()
    first = Context(tmp_path / "1")
    world.broken_off(job, first, Plan(failpoints.BATCH_CHECKPOINT_SAVED, 3, "raise"))
    world.began.clear()
    second = first.next(tmp_path / "2", previous_spool=None)
    assert world.run(job, second).rows == COUNT
    assert world.began == [None]
    assert "cannot be seen" in second.facts["restarted"]


def test_what_was_damaged_is_read_again_from_the_last_good_chunk(world: World, tmp_path: Path):
    job = world.job()
    whole = world.run(job, Context(tmp_path / "whole")).path.read_bytes()
    first = Context(tmp_path / "1")
    world.broken_off(job, first, Plan(failpoints.BATCH_CHECKPOINT_SAVED, 4, "raise"))
    with (first.spool / "part-000.data").open("rb+") as file:
        file.seek(2 * 2048 + 100)
        file.write(b"!!")
    second = first.next(tmp_path / "2")
    assert world.run(job, second).path.read_bytes() == whole
    assert second.facts["rows_lost"] > 0
    assert second.facts["resumed_at_rows"] > 0


def test_it_stops_at_a_checkpoint_and_goes_on(world: World, tmp_path: Path):
    job = world.job()
    first = Context(tmp_path / "1", stop_after=4)
    with pytest.raises(StopAtCheckpoint):
        world.run(job, first)
    assert 0 < first.rows < COUNT
    assert world.run(job, first.next(tmp_path / "2")).rows == COUNT


@pytest.mark.parametrize("write", [CsvFile("a.csv"), JsonArray("a.json")])
@pytest.mark.parametrize("hit", [1, 4, 9])
def test_parts_beside_each_other_give_the_bytes_of_one(
    world: World, tmp_path: Path, write: Any, hit: int
):
    whole = world.run(world.job(write=write), Context(tmp_path / "whole")).path.read_bytes()
    job = world.job(write=write, partitions=3)
    first = Context(tmp_path / "1")
    world.broken_off(job, first, Plan(failpoints.BATCH_CHUNK_SYNCED, hit, "raise"))
    assert world.run(job, first.next(tmp_path / "2")).path.read_bytes() == whole
    if isinstance(write, JsonArray):
        assert len(json.loads(whole)) == COUNT


# --- loss of power, and the bugs that it finds ----------------------------------------------------
def after_power_loss(
    world: World, folder: Path, patch: pytest.MonkeyPatch, plan: Plan
) -> list[str]:
    """What is wrong after power was lost at a place and another attempt went on."""
    job = world.job()
    whole = world.run(job, Context(folder / f"whole-{plan}")).path.read_bytes()
    first = Context(folder / f"first-{plan}")
    with forgetful(patch) as disk:
        world.broken_off(job, first, plan)
        disk.lose_power(first.spool)
    wrong = []
    second = first.next(folder / f"second-{plan}")
    if world.run(job, second).path.read_bytes() != whole:
        wrong.append("another file")
    if first.rows and second.facts.get("resumed_at_rows") != first.rows:
        wrong.append("stored chunks were read again")
    return wrong


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("hit", [2, 4])
def test_power_loss_takes_nothing_that_a_checkpoint_speaks_of(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str, hit: int
):
    assert after_power_loss(world, tmp_path, monkeypatch, Plan(point, hit, "raise")) == []


def test_a_checkpoint_before_the_sync_is_found(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(spool.SpoolFile, "sync", lambda file: None)
    plan = Plan(failpoints.BATCH_CHECKPOINT_SAVED, 4, "raise")
    assert after_power_loss(world, tmp_path, monkeypatch, plan) == ["stored chunks were read again"]


def test_a_folder_that_is_not_synced_is_found(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(spool.SpoolFile, "__init__", planted_init(os.O_RDWR | os.O_CREAT))
    plan = Plan(failpoints.BATCH_CHECKPOINT_SAVED, 4, "raise")
    assert after_power_loss(world, tmp_path, monkeypatch, plan) == ["stored chunks were read again"]


def planted_init(flags: int) -> Any:
    """Opens a file and does not look after its folder."""

    def opened(file: Any, path: Path) -> None:
        file.path = path
        file._file = os.open(path, flags, 0o600)

    return opened


def test_appending_to_a_file_that_goes_on_is_found(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    job = world.job()
    whole = world.run(job, Context(tmp_path / "whole")).path.read_bytes()
    context = Context(tmp_path / "1")
    world.broken_off(job, context, Plan(failpoints.BATCH_CHUNK_WRITTEN, 4, "raise"))
    monkeypatch.setattr(
        spool.SpoolFile, "__init__", planted_init(os.O_RDWR | os.O_CREAT | os.O_APPEND)
    )
    monkeypatch.setattr(spool.SpoolFile, "cut", lambda file, size: None)
    try:
        found = world.run(job, context).path.read_bytes()
    except RetryableError as error:
        found = error.code.encode()
    assert found != whole


# --- modes ----------------------------------------------------------------------------------------
CHANGES = (
    "UPDATE payout SET name = 'changed' WHERE id IN (2, 599)",
    "INSERT INTO payout VALUES (601, 'late', 1)",
    "DELETE FROM payout WHERE id = 598",
)


def changed_between(world: World, folder: Path, mode: str) -> tuple[list[str], Context]:
    """The lines of a file whose rows were changed between two attempts."""
    job = world.job(mode=mode)
    first = Context(folder / "1")
    world.broken_off(job, first, Plan(failpoints.BATCH_CHECKPOINT_SAVED, 3, "raise"))
    world.change(*CHANGES)
    second = first.next(folder / "2")
    return world.run(job, second).path.read_text().splitlines(), second


@pytest.mark.parametrize(
    ("mode", "early", "late", "new", "gone"),
    [
        ("live", False, True, True, True),
        ("bounded", False, True, False, True),
        ("staged", False, False, False, False),
        ("snapshot", True, True, True, True),
    ],
)
def test_rows_that_change_while_a_run_is_broken_off(
    world: World, tmp_path: Path, mode: str, early: bool, late: bool, new: bool, gone: bool
):
    lines, second = changed_between(world, tmp_path, mode)
    found = {line.split(",")[0]: line for line in lines}
    assert ("changed" in found["2"], "changed" in found["599"]) == (early, late)
    assert ("601" in found, "598" not in found) == (new, gone)
    assert ("restarted" in second.facts) == (mode == "snapshot")
    assert second.facts["mode"] == mode


def test_a_stage_is_dropped_at_the_end(world: World, tmp_path: Path):
    world.run(world.job(mode="staged"), Context(tmp_path / "1"))
    assert stages(world) == 0


def test_a_stage_of_an_attempt_that_died_before_it_told_is_dropped(world: World, tmp_path: Path):
    job, first = world.job(mode="staged"), Context(tmp_path / "1", stale=True)
    with pytest.raises(StaleLeaseError):
        world.run(job, first)
    assert stages(world) == 1
    assert world.run(job, first.next(tmp_path / "2")).rows == COUNT
    assert stages(world) == 0


def stages(world: World) -> int:
    with closing(sqlite3.connect(world.url.removeprefix("sqlite:///"))) as db:
        return int(
            db.execute(
                "SELECT count(*) FROM sqlite_master WHERE name LIKE 'duly_stage%'"
            ).fetchone()[0]
        )


def test_a_stage_that_is_gone_is_made_again(world: World, tmp_path: Path):
    job = world.job(mode="staged")
    first = Context(tmp_path / "1")
    world.broken_off(job, first, Plan(failpoints.BATCH_CHECKPOINT_SAVED, 3, "raise"))
    stage = json.loads(first.stored["extract"])["stage"]
    world.change(f"DROP TABLE {stage}")
    second = first.next(tmp_path / "2")
    assert world.run(job, second).rows == COUNT
    assert second.facts["restarted"] == "the stage is gone"


# --- bad input ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("query", "code"),
    [
        ({"text": "SELECT id / 2 AS id FROM payout"}, "BATCH_KEY_DUPLICATE"),
        ({"text": "SELECT nullif(id, 77) AS id FROM payout"}, "BATCH_KEY_NULL"),
        ({"key": "nothing"}, "BATCH_KEY_UNKNOWN"),
        ({"text": "SELECT id, cents AS id FROM payout"}, "BATCH_KEY_UNKNOWN"),
        ({"text": "SELECT id, cents AS a, cents AS a FROM payout"}, "BATCH_QUERY"),
        ({"text": "SELECT id, nothing FROM payout"}, "BATCH_QUERY"),
        ({"text": "SELECT id FROM payout WHERE id > :least"}, "BATCH_PARAMETER"),
        ({"text": "SELECT id, name || hex(zeroblob(800000)) FROM payout"}, "BATCH_ROW_TOO_LARGE"),
    ],
)
def test_bad_queries_are_refused_with_a_code(
    world: World, tmp_path: Path, query: dict[str, Any], code: str
):
    query.setdefault("row_bytes_max", 1024 * 1024)
    assert code_of(world, tmp_path / "1", **query) == code
    assert not (tmp_path / "1" / MANIFEST).exists()


def test_a_query_without_a_key_is_refused_at_once(world: World):
    for key in ("", (), "-"):
        with pytest.raises(ConfigurationError) as caught:
            world.job(key=key)
        assert caught.value.code == "BATCH_NO_KEY"


def test_no_rows(world: World, tmp_path: Path):
    empty = "SELECT * FROM payout WHERE id < 0"
    found = world.run(world.job(text=empty, mode="bounded"), Context(tmp_path / "1"))
    assert (found.rows, found.path.read_text()) == (0, "id,name,cents\n")
    found = world.run(world.job(text=empty, write=JsonArray("a")), Context(tmp_path / "2"))
    assert json.loads(found.path.read_bytes()) == []
    assert code_of(world, tmp_path / "3", text=empty, on_empty="fail") == "BATCH_EMPTY"


def test_a_name_that_leaves_the_folder_is_refused(world: World, tmp_path: Path):
    for name in ("../a.csv", "/a.csv", ".a", "a\0b", ""):
        where = tmp_path / f"1{len(name)}"
        assert code_of(world, where, write=CsvFile(name)) == "BATCH_NAME"
    assert code_of(world, tmp_path / "2", write=CsvFile("a", last_line="{x}")) == "BATCH_FORMAT"
    assert world.began == []  # before a row was read


def test_columns_that_change_between_attempts_are_refused(world: World, tmp_path: Path):
    job = world.job()
    first = Context(tmp_path / "1")
    world.broken_off(job, first, Plan(failpoints.BATCH_CHECKPOINT_SAVED, 3, "raise"))
    world.change("ALTER TABLE payout ADD COLUMN more TEXT")
    with pytest.raises(PermanentError) as caught:
        world.run(job, first.next(tmp_path / "2"))
    assert caught.value.code == "BATCH_COLUMNS_CHANGED"


@pytest.mark.parametrize(
    ("number", "code", "kind"),
    [
        (errno.ENOSPC, "BATCH_DISK_FULL", RetryableError),
        (errno.EROFS, "BATCH_SPOOL_READ_ONLY", ConfigurationError),
        (errno.EIO, "BATCH_SPOOL", RetryableError),
    ],
)
def test_a_disk_that_refuses_leaves_the_run_restartable(
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    code: str,
    kind: type[Exception],
):
    job = world.job()
    pwritev, calls = os.pwritev, []

    def refusing(*arguments: Any) -> int:
        calls.append(1)
        if len(calls) > 5:
            raise OSError(number, os.strerror(number))
        return pwritev(*arguments)

    first = Context(tmp_path / "1")
    with monkeypatch.context() as patch:
        patch.setattr(spool.os, "pwritev", refusing)
        with pytest.raises(kind) as caught:
            world.run(job, first)
    assert getattr(caught.value, "code", "") == code
    second = first.next(tmp_path / "2")
    assert world.run(job, second).rows == COUNT
    assert second.facts["resumed_at_rows"] == first.rows > 0


def test_a_link_in_the_spool_is_not_followed(world: World, tmp_path: Path):
    context = Context(tmp_path / "1")
    outside = tmp_path / "outside"
    outside.write_text("mine")

    async def planted(*_: Any, **__: Any) -> None:
        (context.spool / "part-000.data").unlink(missing_ok=True)
        (context.spool / "part-000.data").symlink_to(outside)

    save = context.save
    context.save = lambda *a, **k: both(planted(), save(*a, **k))  # type: ignore[method-assign]
    with pytest.raises(PermanentError, match="BATCH_SPOOL"):
        world.run(world.job(), context)
    assert outside.read_text() == "mine"


async def both(first: Any, second: Any) -> None:
    await first
    await second


def test_compressed_files_can_be_read_as_one(world: World, tmp_path: Path):
    plain = world.run(world.job(), Context(tmp_path / "1"))
    packed = world.run(world.job(write=CsvFile("a", compress="gzip")), Context(tmp_path / "2"))
    assert gzip.decompress(packed.path.read_bytes()) == plain.path.read_bytes()
    assert packed.path.read_bytes()[4:8] == b"\0\0\0\0"  # no time in it


def test_a_cancelled_extraction_leaves_no_thread_that_writes(world: World, tmp_path: Path):
    job, context = world.job(), Context(tmp_path / "1")

    async def cancelled() -> None:
        task = asyncio.create_task(job.read.step(job).run(context))
        while context.saves < 3:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        size = (context.spool / "part-000.data").stat().st_size
        await asyncio.sleep(0.05)
        assert (context.spool / "part-000.data").stat().st_size == size

    asyncio.run(cancelled())
    assert world.run(job, context.next(tmp_path / "2")).rows == COUNT
