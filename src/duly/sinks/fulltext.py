"""A full-text index in a SQLite file, kept in step exactly once; needs no server.

An FTS5 table finds a row by its number only, so a second table ``<table>_duly`` says which number
belongs to which key, and of which epoch it is.  Index, that table and the place in the stream are
one transaction, begun by moving the place from where this sink knows it to be under the token and
epoch of its reader, as in ``sql``.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import NoReturn
from urllib.parse import unquote

from duly.errors import (
    ConfigurationError,
    SinkLostError,
    SinkRefusedError,
    SinkUnavailableError,
    StaleLeaseError,
)
from duly.kernel import failpoints
from duly.kernel.names import check_sql_name
from duly.kernel.upserts import Clear, Operation, Put, fold, key_text, pieces
from duly.sink import Batch, Fed, Feed
from duly.sinks.tabular import value_for

__all__ = ["Fts5"]

PATIENCE_SECONDS = 5.0
PIECE_ROWS = 1000
PIECE_BYTES = 1024 * 1024
_SCHEME = "sqlite:///"
_adapt = value_for("sqlite")


class Fts5:
    """A full-text index in a SQLite file.

    url: ``sqlite:///relative.db`` or ``sqlite:////absolute.db``; the file is made where it is not
    there. table: of the index, made where it is not there. columns: what is indexed, of the
    projection; other values are left out. tokenize: as FTS5 has it. Raises InvalidNameError,
    ConfigurationError.
    """

    snapshots = True

    def __init__(
        self, url: str, *, table: str, columns: Sequence[str], tokenize: str = "unicode61"
    ) -> None:
        if not url.startswith(_SCHEME) or not columns:
            raise ConfigurationError("Fts5 wants sqlite:///file.db and columns", code="SINK_URL")
        self._path = unquote(url.removeprefix(_SCHEME))
        self._table = check_sql_name(table, "table")
        self._columns = [check_sql_name(name, "column") for name in columns]
        self._tokenize = tokenize
        self._feed: Feed | None = None
        self._place = ""

    @property
    def place(self) -> str:
        """As ``Sink``."""
        return f"{_SCHEME}{self._path} {self._table}"

    # --- a sink -----------------------------------------------------------------------------------
    def look(self, name: str) -> Fed:
        """As ``Sink``."""
        with self._transaction() as db:
            made = "SELECT count(*) FROM sqlite_master WHERE name IN ('duly_sink', ?)"
            if db.execute(made, (self._table,)).fetchone()[0] != 2:  # both of them
                return Fed()
            row = db.execute(
                "SELECT epoch, place FROM duly_sink WHERE name = ?", (name,)
            ).fetchone()
            return Fed() if row is None else Fed(*row)

    def open(self, feed: Feed) -> None:
        """As ``Sink``."""
        with self._transaction() as db:
            self._make(db)
            row = db.execute(
                "SELECT token, epoch, place FROM duly_sink WHERE name = ?", (feed.name,)
            ).fetchone()
            token, epoch, place = row or (0, 0, "")
            if (epoch, token) > (feed.epoch, feed.token):
                raise StaleLeaseError(f"{self.place} is fed by another reader")
            place = place if epoch == feed.epoch else ""
            db.execute(
                "INSERT OR REPLACE INTO duly_sink (name, token, epoch, place) VALUES (?, ?, ?, ?)",
                (feed.name, feed.token, feed.epoch, place),
            )
        self._feed, self._place = feed, place

    def apply(self, batch: Batch) -> None:
        """As ``Sink``: exactly once."""
        feed = self._feed
        assert feed is not None, "open comes first"
        with self._transaction() as db:
            moved = db.execute(
                "UPDATE duly_sink SET place = ? "
                "WHERE name = ? AND token = ? AND epoch = ? AND place = ?",
                (batch.place, feed.name, feed.token, feed.epoch, self._place),
            )
            if moved.rowcount != 1:
                self._refuse(db, feed)
            for piece in pieces(batch.operations, count=PIECE_ROWS, size_bytes=PIECE_BYTES):
                for operation in fold(piece):
                    self._one(db, operation, feed.epoch)
            if batch.complete:
                self._remove(db, "epoch < ?", feed.epoch)
            failpoints.hit(failpoints.SINK_WRITTEN)
        self._place = batch.place
        failpoints.hit(failpoints.SINK_APPLIED)

    def close(self) -> None:
        """As ``Sink``; a connection lasts for one transaction."""

    # --- details ----------------------------------------------------------------------------------
    def _one(self, db: sqlite3.Connection, operation: Operation, epoch: int) -> None:
        if isinstance(operation, Clear):
            self._remove(db, "epoch <= ?", epoch)
            return
        key = key_text(operation.key)
        if not isinstance(operation, Put):
            self._remove(db, "key = ?", key)
            return
        if not operation.whole:
            text = "an update came without all its values; the source has to log whole rows"
            raise SinkRefusedError(text, code="ABSENT_VALUE")
        (number,) = db.execute(
            f"INSERT INTO {self._table}_duly (key, epoch) VALUES (?, ?) "
            "ON CONFLICT (key) DO UPDATE SET epoch = excluded.epoch RETURNING id",
            (key, epoch),
        ).fetchone()
        db.execute(f"DELETE FROM {self._table} WHERE rowid = ?", (number,))
        names, marks = ", ".join(self._columns), ", ?" * len(self._columns)
        values = [_adapt(operation.row.get(name)) for name in self._columns]
        insert = f"INSERT INTO {self._table} (rowid, {names}) VALUES (?{marks})"
        db.execute(insert, (number, *values))

    def _remove(self, db: sqlite3.Connection, condition: str, value: str | int) -> None:
        which = f"SELECT id FROM {self._table}_duly WHERE {condition}"
        db.execute(f"DELETE FROM {self._table} WHERE rowid IN ({which})", (value,))
        db.execute(f"DELETE FROM {self._table}_duly WHERE {condition}", (value,))

    def _make(self, db: sqlite3.Connection) -> None:
        db.execute(
            "CREATE TABLE IF NOT EXISTS duly_sink (name TEXT NOT NULL PRIMARY KEY, "
            "token INTEGER NOT NULL, epoch INTEGER NOT NULL, place TEXT NOT NULL)"
        )
        db.execute(
            f"CREATE TABLE IF NOT EXISTS {self._table}_duly (id INTEGER PRIMARY KEY, "
            "key TEXT NOT NULL UNIQUE, epoch INTEGER NOT NULL)"
        )
        wanted = self._tokenize.replace("'", "''")
        db.execute(
            f"CREATE VIRTUAL TABLE IF NOT EXISTS {self._table} "
            f"USING fts5({', '.join(self._columns)}, tokenize = '{wanted}')"
        )

    def _refuse(self, db: sqlite3.Connection, feed: Feed) -> NoReturn:
        row = db.execute(
            "SELECT epoch, token FROM duly_sink WHERE name = ?", (feed.name,)
        ).fetchone()
        if row is not None and row != (feed.epoch, feed.token):
            raise StaleLeaseError(f"{self.place} is fed by another reader")
        raise SinkLostError(f"{self.place} is not where it was left")

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(
                sqlite3.connect(self._path, timeout=PATIENCE_SECONDS, isolation_level=None)
            ) as db:
                db.execute("BEGIN IMMEDIATE")
                yield db
                db.execute("COMMIT")  # what ends before closes the connection, which rolls back
        except sqlite3.OperationalError as error:
            raise SinkUnavailableError(f"{self.place}: {error}") from error
        except sqlite3.Error as error:
            raise SinkRefusedError(f"{self.place}: {error}") from error
