"""A server of a test's own keeps its address and its data over a kill and a stop."""

from __future__ import annotations

import urllib.error

import psycopg
import pytest

from tests.conftest import rabbitmq_api
from tools.services import PrivateServer


def test_postgres_keeps_what_it_committed(private_postgres: PrivateServer) -> None:
    url = private_postgres.url
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 1 AS a")
    private_postgres.kill()
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(url, connect_timeout=2)
    private_postgres.start()
    private_postgres.stop()
    private_postgres.start()
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT a FROM kept").fetchall() == [(1,)]


def test_postgres_has_the_settings_that_crash_tests_rest_on(
    private_postgres: PrivateServer,
) -> None:
    wanted = {
        "fsync": "on",
        "full_page_writes": "on",
        "listen_addresses": "127.0.0.1",
        "max_connections": "200",
        "max_prepared_transactions": "20",
        "synchronous_commit": "on",
        "wal_level": "logical",
    }
    with psycopg.connect(private_postgres.url) as connection:
        rows = connection.execute(
            "SELECT name, setting FROM pg_settings WHERE name = ANY(%s)", (list(wanted),)
        )
        assert dict(rows.fetchall()) == wanted


def test_rabbitmq_keeps_its_virtual_hosts(
    private_rabbitmq: PrivateServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in private_rabbitmq.environment.items():
        monkeypatch.setenv(name, value)
    rabbitmq_api("PUT", "/api/vhosts/kept")
    private_rabbitmq.kill()
    private_rabbitmq.start()
    assert b'"kept"' in rabbitmq_api("GET", "/api/vhosts/kept")
    with pytest.raises(urllib.error.HTTPError):
        rabbitmq_api("GET", "/api/vhosts/never")


def test_each_test_has_a_database_of_its_own(postgres_url: str, pgbouncer_url: str) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        assert connection.execute(
            "SELECT count(*) FROM pg_class WHERE relname = 'mine'"
        ).fetchone() == (0,)
        connection.execute("CREATE TABLE mine AS SELECT 1 AS a")
    with psycopg.connect(pgbouncer_url) as connection:
        assert connection.execute("SELECT a FROM mine").fetchone() == (1,)
