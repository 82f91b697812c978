"""Our databases against the public suite, on real servers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from duly.databases.mysql.database import MysqlDatabase
from duly.databases.postgres.database import PostgresDatabase
from duly.databases.sqlite.database import SqliteDatabase
from duly.testing.branch_conformance import BranchConformance
from duly.testing.database_conformance import DatabaseConformance


class TestSqlite(DatabaseConformance):
    @pytest.fixture
    def database(self, sqlite_url: str) -> Iterator[SqliteDatabase]:
        made = SqliteDatabase(sqlite_url)
        yield made
        made.close()


class TestPostgres(DatabaseConformance, BranchConformance):
    @pytest.fixture
    def database(self, postgres_url: str) -> Iterator[PostgresDatabase]:
        made = PostgresDatabase(postgres_url)
        yield made
        made.close()


class TestMariaDB(DatabaseConformance, BranchConformance):
    @pytest.fixture
    def database(self, mariadb_url: str) -> Iterator[MysqlDatabase]:
        made = MysqlDatabase(mariadb_url)
        yield made
        made.close()
