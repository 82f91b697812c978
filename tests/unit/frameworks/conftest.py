"""The shop on a SQLite file, through SQLAlchemy and through raw connections."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from duly.databases.sqlite.engine import sqlite_engine
from tests.unit.frameworks.shop import Shop
from tests.unit.frameworks.store import SqliteStore


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "shop.db"


@pytest.fixture
def shop(path: Path) -> Iterator[Shop]:
    engine = sqlite_engine(f"sqlite:///{path}", busy_seconds=0.2)
    yield Shop(engine, SqliteStore(str(path)))
    engine.dispose()
