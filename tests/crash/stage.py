"""Where one run takes place: a fresh database, a fresh broker, a folder of journals, plain SQL.

Owns making and removing them, and the three tables of the run itself.  Nothing here imports duly:
the checker reads with the drivers alone, so that a wrong statement of duly's cannot hide a wrong
row.

    crash_key     the order that transactions gave themselves: one counter per key
    crash_sent    one row per message, in the transaction that published it
    crash_effect  one row per message and group, in the handler's transaction
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
import time
import urllib.request
from base64 import b64encode
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from uuid import uuid4

from tests.crash import plain_mysql

HTTP_SECONDS = 15
GROUPS = ("ordered", "free", "batch")  # of the event; the command's group is its queue
PULSE_SECONDS = 0.25  # how often a worker says that its threads run
QUEUE = "crash.charges"
TOPIC = "crash.notes"
KEYS = 240
HOT_KEYS = 8  # of the raw connections, few so that writers meet

TABLES = """
CREATE TABLE crash_key (key varchar(40) PRIMARY KEY, n integer NOT NULL);
CREATE TABLE crash_sent (
    message_id varchar(64) PRIMARY KEY, kind varchar(10) NOT NULL, key varchar(40), seq integer,
    txn varchar(60) NOT NULL);
CREATE TABLE crash_effect (
    id {identity}, grp varchar(40) NOT NULL, message_id varchar(64) NOT NULL, pid integer NOT NULL);
CREATE INDEX crash_effect_of ON crash_effect (message_id, grp);
"""
IDENTITY = {
    "mysql": "bigint PRIMARY KEY AUTO_INCREMENT",
    "sqlite": "integer PRIMARY KEY AUTOINCREMENT",
    "postgres": "bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
}


@dataclass
class Stage:
    """One run's place. dialect: sqlite, postgres or mysql; database, broker: duly's URLs."""

    folder: Path
    dialect: str
    database: str
    broker: str
    admin: str = ""  # database server where the database was made
    api: str = ""  # RabbitMQ's management interface with the login
    vhost: str = ""
    through: dict[str, str] = field(default_factory=dict)  # URLs through a proxy, by peer
    proxies: dict[str, Any] = field(default_factory=dict)
    server: Any = None  # a private one, to be killed
    _plain: Any = None

    # --- plain SQL ------------------------------------------------------------------------------
    def connect(self) -> Any:
        """A connection of the driver's own, autocommit."""
        if self.dialect == "sqlite":
            path = self.database.removeprefix("sqlite:///")
            return sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
        if self.dialect == "mysql":
            return plain_mysql.connect(self.database, autocommit=True)
        import psycopg

        return psycopg.connect(self.database, autocommit=True, connect_timeout=10)

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """What a plain statement gives; ``?`` marks a value. Connects again once when the server
        was away."""
        for last in (False, True):
            try:
                if self._plain is None:
                    self._plain = self.connect()
                marked = sql if self.dialect == "sqlite" else sql.replace("?", "%s")
                given = tuple(values) if values or self.dialect == "sqlite" else None
                cursor = self._plain.execute(marked, given)  # None: psycopg then reads no '%'
                return [tuple(row) for row in cursor.fetchall()] if cursor.description else []
            except Exception:
                self.forget()
                if last:
                    raise
        raise AssertionError

    def number(self, sql: str, values: Sequence[Any] = ()) -> int:
        """The one number that a statement gives."""
        return int(self.rows(sql, values)[0][0])

    def forget(self) -> None:
        """Drop the plain connection; the next statement makes a new one."""
        plain, self._plain = self._plain, None
        if plain is not None:
            with suppress(Exception):  # a broken connection may not even close
                plain.close()

    @property
    def keeps_log(self) -> bool:
        """Whether ``broker_positions`` tell what is done; elsewhere only acks do, and the number
        that a server counts its messages with says nothing."""
        return self.broker.startswith(("embedded", "kafka"))

    def broker_positions(self) -> dict[str, dict[str, int]]:
        """How far each group is known to be done in each source of a log: the last position that
        is; empty for a broker with queues."""
        if self.broker.startswith("kafka"):
            return committed_positions(self.broker)
        if not self.broker.startswith("embedded"):
            return {}
        found: dict[str, dict[str, int]] = {}
        sql = (
            "SELECT c.grp, t.name || '/' || (c.source % 8), c.position "
            "FROM claim c JOIN topic t ON t.id = c.source / 8"
        )
        with closing(sqlite3.connect(self.broker.removeprefix("embedded:///"), timeout=30)) as log:
            for group, source, position in log.execute(sql):
                found.setdefault(group, {})[source] = position
        return found

    # --- the run's own tables -------------------------------------------------------------------
    def prepare(self) -> None:
        """Make the run's tables and keys."""
        with closing(self.connect()) as plain:
            if self.dialect == "sqlite":
                plain.execute("PRAGMA journal_mode = WAL")
            for statement in TABLES.format(identity=IDENTITY[self.dialect]).split(";"):
                if statement.strip():
                    plain.execute(statement)
            mark = "?" if self.dialect == "sqlite" else "%s"
            for key in all_keys():
                plain.execute(f"INSERT INTO crash_key (key, n) VALUES ({mark}, 0)", (key,))

    def journal(self, name: str) -> Path:
        """The path of a journal."""
        return self.folder / f"{name}.jsonl"

    def facts(self, pattern: str) -> Iterator[dict[str, Any]]:
        """The lines of the journals whose name fits, file by file."""
        for path in sorted(self.folder.glob(f"{pattern}.jsonl")):
            yield from read_lines(path)

    def keep_tables(self) -> None:
        """Write the tables beside the journals, as evidence that outlives the database."""
        names = [
            "crash_sent",
            "crash_effect",
            "duly_outbox",
            "duly_inbox",
            "duly_key_hold",
            "duly_lease",
            "duly_effect",
        ]
        for name in names:
            with (self.folder / f"table-{name}.txt").open("w") as file:
                for row in self.rows(f"SELECT * FROM {name} ORDER BY 1"):
                    file.write(f"{row}\n")

    # --- the end --------------------------------------------------------------------------------
    def remove(self, *, keep_folder: bool = False) -> None:
        """Drop what was made on servers, and the folder unless it is evidence."""
        self.forget()
        if self.admin.startswith("mysql"):
            with closing(plain_mysql.connect(self.admin, autocommit=True)) as admin:
                admin.execute(f"DROP DATABASE IF EXISTS {urlsplit(self.database).path[1:]}")
        elif self.admin:
            import psycopg

            with psycopg.connect(self.admin, autocommit=True, connect_timeout=10) as admin:
                name = urlsplit(self.database).path[1:]
                admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        if self.vhost:
            ask_rabbitmq(self.api, "DELETE", f"/api/vhosts/{self.vhost}")
        if self.broker.startswith("stomp"):
            from duly.brokers.activemq.control import delete_topics as delete_from_activemq

            delete_from_activemq(self.broker)
        if self.broker.startswith("kafka"):
            delete_topics(self.broker)
        if self.broker.startswith("nats"):
            asyncio.run(delete_streams(self.broker))
        if self.broker.startswith("redis"):
            delete_keys(self.broker)
        if not keep_folder:
            shutil.rmtree(self.folder, ignore_errors=True)  # a second run makes its own


def all_keys() -> list[str]:
    """Every key of the workload: those of sessions, then the hot ones of raw connections."""
    return [f"k{n:03}" for n in range(KEYS)] + ["straddle"] + [f"hot{n}" for n in range(HOT_KEYS)]


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a journal; the last may be cut short by a kill."""
    lines = path.read_bytes().split(b"\n")
    for line in lines[:-1]:
        yield json.loads(line)


class Tail:
    """A journal that grows, read once."""

    def __init__(self, path: Path) -> None:
        self._path, self._read = path, 0

    def news(self) -> list[dict[str, Any]]:
        """The whole lines that came since the last look."""
        with self._path.open("rb") as file:
            file.seek(self._read)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._read += len(whole)
        return [json.loads(line) for line in whole.splitlines()]


def now() -> float:
    """The clock of the journals."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def sqlite_stage(folder: Path) -> Stage:
    """A stage on files."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder.resolve()
    stage = Stage(path, "sqlite", f"sqlite:///{path}/app.db", f"embedded:///{path}/broker.db")
    stage.prepare()
    return stage


def postgres_stage(folder: Path, *, postgres: str, rabbitmq: str, api: str = "") -> Stage:
    """A stage on servers. postgres, rabbitmq: URLs of the servers; api: of the management
    interface."""
    return _with_rabbitmq(folder, "postgres", postgres, rabbitmq=rabbitmq, api=api)


def mariadb_stage(folder: Path, *, mariadb: str, rabbitmq: str, api: str = "") -> Stage:
    """As ``postgres_stage``."""
    return _with_rabbitmq(folder, "mysql", mariadb, rabbitmq=rabbitmq, api=api)


def _with_rabbitmq(
    folder: Path, dialect: str, server: str, *, rabbitmq: str, api: str = ""
) -> Stage:
    folder.mkdir(parents=True, exist_ok=True)
    name = new_database(server)
    parts = urlsplit(rabbitmq)
    port = (parts.port or 5672) + 10_000
    login = f"{parts.username or 'guest'}:{parts.password or 'guest'}"
    api = api or f"http://{login}@{parts.hostname}:{port}"
    ask_rabbitmq(api, "PUT", f"/api/vhosts/{name}")
    user = unquote(parts.username or "guest")
    rights = b'{"configure":".*","write":".*","read":".*"}'
    ask_rabbitmq(api, "PUT", f"/api/permissions/{name}/{user}", rights)
    stage = Stage(
        folder.resolve(),
        dialect,
        urlsplit(server)._replace(path=f"/{name}").geturl(),
        parts._replace(path=f"/{name}").geturl(),
        admin=server,
        api=api,
        vhost=name,
    )
    stage.prepare()
    return stage


def activemq_stage(folder: Path, *, postgres: str, activemq: str) -> Stage:
    """A stage on PostgreSQL and ActiveMQ, with addresses of its own prefix."""
    folder.mkdir(parents=True, exist_ok=True)
    name = new_database(postgres)
    database = urlsplit(postgres)._replace(path=f"/{name}").geturl()
    broker = urlsplit(activemq)._replace(path=f"/{name}").geturl()
    stage = Stage(folder.resolve(), "postgres", database, broker, admin=postgres)
    stage.prepare()
    return stage


def kafka_stage(folder: Path, *, database: str, kafka: str) -> Stage:
    """A stage on a database server and Kafka, with topics and groups of its own prefix."""
    folder.mkdir(parents=True, exist_ok=True)
    name = new_database(database)
    dialect = "mysql" if database.startswith("mysql") else "postgres"
    own = urlsplit(database)._replace(path=f"/{name}").geturl()
    broker = urlsplit(kafka)._replace(path=f"/{name}").geturl()
    stage = Stage(folder.resolve(), dialect, own, broker, admin=database)
    stage.prepare()
    return stage


def committed_positions(broker: str) -> dict[str, dict[str, int]]:
    """The last position below each offset that the groups of a prefix have committed on Kafka; -1
    where that is the first."""
    from confluent_kafka import ConsumerGroupTopicPartitions
    from confluent_kafka.admin import AdminClient

    parts = urlsplit(broker)
    prefix = f"{parts.path[1:]}."
    names = {group: f"{prefix}{group}" for group in GROUPS} | {QUEUE: f"_command.{prefix}{QUEUE}"}
    found: dict[str, dict[str, int]] = {}
    with AdminClient({"bootstrap.servers": parts.netloc, "log_level": 0}) as client:
        asked = {
            group: client.list_consumer_group_offsets([ConsumerGroupTopicPartitions(name)])[name]
            for group, name in names.items()
        }
        for group, answer in asked.items():
            places = answer.result(HTTP_SECONDS).topic_partitions
            found[group] = {f"{p.topic}/{p.partition}": p.offset - 1 for p in places}
    return found


def delete_topics(broker: str) -> None:
    """Delete every topic and group of the prefix that a Kafka URL names."""
    from confluent_kafka.admin import AdminClient

    parts = urlsplit(broker)
    prefix = f"{parts.path[1:]}."
    with AdminClient({"bootstrap.servers": parts.netloc, "log_level": 0}) as client:
        topics = [name for name in client.list_topics(timeout=30).topics if prefix in name]
        found = client.list_consumer_groups(request_timeout=15).result(20).valid
        groups = [one.group_id for one in found if prefix in one.group_id]
        futures = list(client.delete_topics(topics).values()) if topics else []
        futures += client.delete_consumer_groups(groups).values() if groups else []
        for future in futures:
            future.exception(20)  # a group whose members were killed is still there for seconds


def nats_stage(folder: Path, *, postgres: str, nats: str) -> Stage:
    """A stage on PostgreSQL and NATS, with streams of its own prefix."""
    folder.mkdir(parents=True, exist_ok=True)
    name = new_database(postgres)
    database = urlsplit(postgres)._replace(path=f"/{name}").geturl()
    broker = urlsplit(nats)._replace(path=f"/{name}").geturl()
    stage = Stage(folder.resolve(), "postgres", database, broker, admin=postgres)
    stage.prepare()
    return stage


def redis_stage(folder: Path, *, postgres: str, redis: str) -> Stage:
    """A stage on PostgreSQL and Redis, with keys of its own prefix."""
    folder.mkdir(parents=True, exist_ok=True)
    name = new_database(postgres)
    database = urlsplit(postgres)._replace(path=f"/{name}").geturl()
    broker = f"{redis.partition('?')[0]}?prefix={name}:"
    stage = Stage(folder.resolve(), "postgres", database, broker, admin=postgres)
    stage.prepare()
    return stage


def delete_keys(broker: str) -> None:
    """Delete every key of the prefix that a Redis URL names."""
    import redis

    url, _, query = broker.partition("?")
    prefix = parse_qs(query)["prefix"][0]
    with redis.Redis.from_url(url, socket_timeout=10) as client:
        for key in client.scan_iter(match=f"{prefix}*", count=1000):
            client.delete(key)


def new_database(server: str) -> str:
    """Make a database on a PostgreSQL or MariaDB server; its name."""
    name = f"crash_{uuid4().hex[:16]}"
    if server.startswith("mysql"):
        with closing(plain_mysql.connect(server, autocommit=True)) as admin:
            admin.execute(f"CREATE DATABASE {name}")
        return name
    import psycopg

    with psycopg.connect(server, autocommit=True, connect_timeout=10) as admin:
        admin.execute(f"CREATE DATABASE {name}")
    return name


async def delete_streams(broker: str) -> None:
    """Delete every stream of the prefix that a NATS URL names."""
    import nats

    parts = urlsplit(broker)
    client = await nats.connect(parts._replace(path="").geturl())
    try:
        streams = client.jetstream()
        for stream in await streams.streams_info():
            if str(stream.config.name).startswith(f"{parts.path[1:]}-"):
                await streams.delete_stream(str(stream.config.name))
    finally:
        await client.close()


def ask_rabbitmq(api: str, method: str, path: str, body: bytes | None = None) -> bytes:
    """One request to RabbitMQ's management interface. Raises OSError."""
    parts = urlsplit(api)
    login = f"{unquote(parts.username or 'guest')}:{unquote(parts.password or 'guest')}".encode()
    request = urllib.request.Request(
        f"http://{parts.hostname}:{parts.port}{path}",
        data=body,
        method=method,
        headers={
            "Authorization": f"Basic {b64encode(login).decode()}",
            "Content-Type": "application/json",
        },
    )
    with urllib.request.urlopen(request, timeout=HTTP_SECONDS) as answer:
        return bytes(answer.read())


def unfinished(stage: Stage) -> dict[str, int]:
    """What is still to be done, by where it lies; empty when everything has settled."""
    questions = {
        "outbox": "SELECT count(*) FROM duly_outbox WHERE status NOT IN ('sent', 'unrouted')",
        "inbox": "SELECT count(*) FROM duly_inbox WHERE status NOT IN ('done', 'skipped')",
        "holds": "SELECT count(*) FROM duly_key_hold",
    }
    found = {where: stage.number(sql) for where, sql in questions.items()}
    wanted = {"event": len(GROUPS), "command": 1}
    expected = sum(
        wanted[kind] * count
        for kind, count in stage.rows("SELECT kind, count(*) FROM crash_sent GROUP BY kind")
    )
    found["effects"] = expected - stage.number("SELECT count(*) FROM crash_effect")
    return {where: count for where, count in found.items() if count}


def ids(rows: Iterable[tuple[Any, ...]]) -> set[str]:
    """The first column as a set."""
    return {row[0] for row in rows}
