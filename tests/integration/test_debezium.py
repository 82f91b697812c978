"""Events in Debezium's form, beside those that Debezium itself emitted for the same changes.

``tests/servers/record_debezium.py`` records them, and ``record_debezium_mariadb.py``.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest

from duly import App, Change
from duly.cdc.debezium import Debezium
from duly.kernel.rules import Emit
from duly.outbox.schema import Schema
from tests.conftest import mariadb

FOLDER = Path(__file__).resolve().parents[1] / "fixtures" / "debezium"
# Its own version and name of the database; when it was; the place of the row, where we know that of
# the commit; and what Debezium keeps of the transaction before.
TIMES = {"ts_ms", "ts_us", "ts_ns"}
ELSEWHERE = {"version", "db", *TIMES, "txId", "lsn", "sequence"}
ELSEWHERE_MARIADB = {"version", "db", *TIMES, "gtid", "server_id", "file", "pos", "row"}
TYPES = {
    "at_micro": "datetime(6)",
    "seen_centi": "timestamp(2)",
    "seen_micro": "timestamp(6)",
    "one": "bit(1)",
    "bits": "bit(12)",
}
QUERY = "SELECT topic, key, payload FROM duly_outbox ORDER BY id"

pytestmark = pytest.mark.timeout(120)
Run = Callable[[str], Sequence[tuple[Any, ...]]]


def recorded(name: str) -> list[dict[str, Any]]:
    return json.loads((FOLDER / name).read_text())["events"]  # type: ignore[no-any-return]


def events_of_ours(
    url: str, run: Run, changes: str, *, flights: Debezium, plain: Debezium, count: int
) -> list[dict[str, Any]]:
    """What comes of the statements in a file. count: how many events are waited for."""
    app = App(
        "shop", database=url, broker="embedded:///:memory:", allow_unsafe={"EMBEDDED_MEMORY": "t"}
    )

    @app.cdc(table="flights")
    def of_flights(change: Change) -> Iterator[Emit]:
        yield from flights(change)

    @app.cdc(table="plain", before=url.startswith("mysql"))
    def of_plain(change: Change) -> Iterator[Emit]:
        yield from plain(change)

    made, changed = (
        list(filter(str.strip, part.split(";\n")))
        for part in (FOLDER / changes).read_text().split("-- changes\n")
    )
    Schema(app.database, "shop").upgrade()
    for statement in made:
        run(statement)
    rows = asyncio.run(captured(app, run, changed, count))
    app.close()
    return [
        {"topic": topic, "key": json.loads(key), "value": json.loads(bytes(value) or b"null")}
        for topic, key, value in rows
    ]


async def captured(
    app: App, run: Run, statements: list[str], count: int
) -> Sequence[tuple[Any, ...]]:
    """What is in the outbox once the statements have been run behind a stream that has begun."""
    async with app.running(["cdc"]), asyncio.timeout(60):
        while not app.streams().offset("shop").position:
            await asyncio.sleep(0.05)
        for statement in statements:
            run(statement)
        query = QUERY.replace("key", app.database.engine().dialect.identifier_preparer.quote("key"))
        while len(rows := run(query)) < count:
            await asyncio.sleep(0.05)
        return rows


def without(event: dict[str, Any], elsewhere: set[str]) -> dict[str, Any]:
    """The event but for what cannot be the same."""
    if event["value"] is None:
        return event
    rest = {n: v for n, v in event["value"].items() if n != "source" and n not in TIMES}
    source = {n: v for n, v in event["value"]["source"].items() if n not in elsewhere}
    return {**event, "value": rest, "source": source}


def sources_beside(
    ours: list[dict[str, Any]], theirs: list[dict[str, Any]], elsewhere: set[str]
) -> list[dict[str, Any]]:
    """The source blocks of ours, once everything else has been compared."""
    assert [without(one, elsewhere) for one in ours] == [without(one, elsewhere) for one in theirs]
    found = []
    for mine, other in zip(ours, theirs, strict=True):
        if mine["value"] is not None:
            assert mine["value"].keys() == other["value"].keys()
            assert mine["value"]["source"].keys() == other["value"]["source"].keys()
            found.append(mine["value"]["source"])
    for times in found:
        assert times["ts_ms"] == times["ts_us"] // 1000 == times["ts_ns"] // 1_000_000
    return found


def test_they_are_what_debezium_emits_for_the_same_changes(postgres_url: str) -> None:
    theirs = recorded("postgres.json")
    with psycopg.connect(postgres_url, autocommit=True) as database:

        def run(statement: str) -> Sequence[tuple[Any, ...]]:
            cursor = database.execute(statement)
            return cursor.fetchall() if cursor.description else []

        ours = events_of_ours(
            postgres_url,
            run,
            "changes.sql",
            flights=Debezium("shop.public.flights"),
            plain=Debezium("shop.public.plain"),
            count=len(theirs),
        )
    for source in sources_beside(ours, theirs, ELSEWHERE):
        assert source["txId"] > 0 < source["lsn"]


def test_they_are_what_debezium_emits_for_the_same_changes_of_mariadb(mariadb_url: str) -> None:
    theirs = recorded("mariadb.json")
    with closing(mariadb(mariadb_url)) as database, database.cursor() as cursor:

        def run(statement: str) -> Sequence[tuple[Any, ...]]:
            cursor.execute(statement)
            return list(cursor.fetchall())

        run("SET time_zone = '+00:00'")
        ours = events_of_ours(
            mariadb_url,
            run,
            "changes_mariadb.sql",
            flights=Debezium("shop.recorded.flights", connector="mariadb", types=TYPES),
            plain=Debezium("shop.recorded.plain", connector="mariadb"),
            count=len(theirs),
        )
    places = []
    for source in sources_beside(ours, theirs, ELSEWHERE_MARIADB):
        domain, server, number = source["gtid"].split("-")
        assert (source["db"], source["server_id"]) == ("recorded", int(server))
        places.append((int(domain), int(number), source["file"], source["pos"], source["row"]))
    assert len(set(places)) < len(places), "a changed key is two events of one row"
    assert places == sorted(places)
