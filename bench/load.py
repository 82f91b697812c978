"""The load: 1 KB messages with distinct keys, put where a side finds them.

Owns what a message is, the same for every side, and the ways of putting a backlog into a table, a
queue or a log.  ``plain`` tables are what a person would write for the hand-written loop.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import psycopg

from bench.places import connect_mariadb
from duly.app import App
from duly.kernel.names import place
from duly.message import Message, new_id
from duly.outbox.schema import Schema
from duly.ports import SubscriptionSpec, TopicSpec

__all__ = [
    "GROUP",
    "KEYS",
    "QUEUE",
    "TOPIC",
    "body",
    "check_effects",
    "fill_log",
    "fill_mariadb",
    "fill_postgres",
    "fill_queue",
    "fill_sqlite",
    "prepare_mariadb",
    "prepare_postgres",
]

KEYS = 1_000
BYTES = 1_024
TOPIC, GROUP, TYPE = "orders", "stats", "bench.placed"
QUEUE = f"{GROUP}:{TOPIC}"
# Of today: what was sent longer ago than the dedupe window would be held.
_HEADERS = {"source": "bench", "time": datetime.now(UTC).isoformat(timespec="microseconds")}
_HEADERS_TEXT = msgspec.json.encode(_HEADERS).decode()
_CHUNK = 10_000

_PLAIN_POSTGRES = """
CREATE TABLE plain_outbox (
    id bigserial PRIMARY KEY, message_id text NOT NULL, message_type text NOT NULL,
    topic text NOT NULL, key text, payload bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now());
CREATE TABLE plain_inbox (
    message_id text PRIMARY KEY, handled_at timestamptz NOT NULL DEFAULT now());
CREATE TABLE effect (id bigserial PRIMARY KEY, order_id bigint NOT NULL, cents bigint NOT NULL);
CREATE TABLE business (id bigserial PRIMARY KEY, customer text NOT NULL, cents bigint NOT NULL);
CREATE TABLE keys (n int PRIMARY KEY, key text NOT NULL, lane smallint NOT NULL);
"""
_FILL_DULY = """
INSERT INTO duly_outbox (message_id, message_type, kind, topic, key, lane, payload, headers)
SELECT gen_random_uuid()::text, %(type)s, 'event', %(topic)s, k.key, k.lane,
    convert_to(
        rpad(format('{"order_id":%%s,"cents":1250,"note":"', g), %(bytes)s - 2, 'x') || '"}', 'UTF8'
    ),
    %(headers)s
FROM generate_series(1, %(count)s) AS g JOIN keys k ON k.n = g %% %(keys)s
"""
_FILL_PLAIN = """
INSERT INTO plain_outbox (message_id, message_type, topic, key, payload)
SELECT gen_random_uuid()::text, %(type)s, %(topic)s, k.key,
    convert_to(
        rpad(format('{"order_id":%%s,"cents":1250,"note":"', g), %(bytes)s - 2, 'x') || '"}', 'UTF8'
    )
FROM generate_series(1, %(count)s) AS g JOIN keys k ON k.n = g %% %(keys)s
"""
_PLAIN_MARIADB = """
CREATE TABLE plain_outbox (
    id bigint PRIMARY KEY AUTO_INCREMENT, message_id varchar(255) NOT NULL,
    message_type varchar(255) NOT NULL, topic varchar(120) NOT NULL, `key` varchar(255),
    payload longblob NOT NULL, created_at datetime(6) NOT NULL DEFAULT CURRENT_TIMESTAMP(6));
CREATE TABLE `keys` (n int PRIMARY KEY, `key` varchar(255) NOT NULL, lane smallint NOT NULL)
"""
_FILL_MARIADB = """
INSERT INTO {table} (message_id, message_type, topic, `key`, payload{columns})
SELECT UUID(), %(type)s, %(topic)s, k.`key`,
    CONCAT(
        RPAD(CONCAT('{{"order_id":', g.seq, ',"cents":1250,"note":"'), %(bytes)s - 2, 'x'), '"}}'
    ){values}
FROM seq_1_to_{count} AS g JOIN `keys` k ON k.n = g.seq %% %(keys)s ORDER BY g.seq
"""
_PLAIN_SQLITE = """
CREATE TABLE plain_outbox (
    id INTEGER PRIMARY KEY, message_id TEXT NOT NULL, message_type TEXT NOT NULL,
    topic TEXT NOT NULL, key TEXT, payload BLOB NOT NULL);
CREATE TABLE plain_inbox (message_id TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE plain_position (value INTEGER NOT NULL);
INSERT INTO plain_position VALUES (0);
CREATE TABLE effect (id INTEGER PRIMARY KEY, order_id INTEGER NOT NULL, cents INTEGER NOT NULL);
"""
PLAIN_LOG = """
CREATE TABLE log (
    id INTEGER PRIMARY KEY, message_id TEXT NOT NULL, message_type TEXT NOT NULL,
    topic TEXT NOT NULL, key TEXT, payload BLOB NOT NULL);
"""


def body(number: int) -> bytes:
    """The payload of an order: JSON of 1,024 bytes."""
    start = b'{"order_id":%d,"cents":1250,"note":"' % number
    return start.ljust(BYTES - 2, b"x") + b'"}'


def _key(number: int) -> str:
    return f"customer-{number % KEYS}"


def _messages(count: int, first: int = 0) -> Iterator[list[Message]]:
    for start in range(first, first + count, _CHUNK):
        yield [
            Message(new_id(), TYPE, "event", TOPIC, _key(n), body(n), dict(_HEADERS))
            for n in range(start, min(first + count, start + _CHUNK))
        ]


# --- PostgreSQL -----------------------------------------------------------------------------------
def prepare_postgres(url: str) -> None:
    """The tables of both sides."""
    app = App("bench", database=url, broker="embedded:///:memory:")
    Schema(app.database, "bench").upgrade()
    app.close()
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute(_PLAIN_POSTGRES)
        rows = [(n, _key(n), place(TOPIC, _key(n)).lane) for n in range(KEYS)]
        admin.cursor().executemany("INSERT INTO keys VALUES (%s, %s, %s)", rows)


def fill_postgres(url: str, count: int, *, ours: bool) -> None:
    """Put a backlog into the outbox of a side, with fresh statistics and nothing left to write."""
    values = {
        "type": TYPE,
        "topic": TOPIC,
        "bytes": BYTES,
        "keys": KEYS,
        "headers": _HEADERS_TEXT,
        "count": count,
    }
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute("TRUNCATE duly_outbox, plain_outbox, plain_inbox, duly_inbox, effect")
        if count:
            admin.execute(_FILL_DULY if ours else _FILL_PLAIN, values)
        admin.execute("VACUUM ANALYZE")
        admin.execute("CHECKPOINT")


def check_effects(url: str, least: int) -> None:
    """So many orders have their effect, and each has one. Raises RuntimeError."""
    with psycopg.connect(url) as db:
        row = db.execute("SELECT count(*), count(DISTINCT order_id) FROM effect").fetchone()
    if row is None or row[0] < least or row[0] != row[1]:
        raise RuntimeError(f"{row} effects and orders, at least {least} of each expected")


# --- MariaDB --------------------------------------------------------------------------------------
def prepare_mariadb(url: str) -> None:
    """The tables of both sides."""
    app = App("bench", database=url, broker="embedded:///:memory:")
    Schema(app.database, "bench").upgrade()
    app.close()
    with closing(connect_mariadb(url)) as admin:
        cursor = admin.cursor()
        for statement in _PLAIN_MARIADB.split(";\n"):
            cursor.execute(statement)
        rows = [(n, _key(n), place(TOPIC, _key(n)).lane) for n in range(KEYS)]
        cursor.executemany("INSERT INTO `keys` VALUES (%s, %s, %s)", rows)


def fill_mariadb(url: str, count: int, *, ours: bool) -> None:
    """As ``fill_postgres``."""
    values = {"type": TYPE, "topic": TOPIC, "bytes": BYTES, "keys": KEYS, "headers": _HEADERS_TEXT}
    shape = (
        {
            "table": "duly_outbox",
            "columns": ", kind, lane, headers",
            "values": ", 'event', k.lane, %(headers)s",
        }
        if ours
        else {"table": "plain_outbox", "columns": "", "values": ""}
    )
    with closing(connect_mariadb(url)) as admin:
        cursor = admin.cursor()
        for table in ("duly_outbox", "plain_outbox"):
            cursor.execute(f"TRUNCATE {table}")
        if count:
            cursor.execute(_FILL_MARIADB.format(count=count, **shape), values)
        cursor.execute("ANALYZE TABLE duly_outbox, plain_outbox")
        cursor.execute("FLUSH TABLES duly_outbox, plain_outbox FOR EXPORT")  # writes what is dirty
        cursor.execute("UNLOCK TABLES")


# --- SQLite ---------------------------------------------------------------------------------------
def fill_sqlite(path: Path, count: int) -> None:
    """A database with a backlog in both outboxes, ours and the plain one."""
    app = App("bench", database=f"sqlite:///{path}", broker="embedded:///:memory:")
    Schema(app.database, "bench").upgrade()
    app.close()
    db = sqlite3.connect(path)
    db.executescript(_PLAIN_SQLITE)
    for chunk in _messages(count):
        plain = [(m.id, m.type, m.topic, m.key, m.payload) for m in chunk]
        db.executemany(
            "INSERT INTO plain_outbox (message_id, message_type, topic, key, payload) "
            "VALUES (?, ?, ?, ?, ?)",
            plain,
        )
        rows = [(*row, place(TOPIC, str(row[3])).lane, _HEADERS_TEXT) for row in plain]
        db.executemany(
            "INSERT INTO duly_outbox (message_id, message_type, kind, topic, key, payload, lane, "
            "headers, created_at) VALUES (?, ?, 'event', ?, ?, ?, ?, ?, 0)",
            rows,
        )
    db.commit()
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()


def fill_log(ours: Path, plain: Path, count: int) -> None:
    """The same messages in an embedded log of ours and in a plain one."""
    asyncio.run(_publish(f"embedded:///{ours}", count))
    db = sqlite3.connect(plain)
    db.executescript(PLAIN_LOG)
    for chunk in _messages(count):
        rows = [(m.id, m.type, m.topic, m.key, m.payload) for m in chunk]
        db.executemany(
            "INSERT INTO log (message_id, message_type, topic, key, payload) "
            "VALUES (?, ?, ?, ?, ?)",
            rows,
        )
    db.commit()
    db.close()


# --- brokers --------------------------------------------------------------------------------------
def fill_queue(broker: str, count: int, *, first: int = 0) -> None:
    """Put messages into the queue that both sides read; count 0 only declares it.

    first: the number of the first order, so that what is added later is of other orders.
    """
    asyncio.run(_publish(broker, count, first))


async def _publish(url: str, count: int, first: int = 0) -> None:
    app = App("bench-load", database="sqlite:///unused.db", broker=url)
    broker, topic = app.make_broker(), TopicSpec(TOPIC, "event")
    await broker.start()
    try:
        await broker.declare([topic], [SubscriptionSpec(GROUP, (topic,))])
        for chunk in _messages(count, first):
            outcomes = await broker.publish(chunk, deadline_seconds=60.0)
            bad = [outcome for outcome in outcomes if outcome.kind.value != "confirmed"]
            if bad:
                raise RuntimeError(f"{len(bad)} of the load were not taken: {bad[0]}")
    finally:
        await broker.close()
