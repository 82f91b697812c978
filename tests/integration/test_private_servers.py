"""A server of a test's own keeps its address and its data over a kill and a stop."""

from __future__ import annotations

import urllib.error
from contextlib import closing

import psycopg
import pymysql
import pytest
import redis

from tests.conftest import mariadb, rabbitmq_api
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


def test_mariadb_keeps_what_it_committed_and_has_durable_settings(
    private_mariadb: PrivateServer,
) -> None:
    with closing(mariadb(private_mariadb.url)) as connection:
        connection.query("CREATE TABLE kept AS SELECT 1 AS a")
    private_mariadb.kill()
    with pytest.raises(pymysql.OperationalError):
        mariadb(private_mariadb.url)
    private_mariadb.start()
    private_mariadb.stop()
    private_mariadb.start()
    wanted = {
        "bind_address": "127.0.0.1",
        "binlog_format": "ROW",
        "innodb_flush_log_at_trx_commit": "1",
        "log_bin": "ON",
        "sync_binlog": "1",
    }
    with closing(mariadb(private_mariadb.url)) as connection, connection.cursor() as ask:
        ask.execute("SELECT a FROM kept")
        assert ask.fetchall() == ((1,),)
        ask.execute("SHOW GLOBAL VARIABLES WHERE Variable_name IN %s", (tuple(wanted),))
        assert dict(ask.fetchall()) == wanted


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


def test_redis_keeps_what_it_answered(private_redis: PrivateServer) -> None:
    with redis.Redis.from_url(private_redis.url, socket_timeout=10) as client:
        client.set("kept", "1")
        private_redis.kill()
        with pytest.raises(redis.ConnectionError):
            client.ping()
        private_redis.start()
        private_redis.stop()
        private_redis.start()
        assert client.get("kept") == b"1"
        wanted = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}
        assert {name: client.config_get(name)[name] for name in wanted} == wanted


def test_each_test_has_a_database_of_its_own(postgres_url: str, pgbouncer_url: str) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        assert connection.execute(
            "SELECT count(*) FROM pg_class WHERE relname = 'mine'"
        ).fetchone() == (0,)
        connection.execute("CREATE TABLE mine AS SELECT 1 AS a")
    with psycopg.connect(pgbouncer_url) as connection:
        assert connection.execute("SELECT a FROM mine").fetchone() == (1,)
