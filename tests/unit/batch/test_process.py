from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from duly.batch.formats.csv_file import CsvFile
from duly.batch.formats.fixed_width import FixedWidth
from duly.batch.process import Process
from duly.errors import ConfigurationError, PermanentError
from duly.kernel import failpoints
from duly.testing.failpoints import Plan
from tests.unit.batch.spooling import COUNT, Context, World, make_world

OUT = CsvFile("a.csv", columns=("id", "euro"), header=False)
SECRET = 'n "11"'


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path)


def euro(row: dict[str, Any]) -> dict[str, Any] | None:
    if row["id"] % 3 == 0:
        return None
    if row["id"] % 200 == 11:
        raise ValueError(row["name"])
    return {"id": row["id"], "euro": f"{row['cents'] / 100:.2f}"}


def euros(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [made for row in rows if (made := euro(row)) is not None]


@pytest.mark.parametrize("process", [Process(euro, skip_max=5), Process(euros, "batch", 5)])
def test_rows_are_changed_left_out_and_skipped_the_same_after_a_crash(
    world: World, tmp_path: Path, process: Process
):
    job = world.job(write=OUT, process=process)
    whole = world.run(job, Context(tmp_path / "whole"))
    lines = whole.path.read_text().splitlines()
    assert lines[:3] == ["1,0.07", "2,0.14", "4,0.28"]
    assert whole.rows == len(lines) == COUNT - COUNT // 3 - 2
    assert whole.skipped == (("11", "ValueError"), ("211", "ValueError"))
    first = Context(tmp_path / "1")
    world.broken_off(job, first, Plan(failpoints.BATCH_CHUNK_WRITTEN, 4, "raise"))
    second = first.next(tmp_path / "2")
    again = world.run(job, second)
    assert again.path.read_bytes() == whole.path.read_bytes()
    assert again.skipped == whole.skipped
    assert second.facts["skipped"] == 2


@pytest.mark.parametrize(
    "process",
    [euro, Process(euro, skip_max=1), Process(euros, "batch"), Process(euros, "batch", 1)],
)
def test_one_more_than_the_limit_ends_the_attempt_and_shows_no_content(
    world: World, tmp_path: Path, process: Any
):
    with pytest.raises(PermanentError) as caught:
        world.run(world.job(write=OUT, process=process), Context(tmp_path / "1"))
    assert caught.value.code == "BATCH_ROW_REFUSED"
    assert "ValueError" in str(caught.value)
    assert SECRET not in str(caught.value)


def test_a_row_that_the_format_refuses_counts_as_skipped(world: World, tmp_path: Path):
    narrow = FixedWidth("a", widths={"id": 3, "name": 7})

    def longer(row: dict[str, Any]) -> dict[str, Any]:
        return {**row, "name": "x" * 8 if row["id"] == 300 else row["name"]}

    found = world.run(
        world.job(write=narrow, process=Process(longer, skip_max=1)), Context(tmp_path / "1")
    )
    assert (found.rows, found.skipped) == (
        COUNT - 1,
        (("300", "name does not fit into 7 characters"),),
    )
    with pytest.raises(PermanentError, match="the row 300: name does not fit"):
        world.run(world.job(write=narrow, process=longer), Context(tmp_path / "2"))


def test_a_result_without_a_column_of_the_file(world: World, tmp_path: Path):
    with pytest.raises(PermanentError, match="BATCH_PROCESS"):
        world.run(world.job(write=OUT, process=lambda row: row), Context(tmp_path / "1"))


def test_a_file_without_process_cannot_have_more_columns(world: World, tmp_path: Path):
    with pytest.raises(ConfigurationError) as caught:
        world.run(world.job(write=OUT), Context(tmp_path / "1"))
    assert caught.value.code == "BATCH_COLUMNS"


async def later(row: dict[str, Any]) -> dict[str, Any]:
    return row


@pytest.mark.parametrize(
    "wrong", [{"function": later}, {"per": "file"}, {"skip_max": -1}, {"function": 3}]
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any]):
    with pytest.raises(ConfigurationError, match="BATCH_JOB"):
        Process(**{"function": euro, **wrong})
