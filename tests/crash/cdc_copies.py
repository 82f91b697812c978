"""The copies that sinks keep, and what they hold; asked with the drivers alone.

A copied row says besides its values which change made it: ``op`` and ``place``.  In a copy of SQL a
trigger writes down every write as a line of ``trail``, in the transaction that makes it, so that
what was applied twice or out of order is seen also where nothing of it is left in the end.  Nothing
here imports duly.

    sql     item and small in another PostgreSQL; item, bulk and history in a file of SQLite
    redis   item and history as texts, small as hashes, item and small as entries that readers fill

The lines of the history are never changed and never read anew: one that is lost stays lost, and is
seen in the end."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NamedTuple

from tests.crash.cdc_stage import BULK_EVERY, ITEMS, SMALLS, STREAM

HISTORY = "cdc_history"
COUNTED = ("bulk", HISTORY)  # too large to be compared row by row while everything runs
COLUMNS = {"item": ("v", "note")}  # what is compared in the end, where it is more than v
KEYS = {"item": 2 * ITEMS, "small": 2 * SMALLS}
SOURCES = {HISTORY: f"(SELECT seq AS id, seq AS v FROM {HISTORY} WHERE op <> 'load') AS told"}
Rows = dict[str, tuple[Any, ...]]  # values by key

_COPY = """
CREATE TABLE copy_{table} ({key} integer PRIMARY KEY, v bigint NOT NULL{more}, op text NOT NULL,
    place text NOT NULL, duly_mark bigint);
"""
_TRAIL = """
CREATE TABLE trail (seq {identity}, tbl text NOT NULL, key text NOT NULL, op text NOT NULL,
    v bigint NOT NULL, place text NOT NULL);
"""
_POSTGRES = """
CREATE FUNCTION keep_trail() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'DELETE' THEN
    INSERT INTO trail (tbl, key, op, v, place)
    VALUES (TG_TABLE_NAME, OLD.id, 'gone', OLD.v, OLD.place);
  ELSE
    INSERT INTO trail (tbl, key, op, v, place)
    VALUES (TG_TABLE_NAME, NEW.id, NEW.op, NEW.v, NEW.place);
  END IF;
  RETURN NULL;
END $$;
"""
_POSTGRES_TRIGGER = """
CREATE TRIGGER keep_trail AFTER INSERT OR UPDATE OR DELETE ON copy_{table}
FOR EACH ROW EXECUTE FUNCTION keep_trail();
"""
_SQLITE_TRIGGER = """
CREATE TRIGGER trail_{table}_{verb} AFTER {verb} ON copy_{table}
WHEN '{table}' <> 'bulk' OR {row}.{key} % {every} = 0
BEGIN INSERT INTO trail (tbl, key, op, v, place)
VALUES ('copy_{table}', {row}.{key}, {op}, {row}.v, {row}.place); END;
"""


@dataclass(frozen=True)
class Copy:
    """One copy. name: of its rule. form: ``postgres``, ``sqlite``, ``json``, ``hash`` or
    ``invalidate``."""

    name: str
    table: str
    form: str

    @property
    def stream(self) -> str:
        """The stream that feeds it."""
        return f"{STREAM}_{self.name}"

    @property
    def key(self) -> str:
        """The column that names a row."""
        return key_of(self.table)

    @property
    def columns(self) -> tuple[str, ...]:
        """What is compared in the end."""
        return COLUMNS.get(self.table, ("v",)) if self.is_filled else ("v",)

    @property
    def is_sql(self) -> bool:
        """Whether it is a table."""
        return self.form in ("postgres", "sqlite")

    @property
    def is_filled(self) -> bool:
        """Whether the sink puts rows there, and does not only remove them."""
        return self.form != "invalidate"


def key_of(table: str) -> str:
    """The column that names a row of a table."""
    return "seq" if table == HISTORY else "id"


COPIES = {
    "sql": (
        Copy("item_far", "item", "postgres"),
        Copy("small_far", "small", "postgres"),
        Copy("item_file", "item", "sqlite"),
        Copy("bulk_file", "bulk", "sqlite"),
        Copy("line_file", HISTORY, "sqlite"),
    ),
    "redis": (
        Copy("item_text", "item", "json"),
        Copy("small_hash", "small", "hash"),
        Copy("item_fresh", "item", "invalidate"),
        Copy("small_fresh", "small", "invalidate"),
        Copy("line_text", HISTORY, "json"),
    ),
}


class Step(NamedTuple):
    """What became of one key of a copy. op: of the change that was applied, ``gone`` where its row
    was removed, ``seen`` where somebody has looked."""

    key: str
    op: str
    v: Any


class Tables:
    """Copies in one database. form: ``postgres`` or ``sqlite``."""

    def __init__(self, form: str, url: str) -> None:
        self._form, self._url = form, url
        self._plain: Any = None

    def make(self, tables: list[str]) -> None:
        """Make the tables of the copies and their trail."""
        sqlite = self._form == "sqlite"
        identity = (
            "integer PRIMARY KEY AUTOINCREMENT"
            if sqlite
            else "bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY"
        )
        made = [_TRAIL.format(identity=identity)]
        made += ["PRAGMA journal_mode = WAL"] if sqlite else [_POSTGRES]
        for table in tables:
            more = ", note text NOT NULL" if table in COLUMNS else ""
            made.append(_COPY.format(table=table, key=key_of(table), more=more))
            made += self._triggers(table)
        for statement in made:
            self._rows(statement)

    def _triggers(self, table: str) -> list[str]:
        if self._form == "postgres":
            return [_POSTGRES_TRIGGER.format(table=table)]
        rows = {
            "INSERT": ("new", "new.op"),
            "UPDATE": ("new", "new.op"),
            "DELETE": ("old", "'gone'"),
        }
        return [
            _SQLITE_TRIGGER.format(
                table=table, key=key_of(table), verb=verb, row=row, op=op, every=BULK_EVERY
            )
            for verb, (row, op) in rows.items()
        ]

    def held(self, table: str, columns: tuple[str, ...]) -> Rows:
        """What the copy of a table holds."""
        rows = self._rows(f"SELECT {key_of(table)}, {', '.join(columns)} FROM copy_{table}")
        return {str(key): tuple(values) for key, *values in rows}

    def size(self, table: str) -> tuple[int, int]:
        """How many rows a copy has, and the sum of their values."""
        sql = f"SELECT count(*), coalesce(sum(v), 0) FROM copy_{table}"
        ((count, total),) = self._rows(sql)
        return int(count), int(total)

    def trail(self, table: str) -> Iterator[Step]:
        """Every write to the copy of a table, in order."""
        sql = f"SELECT key, op, v FROM trail WHERE tbl = 'copy_{table}' ORDER BY seq"
        yield from (Step(*row) for row in self._rows(sql))

    def is_free(self) -> bool:
        """Whether nobody sits on what a writer needs."""
        if self._form == "postgres":
            sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
            return self._rows(f"{sql} AND state LIKE 'idle in transaction%'") == [(0,)]
        with closing(sqlite3.connect(self._path, timeout=1.0, isolation_level=None)) as plain:
            try:
                plain.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return False
        return True

    def close(self) -> None:
        """Let go of it."""
        if self._plain is not None:
            self._plain.close()
            self._plain = None

    @property
    def _path(self) -> str:
        return self._url.removeprefix("sqlite:///")

    def _rows(self, sql: str) -> list[Any]:
        if self._plain is None and self._form == "sqlite":
            self._plain = sqlite3.connect(self._path, timeout=30, isolation_level=None)
        elif self._plain is None:
            import psycopg

            self._plain = psycopg.connect(self._url, autocommit=True, connect_timeout=10)
        cursor = self._plain.execute(sql)
        return list(cursor.fetchall()) if cursor.description else []


class Cache:
    """Copies in Redis. mark: before the name of every entry of a run."""

    def __init__(self, url: str, mark: str) -> None:
        import redis

        self._mark = mark
        self._client = redis.Redis.from_url(url, socket_timeout=10, decode_responses=True)

    def held(self, copy: Copy, columns: tuple[str, ...], *, highest: int = 0) -> Rows:
        """The entries of all keys that there can be. highest: of the lines of the history."""
        keys = self._keys(copy, highest)
        names = [f"{prefix(self._mark, copy)}{key}" for key in keys]
        if copy.form == "hash":
            with self._client.pipeline(transaction=False) as pipe:
                for name in names:
                    pipe.hget(name, "v")
                texts = pipe.execute()
        else:
            texts = self._client.mget(names)
        found = {key: text for key, text in zip(keys, texts, strict=True) if text is not None}
        if copy.form != "json":
            return {key: (int(text),) for key, text in found.items()}
        rows = {key: json.loads(text) for key, text in found.items()}
        return {key: tuple(row[name] for name in columns) for key, row in rows.items()}

    def size(self, copy: Copy, *, highest: int) -> int:
        """How many entries there are."""
        names = [f"{prefix(self._mark, copy)}{key}" for key in self._keys(copy, highest)]
        return int(self._client.exists(*names))

    def fill(self, copy: Copy, key: str, v: int) -> bool:
        """As a reader of a cache does: only where there is nothing."""
        return bool(self._client.set(f"{prefix(self._mark, copy)}{key}", str(v), nx=True))

    def strangers(self, copy: Copy, *, highest: int) -> set[str]:
        """Names under the copy's prefix that are of no key and not the sink's own."""
        begin = prefix(self._mark, copy)
        known = {f"{begin}{key}" for key in self._keys(copy, highest)}
        own = {f"{begin}duly", f"{begin}duly:ids"}
        return set(self._client.scan_iter(match=f"{begin}*", count=1000)) - known - own

    def _keys(self, copy: Copy, highest: int) -> list[str]:
        return [str(number) for number in range(KEYS.get(copy.table, highest + 1))]

    def remove(self) -> None:
        """Delete every entry of the run."""
        for name in self._client.scan_iter(match=f"{self._mark}:*", count=1000):
            self._client.delete(name)
        self._client.close()


def prefix(mark: str, copy: Copy) -> str:
    """What the names of a copy's entries begin with."""
    return f"{mark}:{copy.name}:"
