"""How PostgreSQL plans what a node asks whenever somebody comes or goes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from duly.databases.postgres.database import PostgresDatabase
from duly.outbox.schema import Schema
from duly.ports import Statement

SEED = Statement("lease.seed", {"scope": "inbox:stats", "lanes": 64})
LANES = {"scope": "inbox:stats", "lanes": list(range(32)), "holder": "1-me"}


@pytest.fixture
def database(postgres_url: str) -> Iterator[PostgresDatabase]:
    database = PostgresDatabase(postgres_url)
    Schema(database, "shop").upgrade()
    with closing(database.connect()) as connection:
        connection.ask(SEED)
    yield database
    database.close()


@pytest.mark.parametrize("name", ["lease.take", "lease.release"])
def test_lanes_change_hands_by_index_and_without_compiling(
    database: PostgresDatabase, name: str
) -> None:
    [(sql, values, _)] = database.prepare(Statement(name, LANES))
    with closing(database._open(database.url)) as raw:
        settings: dict[str, Any] = dict(
            raw.execute("SELECT name, setting FROM pg_settings WHERE name ~ '^(jit|enable_)'")
        )
        plan = "\n".join(line for (line,) in raw.execute(f"EXPLAIN {sql}", values))
    assert settings["jit"] == settings["enable_seqscan"] == "off"
    assert "Seq Scan" not in plan, plan
    assert "JIT" not in plan, plan
