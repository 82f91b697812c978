"""Fresh PostgreSQL databases for tests, made once and emptied between two of them.

To make and to drop one costs the server a checkpoint each, more than most tests take.  So a
database that a test gives back is emptied and comes again under a new name: whoever still holds the
old one finds nothing.

Invariant: what is given out is as ``CREATE DATABASE`` makes it.  A database in which a test left
more than schemas (a slot, a publication, settings, rights, an extension) is dropped.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
from psycopg import sql

__all__ = ["FreshPostgres"]

LEAVE_SECONDS = 10.0
PATIENT = "-c statement_timeout=0 -c lock_timeout=0"  # whatever the test set for the database
REUSED_FROM = 150_000  # older servers have other rights on the schema public

ANYTHING_ELSE = """
SELECT EXISTS (SELECT FROM pg_replication_slots WHERE database = current_database())
    OR EXISTS (SELECT FROM pg_prepared_xacts WHERE database = current_database())
    OR EXISTS (SELECT FROM pg_database WHERE datname = current_database() AND datacl IS NOT NULL)
    OR EXISTS (SELECT FROM pg_db_role_setting JOIN pg_database d ON d.oid = setdatabase
               WHERE datname = current_database())
    OR EXISTS (SELECT FROM pg_subscription JOIN pg_database d ON d.oid = subdbid
               WHERE datname = current_database())
    OR EXISTS (SELECT FROM pg_publication)
    OR EXISTS (SELECT FROM pg_event_trigger)
    OR EXISTS (SELECT FROM pg_extension WHERE extname <> 'plpgsql')
    OR EXISTS (SELECT FROM pg_default_acl)
    OR EXISTS (SELECT FROM pg_largeobject_metadata)
"""
SCHEMAS = """
SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'
"""
OTHERS = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
"""


class FreshPostgres:
    """The databases of one test session. server: URL of a superuser. A context manager."""

    def __init__(self, server: str) -> None:
        self._server = server
        self._free: list[str] = []
        self._admin = psycopg.connect(server, autocommit=True, connect_timeout=10)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for name in self._free:
            self._drop(name)
        self._admin.close()

    def take(self) -> str:
        """The URL of a database with nothing in it."""
        name = f"duly_{uuid4().hex}"
        if self._free:
            self._run("ALTER DATABASE {} RENAME TO {}", self._free.pop(), name)
        else:
            self._run("CREATE DATABASE {}", name)
        return self._url(name)

    def give_back(self, url: str) -> None:
        """End what is connected to a database and empty it, or drop it."""
        name = urlsplit(url).path[1:]
        with psycopg.connect(url, autocommit=True, connect_timeout=10, options=PATIENT) as db:
            reused = db.info.server_version >= REUSED_FROM and _left_alone(db) and _emptied(db)
        if reused:
            self._free.append(name)
        else:
            self._drop(name)

    def _url(self, name: str) -> str:
        return urlsplit(self._server)._replace(path=f"/{name}").geturl()

    def _drop(self, name: str) -> None:
        self._run("DROP DATABASE {} WITH (FORCE)", name)

    def _run(self, text: str, *names: str) -> None:
        self._admin.execute(sql.SQL(text).format(*map(sql.Identifier, names)))  # type: ignore[arg-type]


def _left_alone(db: psycopg.Connection[Any]) -> bool:
    """Whether all others have gone, in time."""
    end = time.monotonic() + LEAVE_SECONDS
    while db.execute(OTHERS).fetchall():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)  # a backend that was told to go says so when it has gone
    return True


def _emptied(db: psycopg.Connection[Any]) -> bool:
    """Whether there was nothing but schemas, which are gone now."""
    if db.execute(ANYTHING_ELSE).fetchone() != (False,):
        return False
    names = [sql.Identifier(name) for (name,) in db.execute(SCHEMAS).fetchall()]
    with db.transaction():
        if names:
            db.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.SQL(", ").join(names)))
        db.execute("CREATE SCHEMA public AUTHORIZATION pg_database_owner")
        db.execute("GRANT USAGE ON SCHEMA public TO PUBLIC")
    return True
