"""``duly outbox`` and ``duly inbox``: the operator's verbs, the same for both.

The invariant: nothing is done to more than the named message without ``--yes``; without it the
command says how many it would be and ends with a usage error.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

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
from duly.admin.cli.target import actor_options, by_of, database_option, open_target
from duly.errors import OperatorError
from duly.kernel.durations import seconds
from duly.kernel.lifecycle import INBOX, INBOX_STATUSES, OUTBOX, OUTBOX_STATUSES, VERBS
from duly.outbox.operator import By, Detail, Operator, Refused, Scope, Stuck, Swept

__all__ = ["inbox", "outbox"]

F = TypeVar("F", bound=Callable[..., Any])

_HELP = {
    "retry": "Back to work, with attempts from 0.",
    "resend": "Back to work under the same id, for one more attempt than it had.",
    "reprocess": "Handle it as if it had never been received; its effects are kept.",
    "skip": "Pass it over; its key goes on.",
    "drop": "Throw it away; its key goes on.",
}
_DESTRUCTIVE = frozenset({"skip", "drop"})


def _scope_options(box: str) -> Callable[[F], F]:
    statuses = sorted(OUTBOX_STATUSES if box == OUTBOX else INBOX_STATUSES)

    def add(command: F) -> F:
        if box == INBOX:
            command = click.option("--group", default="", help="Only this group.")(command)
        command = click.option("--since", metavar="DURATION", help="Only the last 15m, 2h, 1d ...")(
            command
        )
        command = click.option("--error", default="", help="Only errors that begin like this.")(
            command
        )
        command = click.option("--topic", default="", help="Only this topic or queue.")(command)
        return click.option(
            "--status",
            "statuses",
            multiple=True,
            type=click.Choice(statuses),
            help="Only this status; may be repeated. Default: failed and held.",
        )(command)

    return add


def _scope(statuses: tuple[str, ...], since: str | None, **conditions: str) -> Scope:
    start = time.time() - seconds(since, "--since") if since else 0.0
    return Scope(statuses=statuses or ("failed", "held"), since=start, **conditions)


def _make(box: str) -> click.Group:
    noun = "stored" if box == OUTBOX else "received"

    @click.group(box, help=f"Look at {noun} messages, and act on those that need somebody.")
    def group() -> None:
        pass

    for add in (_add_list, _add_show, _add_stats, _add_edit):
        add(group, box)
    for verb in VERBS[box]:
        if verb != "edit":
            _add_verb(group, box, verb)
    for verb in ("pause", "resume"):
        _add_switch(group, box, verb)
    return group


def _add_list(group: click.Group, box: str) -> None:
    @group.command("list", help="List messages; those that need somebody, unless told otherwise.")
    @app_argument
    @_scope_options(box)
    @click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True)
    @click.option("--after", type=click.IntRange(0), default=0, help="Go on behind this row.")
    @database_option
    @json_option
    def command(
        *, app: str, database: str, as_json: bool, limit: int, after: int, **conditions: Any
    ) -> None:
        scope = _scope(**conditions)
        with open_target(app, database) as target:
            operator = target.operator()
            total = operator.count(box, scope)
            lines = operator.find(box, scope, limit=limit, after=after)
            stuck = operator.stuck(box)
        if as_json:
            document({"total": total, "messages": lines, "stuck": stuck})
            return
        origin = ("GROUP",) if box == INBOX else ()
        headers = ("ROW", "STATUS", "TYPE", "TOPIC", *origin, "KEY", "ATTEMPTS", "SINCE", "ERROR")
        rows = [
            (
                *(line.id, line.status, line.type, line.topic),
                *((line.group,) if box == INBOX else ()),
                *(line.key, line.attempts, when(line.created_at), line.error),
            )
            for line in lines
        ]
        table(headers, rows)
        note(f"{len(lines)} of {total}")
        _show_stuck(stuck)


def _show_stuck(stuck: Sequence[Stuck]) -> None:
    for one in stuck:
        messages = "message waits" if one.rows == 1 else "messages wait"
        note(f"{one.topic}: {one.rows} {messages} since {when(one.since)}: {one.error}")


def _add_show(group: click.Group, box: str) -> None:
    @group.command("show", help="Everything known of one message.")
    @app_then("row", metavar="ROW", kind=click.INT)
    @database_option
    @json_option
    def command(*, row: int, app: str, database: str, as_json: bool) -> None:
        with open_target(app, database) as target:
            detail = target.operator().show(box, row)
        if as_json:
            document(detail)
        else:
            _show(detail)


def _show(detail: Detail) -> None:
    for name, value in plain(detail.line).items():
        if value not in (None, ""):
            write(f"{name:12} {clean(value)}")
    if detail.waits_for is not None:
        blocker = "itself" if detail.waits_for == detail.line.id else f"row {detail.waits_for}"
        write(f"{'key blocked':12} by {blocker}")
    for name, value in detail.headers.items():
        write(f"{'header':12} {clean(name)}: {clean(value)}")
    for effect in detail.effects:
        state = clean(f"{effect.step}: {effect.state}, provider key {effect.provider_key}")
        write(f"{'effect':12} {state}")
    for line in detail.audit:
        act = clean(f"{when(line.created_at)} {line.verb} by {line.actor} {line.reason}")
        write(f"{'audit':12} {act}")
    write("payload")
    document(detail.payload)


def _add_stats(group: click.Group, box: str) -> None:
    @group.command("stats", help="Counts by topic and status; reads the whole box.")
    @app_argument
    @database_option
    @json_option
    def command(*, app: str, database: str, as_json: bool) -> None:
        with open_target(app, database) as target:
            operator = target.operator()
            stats, paused = operator.stats(box), operator.paused(box)
            stuck = operator.stuck(box)
        if as_json:
            document({"paused": paused, "stats": stats, "stuck": stuck})
            return
        rows = [(s.group, s.topic, s.status, s.rows, when(s.oldest_at)) for s in stats]
        table(("GROUP", "TOPIC", "STATUS", "MESSAGES", "OLDEST"), rows)
        for name in paused:
            note(f"{name} is paused")
        _show_stuck(stuck)


def _add_verb(group: click.Group, box: str, verb: str) -> None:
    @group.command(verb, help=f"{_HELP[verb]} Name rows, or --all with conditions.")
    @app_then("rows", metavar="ROW", kind=click.INT, many=True)
    @click.option(
        "--all", "every", is_flag=True, help="Every failed or held one of the conditions."
    )
    @_scope_options(box)
    @click.option("--out-of-order", is_flag=True, help="Even where its key has moved on.")
    @click.option("--yes", is_flag=True, help="Do it; without this only the count is shown.")
    @actor_options
    @database_option
    @json_option
    def command(
        *,
        rows: tuple[int, ...],
        every: bool,
        out_of_order: bool,
        yes: bool,
        actor: str | None,
        reason: str,
        app: str,
        database: str,
        as_json: bool,
        **conditions: Any,
    ) -> int:
        if bool(rows) == every:
            raise click.UsageError("name rows, or give --all")
        if rows and any(conditions.values()):
            raise click.UsageError("conditions go with --all")
        by = by_of(actor, reason)
        with open_target(app, database) as target:
            operator = target.operator()
            if every:
                scope = _scope(**conditions)
                count = operator.count(box, scope)
                _confirm(verb, count, yes=yes)
                swept = operator.act_on_all(
                    verb, box, scope, by=by, expected=count, out_of_order=out_of_order
                )
            else:
                if verb in _DESTRUCTIVE or len(rows) > 1:
                    _confirm(verb, len(rows), yes=yes)
                swept = _act_on(operator, verb, box, rows=rows, by=by, out_of_order=out_of_order)
        return report(verb, swept, as_json=as_json)


def _act_on(
    operator: Operator,
    verb: str,
    box: str,
    *,
    rows: tuple[int, ...],
    by: By,
    out_of_order: bool,
) -> Swept:
    """One by one; a single message's refusal is the command's error."""
    if len(rows) == 1:
        acted = operator.act(verb, box, rows[0], by=by, out_of_order=out_of_order)
        return Swept(int(acted.changed), ())
    changed, refused = 0, []
    for row in rows:
        try:
            changed += operator.act(verb, box, row, by=by, out_of_order=out_of_order).changed
        except OperatorError as error:
            refused.append(Refused(row, error.code, error.detail))
    return Swept(changed, tuple(refused))


def _confirm(verb: str, count: int, *, yes: bool) -> None:
    if not yes and count:
        noun = "message" if count == 1 else "messages"
        raise click.UsageError(f"this would {verb} {count} {noun}; add --yes to do it")


def report(verb: str, swept: Swept, *, as_json: bool) -> int:
    """Print what a verb did; returns the exit code."""
    if as_json:
        document({"verb": verb, "changed": swept.changed, "refused": swept.refused})
    else:
        write(f"{verb}: {swept.changed} changed, {len(swept.refused)} refused")
        for refused in swept.refused:
            note(f"row {refused.id}: [{refused.code}] {refused.detail}")
    return EXIT_PROBLEM if swept.refused else EXIT_OK


def _add_edit(group: click.Group, box: str) -> None:
    @group.command("edit", help="Replace the payload and put it back to work in its position.")
    @app_then("row", metavar="ROW", kind=click.INT)
    @click.option("--payload", help="The new payload, as JSON.")
    @click.option("--file", "file", type=click.File("rb"), help="A file with it; '-' is the input.")
    @click.option("--message-id", help="Only if the row still holds this message.")
    @click.option("--out-of-order", is_flag=True, help="Even where its key has moved on.")
    @actor_options
    @database_option
    @json_option
    def command(
        *,
        row: int,
        payload: str | None,
        file: Any,
        message_id: str | None,
        out_of_order: bool,
        actor: str | None,
        reason: str,
        app: str,
        database: str,
        as_json: bool,
    ) -> None:
        if (payload is None) == (file is None):
            raise click.UsageError("give --payload or --file")
        by = by_of(actor, reason)
        with open_target(app, database) as target:
            cap = target.settings.payload_bytes_max
            content = file.read(cap + 1) if file is not None else (payload or "").encode()
            acted = target.operator().edit(
                box, row, content, by=by, message_id=message_id, out_of_order=out_of_order
            )
        if as_json:
            document(acted)
        else:
            word = "edited" if acted.changed else "was edited already"
            write(f"row {acted.id} {word}: message {acted.message_id}, {acted.status}")


def _add_switch(group: click.Group, box: str, verb: str) -> None:
    noun = "topic" if box == OUTBOX else "group"
    what = "Stop" if verb == "pause" else "Go on with"
    doing = "sending" if box == OUTBOX else "handling"

    @group.command(verb, help=f"{what} {doing} for a {noun}, in every process, within seconds.")
    @app_then("name", metavar=noun.upper())
    @actor_options
    @database_option
    @json_option
    def command(
        *, name: str, actor: str | None, reason: str, app: str, database: str, as_json: bool
    ) -> None:
        with open_target(app, database) as target:
            switch = getattr(target.operator(), verb)
            changed = switch(box, name, by=by_of(actor, reason))
        if as_json:
            document({"verb": verb, noun: name, "changed": changed})
        else:
            write(f"{noun} {clean(name)}: {verb}d" + ("" if changed else " already"))


outbox = _make(OUTBOX)
inbox = _make(INBOX)
