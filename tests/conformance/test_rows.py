"""Our own sources of rows, held to the public suite with the features that required.toml pins."""

from __future__ import annotations

import sqlite3
import tomllib
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from duly.adapters import make_row_source
from duly.databases.alchemy.extract import AlchemyRows
from duly.rows import RowFeatures
from duly.testing.rows_conformance import RowsConformance, RowsTarget
from tests.conftest import mariadb

REQUIRED = tomllib.loads((Path(__file__).parent / "required.toml").read_text())["rows"]


def required(name: str) -> RowFeatures:
    return RowFeatures(**REQUIRED[name])


def on_sqlite(url: str):
    def run(text: str) -> None:
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as db, db:
            db.execute(text)

    return run


class TestSqlite(RowsConformance):
    @pytest.fixture
    def target(self, sqlite_url: str) -> RowsTarget:
        return RowsTarget(make_row_source(sqlite_url), required("sqlite"), on_sqlite(sqlite_url))


class TestPostgres(RowsConformance):
    @pytest.fixture
    def target(self, postgres_url: str) -> RowsTarget:
        def run(text: str) -> None:
            with psycopg.connect(postgres_url, autocommit=True) as db:
                db.execute(text.encode())

        return RowsTarget(make_row_source(postgres_url), required("postgres"), run)


class TestMariaDB(RowsConformance):
    @pytest.fixture
    def target(self, mariadb_url: str) -> RowsTarget:
        def run(text: str) -> None:
            with closing(mariadb(mariadb_url)) as db, db.cursor() as ask:
                ask.execute(text)

        return RowsTarget(make_row_source(mariadb_url), required("mysql"), run)


class TestSqlAlchemy(RowsConformance):
    """A database that duly would have no source for."""

    @pytest.fixture
    def target(self, sqlite_url: str) -> RowsTarget:
        with closing(sqlite3.connect(sqlite_url.removeprefix("sqlite:///"))):
            return RowsTarget(
                AlchemyRows(sqlite_url), required("sqlalchemy"), on_sqlite(sqlite_url)
            )
