"""The App's database as Django knows it: ``settings.DATABASES[alias]``.

Owns three things that must agree: the URL by which duly reaches the database for its own work, the
engine whose connections are made by Django's backend (its adapters, functions and session settings)
for handlers to work on, and the guest that lets the ORM use such a connection.  The name of the
database is read when it is needed, since Django's test runner changes it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from duly.errors import ConfigurationError

__all__ = ["DjangoDatabase"]

_NAMES = {"sqlite": "sqlite", "postgresql": "postgresql", "mysql": "mysql"}
_DRIVERS = {"sqlite": "sqlite", "postgresql": "postgresql+psycopg", "mysql": "mysql+pymysql"}
_POSTGRES_OURS = {"assume_role", "isolation_level", "pool", "server_side_binding"}
_MYSQL_KEPT = {"charset", "read_default_file", "unix_socket"}
_GUEST = "guest"


class DjangoDatabase:
    """Django's database of an alias: ``App("shop", database=DjangoDatabase("default"))``.

    using: the alias in ``settings.DATABASES``. Raises ConfigurationError, when it is used, for a
    backend that is not PostgreSQL's, MySQL's or SQLite's (DJANGO_BACKEND) and for a SQLite database
    in memory (DJANGO_MEMORY_DATABASE).
    """

    def __init__(self, using: str = "default") -> None:
        self.using = using
        self._threads = threading.local()

    @property
    def url(self) -> str:
        """Where it is now, with the password."""
        from sqlalchemy.engine import URL

        connection = self._connection()
        given = connection.settings_dict
        if connection.vendor == "sqlite":
            if connection.is_in_memory_db():
                hint = 'a test database in a file: "TEST": {"NAME": BASE_DIR / "test.sqlite3"}'
                text = f"{self.using} is in memory, where a relay cannot see it; give it a file, or"
                raise ConfigurationError(f"{text} {hint}", code="DJANGO_MEMORY_DATABASE")
            return f"sqlite:///{quote(str(Path(given['NAME']).absolute()))}"
        host, query = given["HOST"] or None, _query(connection.vendor, given["OPTIONS"])
        if host is not None and host.startswith("/"):
            query["unix_socket" if connection.vendor == "mysql" else "host"], host = host, None
        made = URL.create(
            _NAMES[connection.vendor],
            username=given["USER"] or None,
            password=given["PASSWORD"] or None,
            host=host or ("localhost" if connection.vendor == "mysql" else None),
            port=int(given["PORT"]) if given["PORT"] else None,
            database=given["NAME"] or None,
            query=query,
        )
        return made.render_as_string(hide_password=False)

    def make_engine(self) -> Any:
        """An Engine whose connections Django makes; where handlers work."""
        from sqlalchemy import create_engine, event
        from sqlalchemy.engine import make_url

        vendor = self._connection().vendor
        url = make_url(self.url).set(drivername=_DRIVERS[vendor])
        if vendor == "sqlite":
            url = url.set(database=str(Path(self._connection().settings_dict["NAME"]).absolute()))
        engine = create_engine(
            url,
            creator=self._connect,
            execution_options={"duly_shared": self.shared, "duly_using": self.using},
        )
        if vendor == "sqlite":
            event.listen(engine, "begin", lambda core: core.exec_driver_sql("BEGIN IMMEDIATE"))
        return engine

    @contextmanager
    def shared(self, reach: Callable[[], Any]) -> Iterator[Callable[[], None]]:
        """Let the ORM work in a handler's transaction inside the block, in this thread.

        reach: opens the transaction where it is not yet, and gives its driver connection. Yields
        what raises when Django is against a commit; on success ``on_commit`` functions are run.
        """
        from django.db import connections

        from duly.frameworks.django.guest import guest_class, run_hooks

        for other in connections.all(initialized_only=True):
            other.close_if_unusable_or_obsolete()  # as before every request
        outer = connections[self.using]
        guest = getattr(self._threads, _GUEST, None)
        if guest is None or guest.settings_dict is not outer.settings_dict:
            backend: Any = type(outer)
            guest = guest_class(backend)(outer.settings_dict, self.using)
            setattr(self._threads, _GUEST, guest)
        guest.welcome(reach)
        connections[self.using] = guest
        hooks: list[tuple[Any, ...]] = []
        try:
            yield guest.approve
            hooks = guest.run_on_commit
        finally:
            connections[self.using] = outer
            guest.part()
        run_hooks(hooks)

    def _connect(self) -> Any:
        """A driver connection of a handler's own, set up as Django does it."""
        outer = self._connection()
        given = dict(outer.settings_dict)
        # Not one of a pool's: it would never be given back.
        given["OPTIONS"] = {n: v for n, v in given["OPTIONS"].items() if n != "pool"}
        made = type(outer)(given, self.using)
        made.connect()
        if made.vendor != "sqlite":  # where BEGIN is said, not implied
            made.set_autocommit(False)
        return made.connection

    def _connection(self) -> Any:
        from django.db import connections

        found = connections[self.using]
        if found.vendor not in _NAMES:
            raise ConfigurationError(
                f"{self.using} is of {found.vendor}; duly knows {', '.join(_NAMES)}",
                code="DJANGO_BACKEND",
            )
        return found


def _query(vendor: str, options: dict[str, Any]) -> dict[str, str]:
    """What of a backend's OPTIONS says how to get there."""
    if vendor == "postgresql":
        return {
            name: str(value)
            for name, value in options.items()
            if name not in _POSTGRES_OURS and isinstance(value, str | int)
        }
    found = {name: str(options[name]) for name in _MYSQL_KEPT & set(options)}
    return found | {f"ssl_{name}": str(value) for name, value in options.get("ssl", {}).items()}
