from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from duly import App
from duly.batch.instance import Window
from duly.batch.scheduler import Scheduler
from duly.runtime.connection import ConnectionThread
from duly.testing.clock import FakeClock
from tests.unit.batch.world import BY, Script, add_job, make_app

BERLIN = ZoneInfo("Europe/Berlin")


class World:
    """An App with one scheduled job and a clock that is set by hand."""

    def __init__(self, folder: Path, begins: datetime, **options: Any) -> None:
        self.app: App = make_app(folder)
        self.clock = FakeClock(begins.timestamp())
        add_job(self.app, Script(), **options)
        self.connection = ConnectionThread(self.app.database, "test")
        self.schedulers = [self._scheduler(), self._scheduler()]

    def _scheduler(self) -> Scheduler:
        return Scheduler(self.app.jobs, clock=self.clock, hooks=self.app.hooks)

    async def at(self, moment: datetime) -> int:
        """Look at this moment, with both schedulers; how many instances that made."""
        if (passes := moment.timestamp() - self.clock.time()) > 0:
            self.clock.advance(passes)
        made = [await scheduler.look(self.connection) for scheduler in self.schedulers]
        return sum(made)

    def params(self) -> list[str]:
        return sorted(row.params for row in self.app.batches.runs(limit=1000))

    def close(self) -> None:
        self.connection.close()
        self.app.close()


@pytest.fixture
def worlds(tmp_path: Path) -> Iterator[Any]:
    made: list[World] = []

    def make(begins: datetime, **options: Any) -> World:
        folder = tmp_path / str(len(made))
        folder.mkdir()
        made.append(World(folder, begins, **options))
        return made[-1]

    yield make
    for world in made:
        world.close()


def berlin(*parts: int, fold: int = 0) -> datetime:
    return datetime(*parts, tzinfo=BERLIN, fold=fold)  # type: ignore[arg-type,misc]


async def test_a_new_schedule_begins_with_its_next_time(worlds: Any) -> None:
    world = worlds(berlin(2026, 11, 20, 12), schedule="0 3 * * *", time_zone="Europe/Berlin")
    assert await world.at(berlin(2026, 11, 20, 12)) == 0
    assert await world.at(berlin(2026, 11, 21, 2, 59)) == 0
    assert await world.at(berlin(2026, 11, 21, 3)) == 1
    assert await world.at(berlin(2026, 11, 21, 3, 1)) == 0
    assert world.params() == ['{"day":"2026-11-21"}']


@pytest.mark.parametrize(
    ("misfire", "days"),
    [("run-latest", ["24"]), ("run-all", ["21", "22", "23", "24"]), ("skip", [])],
)
async def test_what_was_missed(worlds: Any, misfire: str, days: list[str]) -> None:
    world = worlds(datetime(2026, 11, 20, 12, tzinfo=UTC), schedule="0 3 * * *", misfire=misfire)
    await world.at(datetime(2026, 11, 20, 12, tzinfo=UTC))
    assert await world.at(datetime(2026, 11, 24, 9, tzinfo=UTC)) == len(days)
    assert world.params() == [f'{{"day":"2026-11-{day}"}}' for day in days]


async def test_a_time_that_is_too_late_is_given_up(worlds: Any) -> None:
    options = {"schedule": "0 3 * * *", "misfire": "run-all", "max_lateness": "36h"}
    world = worlds(datetime(2026, 11, 20, 12, tzinfo=UTC), **options)
    await world.at(datetime(2026, 11, 20, 12, tzinfo=UTC))
    assert await world.at(datetime(2026, 11, 24, 9, tzinfo=UTC)) == 2


@pytest.mark.parametrize(
    ("first", "last", "wanted"),
    [
        # 02:30 does not exist on 29 March: it comes once, right after the gap.
        (
            berlin(2026, 3, 28, 12),
            berlin(2026, 3, 30, 12),
            ["2026-03-29T01:00", "2026-03-30T00:30"],
        ),
        # 02:30 comes twice on 25 October: once it counts.
        (
            berlin(2026, 10, 24, 12),
            berlin(2026, 10, 26, 12),
            ["2026-10-25T00:30", "2026-10-26T01:30"],
        ),
    ],
)
async def test_a_change_of_the_clocks_neither_skips_nor_doubles(
    worlds: Any, first: datetime, last: datetime, wanted: list[str]
) -> None:
    options = {"schedule": "30 2 * * *", "time_zone": "Europe/Berlin", "params": {"at": datetime}}
    world = worlds(first, **options)
    moment, made = first.astimezone(UTC), 0
    while moment <= last.astimezone(UTC):
        made += await world.at(moment)
        moment += timedelta(minutes=10)
    assert made == len(wanted)
    assert world.params() == [f'{{"at":"{one}:00Z"}}' for one in wanted]


async def test_windows_touch_and_leave_nothing_out(worlds: Any) -> None:
    options = {"schedule": "0 * * * *", "time_zone": "Europe/Berlin", "params": {"span": Window}}
    world = worlds(berlin(2026, 10, 24, 23), misfire="run-all", **options)
    await world.at(berlin(2026, 10, 24, 23, 0))
    assert await world.at(berlin(2026, 10, 25, 5)) == 7  # an hour more than the clock shows
    spans = [row.params.split('"')[3].split("/") for row in world.app.batches.runs()]
    spans.sort()
    assert all(one[1] == after[0] for one, after in pairwise(spans))


async def test_a_held_schedule_makes_nothing_until_it_is_released(worlds: Any) -> None:
    world = worlds(datetime(2026, 11, 20, 12, tzinfo=UTC), schedule="0 3 * * *", misfire="run-all")
    await world.at(datetime(2026, 11, 20, 12, tzinfo=UTC))
    assert world.app.batches.hold("lines", by=BY).changed
    assert not world.app.batches.hold("lines", by=BY).changed
    assert await world.at(datetime(2026, 11, 22, 12, tzinfo=UTC)) == 0
    assert world.app.batches.jobs()[0].held
    world.app.batches.release("lines", by=BY)
    assert await world.at(datetime(2026, 11, 22, 13, tzinfo=UTC)) == 2


async def test_params_that_cannot_be_made_are_told_and_stop_nobody(
    worlds: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def params_at(at: datetime, before: datetime) -> dict[str, object]:
        raise KeyError(at)

    world = worlds(
        datetime(2026, 11, 20, 12, tzinfo=UTC), schedule="0 3 * * *", params_at=params_at
    )
    await world.at(datetime(2026, 11, 20, 12, tzinfo=UTC))
    assert await world.at(datetime(2026, 11, 21, 12, tzinfo=UTC)) == 0
    assert await world.at(datetime(2026, 11, 21, 13, tzinfo=UTC)) == 0
    assert [
        record.message.count("params_at of lines raised KeyError") for record in caplog.records
    ] == [1, 1]


async def test_the_same_day_by_hand_and_by_time_is_one_instance(worlds: Any) -> None:
    world = worlds(datetime(2026, 11, 20, 12, tzinfo=UTC), schedule="0 3 * * *")
    await world.at(datetime(2026, 11, 20, 12, tzinfo=UTC))
    world.app.batches.start("lines", {"day": date(2026, 11, 21)}, by=BY)
    assert await world.at(datetime(2026, 11, 21, 12, tzinfo=UTC)) == 0
    assert len(world.params()) == 1
