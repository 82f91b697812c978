"""Our own sinks, held to the public suite."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import sqlalchemy

from duly.sinks import Fts5, RedisCache, SearchIndex, SqlUpsert
from duly.testing.sink_conformance import STREAM, SinkConformance, Target
from tests.servers.opensearch import OpenSearch

NOBODY = "127.0.0.1:1"
_TABLE = (
    "CREATE TABLE copied (id INTEGER PRIMARY KEY, name VARCHAR(50), n INTEGER, duly_mark BIGINT)"
)


def _sql_target(url: str, driver: str, away: str) -> Iterator[Target]:
    engine = sqlalchemy.create_engine(f"{driver}://{url.partition('://')[2]}")

    def run(*statements: str) -> list[Any]:
        with engine.begin() as connection:
            found = [connection.exec_driver_sql(one) for one in statements][-1]
            return [dict(one._mapping) for one in found] if found.returns_rows else []

    def empty() -> None:
        run("DELETE FROM copied")
        if sqlalchemy.inspect(engine).has_table("duly_sink"):
            run("DELETE FROM duly_sink")

    run(_TABLE)
    try:
        yield Target(
            make=lambda: SqlUpsert(url, table="copied"),
            rows=lambda: run("SELECT id, name, n FROM copied"),
            empty=empty,
            away=lambda: SqlUpsert(away, table="copied"),
            keeps=True,
        )
    finally:
        engine.dispose()


class TestSqlite(SinkConformance):
    @pytest.fixture
    def target(self, tmp_path: Path) -> Iterator[Target]:
        away = f"sqlite:///{tmp_path}/no-folder/s.db"
        yield from _sql_target(f"sqlite:///{tmp_path}/copy.db", "sqlite", away)


class TestPostgres(SinkConformance):
    @pytest.fixture
    def target(self, postgres_url: str) -> Iterator[Target]:
        away = f"postgresql://me:s3cret@{NOBODY}/none"
        yield from _sql_target(postgres_url, "postgresql+psycopg", away)


class TestMariadb(SinkConformance):
    @pytest.fixture
    def target(self, mariadb_url: str) -> Iterator[Target]:
        away = f"mysql://me:s3cret@{NOBODY}/none"
        yield from _sql_target(mariadb_url, "mysql+pymysql", away)


class TestFts5(SinkConformance):
    @pytest.fixture
    def target(self, tmp_path: Path) -> Target:
        path = tmp_path / "search.db"
        url = f"sqlite:///{path}"
        engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)

        def rows() -> list[Any]:
            with engine.begin() as connection:
                found = connection.exec_driver_sql("SELECT id, name, n FROM found")
                return [dict(one._mapping) for one in found]

        return Target(
            make=lambda: Fts5(url, table="found", columns=["id", "name", "n"]),
            rows=rows,
            empty=lambda: path.unlink(missing_ok=True),
            away=lambda: Fts5(f"sqlite:///{tmp_path}/no/s.db", table="found", columns=["id"]),
        )


def _redis_target(url: str, form: Any) -> Target:
    import redis

    at = urlsplit(url)
    prefix = at.query.removeprefix("prefix=") + "rows:"
    server = at._replace(query="").geturl()
    client = redis.Redis.from_url(server, decode_responses=True, protocol=2)

    def names(*, ours: bool) -> list[str]:
        found = client.scan_iter(match=f"{prefix}*", count=1000)
        return [one for one in found if ours or not one.startswith(f"{prefix}duly")]

    def read(name: str) -> Any:
        if form == "json":
            return json.loads(client.get(name) or "")
        told = {"name": None, **client.hgetall(name)}
        return {**told, "id": int(told["id"]), "n": int(told["n"])}

    def empty() -> None:
        if found := names(ours=True):
            client.delete(*found)

    return Target(
        make=lambda: RedisCache(server, prefix=prefix, form=form),
        rows=lambda: [read(name) for name in names(ours=False)],
        empty=empty,
        away=lambda: RedisCache(f"redis://:s3cret@{NOBODY}/0", prefix=prefix),
        keeps=form == "hash",
        exact=False,
    )


class TestRedisJson(SinkConformance):
    @pytest.fixture
    def target(self, redis_url: str) -> Target:
        return _redis_target(redis_url, "json")


class TestRedisHash(SinkConformance):
    histories = 3

    @pytest.fixture
    def target(self, redis_url: str) -> Target:
        return _redis_target(redis_url, "hash")


class TestSearch(SinkConformance):
    @pytest.fixture
    def target(self, opensearch: OpenSearch) -> Target:
        def make() -> SearchIndex:
            return SearchIndex(
                opensearch.feeder, index=opensearch.index, ca_file=opensearch.ca_file
            )

        def rows() -> list[Any]:
            found = opensearch.documents().values()
            return [{name: one[name] for name in ("id", "name", "n")} for one in found]

        return Target(
            make=make,
            rows=rows,
            empty=lambda: opensearch.clear(STREAM),
            away=lambda: SearchIndex(f"http://me:s3cret@{NOBODY}", index="found"),
            exact=False,
        )
