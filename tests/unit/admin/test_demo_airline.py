"""The airline: what it rolls back leaves nothing, what it commits is numbered without gaps."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from duly.admin.demo.airline import Airline
from duly.admin.demo.data import Flight
from duly.admin.demo.ground import clean_database
from duly.admin.demo.model import APP, PREFIX
from duly.admin.demo.setup import stages
from duly.app import App

FLIGHTS = [
    Flight(n, "2013-06-24", 500, [None, 5, 60, 200][n % 4], "UA", n, "EWR", f"D{n % 3}")
    for n in range(1, 301)
]


@pytest.fixture
def url(tmp_path: Path) -> str:
    made = f"sqlite:///{tmp_path / 'flights.db'}"
    clean_database(made, broker="embedded:///:memory:")
    return made


@pytest.fixture
def app(url: str) -> Iterator[App]:
    made = App(APP, database=url, broker="embedded:///:memory:", table_prefix=PREFIX)
    yield made
    made.close()


def rows(url: str, sql: str) -> list[Any]:
    with create_engine(url).connect() as connection:
        return list(connection.execute(text(sql)))


def test_every_flight_is_written_once_with_its_event(app: App, url: str) -> None:
    said: list[dict[str, Any]] = []
    airline = Airline(app, seed=3, say=lambda **fact: said.append(fact))
    airline.write(FLIGHTS)
    sql = "SELECT id, day, scheduled, delay, carrier, number, origin, dest FROM duly_demo_flights"
    assert sorted(Flight(*row) for row in rows(url, sql)) == sorted(FLIGHTS)
    joined = rows(
        url,
        "SELECT f.id, o.message_type, o.key, o.payload FROM duly_demo_flights f"
        " JOIN duly_demo_outbox o ON o.message_id = f.message_id",
    )
    assert len(joined) == len(rows(url, "SELECT id FROM duly_demo_outbox")) == len(FLIGHTS)
    kinds = ["demo.flight_cancelled", "demo.flight_departed", "demo.flight_delayed"]
    for number, kind, key, payload in joined:
        assert kind == kinds[min(number % 4, 2)]
        assert key == f"D{number % 3}"
        assert json.loads(payload)["flight_id"] == number
    assert said[-1] == {"written": len(FLIGHTS)}


def test_sequence_numbers_have_no_gaps_in_the_order_of_the_outbox(app: App, url: str) -> None:
    Airline(app, seed=4).write(FLIGHTS)
    numbers = defaultdict(list)
    for key, payload in rows(url, "SELECT key, payload FROM duly_demo_outbox ORDER BY id"):
        numbers[key].append(json.loads(payload)["sequence"])
    assert {key: len(found) for key, found in numbers.items()} == {f"D{n}": 100 for n in range(3)}
    assert all(found == list(range(1, 101)) for found in numbers.values())


def test_what_was_rolled_back_is_nowhere(app: App, url: str) -> None:
    airline = Airline(app, seed=5)
    airline.write(FLIGHTS)
    assert airline.rolled_back > 0
    assert airline.savepoints > 0
    seen = {row[0] for row in rows(url, "SELECT message_id FROM duly_demo_outbox")}
    assert len(airline.undone) > airline.rolled_back
    assert seen.isdisjoint(airline.undone)


def test_the_stages_are_everything() -> None:
    for flights in (1_000, 1_001, 5_000, 336_776):
        first, second, live = stages(flights)
        assert first + second + live == flights
        assert min(first, second) > live > 0
