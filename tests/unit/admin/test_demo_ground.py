"""A clean start: the demo's own tables go, foreign ones are refused."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from sqlalchemy import create_engine, inspect, text

from duly.admin.demo.ground import clean_broker, clean_database, plain_engine
from duly.errors import BrokerUnavailableError, ConfigurationError, DatabaseUnavailableError

BROKER = "embedded:///:memory:"


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'flights.db'}"


def run(url: str, sql: str) -> None:
    with create_engine(url).begin() as connection:
        connection.execute(text(sql))


def test_what_an_earlier_run_left_is_gone_and_others_stay(url: str) -> None:
    run(url, "CREATE TABLE flights (id INTEGER)")
    clean_database(url, broker=BROKER)
    run(url, "INSERT INTO duly_demo_notices (flight_id, receipt) VALUES (1, 'old')")
    clean_database(url, broker=BROKER)
    with create_engine(url).connect() as connection:
        left = connection.execute(text("SELECT COUNT(*) FROM duly_demo_notices")).scalar()
    assert left == 0
    names = inspect(create_engine(url)).get_table_names()
    assert "flights" in names
    assert "duly_demo_outbox" in names


def test_tables_with_the_prefix_that_are_not_marked_are_refused_and_kept(url: str) -> None:
    run(url, "CREATE TABLE duly_demo_flights (id INTEGER)")
    with pytest.raises(ConfigurationError, match="did not make"):
        clean_database(url, broker=BROKER)
    assert inspect(create_engine(url)).get_table_names() == ["duly_demo_flights"]


def test_tables_of_another_app_under_the_prefix_are_refused(url: str) -> None:
    run(url, "CREATE TABLE duly_demo_meta (name TEXT, value TEXT)")
    run(url, "INSERT INTO duly_demo_meta VALUES ('app', 'shop')")
    with pytest.raises(ConfigurationError, match="'shop'"):
        clean_database(url, broker=BROKER)
    assert inspect(create_engine(url)).get_table_names() == ["duly_demo_meta"]


def test_a_server_that_is_not_there_is_named_without_its_password() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(DatabaseUnavailableError) as database:
            clean_database(f"postgresql://me:secret@{place}/db", broker=BROKER)
        with pytest.raises(BrokerUnavailableError) as broker:
            clean_broker(f"amqp://me:secret@{place}/")
    assert "secret" not in f"{database.value} {broker.value}"


@pytest.mark.parametrize("url", ["oracle://localhost/db", "nonsense", "postgresqlx://h/d"])
def test_other_databases_are_refused(url: str) -> None:
    with pytest.raises(ConfigurationError):
        plain_engine(url)


def test_the_embedded_broker_needs_no_cleaning(tmp_path: Path) -> None:
    clean_broker(f"embedded:///{tmp_path / 'broker.db'}")
    assert list(tmp_path.iterdir()) == []
