"""The binary log of a real MariaDB: values, XA, DDL, lost logs, other readers, snapshots.

What every change source must do is in the public suite; here is what this one has of its own.  The
server is the module's own: its log is rotated, dropped and begun anew, and it is killed.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

import pytest

from duly.databases.mysql import changes, changes_spool, changes_stream
from duly.databases.mysql.changes import MysqlChanges
from duly.databases.mysql.changes_catalog import find_server, find_tables, rows_of
from duly.databases.mysql.changes_chunk import TableChunks
from duly.databases.mysql.changes_link import register
from duly.databases.mysql.changes_readers import Readers
from duly.databases.mysql.changes_stream import MysqlChangeStream
from duly.databases.mysql.database import MysqlDatabase
from duly.errors import (
    ConfigurationError,
    DatabaseUnavailableError,
    DulyError,
    GapError,
    StaleLeaseError,
)
from duly.kernel.changes import Change, SnapshotChunk, Transaction
from duly.ports import Severity
from duly.runtime.clock import SystemClock
from duly.sources import TableSpec
from tests.conftest import mariadb
from tools.services import PrivateServer

LIMIT_SECONDS = 60.0
THING = "id INT PRIMARY KEY, name VARCHAR(200), amount BIGINT"


class Source:
    """One reader of one database of a server, and a foreign writer to it."""

    def __init__(self, server: PrivateServer, schema: str) -> None:
        self.server, self.schema = server, schema
        self.url = urlsplit(server.url)._replace(path=f"/{schema}").geturl()
        self.spec = TableSpec("thing", before_image=True)
        self.token = 0
        self.connect()
        self.run(f"CREATE DATABASE {schema}", f"USE {schema}", f"CREATE TABLE thing ({THING})")
        self.changes = MysqlChanges(self.url, reader="shop", clock=SystemClock())

    def connect(self) -> None:
        self.db = mariadb(self.server.url)
        self.ask = rows_of(self.db)

    def run(self, *statements: str) -> None:
        for text in statements:
            self.ask(text)

    def insert(self, *numbers: int) -> None:
        self.run(*(f"INSERT INTO {self.schema}.thing VALUES ({n}, 'n', {n})" for n in numbers))

    def next_second(self) -> None:
        """Wait until the server's clock has moved on by a second."""
        self.run("SELECT SLEEP(1)")

    @asynccontextmanager
    async def open(
        self, *tables: TableSpec, position: str = ""
    ) -> AsyncIterator[MysqlChangeStream]:
        self.token += 1
        specs = tables or (self.spec,)
        at = await self.changes.prepare(specs)
        stream = await self.changes.open(specs, position=position or at, token=self.token)
        try:
            yield stream
        finally:
            await stream.close()


@pytest.fixture
def source(private_mariadb: PrivateServer) -> Iterator[Source]:
    made = Source(private_mariadb, f"s{random.getrandbits(32):08x}")
    yield made
    made.run("SET GLOBAL log_bin_compress = OFF")
    made.db.close()


async def transactions(stream: MysqlChangeStream, count: int) -> list[Transaction]:
    """The next transactions; anything else in between is left out."""
    found: list[Transaction] = []
    async with asyncio.timeout(LIMIT_SECONDS):
        async for item in stream.items():
            if isinstance(item, Transaction):
                found.append(item)
            if len(found) == count:
                return found
    raise AssertionError("the stream ended")


async def failure(stream: MysqlChangeStream) -> tuple[DulyError, list[Transaction]]:
    """What ended the stream, and what it gave before."""
    found: list[Transaction] = []
    with pytest.raises(DulyError) as caught:
        async with asyncio.timeout(LIMIT_SECONDS):
            async for item in stream.items():
                found += [item] if isinstance(item, Transaction) else []
    return caught.value, found


async def read_rows(stream: MysqlChangeStream) -> list[Change]:
    """The rows of the snapshot that comes next."""
    found: list[Change] = []
    async with asyncio.timeout(LIMIT_SECONDS):
        async for item in stream.items():
            if isinstance(item, SnapshotChunk):
                found += item.rows
                if item.done:
                    return found
    raise AssertionError("the stream ended")


def keys(given: Sequence[Transaction]) -> list[list[Any]]:
    return [[change.key["id"] for change in one] for one in given]


# --- values ---------------------------------------------------------------------------------------
MOMENT = datetime.fromisoformat("2024-02-29 12:00:00.5")
EDGES: dict[str, list[tuple[str, Any]]] = {
    "TINYINT": [("-128", -128), ("127", 127)],
    "BIGINT": [("-9223372036854775808", -(2**63)), ("9223372036854775807", 2**63 - 1)],
    "BIGINT UNSIGNED": [("18446744073709551615", 2**64 - 1)],
    "MEDIUMINT UNSIGNED": [("16777215", 2**24 - 1)],
    "BOOL": [("TRUE", 1)],
    "DECIMAL(20,6)": [("-12345678901234.567890", Decimal("-12345678901234.567890"))],
    "DECIMAL(5,0)": [("-99999", Decimal(-99999))],
    "FLOAT": [("1.1", 1.1), ("3.4028235e38", 3.4028235e38), ("16777217", 16777216.0)],
    "DOUBLE": [("0.1", 0.1), ("1.7976931348623157e308", 1.7976931348623157e308)],
    "BIT(12)": [("b'100000000001'", b"\x08\x01")],
    "YEAR": [("2155", 2155), ("0", 0)],
    "DATE": [("'9999-12-31'", date(9999, 12, 31)), ("'0000-00-00'", "0000-00-00"),
             ("'2024-00-10'", "2024-00-10")],
    "DATETIME": [("'1000-01-01 00:00:00'", datetime.fromisoformat("1000-01-01")),
                 ("'0000-00-00 00:00:00'", "0000-00-00 00:00:00")],
    "DATETIME(6)": [("'2024-02-29 12:00:00.5'", MOMENT)],
    "TIMESTAMP(3) NULL": [("'2024-02-29 12:00:00.5'", MOMENT.replace(tzinfo=UTC)),
                          ("'0000-00-00 00:00:00'", "0000-00-00 00:00:00.000")],
    "TIME": [("'-838:59:59'", -timedelta(hours=838, minutes=59, seconds=59))],
    "TIME(6)": [("'-00:00:00.000001'", timedelta(microseconds=-1)), ("'00:00:00'", timedelta())],
    "CHAR(5)": [("'a'", "a"), ("''", "")],
    "VARCHAR(300)": [("'a  '", "a  "), ("'ü€😀\\n'", "ü€😀\n")],
    "VARCHAR(20) CHARACTER SET latin1": [("'é€'", "é€")],
    "TEXT CHARACTER SET sjis": [("'日本'", "日本")],
    "LONGTEXT": [("REPEAT('x', 70000)", "x" * 70_000)],
    "ENUM('a', 'ü')": [("'ü'", "ü")],
    "SET('a', 'b', 'ü')": [("'a,ü'", "a,ü"), ("''", "")],
    "BINARY(4)": [("x'0100'", b"\1\0\0\0")],
    "VARBINARY(10)": [("x'00ff00'", b"\0\xff\0"), ("''", b"")],
    "BLOB": [("x'00ff'", b"\0\xff")],
    "JSON": [("'{\"a\": [1, \"ü\"]}'", '{"a": [1, "ü"]}')],
    "UUID": [("'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11")],
    "INET6": [("'::ffff:192.0.2.128'", "::ffff:192.0.2.128")],
    "INET4": [("'192.0.2.1'", "192.0.2.1")],
    "POINT": [("Point(1, 2)", bytes.fromhex(
        "000000000101000000000000000000f03f0000000000000040"))],
}  # fmt: skip


async def test_every_type_is_the_same_in_stream_and_snapshot(source: Source) -> None:
    columns = ", ".join(f"c{n} {kind}" for n, kind in enumerate(EDGES))
    source.run(
        f"CREATE TABLE kinds (id INT PRIMARY KEY, {columns}, h INT INVISIBLE DEFAULT 5,"
        " v INT AS (id * 2) VIRTUAL, s INT AS (id * 3) STORED) CHARACTER SET utf8mb4",
        "SET SESSION sql_mode = '', time_zone = '+00:00'",
    )
    spec = TableSpec("kinds")
    async with source.open(spec) as stream:
        count = max(map(len, EDGES.values())) + 1
        for row in range(count):
            values = [edges[row][0] if row < len(edges) else "NULL" for edges in EDGES.values()]
            source.run(f"INSERT INTO kinds VALUES ({row}, {', '.join(values)}, NULL, NULL)")
        streamed = [t.changes[0].after or {} for t in await transactions(stream, count)]
        await stream.snapshot(spec)
        rows = [change.after or {} for change in await read_rows(stream)]
    for row, ours in enumerate(streamed):
        for n, (kind, edges) in enumerate(EDGES.items()):
            wanted = edges[row][1] if row < len(edges) else None
            found = ours[f"c{n}"]
            assert (found, type(found)) == (wanted, type(wanted)), kind
    assert [(row["h"], set(row)) for row in streamed] == [(5, set(streamed[0]))] * count
    assert rows == streamed
    assert [{k: type(v) for k, v in row.items()} for row in rows] == [
        {k: type(v) for k, v in row.items()} for row in streamed
    ]


# --- transactions ---------------------------------------------------------------------------------
def xa(source: Source, name: str, number: int) -> None:
    """Prepare a transaction on a connection of its own, and leave it."""
    db = mariadb(source.url)
    for text in (f"XA START '{name}'", f"INSERT INTO thing VALUES ({number}, 'xa', 0)",
                 f"XA END '{name}'", f"XA PREPARE '{name}'"):  # fmt: skip
        rows_of(db)(text)
    db.close()


def decide(source: Source, verb: str, name: str) -> None:
    """The connection that prepared it may take a moment to be gone."""
    for _ in range(3000):
        try:
            source.run(f"XA {verb} '{name}'")
        except Exception as error:
            if error.args[0] != 1397:
                raise
        else:
            return
    raise AssertionError(f"{name} never became free")


async def test_rows_of_a_prepared_transaction_wait_for_its_decision(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes, "_XA_SECONDS", 0.0)
    async with source.open() as stream:
        xa(source, "one", 1)
        xa(source, "two", 2)
        source.insert(3)
        first = await transactions(stream, 1)
        decide(source, "ROLLBACK", "two")
        source.insert(4)
        first += await transactions(stream, 1)
    assert keys(first) == [[3], [4]]
    assert {len(one.commit) for one in first} == {44}  # where to read again is part of it
    assert [one.commit for one in first] == sorted(one.commit for one in first)
    async with source.open(position=first[0].commit) as stream:
        decide(source, "COMMIT", "one")
        source.insert(5)
        again = await transactions(stream, 3)
    assert keys(again) == [[4], [1], [5]]
    assert again[0].position == first[1].position
    assert [len(one.commit) for one in again] == [44, 22, 22]


async def test_a_transaction_prepared_before_the_stream_began_is_no_secret(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    xa(source, "old", 1)
    monkeypatch.setattr(changes, "_XA_SECONDS", 0.0)
    async with source.open() as stream:
        source.insert(2)
        decide(source, "COMMIT", "old")
        source.insert(3)
        error, given = await failure(stream)
    assert (type(error), error.code, keys(given)) == (GapError, "CDC_XA_UNKNOWN", [[2]])


async def test_a_large_transaction_goes_to_disk_and_loses_nothing(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes_spool, "MEMORY_BYTES", 20_000)
    values = ", ".join(f"({n}, REPEAT('x', 100), {n})" for n in range(2000))
    async with source.open() as stream:
        source.run("BEGIN", f"INSERT INTO thing VALUES {values}", "SAVEPOINT `a b`",
                   "UPDATE thing SET amount = 0 WHERE id < 500", "ROLLBACK TO SAVEPOINT `a b`",
                   "DELETE FROM thing WHERE id = 7", "COMMIT")  # fmt: skip
        large = (await transactions(stream, 1))[0]
    assert large.changes._rows.on_disk  # type: ignore[attr-defined]
    wanted = [("create", n, n) for n in range(2000)] + [("delete", 7, 2000)]
    for _ in range(2):
        assert [(c.op, c.key["id"], c.ordinal) for c in large] == wanted
    assert large.changes[1999].after == {"id": 1999, "name": "x" * 100, "amount": 1999}


async def test_rotation_ddl_and_compressed_events_in_mid_stream(source: Source) -> None:
    async with source.open() as stream:
        source.insert(1)
        source.run("FLUSH BINARY LOGS", "ALTER TABLE thing ADD COLUMN more TEXT FIRST")
        source.run("INSERT INTO thing VALUES ('m', 2, 'n', 2)", "SET GLOBAL log_bin_compress = ON")
        long = ", ".join(f"('m', {n}, REPEAT('y', 200), 3)" for n in range(3, 30))
        source.run(f"INSERT INTO thing VALUES {long}", "UPDATE thing SET more = 'c'")
        source.run("ALTER TABLE thing DROP COLUMN more", "RENAME TABLE thing TO moved")
        given = await transactions(stream, 4)
        error, _ = await failure(stream)
    assert [len(one.changes) for one in given] == [1, 1, 27, 29]
    assert given[0].changes[0].after == {"id": 1, "name": "n", "amount": 1}
    assert given[1].changes[0].after == {"more": "m", "id": 2, "name": "n", "amount": 2}
    assert {(c.before or {})["more"] for c in given[3]} == {None, "m"}
    assert [one.commit for one in given] == sorted(one.commit for one in given)
    assert (type(error), error.code) == (GapError, "CDC_TABLE_LOST")


async def test_the_log_is_rotated_inside_of_transactions(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is open lies whole in the file of its commit; a prepared one lies in an earlier."""
    monkeypatch.setattr(changes, "_XA_SECONDS", 0.0)
    beside = rows_of(mariadb(source.url))
    async with source.open() as stream:
        beside("START TRANSACTION")
        beside("INSERT INTO thing VALUES (1, 'n', 1)")
        source.run("FLUSH BINARY LOGS")
        source.insert(2)
        beside("INSERT INTO thing VALUES (3, 'n', 3)")
        xa(source, "over", 4)
        source.run("FLUSH BINARY LOGS")
        beside("COMMIT")
        source.run("FLUSH BINARY LOGS")
        first = await transactions(stream, 2)
    assert keys(first) == [[2], [1, 3]]
    assert len({one.commit[:6] for one in first}) == 2
    for place in first:
        async with source.open(position=place.commit) as stream:
            if place is first[0]:
                decide(source, "COMMIT", "over")
            rest = await transactions(stream, 2 if place is first[0] else 1)
        assert keys(rest) == ([[1, 3], [4]] if place is first[0] else [[4]])


# --- the log, and who reads it --------------------------------------------------------------------
async def test_a_server_that_was_killed_goes_on_where_it_was(source: Source) -> None:
    async with source.open() as stream:
        source.insert(1)
        first = await transactions(stream, 1)
        source.server.kill()
        error, _ = await failure(stream)
        assert isinstance(error, DatabaseUnavailableError)
    with pytest.raises(DatabaseUnavailableError):
        await source.changes.status(first[0].commit)
    source.server.start()
    source.connect()
    source.insert(2)
    async with source.open(position=first[0].commit) as stream:
        assert keys(await transactions(stream, 1)) == [[2]]


async def test_a_log_that_is_gone_or_another_one_is_a_gap(source: Source) -> None:
    start = await source.changes.prepare([source.spec])
    source.insert(1)
    source.run("FLUSH BINARY LOGS")
    source.insert(2)
    async with source.open(position=start) as stream:
        assert keys(await transactions(stream, 2)) == [[1], [2]]
    last = source.ask("SHOW MASTER STATUS")[0][0]
    source.run(f"PURGE BINARY LOGS TO '{last}'")
    await gap(source, start, "CDC_PURGED")
    assert source.ask("SHOW BINARY LOGS")[0][0] == last
    here = await source.changes.prepare([source.spec])
    source.next_second()  # log files are told apart by the second that they were made in
    source.run("RESET MASTER")
    source.insert(3)
    await gap(source, here, "CDC_SOURCE_BEHIND")
    while source.ask("SHOW MASTER STATUS")[0][0] < last:
        source.run("FLUSH BINARY LOGS")
    source.insert(*range(4, 12))
    await gap(source, here, "CDC_SOURCE_CHANGED")


async def gap(source: Source, position: str, code: str) -> None:
    with pytest.raises(GapError) as caught:
        async with source.open(position=position) as stream:
            await transactions(stream, 1)
    assert caught.value.code == code


async def test_a_number_that_another_replica_has_is_refused(source: Source) -> None:
    number = Readers(source.schema, "shop").number
    async with source.open() as stream:
        other = mariadb(source.url)
        register(other, number, "replica7")
        hosts = [row[1] for row in source.ask("SHOW SLAVE HOSTS") if row[1] != "replica7"]
        source.run(f"KILL {hosts[0].rpartition(':')[2]}")
        error, _ = await failure(stream)
        assert (type(error), error.code) == (ConfigurationError, "CDC_SERVER_ID_IN_USE")
    with pytest.raises(ConfigurationError, match=f"server id {number} is in use"):
        await source.changes.prepare([source.spec])
    other.close()


async def test_a_reader_that_does_not_read_is_put_out_all_the_same(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes_stream, "WAITING_BYTES", 100_000)
    async with source.open() as slow:
        values = ", ".join(f"({n}, REPEAT('x', 200), {n})" for n in range(2000))
        source.run(f"INSERT INTO thing VALUES {values}")
        for n in range(14):
            source.run(f"UPDATE thing SET amount = {n}")  # 12 MB that nobody takes
        async with source.open() as fast:
            source.insert(-1)
            assert keys(await transactions(fast, 1)) == [[-1]]
            error, given = await failure(slow)
            assert isinstance(error, StaleLeaseError)
            assert len(given) < 15


# --- what is asked of the server ------------------------------------------------------------------
async def test_what_the_log_would_not_tell_is_refused_with_what_mends_it(source: Source) -> None:
    source.run(
        "CREATE TABLE child (id INT PRIMARY KEY, thing INT,"
        " FOREIGN KEY (thing) REFERENCES thing (id) ON DELETE CASCADE)",
        "CREATE TABLE isam (id INT PRIMARY KEY) ENGINE = MyISAM",
        "CREATE VIEW seen AS SELECT * FROM thing",
    )
    for name, code in (
        ("child", "CDC_CASCADES"), ("isam", "NOT_INNODB"), ("seen", "CDC_TABLE_MISSING"),
    ):  # fmt: skip
        with pytest.raises(ConfigurationError) as caught:
            await source.changes.prepare([TableSpec(name)])
        assert caught.value.code == code
    findings = await source.changes.inspect([source.spec, TableSpec("child")])
    assert [(f.code, f.severity) for f in findings] == [
        ("CDC_BINLOG", Severity.GREEN),
        ("CDC_CASCADES", Severity.RED),
    ]
    source.run("SET GLOBAL binlog_row_metadata = MINIMAL")
    try:
        with pytest.raises(ConfigurationError, match="SET GLOBAL binlog_row_metadata = 'FULL'"):
            await source.changes.prepare([source.spec])
    finally:
        source.run("SET GLOBAL binlog_row_metadata = FULL")


async def test_a_user_without_the_rights_is_told_the_grant(source: Source) -> None:
    source.run("CREATE USER poor@'127.0.0.1' IDENTIFIED BY 'p'",
               "GRANT SELECT, BINLOG MONITOR ON *.* TO poor@'127.0.0.1'")  # fmt: skip
    parts = urlsplit(source.url)
    url = parts._replace(netloc=f"poor:p@127.0.0.1:{parts.port}").geturl()
    poor = MysqlChanges(url, reader="poor", clock=SystemClock())
    try:
        with pytest.raises(ConfigurationError, match="GRANT REPLICATION SLAVE") as caught:
            await poor.prepare([source.spec])
        assert caught.value.code == "CDC_NO_RIGHTS"
        source.run("GRANT REPLICATION SLAVE, REPLICATION MASTER ADMIN ON *.* TO poor@'127.0.0.1'")
        assert await poor.prepare([source.spec])
    finally:
        source.run("DROP USER poor@'127.0.0.1'")


async def test_peek_shows_what_a_stream_would_give_and_moves_nothing(source: Source) -> None:
    start = await source.changes.prepare([source.spec])
    source.insert(1, 2)
    seen = await source.changes.peek([source.spec], position=start, limit=1)
    assert keys(seen) == [[1]]
    seen = await source.changes.peek([source.spec], position=seen[0].commit, limit=9)
    assert keys(seen) == [[2]]
    status = await source.changes.status(start)
    assert status.lag_bytes is not None
    assert status.lag_bytes > 0
    assert not status.active
    source.run("DROP TABLE thing", f"CREATE TABLE thing ({THING})")
    seen = await source.changes.peek([source.spec], position="", limit=2)  # of all that is kept
    assert keys(seen) == [[1], [2]]
    with pytest.raises(GapError):
        await source.changes.peek([source.spec], position=start, limit=9)


async def test_chunks_that_are_locked_for_a_moment_go_by_every_kind_of_key(source: Source) -> None:
    """As they are read where a snapshot does not know its place in the log."""
    source.run(
        "CREATE TABLE keyed (a ENUM('z', 'y'), b VARBINARY(4), c FLOAT, d DECIMAL(6,2),"
        " e VARCHAR(9), f DATETIME(3), PRIMARY KEY (a, b, c, d, e, f))"
    )
    chance = random.Random(7)
    rows = {
        (chance.choice("zy"), chance.choice(["00", "ff00"]), chance.choice(["1.1", "2"]),
         chance.choice(["1.5", "-2"]), chance.choice(["A", "b", "ü"]), chance.choice("12"))
        for _ in range(60)
    }  # fmt: skip
    values = ", ".join(
        f"('{a}', x'{b}', {c}, {d}, '{e}', '2024-01-0{f} 00:00:00.5')" for a, b, c, d, e, f in rows
    )
    source.run(f"INSERT INTO keyed VALUES {values}")
    server = find_server(source.ask)
    table = find_tables(source.ask, [TableSpec("keyed")], schema=source.schema)[0]
    for kind in (server, server._replace(mariadb=False, version=(8, 0))):
        chunks = TableChunks(MysqlDatabase(source.url), table, kind)
        chunks.open()
        last: list[str] = []
        found, done = [], False
        while not done:
            chunk = chunks.read(last, 7, ())
            assert chunk is not None
            assert (chunk.seen is not None) == kind.mariadb
            found += [tuple(row.values()) for _, row in chunk.rows]
            last, done = chunk.last, chunk.done
        chunks.close()
        assert len(found) == len(set(found)) == len(rows)
