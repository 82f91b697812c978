"""Events in Debezium's form, beside those that Debezium itself emitted for the same changes.

``tests/servers/record_debezium.py`` records them.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from duly import App, Change
from duly.cdc.debezium import Debezium
from duly.kernel.rules import Emit
from duly.outbox.schema import Schema

FOLDER = Path(__file__).resolve().parents[1] / "fixtures" / "debezium"
RECORDED = json.loads((FOLDER / "postgres.json").read_text())["events"]
# Its own version and name of the database; when it was; the place of the row, where we know that of
# the commit; and what Debezium keeps of the transaction before.
ELSEWHERE = {"version", "db", "ts_ms", "ts_us", "ts_ns", "txId", "lsn", "sequence"}

pytestmark = pytest.mark.timeout(120)


def events_of_ours(url: str) -> list[dict[str, Any]]:
    app = App(
        "shop", database=url, broker="embedded:///:memory:", allow_unsafe={"EMBEDDED_MEMORY": "t"}
    )
    flights, plain = Debezium("shop.public.flights"), Debezium("shop.public.plain")

    @app.cdc(table="public.flights")
    def of_flights(change: Change) -> Iterator[Emit]:
        yield from flights(change)

    @app.cdc(table="public.plain", before=False)
    def of_plain(change: Change) -> Iterator[Emit]:
        yield from plain(change)

    made, changed = (FOLDER / "changes.sql").read_text().split("-- changes\n")
    Schema(app.database, "shop").upgrade()
    with psycopg.connect(url, autocommit=True) as database:
        database.execute(made)
        rows = asyncio.run(captured(app, database, list(filter(str.strip, changed.split(";\n")))))
    app.close()
    return [
        {"topic": topic, "key": json.loads(key), "value": json.loads(bytes(value) or b"null")}
        for topic, key, value in rows
    ]


async def captured(
    app: App, database: psycopg.Connection[Any], statements: list[str]
) -> list[tuple[Any, ...]]:
    """What is in the outbox once the statements have been run behind a stream that has begun."""
    async with app.running(["cdc"]), asyncio.timeout(60):
        while not app.streams().offset("shop").position:
            await asyncio.sleep(0.05)
        for statement in statements:
            database.execute(statement)
        query = "SELECT topic, key, payload FROM duly_outbox ORDER BY id"
        while len(rows := database.execute(query).fetchall()) < len(RECORDED):
            await asyncio.sleep(0.05)
        return rows


def without(event: dict[str, Any]) -> dict[str, Any]:
    """The event but for what cannot be the same."""
    if event["value"] is None:
        return event
    rest = {
        n: v for n, v in event["value"].items() if n not in ("source", "ts_ms", "ts_us", "ts_ns")
    }
    source = {n: v for n, v in event["value"]["source"].items() if n not in ELSEWHERE}
    return {**event, "value": rest, "source": source}


def test_they_are_what_debezium_emits_for_the_same_changes(postgres_url: str) -> None:
    ours = events_of_ours(postgres_url)
    assert list(map(without, ours)) == list(map(without, RECORDED))
    for mine, theirs in zip(ours, RECORDED, strict=True):
        if mine["value"] is not None:
            assert mine["value"].keys() == theirs["value"].keys()
            assert mine["value"]["source"].keys() == theirs["value"]["source"].keys()
            times = mine["value"]["source"]
            assert times["ts_ms"] == times["ts_us"] // 1000 == times["ts_ns"] // 1_000_000
            assert times["txId"] > 0 < times["lsn"]
