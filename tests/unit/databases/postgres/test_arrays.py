"""Columns as binary arrays: byte for byte what psycopg makes of the same lists."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from psycopg.adapt import AdaptersMap, PyFormat, Transformer
from psycopg.postgres import register_default_adapters
from psycopg.types import TypesRegistry

from duly.databases.postgres import arrays

COLUMNS: list[list[Any]] = [
    ["a", "b", "c"],
    ["same"] * 5,
    ["one"],
    ["", "é€𝄞", "{,\"'\\ NULL"],
    [None, "b", None],
    ["b", None],
    ["b", "b", None],
    [b"\x00\xff", b""],
    [b"same", b"same"],
    [None, b"x"],
    [2**40, -1, 0, -(2**63)],
]


@pytest.fixture(autouse=True)
def _registered() -> None:
    arrays.register()


def sent(values: list[Any], known: AdaptersMap) -> tuple[int, bytes]:
    dumper = Transformer(known).get_dumper(values, PyFormat.BINARY)
    return dumper.oid, bytes(dumper.dump(values) or b"")


def plain() -> AdaptersMap:
    """What psycopg knows of itself."""
    found = AdaptersMap(types=TypesRegistry(psycopg.adapters.types))
    register_default_adapters(found)
    return found


@pytest.mark.parametrize("values", COLUMNS, ids=repr)
def test_the_bytes_are_those_of_psycopg(values: list[Any]) -> None:
    column = arrays.columns([{"x": one} for one in values])["x"]
    assert column == values
    assert type(column) is not list
    ours = psycopg.adapters.get_dumper(type(column), PyFormat.BINARY)
    assert ours.__module__ == arrays.__name__
    assert sent(column, psycopg.adapters) == sent(values, plain())


@pytest.mark.parametrize("values", COLUMNS, ids=repr)
def test_a_connection_that_was_opened_before_sends_the_same(values: list[Any]) -> None:
    column = arrays.columns([{"x": one} for one in values])["x"]
    assert sent(column, plain()) == sent(values, plain())


def test_numbers_are_bigint_however_small_and_few() -> None:
    bigint = sent([2**40], plain())[0]
    assert sent(arrays.Numbers([1, -2]), psycopg.adapters) == (
        bigint,
        bytes.fromhex("00000001 00000000 00000014 00000002 00000001")
        + bytes.fromhex("00000008 0000000000000001 00000008 fffffffffffffffe"),
    )
    assert sent(arrays.Numbers(), psycopg.adapters) == (
        bigint,
        bytes.fromhex("00000000 00000000 00000014"),
    )


@pytest.mark.parametrize("values", [[1, None], [None, None], [True], [1, True], [1.5], [1, 1.5]])
def test_other_columns_are_left_to_psycopg(values: list[Any]) -> None:
    assert type(arrays.columns([{"x": one} for one in values])["x"]) is list
