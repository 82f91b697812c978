from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from duly import App
from duly.batch.partitions import Stored, step_of
from duly.batch.plan import Part
from duly.errors import StaleLeaseError
from tests.unit.batch.sharers import Readers
from tests.unit.batch.world import make_app

MARK = "0f1e2d3c"


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    app = make_app(tmp_path)
    yield app
    app.close()


def stored(rows: int, *, spool: str = "a") -> Stored:
    return Stored(Part(rows=rows), spool)


async def test_a_partition_is_one_reader_s_until_it_gives_it_back(app: App):
    readers = Readers(app, None)
    await readers.in_force(MARK)
    async with readers.partitions() as one, readers.partitions() as other:
        mine = await one.claim(MARK, 3)
        assert mine is not None
        assert mine.known is None
        await mine.save(stored(7))
        assert await other.claim(MARK, 3) is None
        await mine.leave()
        taken = await other.claim(MARK, 3)
        assert taken is not None
        assert taken.known == stored(7)
        assert await one.stored(MARK) == {3: stored(7)}
        await taken.leave()


async def test_a_reader_that_was_put_out_stores_nothing(app: App, tmp_path: Path):
    readers = Readers(app, None)
    await readers.in_force(MARK)
    async with readers.partitions() as one, readers.partitions() as other:
        frozen = await one.claim(MARK, 0)
        assert frozen is not None
        await frozen.save(stored(1))
        with closing(sqlite3.connect(tmp_path / "duly.db")) as db, db:
            db.execute("UPDATE duly_lease SET until = 0 WHERE name LIKE 'role/batch/%'")
        taken = await other.claim(MARK, 0)
        assert taken is not None
        await taken.save(stored(2, spool="b"))
        with pytest.raises(StaleLeaseError, match="taken over"):  # by the token in the database
            await frozen.save(stored(3))
        frozen._lease._until = 0.0
        with pytest.raises(StaleLeaseError, match="is over"):  # by its own clock
            await frozen.save(stored(3))
        await frozen.leave()  # and takes nothing along
        assert await other.claim(MARK, 0) is None
        assert await one.stored(MARK) == {0: stored(2, spool="b")}
        await taken.leave()


async def test_a_reader_at_work_keeps_its_partition(app: App):
    readers = Readers(app, None)
    await readers.in_force(MARK)
    readers.leasing = replace(readers.leasing, renew_seconds=0.02)
    async with readers.partitions() as one, readers.partitions() as other:
        mine = await one.claim(MARK, 0)
        assert mine is not None
        first = mine._lease._until
        while mine._lease._until == first:
            await asyncio.sleep(0.01)
        assert await other.claim(MARK, 0) is None
        await mine.leave()


async def test_of_a_plan_that_is_over_nothing_is_claimed_or_kept(app: App):
    readers = Readers(app, None)
    async with readers.partitions() as one:
        for mark in ("another0", MARK):
            await readers.in_force(mark)
            mine = await one.claim(mark, 1)
            assert mine is not None
            await mine.save(stored(1))
            await mine.leave()
        with pytest.raises(StaleLeaseError):
            await one.claim("another0", 2)
        await one.forget(but=MARK)
        assert await one.stored(MARK) == {1: stored(1)}
        await readers.in_force("another0")
        assert await one.stored("another0") == {}
        await readers.in_force(MARK)
        await one.forget()
        assert await one.stored(MARK) == {}
    assert [step_of(name) for name in ("extract", f"extract/{MARK}/003")] == ["extract"] * 2
