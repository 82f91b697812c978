"""URL scheme -> adapter: the one table of what duly can talk to.

An adapter is imported when its URL is first used, so a program loads only the drivers it needs.
With ``app`` the only place that names concrete adapters.  A scheme that is not in the table is
looked for among the entry points of installed packages, in the groups ``duly.brokers``,
``duly.databases``, ``duly.sources`` and ``duly.targets``; none of them can take a scheme of ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from duly.config import Settings
from duly.errors import ConfigurationError
from duly.ports import Broker, Clock, Database, MakesEngine
from duly.runtime.clock import SystemClock

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from duly.branches import PreparesMessages
    from duly.rows import RowSource
    from duly.sources import ChangeSource
    from duly.targets import FileTarget

__all__ = [
    "BROKERS",
    "DATABASES",
    "PARTICIPANTS",
    "ROWS",
    "SOURCES",
    "TARGETS",
    "Places",
    "make_broker",
    "make_change_source",
    "make_database",
    "make_file_target",
    "make_participant",
    "make_row_source",
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


def _activemq_xa(url: str) -> PreparesMessages:
    from duly.brokers.activemq.xa.broker import XaBroker

    return XaBroker(url)


def _kafka(url: str, settings: Settings) -> Broker:
    from duly.brokers.kafka.broker import KafkaBroker

    return KafkaBroker(url)


def _sqlite_changes(url: str, *, reader: str, clock: Clock) -> ChangeSource:
    from duly.databases.sqlite.changes import SqliteChanges

    return SqliteChanges(url, reader=reader, clock=clock)


def _postgres_changes(url: str, *, reader: str, clock: Clock) -> ChangeSource:
    from duly.databases.postgres.changes import PostgresChanges

    return PostgresChanges(url, reader=reader, clock=clock)


def _mysql_changes(url: str, *, reader: str, clock: Clock) -> ChangeSource:
    from duly.databases.mysql.changes import MysqlChanges

    return MysqlChanges(url, reader=reader, clock=clock)


def _sftp(url: str, **options: Any) -> FileTarget:
    from duly.files.sftp import SftpTarget

    return SftpTarget(url, **options)


def _ftp(url: str, **options: Any) -> FileTarget:
    from duly.files.ftp import FtpTarget

    return FtpTarget(url, **options)


def _local(url: str, **options: Any) -> FileTarget:
    from duly.files.local import LocalTarget

    return LocalTarget(url, **options)


def _sqlite_rows(url: str) -> RowSource:
    from duly.databases.sqlite.extract import SqliteRows

    return SqliteRows(url)


def _postgres_rows(url: str) -> RowSource:
    from duly.databases.postgres.extract import PostgresRows

    return PostgresRows(url)


def _mysql_rows(url: str) -> RowSource:
    from duly.databases.mysql.extract import MysqlRows

    return MysqlRows(url)


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
PARTICIPANTS: dict[str, Callable[[str], PreparesMessages]] = {"activemq": _activemq_xa}
SOURCES: dict[str, Callable[..., ChangeSource]] = {
    "mariadb": _mysql_changes,
    "mysql": _mysql_changes,
    "sqlite": _sqlite_changes,
    "postgres": _postgres_changes,
    "postgresql": _postgres_changes,
}
ROWS: dict[str, Callable[..., RowSource]] = {
    "mariadb": _mysql_rows,
    "mysql": _mysql_rows,
    "postgres": _postgres_rows,
    "postgresql": _postgres_rows,
    "sqlite": _sqlite_rows,
}
TARGETS: dict[str, Callable[..., FileTarget]] = {
    "sftp": _sftp,
    "ftp": _ftp,
    "ftps": _ftp,
    "file": _local,
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


def make_participant(settings: Settings, given: Any, *, clock: Clock) -> Any:
    """What takes part in global transactions: a broker of ``PARTICIPANTS``, else a database.
    Raises as ``make_database``.
    """
    scheme = given.partition(":")[0].partition("+")[0] if isinstance(given, str) else ""
    if scheme in PARTICIPANTS:
        return PARTICIPANTS[scheme](given)
    return make_database(settings, given, clock=clock)


def make_file_target(url: str, **options: Any) -> FileTarget:
    """The folder of a URL. options: what its adapter takes besides.

    Raises ConfigurationError for an unknown scheme, a bad URL or option.
    """
    made: FileTarget = _pick(TARGETS, url, "target")(url, **options)
    return made


def make_change_source(url: str, *, reader: str, clock: Clock) -> ChangeSource:
    """The log of changes of a database, read under a name. reader: as ``check_sql_name`` has it.

    Raises ConfigurationError for a database whose changes cannot be read, MissingExtraError.
    """
    made: ChangeSource = _pick(SOURCES, url, "source")(url, reader=reader, clock=clock)
    return made


def make_row_source(url: str, **options: Any) -> RowSource:
    """A database to be read by a batch job: one of ours, else any that SQLAlchemy has a dialect
    for. options: what its adapter takes besides.

    Raises ConfigurationError for an unknown scheme or a bad URL, MissingExtraError.
    """
    scheme = url.partition(":")[0].partition("+")[0].lower()
    if scheme in ROWS:
        return ROWS[scheme](url, **options)
    from duly.databases.alchemy.extract import AlchemyRows

    return AlchemyRows(url, **options)


class Places:
    """How the steps of batch jobs get at the outside. own_url: of the App's own database."""

    def __init__(self, own_url: Callable[[], str]) -> None:
        self._own_url = own_url

    def row_source(self, url: str | None, **options: Any) -> RowSource:
        """As ``make_row_source``; None: of the App's own database."""
        return make_row_source(self._own_url() if url is None else url, **options)

    def file_target(self, url: str, **options: Any) -> FileTarget:
        """As ``make_file_target``."""
        return make_file_target(url, **options)


def _pick(table: dict[str, Any], url: str, what: str) -> Any:
    scheme = url.partition(":")[0].partition("+")[0].lower()
    if scheme in table:
        return table[scheme]
    from importlib.metadata import entry_points  # a fifth of what `import duly` would load

    others = {one.name: one for one in entry_points(group=f"duly.{what}s")}
    if scheme in others:
        return _loaded(others[scheme])
    from difflib import get_close_matches

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
