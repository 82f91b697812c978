"""The tables of the log file, and how a connection to it is opened.

Owns the file's identity (``application_id``, ``user_version``), the settings that make a commit
durable, and the map from sqlite3's errors to ours. Leaves out transactions (``file``) and every
statement that moves messages (``log``) or shares work (``claims``).
"""

from __future__ import annotations

import sqlite3
import time

from duly.errors import BrokerUnavailableError, ConfigurationError, DulyError

__all__ = ["map_error", "open_file"]

APPLICATION_ID = 0x64756C79  # "duly"
SCHEMA_VERSION = 1
PAGE_BYTES = 8192
CHECKPOINT_PAGES = 2000
_AGAIN_SECONDS = 0.01

# chunk: messages of one source that were published together, packed; last = offset of its last
# message. claim: what one group has of one source: position = all at or below it is done; token
# fences a lost lease. epoch: grows whenever members or free leases change, so that other processes
# look at once.
_TABLES = """
CREATE TABLE epoch (value INTEGER NOT NULL);
CREATE TABLE topic (
    id INTEGER PRIMARY KEY, kind TEXT NOT NULL, name TEXT NOT NULL, UNIQUE (kind, name)
);
CREATE TABLE source (id INTEGER PRIMARY KEY, next INTEGER NOT NULL);
CREATE TABLE chunk (
    id INTEGER PRIMARY KEY AUTOINCREMENT, source INTEGER NOT NULL, last INTEGER NOT NULL,
    count INTEGER NOT NULL, created_at REAL NOT NULL, data BLOB NOT NULL
);
CREATE UNIQUE INDEX chunk_place ON chunk (source, last);
CREATE TABLE claim (
    source INTEGER NOT NULL, grp TEXT NOT NULL, position INTEGER NOT NULL,
    token INTEGER NOT NULL DEFAULT 0, holder TEXT, until REAL NOT NULL DEFAULT 0,
    PRIMARY KEY (source, grp)
) WITHOUT ROWID;
CREATE TABLE member (
    topic INTEGER NOT NULL, grp TEXT NOT NULL, holder TEXT NOT NULL, until REAL NOT NULL,
    PRIMARY KEY (topic, grp, holder)
) WITHOUT ROWID;
INSERT INTO epoch VALUES (1);
"""

_BROKEN_FILE = {
    "SQLITE_NOTADB",
    "SQLITE_CANTOPEN",
    "SQLITE_READONLY",
    "SQLITE_PERM",
    "SQLITE_CORRUPT",
}


def open_file(path: str, *, busy_seconds: float) -> sqlite3.Connection:
    """A durable connection to the log, its tables made when the file is new.

    Raises ConfigurationError (another program's file, a newer schema, no right to write),
    BrokerUnavailableError.
    """
    limit = time.monotonic() + busy_seconds
    while True:
        db = None
        try:
            db = sqlite3.connect(path, timeout=busy_seconds, isolation_level=None)
            _configure(db)
            return db
        except (sqlite3.Error, DulyError) as error:
            if db is not None:
                db.close()
            # Of several that make a new file at once, SQLite turns some away without waiting.
            if not _is_busy(error) or time.monotonic() >= limit:
                raise map_error(error, path) from error
        time.sleep(_AGAIN_SECONDS)


def _is_busy(error: Exception) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY


def _configure(db: sqlite3.Connection) -> None:
    owner, version = _identity(db)
    if (owner, version) == (0, 0):
        db.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        db.execute("PRAGMA journal_mode = WAL")
        _create(db)
        owner, version = _identity(db)
    if owner != APPLICATION_ID:
        raise ConfigurationError(
            "the file belongs to another program; give the broker a file of its own"
        )
    if version != SCHEMA_VERSION:
        raise ConfigurationError(
            f"the file has schema {version}, this program knows {SCHEMA_VERSION}"
        )
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")


def _identity(db: sqlite3.Connection) -> tuple[int, int]:
    # In one statement, so of one moment: another process may be making the file.
    text = "SELECT application_id, user_version FROM pragma_application_id, pragma_user_version"
    owner, version = db.execute(text).fetchone()
    return owner, version


def _create(db: sqlite3.Connection) -> None:
    db.execute("BEGIN EXCLUSIVE")
    try:
        if _identity(db) == (0, 0):  # else another process was first
            if db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                raise ConfigurationError(
                    "the file holds tables that are not ours; give the broker a file of its own"
                )
            for statement in _TABLES.split(";\n"):
                db.execute(statement)
            db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        db.execute("COMMIT")
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")


def map_error(error: Exception, path: str) -> Exception:
    """sqlite3's exception as one of ours, naming the file; other exceptions unchanged."""
    if isinstance(error, ConfigurationError):
        return ConfigurationError(f"embedded broker {path}: {error.detail}")
    if not isinstance(error, sqlite3.Error):
        return error
    name = getattr(error, "sqlite_errorname", "") or type(error).__name__
    detail = f"embedded broker {path}: {error} ({name})"
    if any(name.startswith(broken) for broken in _BROKEN_FILE):
        return ConfigurationError(detail)
    return BrokerUnavailableError(detail)
