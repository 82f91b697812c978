from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from duly import App
from duly.batch.folders import Folders
from duly.batch.formats.json_file import JsonArray
from duly.batch.manifest import read_manifest
from duly.batch.process import Process
from duly.batch.seal import part_name
from duly.errors import PermanentError, RetryableError, StaleLeaseError
from duly.kernel import failpoints
from duly.testing.failpoints import FailpointError, Plan, armed
from tests.unit.batch.sharers import Readers, in_partitions, spoil
from tests.unit.batch.spooling import COUNT, Context, World, make_world
from tests.unit.batch.world import make_app

PARTS = 5


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path)


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    app = make_app(tmp_path)
    yield app
    app.close()


async def whole(world: World, folder: Path, write: Any = None) -> bytes:
    """The file as one reader writes it."""
    run = asyncio.to_thread(world.run, world.job(write=write), Context(folder / "whole"))
    return (await run).path.read_bytes()


async def sealed(readers: Readers) -> bytes:
    """The step behind it."""
    readers.lead.step = "write"
    await readers.job.write.step(readers.job).run(readers.lead)
    return read_manifest(readers.lead.spool).path.read_bytes()


@pytest.mark.parametrize("write", [None, JsonArray("a.json")])
async def test_what_others_read_is_merged_byte_by_byte(
    world: World, app: App, tmp_path: Path, write: Any
):
    readers = Readers(app, in_partitions(world, write=write))
    plan = await readers.plan()
    helper = await readers.help()
    assert len(list(readers.folder(helper).glob("*.data"))) == PARTS == len(plan.parts)
    world.began.clear()
    await readers.extract()
    assert world.began == []  # nothing was left for the attempt but to merge
    assert await sealed(readers) == await whole(world, tmp_path, write)
    async with readers.partitions() as mine:
        with pytest.raises(StaleLeaseError):  # so that nobody reads again what was dropped
            await mine.claim(plan.mark, 0)


@pytest.mark.parametrize(
    "point", [failpoints.BATCH_CHUNK_SYNCED, failpoints.BATCH_CHECKPOINT_SAVED]
)
async def test_a_partition_goes_on_behind_what_its_last_reader_stored(
    world: World, app: App, tmp_path: Path, point: str
):
    readers = Readers(app, in_partitions(world))
    plan = await readers.plan()
    with armed(Plan(point, 7, "raise")), pytest.raises(FailpointError):
        await readers.help()
    async with readers.partitions() as mine:
        known = {n: one for n, one in (await mine.stored(plan.mark)).items() if one.part.rows}
    assert known
    world.began.clear()
    await readers.extract()
    lasts = {one.part.last[0] for one in known.values() if one.part.last and not one.part.done}
    fresh = {one.after[0] for n, one in enumerate(plan.parts) if n not in known and one.after}
    begun = {key[0] for key in world.began if key is not None}
    assert lasts <= begun <= lasts | fresh
    assert await sealed(readers) == await whole(world, tmp_path)


@pytest.mark.parametrize("gone", [False, True])
async def test_a_partition_that_is_damaged_or_cannot_be_seen_is_read_again(
    world: World, app: App, tmp_path: Path, gone: bool
):
    readers = Readers(app, in_partitions(world))
    await readers.plan()
    folder = readers.folder(await readers.help())
    if gone:
        folder.rename(tmp_path / "another host's")
    else:
        spoil(folder / part_name(2))
    world.began.clear()
    await readers.extract()
    assert len(world.began) == (PARTS if gone else 1)
    assert readers.lead.facts["restarted"] == "partitions that cannot be had here"
    assert await sealed(readers) == await whole(world, tmp_path)


async def test_what_a_helper_meets_is_met_by_the_attempt(world: World, app: App):
    def process(row: dict[str, Any]) -> dict[str, Any]:
        if row["id"] == 300:
            raise ValueError("no such row, please")
        return row

    readers = Readers(app, in_partitions(world, process=process))
    plan = await readers.plan()
    with pytest.raises(PermanentError, match="300"):
        await readers.help()
    async with readers.partitions() as mine:
        errors = [one.error for one in (await mine.stored(plan.mark)).values() if one.error]
    assert errors == ["BATCH_ROW_REFUSED"]
    world.began.clear()
    await readers.help()  # all but that one
    async with readers.partitions() as mine:
        stored = (await mine.stored(plan.mark)).values()
    assert sorted(one.part.done for one in stored) == [False] + [True] * (PARTS - 1)
    with pytest.raises(PermanentError, match="300"):
        await readers.extract()


async def test_rows_left_out_are_counted_over_all_readers(world: World, app: App):
    def process(row: dict[str, Any]) -> dict[str, Any]:
        if row["id"] % 150 == 1:  # in four of the partitions, one each
            raise ValueError("left out")
        return row

    readers = Readers(app, in_partitions(world, process=Process(process, skip_max=4)))
    await readers.plan()
    await readers.help()
    await readers.extract()
    await sealed(readers)
    manifest = read_manifest(readers.lead.spool)
    assert (manifest.rows, len(manifest.skipped)) == (COUNT - 4, 4)
    less = Readers(app, in_partitions(world, process=Process(process, skip_max=4)))
    await less.plan()
    await less.help()
    less.job.process = Process(process, skip_max=3)
    with pytest.raises(PermanentError, match="4 rows were left out, 3 may be"):
        await less.extract()


async def test_partitions_that_never_stay_end_the_attempt(
    world: World, app: App, monkeypatch: pytest.MonkeyPatch
):
    readers = Readers(app, in_partitions(world))
    await readers.plan()
    await readers.help()
    monkeypatch.setattr("duly.batch.sharing.taken_up", lambda *_, **__: None)

    async def undone(*_: Any) -> None:
        """Somebody else has claimed it and says it is done."""

    monkeypatch.setattr("duly.batch.sharing.Sharing._undo", undone)
    with pytest.raises(RetryableError, match="BATCH_SPOOL_CORRUPT"):
        await readers.extract()


async def test_a_plan_made_anew_takes_nothing_of_the_one_before(
    world: World, app: App, tmp_path: Path
):
    readers = Readers(app, in_partitions(world))
    plan = await readers.plan()
    await readers.help()
    readers.lead = readers.context()
    again = await readers.plan()
    assert again.mark != plan.mark
    async with readers.partitions() as mine:
        with pytest.raises(StaleLeaseError):
            await mine.stored(plan.mark)
    world.began.clear()
    await readers.extract()
    assert len(world.began) == PARTS
    assert await sealed(readers) == await whole(world, tmp_path)


async def test_partitions_that_begin_at_once_share_their_folder(
    world: World, app: App, monkeypatch: pytest.MonkeyPatch
):
    """Both have seen that it is not there before either of them makes it."""
    readers = Readers(app, in_partitions(world))
    await readers.plan()
    at_once, calls, make = threading.Barrier(2), count(), Folders.make

    def together(self: Folders, folder: Path, **options: Any) -> None:
        if next(calls) < 2:
            at_once.wait(20)
        make(self, folder, **options)

    monkeypatch.setattr(Folders, "make", together)
    name = await readers.help()
    assert len(world.began) == PARTS
    assert readers.folder(name).is_dir()
