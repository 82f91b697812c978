"""``duly db``: the tables of an App.

Owns nothing but the commands; what is done is ``outbox.schema``'s and ``outbox.retention``'s.
Everywhere but on SQLite - there the tables make themselves - a schema changes only by ``upgrade``,
by hand, or by running what ``sql`` prints.
"""

from __future__ import annotations

import click

from duly.admin.cli.arguments import app_argument
from duly.admin.cli.output import (
    EXIT_OK,
    EXIT_PROBLEM,
    document,
    json_option,
    plain,
    show_findings,
    table,
    write,
)
from duly.admin.cli.target import database_option, open_target
from duly.errors import ConfigurationError
from duly.outbox.retention import Keep, Retention
from duly.outbox.schema import Schema
from duly.ports import PublishesInSql

__all__ = ["db"]


@click.group()
def db() -> None:
    """The tables: upgrade, sql, routine, status, check, prune."""


@db.command()
@app_argument
@database_option
@json_option
def upgrade(*, app: str | None, database: str | None, as_json: bool) -> None:
    """Run the pending migrations. Safe to repeat, and to run in several places at once."""
    with open_target(app, database, create=True) as found:
        schema = Schema(found.database, found.name)
        done = schema.upgrade()
        status = schema.status()
    if as_json:
        document({"done": done, "version": status.current})
    else:
        for name in done:
            write(f"ran {name}")
        write(f"the tables have schema {status.current}")


@db.command()
@app_argument
@click.option("--after", type=click.IntRange(0), default=0, help="Only above this version.")
@database_option
@json_option
def sql(*, after: int, app: str | None, database: str | None, as_json: bool) -> None:
    """Print the migrations as SQL; touches no database."""
    with open_target(app, database, create=True) as found:
        text = Schema(found.database, found.name).sql(after=after)
    if as_json:
        document({"sql": text})
    else:
        write(text)


@db.command()
@app_argument
@database_option
@json_option
def routine(*, app: str | None, database: str | None, as_json: bool) -> None:
    """Print the SQL routine that publishes from triggers and other languages; touches no database.

    It goes to psql or mysql as it is, after the tables are there.
    """
    with open_target(app, database, create=True) as found:
        made = found.database
        if not isinstance(made, PublishesInSql):
            raise ConfigurationError("SQLite has no routines: publish from Python there")
        text = made.publish_routine(found.name)
        by_mysql = made.dialect == "mysql"
    if as_json:
        document({"sql": text})
    else:
        write(f"DELIMITER //\n{text}//\nDELIMITER ;" if by_mysql else text)


@db.command()
@app_argument
@database_option
@json_option
def status(*, app: str | None, database: str | None, as_json: bool) -> int:
    """Which version the tables have; exit code 1 when migrations are pending."""
    with open_target(app, database) as found:
        now = Schema(found.database, found.name).status()
    if as_json:
        document(now)
    else:
        for name, value in plain(now).items():
            write(f"{name.replace('_', ' '):12} {_listed(value)}")
    return EXIT_PROBLEM if now.pending else EXIT_OK


def _listed(value: object) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value)


@db.command()
@app_argument
@database_option
@json_option
def check(*, app: str | None, database: str | None, as_json: bool) -> int:
    """Compare tables, columns and indexes with what the migrations make."""
    with open_target(app, database) as found:
        findings = Schema(found.database, found.name).check()
    return show_findings(findings, as_json=as_json)


@db.command()
@app_argument
@click.option(
    "--older-than",
    metavar="DURATION",
    help="How long finished messages are kept; at least, and by default, the dedupe window.",
)
@click.option("--yes", is_flag=True, help="Do it; without this only the counts are shown.")
@database_option
@json_option
def prune(
    *,
    older_than: str | None,
    yes: bool,
    app: str | None,
    database: str | None,
    as_json: bool,
) -> None:
    """Delete what is finished and old: sent, handled, skipped, dropped; nothing undelivered."""
    with open_target(app, database) as found:
        window = found.settings.dedupe_window
        age = older_than or window
        keep = Keep(dedupe_window=window, outbox=age, inbox=age, failures=age)
        retention = Retention(found.database.connect, keep)
        if not yes:
            counts = ", ".join(f"{n} {name}" for name, n in plain(retention.count()).items() if n)
            if counts:
                raise click.UsageError(f"this would delete rows: {counts}; add --yes to do it")
        pruned = retention.prune() if yes else retention.count()
    if as_json:
        document(pruned)
    else:
        table(("TABLE", "DELETED"), list(plain(pruned).items()))
