"""``duly cdc``: the streams of changes of an App - look, explain, snapshot, rewind, skip, drop.

Every command needs the App: its rules say which tables of which sources are read.  What changes
something is audited, and asks first (``--yes``) where changes can be left out or repeated.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import click

from duly.admin.cli.arguments import app_argument, app_then
from duly.admin.cli.output import (
    EXIT_OK,
    EXIT_PROBLEM,
    clean,
    document,
    json_option,
    note,
    plain,
    table,
    when,
    write,
)
from duly.admin.cli.target import actor_options, by_of, require_app
from duly.errors import ConfigurationError
from duly.kernel.changes import Change, Transaction

if TYPE_CHECKING:
    from duly.app import App
    from duly.cdc.explain import Explained
    from duly.cdc.operator import StreamStatus
    from duly.cdc.registry import StreamRules

__all__ = ["cdc"]

F = TypeVar("F", bound=Callable[..., object])
T = TypeVar("T")

_TIMEOUT_SECONDS = 30.0
_FOLLOW_SECONDS = 0.5
_yes = click.option("--yes", is_flag=True, help="Do it; without this it is only said.")


def _stream_option(command: F) -> F:
    help_text = "Which stream, where the App has several."
    return click.option("--stream", default="", metavar="NAME", help=help_text)(command)


@click.group()
def cdc() -> None:
    """Changes of a database as events: the streams of an App."""


# --- looking --------------------------------------------------------------------------------------
@cdc.command("list")
@app_argument
@json_option
def list_streams(*, app: str | None, as_json: bool) -> None:
    """The streams, their tables and rules."""
    found = require_app(app).streams().declared()
    if as_json:
        document({"streams": found})
        return
    rows = [(s.stream, s.source, ", ".join(s.tables), ", ".join(s.rules), s.sink) for s in found]
    headers = ("STREAM", "SOURCE", "TABLES", "RULES", "INTO")
    fed = any(s.sink for s in found)
    table(headers if fed else headers[:-1], rows if fed else [row[:-1] for row in rows])


@cdc.command()
@app_argument
@_stream_option
@json_option
def status(*, app: str | None, stream: str, as_json: bool) -> int:
    """How far the streams are, and what stands in the way of one that does not move."""
    found = _ask(require_app(app).streams().status(stream))
    if as_json:
        document({"streams": [_status(one) for one in found]})
    else:
        headers = ("STREAM", "STATE", "POSITION", "MOVED", "BYTES", "CHANGES", "KEPT", "READ")
        table(headers, [_cells(one) for one in found])
        for one in found:
            _write_more(one)
    trouble = any(one.trouble is not None or one.unreached for one in found)
    return EXIT_PROBLEM if trouble else EXIT_OK


def _cells(one: StreamStatus) -> tuple[object, ...]:
    behind: tuple[object, ...] = ("", "", "", "")
    if (source := one.source) is not None:
        read = "now" if source.active else "no"
        behind = (source.lag_bytes, source.lag_transactions, source.kept_bytes, read)
    moved = when(one.moved_at) if one.moved_at else ""
    return (one.stream, one.state, one.position, moved, *behind)


def _write_more(one: StreamStatus) -> None:
    if one.trouble is not None:
        since, tries = when(one.trouble.since), one.trouble.tries
        text = f"{one.stream}: {one.trouble.code} since {since}, {tries} tries"
        write(clean(f"{text}: {one.trouble.detail}"))
    if one.unreached:
        write(clean(f"{one.stream}: the source could not be asked: {one.unreached}"))
    for snapshot in one.snapshots:
        if not snapshot.done:
            how = "goes on" if snapshot.begun else "is due"
            write(clean(f"{one.stream}: the snapshot of {snapshot.table} {how}"))


def _status(one: StreamStatus) -> dict[str, object]:
    shown = dict(plain(one))
    if (trouble := one.trouble) is not None:
        names = ["code", "detail", "position", "tries", "stopped"]
        known = {name: getattr(trouble, name) for name in names}
        shown["trouble"] = {**known, "since": when(trouble.since)}
    if (source := one.source) is not None:
        names = ["end", "lag_bytes", "lag_transactions", "kept_bytes", "active", "detail"]
        shown["source"] = {name: getattr(source, name) for name in names}
    return shown


@cdc.command()
@app_argument
@_stream_option
@click.option("--after", default="", metavar="POSITION", help="Only what was committed behind it.")
@click.option("-n", "limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@json_option
def explain(*, app: str | None, stream: str, after: str, limit: int, as_json: bool) -> None:
    """Which rule would fire on recent changes, and why, or why not. Moves nothing."""
    found = require_app(app)
    rules = found.captures.stream(stream)
    from duly.cdc.explain import explain as explain_changes

    transactions = _ask(_peek(found, rules, after=after, limit=limit))
    lines = list(explain_changes(rules, transactions, found.registry))
    if as_json:
        document({"stream": rules.name, "transactions": len(transactions), "rules": lines})
        return
    table(("POSITION", "NO", "TABLE", "OP", "RULE", "MAKES", "BECAUSE"), list(map(_why, lines)))
    note(f"{len(transactions)} transactions; nothing was moved")


def _why(line: Explained) -> tuple[object, ...]:
    number = "" if line.ordinal < 0 else line.ordinal
    makes = ", ".join(name for name, _ in line.emitted) or (line.error and f"fails: {line.error}")
    place = (line.position, number, line.table or "(all)", line.op)
    nothing = "nothing" if line.ran else "(not run)"
    return (*place, line.rule, makes or nothing, "; ".join(line.asked))


@cdc.command()
@app_argument
@_stream_option
@click.option("--after", default="", metavar="POSITION", help="Only what was committed behind it.")
@click.option("-n", "limit", type=click.IntRange(1, 1000), default=20, show_default=True)
@click.option("--follow", is_flag=True, help="Go on as changes come, until interrupted.")
@click.option("--values", is_flag=True, help="Show the rows too, not only which columns changed.")
@json_option
def tail(
    *,
    app: str | None,
    stream: str,
    after: str,
    limit: int,
    follow: bool,
    values: bool,
    as_json: bool,
) -> None:
    """Recent changes as the source tells them. Moves nothing."""
    if follow and as_json:
        raise click.UsageError("--follow has no end and --json is one document: choose one")
    found = require_app(app)
    rules = found.captures.stream(stream)
    transactions = _ask(_peek(found, rules, after=after, limit=limit))
    if as_json:
        shown = [_change(change, rules, values=values) for one in transactions for change in one]
        document({"stream": rules.name, "changes": shown})
        return
    while True:
        for transaction in transactions:
            for change in transaction:
                line = _change(change, rules, values=values)
                write(clean(" ".join(f"{name}={value}" for name, value in line.items())))
            after = transaction.commit
        if not follow:
            return
        transactions = _ask(_next(found, rules, after=after, limit=limit))


def _change(change: Change, rules: StreamRules, *, values: bool) -> dict[str, object]:
    """One change for people; without its values unless they are asked for, and never those that a
    rule masks.
    """
    change = rules.masked(change)
    shown: dict[str, object] = {
        "position": change.position,
        "ordinal": change.ordinal,
        "table": change.table,
        "op": change.op,
        "key": plain(change.key),
    }
    if change.op == "update" and change.before is not None and change.after is not None:
        before, after = change.before, change.after
        told = (name for name in after if name in before)
        shown["changed"] = [name for name in told if _differs(before[name], after[name])]
    if change.intents:
        shown["intents"] = [intent.name for intent in change.intents]
    if values:
        shown["before"], shown["after"] = plain(change.before), plain(change.after)
    return shown


def _differs(before: object, after: object) -> bool:
    return before is not after and before != after


async def _peek(app: App, rules: StreamRules, *, after: str, limit: int) -> Sequence[Transaction]:
    source = app.make_change_source(rules)
    return await source.peek(rules.tables(), position=after, limit=limit)


async def _next(app: App, rules: StreamRules, *, after: str, limit: int) -> Sequence[Transaction]:
    await asyncio.sleep(_FOLLOW_SECONDS)
    return await _peek(app, rules, after=after, limit=limit)


# --- deciding -------------------------------------------------------------------------------------
@cdc.command()
@app_then("name", metavar="TABLE")
@_stream_option
@actor_options
@json_option
def snapshot(
    *, name: str, app: str | None, stream: str, actor: str | None, reason: str, as_json: bool
) -> None:
    """Read a table again beside the stream, for the rules with on_snapshot."""
    by = by_of(actor, reason)
    taken = require_app(app).streams().snapshot(name, by=by, stream=stream)
    if as_json:
        document({"asked": name, "taken": taken})
    elif taken:
        write(f"asked for a snapshot of {clean(name)}")
    else:
        write(f"asked for {clean(name)}; no rule takes its rows, only the capture is mended")


@cdc.command()
@app_then("position", metavar="POSITION")
@_stream_option
@_yes
@actor_options
@json_option
def rewind(
    *,
    position: str,
    app: str | None,
    stream: str,
    yes: bool,
    actor: str | None,
    reason: str,
    as_json: bool,
) -> None:
    """Go on from another position, or begin anew: "start"."""
    streams = require_app(app).streams()
    if not yes:
        text = "changes behind it are told again, changes before it are left out; add --yes"
        raise click.UsageError(f"this would go on at {position!r:.80}: {text}")
    streams.rewind(position, by=by_of(actor, reason), stream=stream)
    _done("rewind", position, as_json=as_json)


@cdc.command()
@app_then("position", metavar="POSITION")
@_stream_option
@_yes
@actor_options
@json_option
def skip(
    *,
    position: str,
    app: str | None,
    stream: str,
    yes: bool,
    actor: str | None,
    reason: str,
    as_json: bool,
) -> None:
    """Leave out the transaction at which a rule raises; `status` tells its position."""
    if not yes:
        text = "no rule will make anything of it; add --yes"
        raise click.UsageError(f"this would leave out {position!r:.80}: {text}")
    require_app(app).streams().skip(position, by=by_of(actor, reason), stream=stream)
    _done("skip", position, as_json=as_json)


@cdc.command("drop-slot")
@app_argument
@_stream_option
@_yes
@actor_options
@json_option
def drop_slot(
    *, app: str | None, stream: str, yes: bool, actor: str | None, reason: str, as_json: bool
) -> None:
    """Remove what capturing made at the source: slot and publication, or triggers."""
    if not yes:
        text = "what is committed until the next start is not captured; add --yes"
        raise click.UsageError(f"this would remove slot or triggers: {text}")
    streams = require_app(app).streams()
    _ask(streams.drop(by=by_of(actor, reason), stream=stream))
    _done("drop", stream, as_json=as_json)


def _done(verb: str, what: str, *, as_json: bool) -> None:
    if as_json:
        document({"done": verb, "what": what})
    else:
        write(f"{verb} done")


def _ask(asking: Awaitable[T]) -> T:
    async def ask() -> T:
        async with asyncio.timeout(_TIMEOUT_SECONDS):
            return await asking

    try:
        return asyncio.run(ask())
    except TimeoutError:
        text = f"the source did not answer in {_TIMEOUT_SECONDS:.0f} s"
        raise ConfigurationError(text, code="CDC_SOURCE_SILENT") from None
