"""``duly failures``: the failure log, and what a person may do about its entries."""

from __future__ import annotations

import time

import click

from duly.admin.cli.arguments import app_argument, app_then
from duly.admin.cli.boxes import report
from duly.admin.cli.output import clean, document, json_option, note, plain, table, when, write
from duly.admin.cli.target import actor_options, by_of, database_option, open_target
from duly.errors import OperatorError
from duly.kernel.durations import seconds
from duly.outbox.failure_log import STATES, FailureScope, FailureStore
from duly.outbox.operator import Refused, Swept

__all__ = ["failures"]

_HELP = {
    "retry": "Try it again now, with attempts from 0.",
    "drop": "Throw it away.",
    "resolve": "Mark it as settled by hand.",
}


@click.group()
def failures() -> None:
    """Messages that could not be handed over after their commit."""


@failures.command("list")
@app_argument
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice(sorted(STATES)),
    help="Only this state; may be repeated. Default: open.",
)
@click.option("--source", default="", help="Only this source.")
@click.option("--topic", default="", help="Only this topic or queue.")
@click.option("--error", default="", help="Only errors that begin like this.")
@click.option("--since", metavar="DURATION", help="Only the last 15m, 2h, 1d ...")
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True)
@click.option("--after", type=click.IntRange(0), default=0, help="Go on behind this entry.")
@database_option
@json_option
def list_entries(
    *,
    states: tuple[str, ...],
    source: str,
    topic: str,
    error: str,
    since: str | None,
    limit: int,
    after: int,
    app: str | None,
    database: str | None,
    as_json: bool,
) -> None:
    """List entries, the open ones unless told otherwise."""
    scope = _scope(states or ("open",), source, topic, error=error, since=since)
    with open_target(app, database) as target:
        store = FailureStore(target.database.connect)
        total, lines = store.count(scope), store.find(scope, limit=limit, after=after)
    if as_json:
        document({"total": total, "failures": lines})
        return
    headers = ("ID", "STATE", "SOURCE", "TYPE", "TOPIC", "ATTEMPTS", "DUE", "SINCE", "ERROR")
    rows = [
        (
            *(line.id, line.state, line.source, line.type, line.topic, line.attempts),
            *(when(line.due_at), when(line.created_at), line.error),
        )
        for line in lines
    ]
    table(headers, rows)
    note(f"{len(lines)} of {total}")


def _scope(
    states: tuple[str, ...], source: str, topic: str, *, error: str, since: str | None
) -> FailureScope:
    start = time.time() - seconds(since, "--since") if since else 0.0
    return FailureScope(states=states, source=source, topic=topic, error=error, since=start)


@failures.command()
@app_then("entry", metavar="ENTRY", kind=click.INT)
@database_option
@json_option
def show(*, entry: int, app: str | None, database: str | None, as_json: bool) -> None:
    """Everything known of one entry."""
    with open_target(app, database) as target:
        detail = FailureStore(target.database.connect).show(entry)
    if as_json:
        document(detail)
        return
    for name, value in plain(detail.line).items():
        if value not in (None, ""):
            write(f"{name:12} {clean(value)}")
    for line in detail.audit:
        act = clean(f"{when(line.created_at)} {line.verb} by {line.actor} {line.reason}")
        write(f"{'audit':12} {act}")
    write("payload")
    document(detail.payload)


def _add_verb(verb: str) -> None:
    @failures.command(verb, help=f"{_HELP[verb]} Name entries, or --all with conditions.")
    @app_then("entries", metavar="ENTRY", kind=click.INT, many=True)
    @click.option("--all", "every", is_flag=True, help="Every open entry of the conditions.")
    @click.option("--source", default="", help="Only this source.")
    @click.option("--topic", default="", help="Only this topic or queue.")
    @click.option("--error", default="", help="Only errors that begin like this.")
    @click.option("--since", metavar="DURATION", help="Only the last 15m, 2h, 1d ...")
    @click.option("--yes", is_flag=True, help="Do it; without this only the count is shown.")
    @actor_options
    @database_option
    @json_option
    def command(
        *,
        entries: tuple[int, ...],
        every: bool,
        source: str,
        topic: str,
        error: str,
        since: str | None,
        yes: bool,
        actor: str | None,
        reason: str,
        app: str | None,
        database: str | None,
        as_json: bool,
    ) -> int:
        if bool(entries) == every:
            raise click.UsageError("name entries, or give --all")
        if entries and (source or topic or error or since):
            raise click.UsageError("conditions go with --all")
        by = by_of(actor, reason)
        with open_target(app, database) as target:
            hooks = target.app.hooks if target.app else None
            store = FailureStore(target.database.connect, hooks=hooks)
            scope = _scope(("open",), source, topic, error=error, since=since)
            count = store.count(scope) if every else len(entries)
            if not yes and count and (every or count > 1 or verb != "retry"):
                raise click.UsageError(f"this would {verb} {count}; add --yes to do it")
            if every:
                swept = store.act_on_all(verb, scope, by=by, expected=count)
            elif count == 1:
                swept = Swept(int(store.act(verb, entries[0], by=by)), ())
            else:
                changed, refused = 0, []
                for entry in entries:
                    try:
                        changed += store.act(verb, entry, by=by)
                    except OperatorError as problem:
                        refused.append(Refused(entry, problem.code, problem.detail))
                swept = Swept(changed, tuple(refused))
        return report(verb, swept, as_json=as_json)


for _verb in _HELP:
    _add_verb(_verb)
