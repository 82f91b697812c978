"""What a command works on: an App, or just the database of one.

Owns the order in which it is looked for - ``MODULE:APP`` on the command line, ``--database``, then
``DULY_APP`` and ``app`` in ``duly.toml``, then a configured database - and opens it.  The
invariant: a command that only looks never makes a database file that was not there.
"""

from __future__ import annotations

import getpass
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlsplit

import click

from duly.config import Settings, chosen_app, load
from duly.errors import ConfigurationError
from duly.outbox.operator import By, Operator
from duly.ports import Database

if TYPE_CHECKING:
    from duly.app import App

__all__ = [
    "Target",
    "actor_options",
    "by_of",
    "database_option",
    "missing_broker_file",
    "open_target",
    "require_app",
]

F = TypeVar("F", bound=Callable[..., Any])

_NOT_PLAIN = re.compile(r"[^\w.@-]+")


@dataclass(frozen=True)
class Target:
    """A database with its settings, and the App they belong to where one was named."""

    settings: Settings
    database: Database
    app: App | None

    @property
    def name(self) -> str:
        """The App's name; "" without an App."""
        return self.app.name if self.app else ""

    def missing_file(self) -> str | None:
        """The path of a SQLite file that is not there yet."""
        path: str | None = getattr(self.database, "path", None)
        return path if path is not None and not Path(path).exists() else None

    def operator(self) -> Operator:
        """The operator's service on this database."""
        return Operator(
            self.database.connect,
            hooks=self.app.hooks if self.app else None,
            registry=self.app.registry if self.app else None,
            payload_bytes_max=self.settings.payload_bytes_max,
        )


def database_option(command: F) -> F:
    """``--database``, given as ``database``."""
    return click.option(
        "--database", metavar="URL", help="A database to work on without an App (or DULY_DATABASE)."
    )(command)


def actor_options(command: F) -> F:
    """``--reason`` and ``--actor``, for what goes into the audit."""
    command = click.option("--reason", default="", help="Why, for the audit.")(command)
    return click.option("--actor", help="Who, for the audit; by default the user's name.")(command)


def by_of(actor: str | None, reason: str) -> By:
    """Who acts and why."""
    return By(actor if actor is not None else _user(), reason)


def _user() -> str:
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a container with a number for a user and no name for it
        return "unknown"
    return _NOT_PLAIN.sub("_", name)[:100] or "unknown"


@contextmanager
def open_target(
    spec: str | None, database: str | None, *, create: bool = False
) -> Iterator[Target]:
    """Find and open what a command works on.

    create: whether a SQLite file may be made. Raises ConfigurationError, click's UsageError.
    """
    target = _find(spec, database)
    path = target.missing_file()
    if path is not None and not create:
        text = f"there is no database file {path}; `duly db upgrade` makes one"
        raise ConfigurationError(text, code="DATABASE_MISSING")
    try:
        yield target
    finally:
        target.database.close()


def _find(spec: str | None, database: str | None) -> Target:
    from duly.adapters import make_database

    if spec and database:
        raise click.UsageError("give an App or --database, not both")
    if database:
        settings = load({"database": database})
        return Target(settings, make_database(settings), None)
    if chosen := spec or chosen_app():
        from duly.admin.cli.loading import load_app

        app = load_app(chosen)
        return Target(app.settings, app.database, app)
    settings = load()
    if settings.database == Settings().database:
        raise click.UsageError(
            "name an App (MODULE:APP, DULY_APP, or app = in duly.toml) or give --database URL"
        )
    return Target(settings, make_database(settings), None)


def missing_broker_file(url: str) -> str | None:
    """The path of an embedded broker's file that is not there yet: a command that only looks must
    not make it.
    """
    parts = urlsplit(url)
    if parts.scheme != "embedded":
        return None
    path = unquote(parts.path)[1:]
    return None if Path(path).exists() else path


def require_app(spec: str | None) -> App:
    """The App of a command that needs one. Raises click's UsageError, ConfigurationError."""
    from duly.admin.cli.loading import load_app

    chosen = spec or chosen_app()
    if not chosen:
        raise click.UsageError("name an App: MODULE:APP, DULY_APP, or app = in duly.toml")
    return load_app(chosen)
