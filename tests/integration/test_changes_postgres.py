"""The log of a real PostgreSQL: values, large and prepared transactions, gaps, take-over, snapshot.

What every change source must do is in the public suite; here is what this one has of its own.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import psycopg
import pytest

from duly.databases.postgres import changes as changes_of_postgres
from duly.databases.postgres import changes_link
from duly.databases.postgres.changes import PostgresChanges
from duly.databases.postgres.changes_stream import PostgresChangeStream
from duly.errors import (
    ConfigurationError,
    DatabaseUnavailableError,
    GapError,
    OperatorError,
    StaleLeaseError,
)
from duly.kernel.changes import ABSENT, Change, SnapshotChunk, Transaction
from duly.ports import Severity
from duly.runtime.clock import SystemClock
from duly.sources import TableSpec
from tools.services import PrivateServer

LIMIT_SECONDS = 30.0


class FastClock(SystemClock):
    """What happens every ten seconds happens every quarter of one."""

    def monotonic(self) -> float:
        return super().monotonic() * 40


class Source:
    """One reader of one database, and a foreign writer to it."""

    def __init__(self, url: str, *, clock: SystemClock | None = None) -> None:
        self.url = url
        self.db = psycopg.connect(url, autocommit=True)
        self.changes = PostgresChanges(url, reader="shop", clock=clock or SystemClock())
        self.token = 0

    def run(self, sql: str, *values: Any) -> Any:
        cursor = self.db.execute(sql, values or None)
        return cursor.fetchall() if cursor.description else None

    @asynccontextmanager
    async def open(
        self, *tables: TableSpec, position: str = ""
    ) -> AsyncIterator[PostgresChangeStream]:
        self.token += 1
        at = position or await self.changes.prepare(tables)
        stream = await self.changes.open(tables, position=at, token=self.token)
        try:
            yield stream
        finally:
            await stream.close()

    @property
    def slot(self) -> str:
        return str(self.run("SELECT slot_name FROM pg_replication_slots s "
                            "WHERE s.database = current_database()")[0][0])  # fmt: skip


@pytest.fixture
def source(postgres_url: str) -> Iterator[Source]:
    made = Source(postgres_url)
    yield made
    asyncio.run(made.changes.drop())
    made.db.close()


async def transactions(stream: PostgresChangeStream, count: int) -> list[Transaction]:
    """The next transactions; anything else in between is left out."""
    found: list[Transaction] = []
    async with asyncio.timeout(LIMIT_SECONDS):
        async for item in stream.items():
            if isinstance(item, Transaction):
                found.append(item)
            if len(found) == count:
                return found
    raise AssertionError("the stream ended")


def told(changes: Any) -> list[tuple[Any, ...]]:
    return [(c.op, dict(c.key), c.before, c.after) for c in changes]


# --- values ---------------------------------------------------------------------------------------
EDGES = {
    "bool": ["true", "false"],
    "int2": ["-32768", "32767"],
    "int4": ["-2147483648", "2147483647"],
    "int8": ["-9223372036854775808", "9223372036854775807"],
    "oid": ["0", "4294967295"],
    "numeric": ["NaN", "Infinity", "-Infinity", "0.00", "1" + "0" * 300 + ".5", "-1e-300"],
    "numeric(9,3)": ["-123456.789"],
    "float4": ["NaN", "-Infinity", "1.1", "3.4028235e+38", "1e-45", "-0"],
    "float8": ["NaN", "Infinity", "0.1", "1.7976931348623157e+308", "5e-324"],
    "date": ["4713-01-01 BC", "0001-01-01", "9999-12-31", "10000-01-01", "5874897-12-31",
             "infinity", "-infinity"],
    "time": ["00:00:00", "23:59:59.999999", "24:00:00"],
    "timetz": ["00:00:00+15:59", "04:05:06.7-08:30", "24:00:00-15:59"],
    "timestamp": ["4713-01-01 00:00:00 BC", "0001-01-01", "9999-12-31 23:59:59.999999",
                  "294276-12-31 23:59:59.999999", "infinity", "-infinity"],
    "timestamptz": ["4713-01-02 00:00:00+00 BC", "2024-02-29 12:00:00.5+05:30", "infinity"],
    "interval": ["1 year -2 mons +3 days -04:05:06.7", "-178000000 years"],
    "text": ["", "NULL", "a\nb\t\\\"'", "ü€😀", "x" * 3_000],
    "varchar(5)": ["a  "], "char(5)": ["a"], "bpchar": ["b "], '"char"': ["c"], "name": ["n"],
    "bytea": ["\\x", "\\x00ff5c"],
    "bit(3)": ["101"], "varbit": ["", "1"],
    "uuid": ["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"],
    "json": ['{"b": 1,  "a": [1.5, 1e400, 12345678901234567890]}', '"\\u00fc"', "null"],
    "jsonb": ['{"a": 0.1000000000000000055511151231257827}', "[]", "-0.5"],
    "xml": ["<a>1</a>"],
    "inet": ["::1/64"], "cidr": ["10.0.0.0/8"], "macaddr": ["08:00:2b:01:02:03"],
    "macaddr8": ["08:00:2b:01:02:03:04:05"], "money": ["-1.50"],
    "point": ["(1,2)"], "box": ["(1,2),(0,0)"], "tsvector": ["'a':1"], "pg_lsn": ["16/B374D848"],
    "int4range": ["empty", "[1,)", "[1,3)"], "int4multirange": ["{}", "{[1,3),[5,)}"],
    "int4[]": ["{}", "{1,NULL,3}", "{{1,2},{3,4}}", "[0:1]={1,2}"],
    "text[]": ['{"",NULL,"NULL","a,b","c\\"d\\\\e","{}"}'],
    "bool[]": ["{t,f}"], "timestamptz[]": ['{NULL,"2024-01-01 00:00:00+00"}'],
    "numeric[]": ["{1.50,-Infinity}"], "jsonb[]": ['{"{\\"a\\": 1}"}'], "bytea[]": ['{"\\\\x00"}'],
    "mood": ["happy"], "mood[]": ["{happy}"], "positive": ["7"], "pair": ['(1,"a b")'],
}  # fmt: skip
EXACT = (bool, int, float, Decimal, bytes)


def same(ours: Any, driver: Any, text: str) -> bool:
    """Whether our value is what the database says: its own text, or the driver's value."""
    if isinstance(ours, str):
        return ours in (text, driver)
    if isinstance(ours, float) and math.isnan(ours):
        return math.isnan(driver)
    if isinstance(ours, Decimal) and ours.is_nan():
        return bool(driver.is_nan())
    return bool(ours == driver) and (type(ours) is type(driver) or not isinstance(ours, EXACT))


async def test_every_type_is_the_same_in_stream_snapshot_and_select(source: Source) -> None:
    source.run("CREATE TYPE mood AS ENUM ('happy', 'sad')")
    source.run("CREATE DOMAIN positive AS int CHECK (VALUE > 0)")
    source.run("CREATE TYPE pair AS (a int, b text)")
    columns = ", ".join(f"c{n} {kind}" for n, kind in enumerate(EDGES))
    source.run(f"CREATE TABLE kinds (id int PRIMARY KEY, {columns}, g int GENERATED ALWAYS AS"
               " (id * 2) STORED)")  # fmt: skip
    spec = TableSpec("kinds")
    async with source.open(spec) as stream:
        for row in range(max(map(len, EDGES.values())) + 1):
            values = [edges[row] if row < len(edges) else None for edges in EDGES.values()]
            casts = ", ".join(f"%s::{kind}" for kind in EDGES)
            source.run(f"INSERT INTO kinds VALUES (%s, {casts})", row, *values)
        streamed = [t.changes[0].after for t in await transactions(stream, row + 1)]
        await stream.snapshot(spec)
        rows = [dict(change.after or {}) for change in await read_rows(stream)]
    assert repr(rows) == repr(streamed)  # by their text, for NaN is not equal to itself
    assert "g" not in rows[0]
    names = [f"c{n}" for n in range(len(EDGES))]
    for ours in rows:
        for name, kind in zip(names, EDGES, strict=True):
            text = source.run(f"SELECT format('%%s', {name}) FROM kinds WHERE id = %s", ours["id"])
            try:
                driver = source.run(f"SELECT {name} FROM kinds WHERE id = %s", ours["id"])[0][0]
            except psycopg.DataError:
                driver = None  # it cannot hold such a date, either
            mine = ours[name]
            if kind in ("json", "jsonb", "jsonb[]") and mine is not None:
                mine = json.loads(json.dumps(mine, default=float))  # the driver rounds
            assert same(mine, driver, text[0][0]), (kind, mine, driver, text)


async def read_rows(stream: PostgresChangeStream) -> list[Change]:
    """The rows of the snapshot that comes next."""
    found: list[Change] = []
    async with asyncio.timeout(LIMIT_SECONDS):
        async for item in stream.items():
            if isinstance(item, SnapshotChunk):
                found += item.rows
                if item.done:
                    return found
    raise AssertionError("the stream ended")


async def test_values_at_random_are_exact(source: Source) -> None:
    chance = random.Random(11)
    source.run("CREATE TABLE t (id int PRIMARY KEY, f8 float8, f4 float4, n numeric, s text,"
               " j jsonb, at timestamptz, b bytea, a text[])")  # fmt: skip
    letters = "aü€😀\\\"',{} \n"
    async with source.open(TableSpec("t")) as stream, asyncio.timeout(LIMIT_SECONDS):
        rows = []
        for n in range(300):
            text = "".join(chance.choices(letters, k=chance.randrange(6)))
            f8 = struct.unpack("d", chance.randbytes(8))[0]
            scale = Decimal(chance.randrange(-(10**30), 10**30)).scaleb(-chance.randrange(40))
            f4 = chance.uniform(-1e6, 1e6)
            number = json.dumps({"x": chance.random(), text: [chance.randrange(-(2**70), 2**70)]})
            rows.append((n, f8, f4, scale, text, number, chance.randrange(2**33),
                         chance.randbytes(5), [text, None, letters]))  # fmt: skip
        with source.db.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO t VALUES (%s, %s, %s, %s, %s, %s, to_timestamp(%s), %s, %s)", rows
            )
        (whole,) = await transactions(stream, 1)
        read = [change.after for change in whole]
    with source.db.cursor(row_factory=psycopg.rows.dict_row) as cursor:
        assert repr(read) == repr(cursor.execute("SELECT * FROM t ORDER BY id").fetchall())


# --- what a transaction is ------------------------------------------------------------------------
async def test_three_states_of_a_value_and_the_old_key(source: Source) -> None:
    source.run("CREATE TABLE t (id int PRIMARY KEY, big text, s text, hidden text)")
    source.run("ALTER TABLE t ALTER big SET STORAGE EXTERNAL")
    big = "x" * 5_000
    async with source.open(TableSpec("t", exclude=("hidden",))) as stream:
        source.run("INSERT INTO t VALUES (1, %s, NULL, 'secret')", big)
        source.run("UPDATE t SET s = 'a' WHERE id = 1")
        source.run("UPDATE t SET id = 2 WHERE id = 1")
        source.run("ALTER TABLE t REPLICA IDENTITY FULL")
        source.run("UPDATE t SET s = 'b' WHERE id = 2")
        source.run("TRUNCATE t")
        made, plain, moved, full, emptied = [
            told(t.changes)[0] for t in await transactions(stream, 5)
        ]
    assert made == ("create", {"id": 1}, None, {"id": 1, "big": big, "s": None})
    assert plain == ("update", {"id": 1}, None, {"id": 1, "big": ABSENT, "s": "a"})
    before = {"id": 1, "big": ABSENT, "s": ABSENT}
    assert moved == ("update", {"id": 2}, before, {"id": 2, "big": ABSENT, "s": "a"})
    old, new = {"id": 2, "big": big, "s": "a"}, {"id": 2, "big": big, "s": "b"}
    assert full == ("update", {"id": 2}, old, new)
    assert emptied == ("truncate", {}, None, None)


async def test_intents_belong_to_their_transaction(source: Source) -> None:
    source.run("CREATE TABLE t (id int PRIMARY KEY)")
    say = "SELECT pg_logical_emit_message(%s, %s, convert_to(%s, 'UTF8'))"
    async with source.open(TableSpec("t")) as stream:
        source.run(say, True, "duly.intent:Alone", "")
        with source.db.transaction():
            source.run("INSERT INTO t VALUES (1)")
            source.run(say, True, "duly.intent:Opened", '{"by": "ü"}')
            source.run(say, False, "duly.intent:NotOfIt", "")
            source.run(say, True, "somebody.else", "")
        alone, opened = await transactions(stream, 2)
    assert ([i.name for i in alone.intents], len(alone.changes)) == (["Alone"], 0)
    assert [(i.name, i.data) for i in opened.intents] == [("Opened", '{"by": "ü"}'.encode())]
    assert opened.changes[0].intents == opened.intents


async def test_what_is_prepared_comes_when_it_is_committed(source: Source) -> None:
    source.run("CREATE TABLE t (id int PRIMARY KEY)")
    async with source.open(TableSpec("t")) as stream:
        for number, end in ((1, "COMMIT"), (2, "ROLLBACK")):
            source.run("BEGIN")
            source.run("INSERT INTO t VALUES (%s)", number)
            source.run(f"PREPARE TRANSACTION 'duly_{number}'")
            source.run("INSERT INTO t VALUES (%s)", number + 10)
            source.run(f"{end} PREPARED 'duly_{number}'")
        found = [[c.key["id"] for c in t] for t in await transactions(stream, 3)]
    assert found == [[11], [1], [12]]


async def test_the_layout_changes_in_mid_stream(source: Source) -> None:
    source.run("CREATE TABLE t (id int PRIMARY KEY, a int)")
    async with source.open(TableSpec("t")) as stream:
        with source.db.transaction():
            source.run("INSERT INTO t VALUES (1, 1)")
            source.run("ALTER TABLE t ADD b text DEFAULT 'x'")
            source.run("INSERT INTO t VALUES (2, 2)")
        source.run("ALTER TABLE t DROP a, ALTER b DROP DEFAULT, ALTER b TYPE int USING 5")
        source.run("UPDATE t SET b = 6 WHERE id = 1")
        first, second = await transactions(stream, 2)
    assert [c.after for c in first] == [{"id": 1, "a": 1}, {"id": 2, "a": 2, "b": "x"}]
    assert second.changes[0].after == {"id": 1, "b": 6}


async def test_streamed_transactions_come_whole_and_without_what_was_undone(
    source: Source,
) -> None:
    source.run("CREATE TABLE t (id int PRIMARY KEY, pad text)")
    source.run(f"ALTER DATABASE {source.db.info.dbname} SET logical_decoding_work_mem = '64kB'")
    insert = "INSERT INTO t SELECT n, repeat('x', 100) FROM generate_series(%s::int, %s) n"
    async with source.open(TableSpec("t")) as stream:
        with psycopg.connect(source.url) as other, psycopg.connect(source.url) as third:
            other.execute(insert, (1, 2_000))
            third.execute(insert, (90_000, 92_000))
            other.execute("SAVEPOINT a")
            other.execute(insert, (10_001, 12_000))
            other.execute("SELECT pg_logical_emit_message(true, 'duly.intent:Undone', '')")
            source.run(insert, 50_001, 50_001)
            other.execute("ROLLBACK TO a")
            other.execute("SELECT pg_logical_emit_message(true, 'duly.intent:Done', '')")
            other.execute(insert, (20_001, 20_002))
            third.rollback()
            other.commit()
        small, large = await transactions(stream, 2)
    assert [c.key["id"] for c in small] == [50_001]
    keys = [c.key["id"] for c in large]
    assert keys == [*range(1, 2_001), 20_001, 20_002]
    assert [c.ordinal for c in large] == list(range(2_002))
    assert [i.name for i in large.intents] == ["Done"]
    assert large.changes[-1] == list(large)[-1]


LARGE = """
import asyncio, sys
from duly.databases.postgres.changes import PostgresChanges
from duly.kernel.changes import Transaction
from duly.sources import TableSpec
from duly.runtime.clock import SystemClock

async def main(url, position):
    source = PostgresChanges(url, reader="shop", clock=SystemClock())
    stream = await source.open([TableSpec("t")], position=position, token=1)
    async for item in stream.items():
        if isinstance(item, Transaction):
            total, ids = 0, set()
            for change in item:
                total += change.key["id"]
                if change.ordinal % 1000 == 0:
                    ids.add(change.id)
            print(len(item.changes), total, len(ids))
            break
    await stream.close()
    high = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print(int(high.split()[1]) // 1024)

asyncio.run(main(*sys.argv[1:]))
"""


# The big run: DULY_TEST_LARGE_ROWS=1000000 pytest tests/integration/test_changes_postgres.py
LARGE_ROWS = int(os.environ.get("DULY_TEST_LARGE_ROWS", "200000"))


@pytest.mark.timeout(60 + LARGE_ROWS // 5_000)
async def test_a_large_transaction_of_one_position_needs_little_memory(source: Source) -> None:
    source.run("CREATE TABLE t (id int PRIMARY KEY, pad text)")
    position = await source.changes.prepare([TableSpec("t")])
    with source.db.cursor() as cursor, cursor.copy("COPY t FROM STDIN") as copy:
        copy.write("".join(f"{n}\t{'x' * 300}\n" for n in range(LARGE_ROWS)))
    command = [sys.executable, "-c", LARGE, source.url, position]
    done = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    counted, high = done.stdout.splitlines()
    assert counted == f"{LARGE_ROWS} {sum(range(LARGE_ROWS))} {LARGE_ROWS // 1_000}"
    assert int(high) < 120  # the rows alone are 70 MB


# --- tables ---------------------------------------------------------------------------------------
async def test_partitions_speak_under_the_name_of_their_table(source: Source) -> None:
    source.run("CREATE TABLE p (id int PRIMARY KEY, s text) PARTITION BY RANGE (id)")
    source.run("CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10)")
    source.run("CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (10) TO (20)")
    source.run("CREATE SCHEMA other")
    source.run('CREATE TABLE other."odd ""% name" ("a % b" int PRIMARY KEY)')
    specs = (TableSpec("p"), TableSpec('other.odd "% name'))
    async with source.open(*specs) as stream:
        source.run("INSERT INTO p VALUES (1, 'a'), (11, 'b')")
        source.run('INSERT INTO other."odd ""% name" VALUES (1), (2)')
        rows, odd = await transactions(stream, 2)
        await stream.snapshot(specs[0])
        await stream.snapshot(specs[1])
        read = [*await read_rows(stream), *await read_rows(stream)]
    assert [(c.table, c.key) for c in rows] == [("p", {"id": 1}), ("p", {"id": 11})]
    assert [(c.table, c.after) for c in odd] == [(specs[1].name, {"a % b": n}) for n in (1, 2)]
    key = sorted((c.table, *c.key.values()) for c in read)
    assert key == [(specs[1].name, 1), (specs[1].name, 2), ("p", 1), ("p", 11)]


@pytest.mark.parametrize(
    ("table", "spec", "code", "mends"),
    [
        ("", TableSpec("gone"), "CDC_TABLE_MISSING", None),
        ("(a int)", TableSpec("t"), "CDC_NO_REPLICA_IDENTITY", "ALTER TABLE public.t REPLICA"),
        (
            "(a int PRIMARY KEY)", TableSpec("t", before_image=True), "CDC_NO_BEFORE_IMAGE",
            "ALTER TABLE public.t REPLICA IDENTITY FULL;",
        ),
        ("(a int PRIMARY KEY)", TableSpec("t", include=("b",)), "CDC_COLUMN_MISSING", None),
    ],
)  # fmt: skip
async def test_what_cannot_be_captured_is_said_with_its_remedy(
    source: Source, table: str, spec: TableSpec, code: str, mends: str | None
) -> None:
    if table:
        source.run(f"CREATE TABLE t {table}")
    with pytest.raises(ConfigurationError, match=mends) as caught:
        await source.changes.prepare([spec])
    assert caught.value.code == code
    red = [f.code for f in await source.changes.inspect([spec]) if f.severity is Severity.RED]
    assert red == [code]
    assert source.run("SELECT count(*) FROM pg_publication")[0][0] == 0


async def test_a_publication_that_somebody_made_holds_for_stream_and_snapshot(
    source: Source,
) -> None:
    spec = TableSpec("t")
    source.run("CREATE TABLE t (id int PRIMARY KEY, public text, private text)")
    await source.changes.prepare([spec])
    slot = source.slot
    source.run(f"ALTER PUBLICATION {slot} SET TABLE t (id, public) WHERE (id % 2 = 0)")
    async with source.open(spec) as stream:
        source.run("INSERT INTO t SELECT n, 'p' || n, 'secret' FROM generate_series(1, 6) n")
        (whole,) = await transactions(stream, 1)
        await stream.snapshot(spec)
        rows = [dict(change.after or {}) for change in await read_rows(stream)]
    assert [change.after for change in whole] == rows
    assert rows == [{"id": n, "public": f"p{n}"} for n in (2, 4, 6)]


async def test_a_role_without_rights_is_told_what_is_missing(source: Source) -> None:
    """First the right to the log, then the table's owner; then it reads."""
    spec, role = TableSpec("t"), f"reader_{uuid4().hex[:8]}"
    source.run("CREATE TABLE t (id int PRIMARY KEY)")
    source.run(f"CREATE ROLE {role} LOGIN")
    name = source.db.info.dbname
    source.run(f'GRANT CREATE ON DATABASE "{name}" TO {role}')
    parts = urlsplit(source.url)
    netloc = f"{role}@{parts.netloc.rpartition('@')[2]}"
    changes = PostgresChanges(
        urlunsplit(parts._replace(netloc=netloc)), reader="shop", clock=SystemClock()
    )

    async def refused() -> tuple[str, str, list[str]]:
        with pytest.raises(ConfigurationError) as caught:
            await changes.prepare([spec])
        found = await changes.inspect([spec])
        return caught.value.code, str(caught.value), [f.code for f in found if f.fix == mends]

    try:
        mends = f"ALTER ROLE {role} REPLICATION"
        code, text, told = await refused()
        assert (code, "let the owner of the tables run it" in text) == ("CDC_NO_RIGHTS", True)
        assert f"CREATE PUBLICATION {source_name(text)} FOR TABLE public.t" in text
        assert told == ["CDC_NO_RIGHTS"]
        source.run(f"ALTER TABLE t OWNER TO {role}")
        code, text, told = await refused()
        assert (code, "grant REPLICATION" in text) == ("CDC_SLOT_REFUSED", True)
        source.run(mends)
        assert await changes.prepare([spec])
        assert [f for f in await changes.inspect([spec]) if f.severity is Severity.RED] == []
        await changes.drop()
    finally:
        source.run(f"DROP OWNED BY {role}")
        source.run(f"DROP ROLE {role}")


async def test_slots_that_nobody_reads_are_told(source: Source) -> None:
    source.run("CREATE TABLE t (id int PRIMARY KEY)")
    spec = TableSpec("t")
    left = PostgresChanges(source.url, reader="left", clock=SystemClock())

    async def idle() -> list[str]:
        found = await source.changes.inspect([spec])
        return [f.message for f in found if f.code == "CDC_SLOT_IDLE"]

    await left.prepare([spec])
    async with source.open(spec):
        (told,) = await idle()
        assert "_left (" in told
        assert "_shop (" not in told
    await left.drop()
    (told,) = await idle()
    assert "_shop (" in told


def source_name(text: str) -> str:
    """Of the publication that an error speaks of."""
    return text.partition("CREATE PUBLICATION ")[2].partition(" ")[0]


async def test_a_slot_waits_for_open_transactions_beyond_the_time_for_locks(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(changes_link.SETTINGS, "lock_timeout", "100")
    source.run("CREATE TABLE orders (id int PRIMARY KEY)")
    with psycopg.connect(source.url) as other:
        other.execute("INSERT INTO orders VALUES (1)")
        monkeypatch.setattr(changes_of_postgres, "_SLOT_SECONDS", 1)
        with pytest.raises(DatabaseUnavailableError, match="waits for a transaction"):
            await source.changes.prepare([TableSpec("orders")])
        monkeypatch.setattr(changes_of_postgres, "_SLOT_SECONDS", LIMIT_SECONDS)
        waiting = asyncio.create_task(source.changes.prepare([TableSpec("orders")]))
        await asyncio.sleep(0.5)  # several times the one for locks
        assert not waiting.done()
    async with asyncio.timeout(LIMIT_SECONDS):
        assert await waiting


# --- gaps and other readers -----------------------------------------------------------------------
async def test_a_slot_that_was_moved_lost_or_made_anew_is_a_gap(source: Source) -> None:
    source.run("CREATE TABLE t (id int PRIMARY KEY)")
    spec = TableSpec("t")
    position = await source.changes.prepare([spec])

    async def refused(at: str = position) -> str:
        with pytest.raises(GapError) as caught:
            async with source.open(spec, position=at):
                pass
        return caught.value.code

    source.run("INSERT INTO t VALUES (1)")
    assert await refused("7FFFFFFF00000000") == "CDC_SOURCE_BEHIND"
    source.run("SELECT pg_replication_slot_advance(%s, pg_current_wal_lsn())", source.slot)
    assert await refused() == "CDC_SLOT_MOVED"
    slot = source.slot
    source.run("SELECT pg_drop_replication_slot(%s)", slot)
    assert await refused() == "CDC_SLOT_MISSING"
    source.run("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", slot)
    assert await refused() == "CDC_SLOT_MOVED"
    source.run("SELECT pg_drop_replication_slot(%s)", slot)
    source.run("SELECT pg_create_logical_replication_slot(%s, 'pgoutput', false, true)", slot)
    with pytest.raises(ConfigurationError) as caught:
        await source.changes.prepare([spec])
    assert caught.value.code == "CDC_SLOT_TWO_PHASE"


async def test_a_frozen_reader_is_put_out_and_stays_out(source: Source) -> None:
    source.run("CREATE TABLE t (id int PRIMARY KEY, pad text)")
    spec = TableSpec("t")
    async with source.open(spec) as frozen:
        fill = "INSERT INTO t SELECT n, repeat('x', 400) FROM generate_series(%s::int, %s) n"
        for n in range(8):  # more than a frozen reader buffers: the server waits in a send
            source.run(fill, n * 20_000, n * 20_000 + 19_999)
        with pytest.raises(OperatorError):
            await source.changes.peek([spec], position="", limit=1)
        async with source.open(spec) as heir:
            assert len((await transactions(heir, 1))[0].changes) == 20_000
            with pytest.raises(StaleLeaseError):
                await transactions(frozen, 100)
            source.token -= 2
            with pytest.raises(StaleLeaseError):
                async with source.open(spec):
                    pass
            assert len((await transactions(heir, 7))[-1].changes) == 20_000


async def test_a_table_made_anew_stops_the_stream(postgres_url: str) -> None:
    source = Source(postgres_url, clock=FastClock())
    source.run("CREATE TABLE t (id int PRIMARY KEY)")
    async with source.open(TableSpec("t")) as stream:
        source.run("ALTER TABLE t RENAME TO t_old")
        source.run("CREATE TABLE t (id int PRIMARY KEY)")
        with pytest.raises(GapError) as caught:
            await transactions(stream, 1)
    assert caught.value.code == "CDC_TABLE_LOST"
    await source.changes.drop()
    source.db.close()


async def test_an_idle_stream_lets_the_server_forget(postgres_url: str) -> None:
    source = Source(postgres_url, clock=FastClock())
    source.run("CREATE TABLE t (id int PRIMARY KEY)")
    source.run("CREATE TABLE other (id int PRIMARY KEY)")
    async with source.open(TableSpec("t")) as stream, asyncio.timeout(LIMIT_SECONDS):
        source.run("INSERT INTO other VALUES (1)")
        wanted = int(source.run("SELECT pg_current_wal_lsn() - '0/0'")[0][0])
        async for item in stream.items():
            assert isinstance(item, str)
            await stream.confirm(item)
            if int(item, 16) >= wanted:
                break
        asked = "SELECT confirmed_flush_lsn - '0/0' FROM pg_replication_slots WHERE slot_name = %s"
        while int(source.run(asked, source.slot)[0][0]) < wanted:
            await asyncio.sleep(0.02)
    await source.changes.drop()
    source.db.close()


async def test_peeking_moves_nothing(source: Source) -> None:
    source.run("CREATE TABLE t (id int PRIMARY KEY)")
    spec = TableSpec("t")
    await source.changes.prepare([spec])
    for n in range(3):
        source.run("INSERT INTO t VALUES (%s)", n)
    first = await source.changes.peek([spec], position="", limit=2)
    assert [t.changes[0].key["id"] for t in first] == [0, 1]
    rest = await source.changes.peek([spec], position=first[1].commit, limit=2)
    assert [t.changes[0].key["id"] for t in rest] == [2]
    async with source.open(spec) as stream:
        ids = [t.changes[0].id for t in await transactions(stream, 3)]
    assert ids == [t.changes[0].id for t in (*first, *rest)]


# --- snapshot beside the stream -------------------------------------------------------------------
async def test_a_snapshot_under_fire_gives_the_table(source: Source) -> None:
    """Large values that no later change repeats, changed keys, and a restart in the middle."""
    chance = random.Random(5)
    source.run("CREATE TABLE t (id int PRIMARY KEY, big text, n int)")
    source.run("ALTER TABLE t ALTER big SET STORAGE EXTERNAL")
    fill = "INSERT INTO t SELECT n, repeat(md5(n::text), 90), 0 FROM generate_series(0, 1499) n"
    source.run(fill)
    spec = TableSpec("t")
    state: dict[int, dict[str, Any]] = {}
    stop = asyncio.Event()

    async def write() -> None:
        connection = await psycopg.AsyncConnection.connect(source.url, autocommit=True)
        async with connection:
            while not stop.is_set():
                n = chance.randrange(1_500)
                await connection.execute(
                    chance.choice((
                        f"UPDATE t SET n = n + 1 WHERE id = {n}",
                        f"UPDATE t SET n = n + 1 WHERE id = {n}",
                        f"DELETE FROM t WHERE id = {n}",
                        f"INSERT INTO t VALUES ({n}, repeat('y', 3000), -1) ON CONFLICT DO NOTHING",
                        f"UPDATE t SET id = id + 3000 WHERE id = {n}",
                    ))
                )  # fmt: skip

    writing = asyncio.create_task(write())
    cursor, position, done = "", "", False
    async with asyncio.timeout(LIMIT_SECONDS):
        for _ in range(2):
            async with source.open(spec, position=position) as stream:
                if not done:
                    await stream.snapshot(spec, cursor=cursor)
                async for item in stream.items():
                    position = follow(state, item) or position
                    if isinstance(item, SnapshotChunk):
                        first, cursor, done = not cursor, item.cursor, item.done
                        if first or done:
                            break
        stop.set()
        await writing
        source.run("INSERT INTO t VALUES (-1, '', 0)")
        async with source.open(spec, position=position) as stream:
            async for item in stream.items():
                follow(state, item)
                if -1 in state:
                    break
    assert done
    with source.db.cursor(row_factory=psycopg.rows.dict_row) as rows:
        wanted = {row["id"]: row for row in rows.execute("SELECT * FROM t").fetchall()}
    assert state == wanted


def follow(state: dict[int, dict[str, Any]], item: Any) -> str:
    """Apply what the stream gives, as a keyed copy does; the position that can be stored."""
    if isinstance(item, str):
        return item
    for change in item.rows if isinstance(item, SnapshotChunk) else item:
        old = (change.before or change.key)["id"]
        known = state.pop(old, {})
        if change.after is not None:
            row = {k: known.get(k, v) if v is ABSENT else v for k, v in change.after.items()}
            state[change.key["id"]] = row
    return item.position if isinstance(item, SnapshotChunk) else str(item.commit)


async def test_a_snapshot_needs_a_key_and_a_cursor_of_it(source: Source) -> None:
    source.run("CREATE TABLE t (a int)")
    source.run("ALTER TABLE t REPLICA IDENTITY FULL")
    source.run("CREATE TABLE u (a int PRIMARY KEY)")
    async with source.open(TableSpec("t"), TableSpec("u")) as stream:
        for spec in (TableSpec("t"), TableSpec("v")):
            with pytest.raises(ConfigurationError):
                await stream.snapshot(spec)
        for wrong in ("{", '{"key": ["b"], "after": ["1"]}', '{"key": ["a"], "after": []}'):
            with pytest.raises(GapError) as caught:
                await stream.snapshot(TableSpec("u"), cursor=wrong)
            assert caught.value.code == "CDC_CURSOR"
        await stream.snapshot(TableSpec("u"))
        assert await read_rows(stream) == []


# --- a server that goes away ----------------------------------------------------------------------
async def test_a_server_can_be_stopped_and_the_stream_goes_on_behind_it(
    private_postgres: PrivateServer,
) -> None:
    source = Source(private_postgres.url)
    source.run("CREATE TABLE t (id int PRIMARY KEY)")
    spec = TableSpec("t")
    async with source.open(spec) as stream:
        source.run("INSERT INTO t VALUES (1), (2)")
        (first,) = await transactions(stream, 1)  # and not confirmed: the server would wait
        waiting = asyncio.create_task(transactions(stream, 1))
        began = time.monotonic()
        await asyncio.to_thread(private_postgres.stop)
        assert time.monotonic() - began < 15  # it did not wait for this reader
        with pytest.raises(DatabaseUnavailableError):
            await waiting
    with pytest.raises(DatabaseUnavailableError):
        await source.changes.status("")
    await asyncio.to_thread(private_postgres.start)
    source.db = psycopg.connect(private_postgres.url, autocommit=True)
    source.run("INSERT INTO t VALUES (3)")
    async with source.open(spec, position=first.commit) as stream:
        (second,) = await transactions(stream, 1)
    assert [c.key["id"] for c in second] == [3]
    async with source.open(spec) as stream:
        again = await transactions(stream, 2)
    assert [c.id for t in again for c in t] == [c.id for t in (first, second) for c in t]
    source.db.close()


async def test_a_log_that_was_purged_is_a_gap(private_postgres: PrivateServer) -> None:
    source = Source(private_postgres.url)
    source.run("CREATE TABLE purged (id int PRIMARY KEY)")
    spec = TableSpec("purged")
    position = await source.changes.prepare([spec])
    source.run("ALTER SYSTEM SET max_slot_wal_keep_size = '16MB'")
    source.run("SELECT pg_reload_conf()")
    for number in range(5):  # segments, each as good as empty
        source.run("INSERT INTO purged VALUES (%s)", number)
        source.run("SELECT pg_switch_wal()")
    source.run("CHECKPOINT")
    with pytest.raises(GapError, match="take a new snapshot") as caught:
        async with source.open(spec, position=position):
            pass
    assert caught.value.code == "CDC_SLOT_LOST"
    red = [f.code for f in await source.changes.inspect([spec]) if f.severity is Severity.RED]
    assert red == ["CDC_SLOT_LOST"]
    await source.changes.drop()
    assert await source.changes.prepare([spec]) > position  # it begins anew
    await source.changes.drop()
    source.run("ALTER SYSTEM RESET max_slot_wal_keep_size")
    source.db.close()
