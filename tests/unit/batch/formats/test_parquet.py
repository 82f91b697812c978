from __future__ import annotations

import sys
from pathlib import Path

import pytest

from duly.batch.formats.parquet import Parquet
from duly.batch.formats.text import RowRefusedError
from duly.errors import ConfigurationError, MissingExtraError
from duly.kernel import failpoints
from duly.rows import RowColumn
from duly.testing.failpoints import Plan
from tests.unit.batch.spooling import COUNT, Context, World, make_world


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path)


def test_chunks_become_row_groups_also_after_a_crash(world: World, tmp_path: Path):
    from pyarrow.parquet import ParquetFile

    job = world.job(write=Parquet("a.parquet", types={"id": "int64", "cents": "int32"}))
    whole = world.run(job, Context(tmp_path / "whole"))
    with ParquetFile(whole.path) as file:
        assert file.num_row_groups == whole_groups(world, tmp_path)
        table = file.read()
    assert [str(kind) for kind in table.schema.types] == ["int64", "string", "int32"]
    assert table.num_rows == whole.rows == COUNT
    assert table.slice(3, 2).to_pylist() == [
        {"id": 4, "name": 'n "4"', "cents": 28},
        {"id": 5, "name": None, "cents": 35},
    ]
    first = Context(tmp_path / "1")
    world.broken_off(job, first, Plan(failpoints.BATCH_CHUNK_SYNCED, 4, "raise"))
    second = first.next(tmp_path / "2")
    world.broken_off(job, second, Plan(failpoints.BATCH_SEALED, 1, "raise"))
    again = world.run(job, second.next(tmp_path / "3"))
    assert again.path.read_bytes() == whole.path.read_bytes()


def whole_groups(world: World, folder: Path) -> int:
    """Chunks with rows, of the same rows as text."""
    found = world.run(world.job(), Context(folder / "text"))
    return sum(chunk.rows > 0 for chunk in found.chunks)


def test_the_types_of_columns():
    columns = [
        RowColumn("a", "integer"),
        RowColumn("b", "decimal", 12, 2),
        RowColumn("c", "decimal"),
        RowColumn("d", "timestamptz"),
        RowColumn("e"),
    ]
    encoder = Parquet("a").encoder(columns, {})
    assert [str(kind) for kind in encoder.schema.types] == [
        "int64",
        "decimal128(12, 2)",
        "string",
        "timestamp[us, tz=UTC]",
        "string",
    ]
    assert encoder.begin() == encoder.end(3) == b""


def test_a_value_of_another_type_refuses_its_row():
    encoder = Parquet("a", types={"n": "int64"}).encoder([RowColumn("n")], {})
    with pytest.raises(RowRefusedError, match="n is no int64") as caught:
        encoder.rows([(1,), ("x",)])
    assert caught.value.index == 1


def test_a_type_that_is_not_known_is_refused():
    with pytest.raises(ConfigurationError, match="BATCH_FORMAT"):
        Parquet("a", types={"n": "number"}).encoder([RowColumn("n")], {})


def test_without_pyarrow_the_command_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"duly\[parquet\]"):
        Parquet("a").encoder([], {})
