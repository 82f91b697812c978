"""An App on a SQLite file, drained after the test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from duly import App
from duly.databases.sqlite.engine import sqlite_engine
from duly.observe.facts import Fact
from tests.unit.frameworks.shop import Base


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = sqlite_engine(f"sqlite:///{tmp_path / 'shop.db'}", busy_seconds=5.0)
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def app(engine: Engine, tmp_path: Path) -> Iterator[App]:
    broker = f"embedded:///{tmp_path / 'broker.db'}"
    app = App("shop", database=engine, broker=broker, drain_timeout="2s")
    yield app
    app.close()


@pytest.fixture
def facts(app: App) -> list[Fact]:
    """What the App has told so far."""
    heard: list[Fact] = []
    app.hooks.add(heard.append)
    return heard
