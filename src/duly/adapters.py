"""URL scheme -> adapter: the one table of what duly can talk to.

An adapter is imported when its URL is first used, so a program loads only the drivers it needs.
With ``app`` the only place that names concrete adapters.  A scheme that is not in the table is
looked for among the entry points of installed packages, in the groups ``duly.brokers``,
``duly.databases`` and ``duly.sources``; none of them can take a scheme of ours.
"""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from duly.config import Settings
from duly.errors import ConfigurationError
from duly.ports import Broker, ChangeSource, Clock, Database, MakesEngine
from duly.runtime.clock import SystemClock

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = [
    "BROKERS",
    "DATABASES",
    "SOURCES",
    "make_broker",
    "make_change_source",
    "make_database",
]


def _sqlite(url: str, settings: Settings, engines: dict[str, Any], *, clock: Clock) -> Database:
    from duly.databases.sqlite.database import SqliteDatabase

    return SqliteDatabase(
        url,
        prefix=settings.table_prefix,
        busy_seconds=settings.lock_timeout,
        now=clock.time,
        **engines,
    )


def _postgres(url: str, settings: Settings, engines: dict[str, Any], *, clock: Clock) -> Database:
    from duly.databases.postgres.database import PostgresDatabase

    return PostgresDatabase(
        url,
        prefix=settings.table_prefix,
        lock_timeout_seconds=settings.lock_timeout,
        idle_timeout_seconds=settings.handler_timeout,
        listen_url=settings.listen_url,
        **engines,
    )


def _mysql(url: str, settings: Settings, engines: dict[str, Any], *, clock: Clock) -> Database:
    from duly.databases.mysql.database import MysqlDatabase

    return MysqlDatabase(
        url,
        prefix=settings.table_prefix,
        lock_timeout_seconds=settings.lock_timeout,
        idle_timeout_seconds=settings.handler_timeout,
        **engines,
    )


def _embedded(url: str, settings: Settings) -> Broker:
    from duly.brokers.embedded.broker import EmbeddedBroker

    return EmbeddedBroker(url, prefix=settings.table_prefix)


def _rabbitmq(url: str, settings: Settings) -> Broker:
    from duly.brokers.rabbitmq.broker import RabbitMQBroker

    return RabbitMQBroker(url)


def _nats(url: str, settings: Settings) -> Broker:
    from duly.brokers.nats.broker import NatsBroker

    return NatsBroker(url)


def _redis(url: str, settings: Settings) -> Broker:
    from duly.brokers.redis import RedisBroker, RedisPubSubBroker

    if "+pubsub" in url.partition(":")[0].lower():
        return RedisPubSubBroker(url, allow_unsafe=settings.allow_unsafe)
    return RedisBroker(url)


def _activemq(url: str, settings: Settings) -> Broker:
    from duly.brokers.activemq.broker import ActiveMQBroker

    return ActiveMQBroker(url)


def _kafka(url: str, settings: Settings) -> Broker:
    from duly.brokers.kafka.broker import KafkaBroker

    return KafkaBroker(url)


def _sqlite_changes(url: str, *, reader: str, clock: Clock) -> ChangeSource:
    from duly.databases.sqlite.changes import SqliteChanges

    return SqliteChanges(url, reader=reader, clock=clock)


def _postgres_changes(url: str, *, reader: str, clock: Clock) -> ChangeSource:
    from duly.databases.postgres.changes import PostgresChanges

    return PostgresChanges(url, reader=reader, clock=clock)


DATABASES: dict[str, Callable[..., Database]] = {
    "mariadb": _mysql,
    "mysql": _mysql,
    "sqlite": _sqlite,
    "postgres": _postgres,
    "postgresql": _postgres,
}
BROKERS: dict[str, Callable[[str, Settings], Broker]] = {
    "embedded": _embedded,
    "amqp": _rabbitmq,
    "amqps": _rabbitmq,
    "kafka": _kafka,
    "kafkas": _kafka,
    "redis": _redis,
    "rediss": _redis,
    "nats": _nats,
    "stomp": _activemq,
}
SOURCES: dict[str, Callable[..., ChangeSource]] = {
    "sqlite": _sqlite_changes,
    "postgres": _postgres_changes,
    "postgresql": _postgres_changes,
}


def make_database(settings: Settings, given: Any = None, *, clock: Clock | None = None) -> Database:
    """The database of the settings, of a URL, of an Engine or AsyncEngine of the user's, of a
    framework (``MakesEngine``), or the object itself when it is one.

    clock: of a database without a server; the system's by default. Raises ConfigurationError for an
    unknown scheme, MissingExtraError for a driver that is not installed.
    """
    engines = {}
    if given is None or isinstance(given, str):
        url = settings.database if given is None else given
    elif hasattr(given, "map_error"):
        return given  # type: ignore[no-any-return]
    elif isinstance(given, MakesEngine):
        url, engines = given.url, {"engine": given.make_engine()}
    else:
        sync = getattr(given, "sync_engine", None)
        engines = {"async_engine": given} if sync is not None else {"engine": given}
        url = given.url.render_as_string(hide_password=False)
    made: Database = _pick(DATABASES, url, "database")(
        url, settings, engines, clock=SystemClock() if clock is None else clock
    )
    return made


def make_broker(settings: Settings, given: Any = None) -> Broker:
    """The broker of the settings, of a URL, or the object itself when it is one. Raises as
    ``make_database``.
    """
    if given is not None and not isinstance(given, str):
        return given  # type: ignore[no-any-return]
    url = settings.broker if given is None else given
    made: Broker = _pick(BROKERS, url, "broker")(url, settings)
    return made


def make_change_source(url: str, *, reader: str, clock: Clock) -> ChangeSource:
    """The log of changes of a database, read under a name. reader: as ``check_sql_name`` has it.

    Raises ConfigurationError for a database whose changes cannot be read, MissingExtraError.
    """
    made: ChangeSource = _pick(SOURCES, url, "source")(url, reader=reader, clock=clock)
    return made


def _pick(table: dict[str, Any], url: str, what: str) -> Any:
    scheme = url.partition(":")[0].partition("+")[0].lower()
    if scheme in table:
        return table[scheme]
    from importlib.metadata import entry_points  # a fifth of what `import duly` would load

    others = {one.name: one for one in entry_points(group=f"duly.{what}s")}
    if scheme in others:
        return _loaded(others[scheme])
    near = get_close_matches(scheme, [*table, *others], n=1)
    hint = f"; did you mean {near[0]}://?" if near else ""
    known = ", ".join(sorted({*table, *others}))
    raise ConfigurationError(f"no {what} is known for {scheme!r}://; there are {known}{hint}")


def _loaded(entry: EntryPoint) -> Any:
    try:
        return entry.load()
    except Exception as error:
        text = f"the entry point {entry.name} = {entry.value} raised {type(error).__name__}"
        raise ConfigurationError(f"{text}: {error}", code="ADAPTER_IMPORT") from error
