"""Whatever PostgreSQL may hold, in a column of any type: stream, snapshot and SELECT agree on it.

The database is the oracle: our value is the driver's, or PostgreSQL's own text where Python has no
such value.  Edge values by hand are in ``tests/integration/test_changes_postgres.py``.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator
from datetime import timedelta, timezone
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from duly.databases.postgres.changes import PostgresChanges
from duly.runtime.clock import SystemClock
from duly.sources import TableSpec
from duly.testing.change_target import following

EXACT = (bool, int, float, Decimal, bytes)
WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
SMALL = st.integers(-(2**31), 2**31 - 1)
NUMBERS = st.decimals(allow_nan=True, allow_infinity=True, places=6) | st.decimals(
    -(10**40), 10**40
)
ZONES = st.integers(-15 * 60, 15 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | WORDS
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=5,
).map(json.dumps)  # fmt: skip
MONTHS = st.integers(-400_000, 400_000)  # more than that the driver cannot hold
BITS = st.text("01", max_size=9)
RANGES = st.tuples(SMALL, SMALL).map(sorted)
KINDS: dict[str, st.SearchStrategy[Any]] = {
    "bool": st.booleans(),
    "int2": st.integers(-(2**15), 2**15 - 1),
    "int4": SMALL,
    "int8": st.integers(-(2**63), 2**63 - 1),
    "oid": st.integers(0, 2**32 - 1),
    "numeric": NUMBERS.map(lambda n: "NaN" if n.is_nan() else str(n)),
    "numeric(9,3)": st.decimals(-999999, 999999, places=3),
    "float4": st.floats(width=32),
    "float8": st.floats(),
    "date": st.dates(),
    "time": st.times(),
    "timetz": st.times(timezones=ZONES),
    "timestamp": st.datetimes(),
    "timestamptz": st.datetimes(timezones=ZONES).map(lambda moment: moment.isoformat()),
    "interval": st.tuples(MONTHS, SMALL).map(lambda p: f"{p[0]} mons {p[1]} seconds"),
    "text": WORDS,
    "varchar(5)": st.text("aü😀 \\\"'", max_size=5),
    "char(5)": st.text("aü😀 \\\"'", max_size=5),
    "bytea": st.binary(max_size=9),
    "bit(3)": st.text("01", min_size=3, max_size=3),
    "varbit": BITS,
    "uuid": st.uuids(),
    "json": JSON.filter(lambda text: "\\u0000" not in text),
    "jsonb": JSON.filter(lambda text: "\\u0000" not in text),
    "inet": st.ip_addresses().map(str),
    "money": st.decimals(-(10**12), 10**12, places=2),
    "int4range": RANGES.map(lambda ends: f"[{ends[0]},{ends[1]})"),
    "int8[]": st.lists(st.none() | st.integers(-(2**63), 2**63 - 1), max_size=3),
    "text[]": st.lists(st.none() | WORDS, max_size=3),
    "float8[]": st.lists(st.floats(), max_size=3),
    "date[]": st.lists(st.none() | st.dates(), max_size=3),
    "bytea[]": st.lists(st.binary(max_size=3), max_size=3),
    "mood[]": st.lists(st.sampled_from(["sad", "so so", 'said "ok", and left']), max_size=3),
    "positive": st.integers(1, 2**31 - 1),
    "pair": st.tuples(SMALL, WORDS),
}  # fmt: skip
NAMES = [f"c{n}" for n in range(len(KINDS))]
ROW = st.tuples(*(st.none() | strategy for strategy in KINDS.values()))


class Table:
    """A table with a column of every kind, followed by a stream that stays open."""

    def __init__(self, url: str) -> None:
        self.db = psycopg.connect(url, autocommit=True)
        self.source = PostgresChanges(url, reader="kinds", clock=SystemClock())
        self.spec = TableSpec("thing")
        self.runner = asyncio.Runner()
        self.db.execute("CREATE TYPE mood AS ENUM ('sad', 'so so', 'said \"ok\", and left')")
        self.db.execute("CREATE DOMAIN positive AS int CHECK (VALUE > 0)")
        self.db.execute("CREATE TYPE pair AS (a int, b text)")
        columns = ", ".join(f"{name} {kind}" for name, kind in zip(NAMES, KINDS, strict=True))
        self.db.execute(f"CREATE TABLE thing (id int PRIMARY KEY, {columns})".encode())
        self._following = following(self.source, [self.spec])
        self.follower = self.runner.run(self._following.__aenter__())

    def close(self) -> None:
        self.runner.run(self._following.__aexit__(None, None, None))
        self.runner.run(self.source.drop())
        self.runner.close()
        self.db.close()

    def put(self, rows: list[tuple[Any, ...]]) -> None:
        marks = ", ".join(f"%s::{kind}" for kind in KINDS)
        with self.db.transaction(), self.db.cursor() as cursor:
            cursor.execute("DELETE FROM thing")
            for number, row in enumerate(rows):
                cursor.execute(f"INSERT INTO thing VALUES (%s, {marks})".encode(), (number, *row))

    def streamed_and_read(self, rows: list[tuple[Any, ...]]) -> tuple[list[Any], list[Any]]:
        return self.runner.run(self._streamed_and_read(rows))

    async def _streamed_and_read(self, rows: list[tuple[Any, ...]]) -> tuple[list[Any], list[Any]]:
        follower = self.follower
        known, chunks = len(follower.transactions), len(follower.chunks)
        self.put(rows)
        await follower.until(lambda: len(follower.transactions) > known, "the rows")
        streamed = [c.after for c in follower.transactions[-1] if c.op == "create"]
        await follower.stream.snapshot(self.spec)
        done = "the last chunk"
        await follower.until(lambda: any(c.done for c in follower.chunks[chunks:]), done)
        read = [row.after for chunk in follower.chunks[chunks:] for row in chunk.rows]
        return streamed, read

    def kept(self) -> list[tuple[Any, ...]]:
        """Each row as the driver reads it, and as PostgreSQL writes it."""
        texts = ", ".join(f"format('%s', {name})" for name in NAMES)
        return self.db.execute(
            f"SELECT {', '.join(NAMES)}, {texts} FROM thing ORDER BY id".encode()
        ).fetchall()


@pytest.fixture
def table(postgres_url: str) -> Iterator[Table]:
    made = Table(postgres_url)
    yield made
    made.close()


def same(ours: Any, driver: Any, text: str) -> bool:
    """Whether our value is what the database says."""
    if isinstance(ours, str):
        return ours in (text, driver)
    if isinstance(ours, float) and math.isnan(ours):
        return math.isnan(driver)
    if isinstance(ours, Decimal) and ours.is_nan():
        return bool(driver.is_nan())
    if isinstance(ours, list):
        return repr(ours) == repr(driver)
    return bool(ours == driver) and (type(ours) is type(driver) or not isinstance(ours, EXACT))


def test_a_value_is_the_same_in_stream_snapshot_and_select(table: Table) -> None:
    @settings(
        max_examples=12,
        phases=[Phase.reuse, Phase.generate],
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(st.lists(ROW, min_size=1, max_size=3))
    def check(rows: list[tuple[Any, ...]]) -> None:
        streamed, read = table.streamed_and_read(rows)
        assert repr(streamed) == repr(read)  # by their text, for NaN is not equal to itself
        kept = table.kept()
        assert len(kept) == len(streamed) == len(rows)
        for ours, values in zip(streamed, kept, strict=True):
            drivers, texts = values[: len(NAMES)], values[len(NAMES) :]
            for name, kind, driver, text in zip(NAMES, KINDS, drivers, texts, strict=True):
                mine = ours[name]
                if kind in ("json", "jsonb") and mine is not None:
                    mine = json.loads(json.dumps(mine, default=float))  # the driver rounds
                assert same(mine, driver, text), (kind, mine, driver, text)

    check()
