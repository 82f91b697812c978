"""Schemes of installed packages, and adapters given as objects."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from duly import App
from duly.adapters import make_broker, make_change_source, make_database, make_row_source
from duly.brokers.embedded import EmbeddedBroker
from duly.config import Settings
from duly.databases.sqlite.database import SqliteDatabase
from duly.errors import ConfigurationError
from duly.runtime.clock import SystemClock

MODULE = """
from duly.brokers.embedded import EmbeddedBroker
from duly.databases.sqlite.database import SqliteDatabase

def broker(url, settings):
    assert url == "chalkboard://here" and settings.workers == 3
    return EmbeddedBroker("embedded:///:memory:")

def database(url, settings, engines, *, clock):
    return SqliteDatabase(url.replace("tracked", "sqlite"), now=clock.time, **engines)
"""
ENTRY_POINTS = """
[duly.brokers]
chalkboard = third_party:broker
broken = third_party:nothing
amqp = third_party:broker
[duly.databases]
tracked = third_party:database
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of somebody else's, as pip leaves it."""
    (tmp_path / "third_party.py").write_text(MODULE)
    info = tmp_path / "third_party-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: third-party\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "third_party", raising=False)
    return tmp_path


def test_a_scheme_of_an_installed_package(installed: Path) -> None:
    made = make_broker(Settings(workers=3), "chalkboard://here")
    assert isinstance(made, EmbeddedBroker)
    database: Any = make_database(Settings(), f"tracked:///{installed}/own.db")
    assert database.path == f"{installed}/own.db"


def test_none_can_take_a_scheme_of_ours(installed: Path) -> None:
    assert type(make_broker(Settings(), "amqp://here")).__name__ == "RabbitMQBroker"


def test_one_that_cannot_be_loaded_is_named(installed: Path) -> None:
    with pytest.raises(ConfigurationError, match="broken = third_party:nothing") as caught:
        make_broker(Settings(), "broken://here")
    assert caught.value.code == "ADAPTER_IMPORT"


def test_an_unknown_scheme_names_the_nearest_of_all(installed: Path) -> None:
    with pytest.raises(ConfigurationError, match="did you mean chalkboard://"):
        make_broker(Settings(), "chalkbord://here")
    with pytest.raises(ConfigurationError, match="did you mean tracked://"):
        make_database(Settings(), "traked:///x.db")


def test_objects_are_taken_as_they_are(tmp_path: Path) -> None:
    database, broker = SqliteDatabase(f"sqlite:///{tmp_path}/x.db"), EmbeddedBroker("embedded:///b")
    app = App("shop", database=database, broker=broker)
    assert app.database is database
    assert app.make_broker() is broker


@pytest.mark.parametrize(
    ("url", "made"),
    [
        ("sqlite:///{folder}/shop.db", "SqliteChanges"),
        ("postgresql://shop@localhost/shop", "PostgresChanges"),
        ("postgresql+psycopg://shop@localhost/shop", "PostgresChanges"),
    ],
)
def test_sources_of_changes_by_their_scheme(tmp_path: Path, url: str, made: str) -> None:
    source = make_change_source(url.format(folder=tmp_path), reader="shop", clock=SystemClock())
    assert type(source).__name__ == made


def test_a_database_without_a_source_of_changes_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match="source is known for 'oracle'"):
        make_change_source("oracle://shop@localhost/shop", reader="shop", clock=SystemClock())


@pytest.mark.parametrize(
    ("url", "dialect"),
    [
        ("sqlite:///x.db", "sqlite"),
        ("sqlite+pysqlite:///x.db", "sqlite"),
        ("postgresql://h/d", "postgres"),
        ("postgresql+psycopg://h/d", "postgres"),
        ("mariadb://h/d", "mysql"),
    ],
)
def test_a_source_of_rows_is_found_by_its_scheme(url: str, dialect: str):
    assert make_row_source(url).dialect == dialect


@pytest.mark.parametrize("url", ["nothing://u:secret@h/d", "no url at all"])
def test_a_source_of_rows_that_nobody_knows_is_refused(url: str):
    with pytest.raises(ConfigurationError, match="DATABASE_URL") as caught:
        make_row_source(url)
    assert "secret" not in str(caught.value)
